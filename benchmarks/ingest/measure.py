"""One run against one receiver: sent, timed, proven, cleared."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from . import data_sets
from .dcmtk_senders import FileSender
from .receivers import Receiver, Running
from .sender import Order, Outcome, Senders
from .usage import PeakMemory, cpu_seconds, machine_seconds

OUR_SENDER = "raw sender"


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is sent: a kind of image through so many associations, by our sender where `sender` is None."""

    kind: data_sets.Kind
    associations: int
    sender: FileSender | None = None

    @property
    def name(self) -> str:
        """Such as `CT ×4`."""
        return f"{self.kind.name} ×{self.associations}"

    @property
    def sender_name(self) -> str:
        """Who sends."""
        return self.sender.name if self.sender else OUR_SENDER


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One run. CPU is the receiver's whole process tree, until all was registered where it is ours; MiB its peak.

    `others_cpu_seconds` is what neither receiver nor sender used of the machine in `elapsed` seconds. `problem` is
    empty when every instance was acknowledged, and kept as far as we can see.
    """

    receiver: str
    sender: str
    load: str
    round: int
    instances: int
    bytes: int
    seconds: float
    cpu_seconds: float
    sender_cpu_seconds: float
    peak_mebibytes: float
    others_cpu_seconds: float
    elapsed: float
    problem: str

    @property
    def rate(self) -> float:
        """Acknowledged instances in a second."""
        return self.instances / self.seconds

    @property
    def megabytes_per_second(self) -> float:
        """Of data sets, 10^6 bytes."""
        return self.bytes / self.seconds / 1e6

    @property
    def cpu_per_thousand(self) -> float:
        """CPU seconds of the receiver for 1000 instances."""
        return 1000 * self.cpu_seconds / max(1, self.instances)


class Bench:
    """The receivers of one round, all running; measured one at a time."""

    def __init__(self, senders: Senders, folder: Path, number: int) -> None:
        self._senders = senders
        self._folder = folder
        self._number = number
        self._stack = ExitStack()
        self._running: dict[str, Running] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, receiver: Receiver) -> None:
        """Start a receiver with an empty store. Raises SystemExit when it does not come up."""
        place = self._folder / "".join(letter if letter.isalnum() else "_" for letter in receiver.name)
        self._running[receiver.name] = self._stack.enter_context(receiver.running(place))

    def measure(self, receiver: Receiver, load: Load, run: int) -> Measurement:
        """Send one run, whose number no other has; raises NotKept when what we acknowledged is not there."""
        running = self._running[receiver.name]
        with self._prepared(receiver, running, load, run) as send:
            # What others left in the page cache is not written back on this receiver's time.
            os.sync()
            used, machine, began = cpu_seconds(running.pids), machine_seconds(), time.monotonic()
            with PeakMemory(running.pids) as memory:
                outcome = send()
                files = running.proof.await_registered(outcome.acknowledged) if running.proof else {}
            used = cpu_seconds(running.pids) - used
            elapsed = time.monotonic() - began
            others = max(0.0, machine_seconds() - machine - used - outcome.cpu_seconds)
        if running.proof:
            running.proof.require_exact(files, _sent(load, run, outcome))
        return Measurement(
            receiver=receiver.name,
            sender=load.sender_name,
            load=load.name,
            round=self._number,
            instances=len(outcome.acknowledged),
            bytes=outcome.bytes,
            seconds=outcome.ended - outcome.begun,
            cpu_seconds=used,
            sender_cpu_seconds=outcome.cpu_seconds,
            peak_mebibytes=memory.mebibytes,
            others_cpu_seconds=others,
            elapsed=elapsed,
            problem=outcome.problem or _taken_away(running, len(outcome.acknowledged)),
        )

    @contextmanager
    def _prepared(self, receiver: Receiver, running: Running, load: Load, run: int) -> Iterator[Callable[[], Outcome]]:
        """Do what has no part in the measurement; give what sends."""
        if load.sender is None:
            order = Order(
                kind=load.kind,
                run=run,
                share=0,
                shares=load.associations,
                port=running.port,
                maximum_pdu=running.maximum_pdu,
                concurrent=receiver.concurrent,
            )
            yield self._senders.prepare(order)
            return
        files = self._folder / f"files-{run}"
        data_sets.write_files(load.kind, run, files)
        yield partial(load.sender.send, files, list(data_sets.images(load.kind, run, 0, 1)), running.port)
        shutil.rmtree(files)


def _sent(load: Load, run: int, outcome: Outcome) -> Iterator[data_sets.Image]:
    """Yield what was sent and acknowledged."""
    acknowledged = set(outcome.acknowledged)
    for share in range(load.associations):
        for image in data_sets.images(load.kind, run, share, load.associations):
            if image.sop_instance_uid in acknowledged:
                yield image


def _taken_away(running: Running, acknowledged: int) -> str:
    """Remove what a receiver of files has kept, so that the disk does not fill; say when there is too little."""
    if running.output is None:
        return ""
    files = list(running.output.iterdir())
    for file in files:
        file.unlink()
    return "" if len(files) == acknowledged else f"{acknowledged} acknowledged, {len(files)} files"
