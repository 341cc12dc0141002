"""The files of a job to the inputs of its model, decoded in a process of their own (see `loader_child`)."""

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from meddaemon.domain.conditions import ALWAYS
from meddaemon.domain.contract import InputContract, ModelContract
from meddaemon.domain.errors import ModelFailed, OutOfMemory, UndecodablePixels
from meddaemon.failpoints import reach
from meddaemon.inference import messages
from meddaemon.inference.messages import Received, Sealed
from meddaemon.inference.processes import Child, ForkServer, Interrupted, cause
from meddaemon.inference.values import (
    Input,
    array_of,
    failure_from,
    input_as_message,
    input_from,
    input_message,
    refusal_from,
)

_MODULE = "meddaemon.inference.loader_child"
BEGUN, DONE = 1, 2
"""What the loader writes at the place of a file, so that after a crash it is known which one it was."""
_DECODERS = tuple(f"imagecodecs._{name}" for name in ("imcd", "jpeg8", "jpegls", "jpeg2k", "htj2k"))


@dataclass(frozen=True, eq=False, kw_only=True)
class Prepared:
    """What one run of a model takes, decoded and checked, in memory that nobody can change any more.

    Keeps the voxels in memory until it is closed or forgotten. `seconds` is how long which step took.
    """

    contract: ModelContract
    inputs: Mapping[str, tuple[Mapping[str, Any], Sealed]]
    """Each input as a message, and its array, in the order in which they were given."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    on_close: list[Callable[[], None]] = field(default_factory=list, repr=False)
    """What else is to be done once no model runs on it any more."""

    @property
    def nbytes(self) -> int:
        """How much memory the arrays take."""
        return sum(array.nbytes for _, array in self.inputs.values())

    def values(self) -> dict[str, Input]:
        """Return the inputs themselves, mapped. Raises `ModelFailed` when the loader sent what contradicts itself."""
        return {name: input_from(said, array) for name, (said, array) in self.inputs.items()}

    def let_go(self) -> None:
        """Tell those who waited for the end of the run; what was read stays."""
        while self.on_close:
            self.on_close.pop()()

    def close(self) -> None:
        """Let go of the memory."""
        self.let_go()
        for _, array in self.inputs.values():
            array.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def prepared(contract: ModelContract, values: Mapping[str, Input]) -> Prepared:
    """Return inputs that are in memory already, by the slots of the contract, ready for a run. Raises MemoryError."""
    return Prepared(
        contract=contract,
        inputs={name: (input_message(value)[0], Sealed.of(array_of(value))) for name, value in values.items()},
    )


class Loader:
    """Decodes the inputs of jobs, each in a fresh process with the decoders loaded; usable from several threads."""

    def __init__(self, *, sandbox: str = "preferred", memory_bytes: int = 2**40) -> None:
        """`sandbox` is what `worker.sandbox` says, `memory_bytes` what one job may take."""
        self._sandbox = sandbox
        self._memory_bytes = memory_bytes
        self._server = ForkServer(_MODULE, _DECODERS)
        self._children: set[Child] = set()

    def load(self, contract: ModelContract, inputs: Mapping[str, Sequence[Path]], *, time_limit: float) -> Prepared:
        """Return the inputs of one run, from one set of instances per input.

        Raises `InputRefused` (what `volume.assemble` raises, and `UndecodablePixels` with the reasons
        `decoder_crashed` and `decoder_ran_away`, naming the instance), and `ModelFailed` when it is not the input
        that is to blame: the time was over, memory ran out, it was interrupted.
        """
        deadline = time.monotonic() + time_limit
        try:
            child = self._server.fork(deadline=deadline)
        except TimeoutError:
            raise ModelFailed(f"no loader within the time limit of {time_limit:g} s") from None
        self._children.add(child)
        progress = os.memfd_create("progress", os.MFD_CLOEXEC)
        try:
            return self._answer(child, contract, inputs, progress, deadline, time_limit)
        finally:
            self._children.discard(child)
            child.end()
            os.close(progress)

    def start(self) -> None:
        """Have the decoders loaded from now on."""
        self._server.start()

    def kill(self) -> None:
        """Make every load in progress fail at once, from any thread."""
        for child in list(self._children):
            child.kill()

    def close(self) -> None:
        """End the processes."""
        self._server.close()

    def _answer(
        self,
        child: Child,
        contract: ModelContract,
        inputs: Mapping[str, Sequence[Path]],
        progress: int,
        deadline: float,
        time_limit: float,
    ) -> Prepared:
        instances: list[str] = []
        try:
            messages.send(child.connection, self._request(contract, inputs), files=(progress,), deadline=deadline)
            reach("decoding")
            received = messages.receive(child.connection, deadline=deadline)
            if "instances" in received.said:
                instances = [str(uid) for uid in received.said["instances"]]
                received = messages.receive(child.connection, deadline=deadline)
        except TimeoutError:
            raise ModelFailed(f"the input was not read within the time limit of {time_limit:g} s") from None
        except (messages.Ended, OSError):
            raise _ended(child, _begun(progress, instances)) from None
        return _prepared(contract, received)

    def _request(self, contract: ModelContract, inputs: Mapping[str, Sequence[Path]]) -> dict[str, Any]:
        asked = {each.slot: each for each in contract.inputs}
        return {
            "sandbox": self._sandbox,
            "memory_bytes": self._memory_bytes,
            "inputs": [
                {
                    **input_as_message(asked.get(name) or InputContract(key=name, series=ALWAYS)),
                    "paths": [str(path.resolve()) for path in paths],
                }
                for name, paths in inputs.items()
            ],
        }


def _prepared(contract: ModelContract, received: Received) -> Prepared:
    """Return what the loader answered, as a value or as its error."""
    said = received.said
    if "refused" in said:
        raise refusal_from(said["refused"])
    if "failed" in said:
        raise failure_from(said)
    try:
        inputs = {str(each["name"]): (each, received.arrays[str(place)]) for place, each in enumerate(said["loaded"])}
        seconds = {"assemble": float(said["seconds"])}
    except (LookupError, TypeError, ValueError) as error:
        raise ModelFailed("the loader sent an answer that contradicts itself") from error
    return Prepared(contract=contract, inputs=inputs, seconds=seconds)


def _begun(progress: int, instances: Sequence[str]) -> list[str]:
    """Return which instances were being decoded when the loader ended."""
    notes = os.pread(progress, len(instances), 0)
    return [uid for uid, note in zip(instances, notes, strict=False) if note == BEGUN]


def _ended(child: Child, begun: Sequence[str]) -> Exception:
    """Return what the end of the loader means: whether the files are to blame or something else."""
    returncode = child.end()
    if child.was_killed:
        return Interrupted("the reading of the input ended: it was interrupted")
    if returncode == -signal.SIGKILL:
        return OutOfMemory(
            "the reading of the input ended: killed by SIGKILL, as the system does when memory is short", "host"
        )
    reason, message = "decoder_crashed", f"the decoder ended ({cause(returncode)})"
    if returncode == -signal.SIGXCPU:
        reason, message = "decoder_ran_away", "the decoder used more processor time than such a file can need"
    others = f"; or one of {', '.join(begun[1:])}" if len(begun) > 1 else ""
    return UndecodablePixels(
        reason,
        message + ("" if begun else ", before any pixel was decoded") + others,
        sop_instance_uid=begun[0] if begun else None,
        numbers={"returncode": returncode, "instances": list(begun)},
    )
