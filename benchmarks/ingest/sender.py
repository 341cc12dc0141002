"""Our sender: one process for each association, every request framed before the clock runs, one `sendall` for each.

A process takes one `Order` after another from its pipe and waits at each gate of it ("framed", then "associated" where
associations can stand side by side) until all are there, so that all associations of a run begin together.
"""

import multiprocessing
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Self

from . import association, data_sets, sinks

TIMEOUT_SECONDS = 120.0
_FRAMED, _ASSOCIATED, _GO = "framed", "associated", "go"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What one association is to do; `maximum_pdu` is what the receiver announced, None where it speaks no DICOM.

    A receiver that serves one association after the other is not `concurrent`: nobody can wait there for all.
    """

    kind: data_sets.Kind
    run: int
    share: int
    shares: int
    port: int
    maximum_pdu: int | None
    concurrent: bool


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of an order; times are those of the monotonic clock, which all processes share.

    `acknowledged` are SOP Instance UIDs. The clock begins when all associations stand, or before the first connection
    where they cannot; it ends with the last answer. `problem` is empty when every instance was acknowledged.
    """

    acknowledged: tuple[str, ...]
    bytes: int
    begun: float
    ended: float
    cpu_seconds: float
    problem: str = ""


def announced_pdu(port: int) -> int:
    """Return the longest P-DATA-TF that the receiver takes. Raises OSError, Violation when it does not serve (yet)."""
    with _connected(port) as peer:
        maximum = association.associate(peer, association.VERIFICATION, "1.2.840.10008.1.2")
        association.release(peer)
    return maximum


class Senders:
    """A pool of sender processes that lives as long as the benchmark."""

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join()

    def prepare(self, order: Order) -> Callable[[], Outcome]:
        """Frame one run for `order.shares` associations; return what sends it and says what came of all together."""
        pipes = self._pipes[: order.shares]
        for share, pipe in enumerate(pipes):
            pipe.send(replace(order, share=share))
        for pipe in pipes:
            pipe.recv()
        return partial(self._send, pipes, concurrent=order.concurrent)

    @staticmethod
    def _send(pipes: Sequence[Connection], *, concurrent: bool) -> Outcome:
        for pipe in pipes:
            pipe.send(_GO)
        said = [pipe.recv() for pipe in pipes]
        if concurrent:
            # Who could not associate has told its outcome and waits for nothing.
            waiting = [pipe for pipe, word in zip(pipes, said, strict=True) if word == _ASSOCIATED]
            for pipe in waiting:
                pipe.send(_GO)
            said = [word for word in said if word != _ASSOCIATED] + [pipe.recv() for pipe in waiting]
        return _together(said)


def _together(outcomes: Sequence[Outcome]) -> Outcome:
    return Outcome(
        acknowledged=tuple(uid for each in outcomes for uid in each.acknowledged),
        bytes=sum(each.bytes for each in outcomes),
        begun=min(each.begun for each in outcomes),
        ended=max(each.ended for each in outcomes),
        cpu_seconds=sum(each.cpu_seconds for each in outcomes),
        problem="; ".join(sorted({each.problem for each in outcomes if each.problem})),
    )


def _serve(pipe: Connection) -> None:
    with suppress(EOFError, BrokenPipeError):  # the other end is closed: the benchmark is over
        while True:
            pipe.send(_carry_out(pipe.recv(), pipe))


def _carry_out(order: Order, pipe: Connection) -> Outcome:
    images = list(data_sets.images(order.kind, order.run, order.share, order.shares))
    messages = [_message(image, order, number) for number, image in enumerate(images, 1)]
    _gate(pipe, _FRAMED)
    begun, burned = time.monotonic(), time.process_time()
    answered = 0
    problem = ""
    try:
        with _connected(order.port) as peer:
            if order.maximum_pdu is not None:
                association.associate(peer, order.kind.sop_class_uid, data_sets.TRANSFER_SYNTAX_UID)
            if order.concurrent:
                _gate(pipe, _ASSOCIATED)
                begun, burned = time.monotonic(), time.process_time()
            for number, message in enumerate(messages, 1):
                peer.sendall(message)
                _await_success(peer, number, order)
                answered = number
            ended = time.monotonic()
            if order.maximum_pdu is not None:
                association.release(peer)
    except (OSError, association.Violation) as failure:
        ended = time.monotonic()
        problem = f"{failure} after {answered} of {len(images)} instances"
    return Outcome(
        acknowledged=tuple(image.sop_instance_uid for image in images[:answered]),
        bytes=sum(image.size for image in images[:answered]),
        begun=begun,
        ended=ended,
        cpu_seconds=time.process_time() - burned,
        problem=problem,
    )


def _message(image: data_sets.Image, order: Order, number: int) -> bytes:
    if order.maximum_pdu is None:
        return struct.pack(">Q", image.size) + image.head + image.pixels
    return association.framed(image, order.kind.sop_class_uid, number, order.maximum_pdu)


def _await_success(peer: socket.socket, number: int, order: Order) -> None:
    if order.maximum_pdu is None:
        if peer.recv(1) != sinks.DONE:
            raise association.Violation("the raw receiver did not answer")
        return
    answer = association.read_answer(peer)
    if answer != association.Answer(message_id=number, status=association.SUCCESS):
        raise association.Violation(f"message {number} answered by {answer}")


def _gate(pipe: Connection, name: str) -> None:
    pipe.send(name)
    pipe.recv()


@contextmanager
def _connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS) as peer:
        association.prepare(peer)
        yield peer
