"""The worker: while one job is inferred, the next one is prepared and the one before is published.

    preparer ── claim, prepare ──> one prepared job ──> run ── infer ──> publisher ── publish

Each job is under a lease of its own from its claim to its end, and one thread keeps all of them alive. What was
prepared ahead rests until its turn: it is given back, and no attempt counts, when its gate shuts, when something more
urgent waits and when the worker stops.
"""

import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, Protocol, Self, TypeVar

from meddaemon.db import jobs
from meddaemon.db.engine import Database, DatabaseUnavailable
from meddaemon.db.jobs import Job
from meddaemon.domain.errors import InputRefused, LeaseLost, MeddaemonError
from meddaemon.failpoints import reach
from meddaemon.telemetry import log

LOOK_SECONDS = 0.2
"""How late a worker may notice that it is to stop."""
_log = log(__name__)

Prepared = TypeVar("Prepared")
Inferred = TypeVar("Inferred")
Value = TypeVar("Value")


class Stages(Protocol[Prepared, Inferred]):
    """What is done with a job, each stage in a thread of its own: that of one job beside those of others.

    Each may raise InputRefused (the job is discarded), LeaseLost (nothing is written), anything else (another attempt).
    """

    def prepare(self, job: Job) -> Prepared:
        """Read what the job needs, so that its inference can begin at once."""
        ...

    def infer(self, job: Job, prepared: Prepared) -> Inferred:
        """Run the model, always in the thread that called `Worker.run`; what was prepared is its own from then on."""
        ...

    def discard(self, prepared: Prepared) -> None:
        """Let go of what was prepared and will not be inferred."""
        ...

    def publish(self, job: Job, inferred: Inferred) -> None:
        """Write the result and complete the job, in one transaction."""
        ...

    def interrupt(self) -> None:
        """Make the inference that is running fail at once, from any thread; a preparation may fail with it."""
        ...


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """How a worker works; times in seconds."""

    lease_seconds: float
    heartbeat_seconds: float
    backoff_seconds: float
    poll_seconds: float
    drain_seconds: float
    model_digests: Collection[str] | None = None
    """The models that this worker can run, as jobs name them; None is any."""
    prefetch: bool = True
    """Whether the next job is claimed and prepared while one is inferred."""
    batch_jobs: int = 1
    """So many jobs of one model may follow each other while others wait that are no more urgent by now."""
    ageing_seconds: float = jobs.AGEING_SECONDS

    @property
    def unclaimed_seconds(self) -> float:
        """How long a job must have waited to be claimed ahead: a worker with idle hands has seen it by then."""
        return 2 * self.poll_seconds


class Stage(StrEnum):
    """What is being done with a job in hand."""

    PREPARE = "prepare"
    REST = "rest"
    INFER = "infer"
    PUBLISH = "publish"


@dataclass(eq=False, kw_only=True)
class _Hand:
    """A job in hand."""

    job: Job
    expires: float
    """When its lease ends, by the monotonic clock of this process; never later than the database sees it."""
    stage: Stage = Stage.PREPARE
    lost: bool = False
    """Whether somebody else has the job by now: nothing is written for it."""
    disturbed: str = ""
    """Why it was interrupted, when the reason is not its own: failing then is no failed attempt."""
    ahead: bool = False
    """Whether it was claimed while another one was inferred: the queue is asked before it begins."""
    rested: bool = False
    """Whether the queue knows that it is prepared."""
    prepared: Any = None
    is_prepared: bool = False

    @property
    def said(self) -> dict[str, object]:
        return {"job": self.job.id, "model": self.job.model, "attempt": self.job.attempt}


@dataclass(frozen=True)
class _Failure:
    error: Exception


class Worker(Generic[Prepared, Inferred]):
    """Claims jobs and takes them through their stages."""

    def __init__(
        self,
        database: Database,
        name: str,
        settings: WorkerSettings,
        stages: Stages[Prepared, Inferred],
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        """Jobs are only claimed, and prepared ones begun, while `ready` says so."""
        self._database = database
        self._name = name
        self._ready = ready
        self._settings = settings
        self._stages = stages
        self._model, self._streak = "", 0
        self._slot = _Slot()

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; what is inferred then has `drain_seconds` to finish, the rest is given back."""
        self._slot = _Slot()
        with _Leases(self._database, self._settings, self._stages.interrupt, stop) as leases:
            with ThreadPoolExecutor(1, "prepare") as preparer, ThreadPoolExecutor(1, "publish") as publisher:
                ahead = preparer.submit(self._prepare_ahead, stop, leases)
                ahead.add_done_callback(lambda _: self._slot.close())
                try:
                    self._work(stop, leases, publisher)
                finally:
                    self._slot.close()
                # What nobody foresaw in the other thread ends this one too: the supervisor starts a new worker.
                ahead.result()
            left = self._slot.take_back()
            if left is not None:
                self._give_back(left, leases, "this worker is stopping")

    def work_one(self) -> bool:
        """Claim one job and take it through all stages, one after the other; return False when none waited."""
        with _Leases(self._database, self._settings, self._stages.interrupt, threading.Event()) as leases:
            hand = self._claim(leases, waited_seconds=0.0)
            if hand is None:
                return False
            if self._prepare(hand, leases):
                inferred = self._infer(hand, leases)
                if not isinstance(inferred, _Failure):
                    self._publish(hand, leases, inferred)
            return True

    # --- in the thread of `run`

    def _work(self, stop: threading.Event, leases: "_Leases", publisher: ThreadPoolExecutor) -> None:
        behind: Future[None] | None = None
        while (hand := self._slot.take(stop)) is not None:
            if not self._begins(hand, leases):
                continue
            self._slot.begin()
            inferred = self._infer(hand, leases)
            if behind is not None:
                behind.result()
            if not isinstance(inferred, _Failure):
                behind = publisher.submit(self._publish, hand, leases, inferred)
            # Neither its input nor its output is kept while the next one is waited for.
            del inferred, hand
        if behind is not None:
            behind.result()

    def _begins(self, hand: _Hand, leases: "_Leases") -> bool:
        """Return whether a prepared job begins; one that does not was given back."""
        if hand.lost:
            self._settle(hand, leases, LeaseLost("somebody else has it"))
            return False
        if not hand.ahead:
            return True
        if not self._ready():
            self._give_back(hand, leases, "what this worker needs is away")
            return False
        try:
            with self._database.write() as connection:
                if not hand.rested:
                    jobs.prepare(connection, hand.job)
                begins = jobs.start(
                    connection,
                    hand.job,
                    model_digests=self._settings.model_digests,
                    ageing_seconds=self._settings.ageing_seconds,
                )
        except LeaseLost as lost:
            self._settle(hand, leases, lost)
            return False
        except DatabaseUnavailable as failure:
            # Nobody renews its lease any more: it runs out, and the job runs again.
            _away(failure)
            begins = False
        if not begins:
            self._let_go(hand, leases)
            _log.info("prepared job given back", **hand.said)
        return begins

    def _infer(self, hand: _Hand, leases: "_Leases") -> Inferred | _Failure:
        prepared, hand.prepared, hand.is_prepared = hand.prepared, None, False
        return self._attempt(hand, leases, Stage.INFER, lambda: self._stages.infer(hand.job, prepared))

    # --- in the thread of the publisher

    def _publish(self, hand: _Hand, leases: "_Leases", inferred: Inferred) -> None:
        published = self._attempt(hand, leases, Stage.PUBLISH, lambda: self._stages.publish(hand.job, inferred))
        if not isinstance(published, _Failure):
            leases.drop(hand)
            _log.info("job completed", **hand.said)

    # --- in the thread of the preparer

    def _prepare_ahead(self, stop: threading.Event, leases: "_Leases") -> None:
        while not stop.is_set():
            self._slot.news.clear()
            if self._slot.closed:
                return
            try:
                busy = self._look_ahead(leases)
            except DatabaseUnavailable as failure:
                # Leases run out by themselves, so waiting loses nothing.
                _away(failure)
                busy = False
            if not busy:
                self._slot.news.wait(self._settings.poll_seconds)

    def _look_ahead(self, leases: "_Leases") -> bool:
        """Fill the slot, or look whether what rests in it should; return False when there was nothing to do."""
        resting, phase = self._slot.state()
        if phase is _Phase.CHOOSING:
            return False
        if resting is not None:
            return phase is _Phase.BUSY and self._reconsider(resting, leases)
        is_awaited = phase is _Phase.AWAITING
        if not (is_awaited or self._settings.prefetch) or not self._ready():
            return False
        waited_seconds = 0.0 if is_awaited else self._settings.unclaimed_seconds
        hand = self._claim(leases, waited_seconds=waited_seconds)
        if hand is None:
            return False
        if self._prepare(hand, leases):
            if not is_awaited:
                # Claimed from among those that have waited: whether it is its turn is asked before it begins.
                hand.ahead = True
                self._rest(hand)
            self._slot.put(hand)
        return True

    def _claim(self, leases: "_Leases", *, waited_seconds: float) -> _Hand | None:
        asked = time.monotonic()
        like = self._model if self._streak < self._settings.batch_jobs else ""
        with self._database.write() as connection:
            job = jobs.claim(
                connection,
                worker=self._name,
                lease_seconds=self._settings.lease_seconds,
                model_digests=self._settings.model_digests,
                ageing_seconds=self._settings.ageing_seconds,
                waited_seconds=waited_seconds,
                like=like,
            )
        if job is None:
            return None
        reach("claimed")
        self._streak = self._streak + 1 if job.model_digest == self._model else 1
        self._model = job.model_digest
        _log.info("job claimed", job=job.id, model=job.model, attempt=job.attempt)
        return leases.hold(_Hand(job=job, expires=asked + self._settings.lease_seconds))

    def _prepare(self, hand: _Hand, leases: "_Leases") -> bool:
        prepared = self._attempt(hand, leases, Stage.PREPARE, lambda: self._stages.prepare(hand.job))
        if isinstance(prepared, _Failure):
            return False
        hand.prepared, hand.is_prepared = prepared, True
        leases.enter(hand, Stage.REST)
        return True

    def _rest(self, hand: _Hand) -> None:
        """Tell the queue that a job is prepared, so that no attempt counts if this worker ends now."""
        try:
            with self._database.write() as connection:
                jobs.prepare(connection, hand.job)
            hand.rested = True
        except LeaseLost:
            hand.lost = True
        except DatabaseUnavailable as failure:
            _away(failure)

    def _reconsider(self, resting: _Hand, leases: "_Leases") -> bool:
        """Give back what rests when it may not begin, or when something more urgent waits and could be prepared."""
        with self._database.read() as connection:
            why = jobs.must_wait(
                connection,
                resting.job,
                model_digests=self._settings.model_digests,
                ageing_seconds=self._settings.ageing_seconds,
                waited_seconds=self._settings.unclaimed_seconds,
            )
        if not (why or resting.lost) or not self._slot.remove(resting):
            return False
        self._give_back(resting, leases, why or "it is lost")
        return True

    # --- how an attempt ends

    def _attempt(self, hand: _Hand, leases: "_Leases", stage: Stage, work: Callable[[], Value]) -> Value | _Failure:
        """Do one stage of a job; when it fails, that is written down."""
        leases.enter(hand, stage)
        try:
            return work()
        except Exception as error:  # noqa: BLE001  one of the four places where errors become outcomes
            failure = _Failure(error)
        leases.enter(hand, Stage.REST, keep=True)
        self._settle(hand, leases, failure.error)
        return failure

    def _give_back(self, hand: _Hand, leases: "_Leases", why: str) -> None:
        hand.disturbed = why
        self._settle(hand, leases, MeddaemonError(why))

    def _settle(self, hand: _Hand, leases: "_Leases", outcome: Exception) -> None:
        """Write down how the attempt ended; a lost lease means that somebody else does."""
        job, said = hand.job, hand.said
        try:
            with self._database.write() as connection:
                if hand.lost or isinstance(outcome, LeaseLost):
                    _log.warning("job lost: its lease is over, nothing was written", **said)
                elif hand.disturbed:
                    jobs.release(connection, job, hand.disturbed)
                    _log.info("job given back", reason=hand.disturbed, **said)
                elif isinstance(outcome, InputRefused):
                    jobs.refuse(connection, job, str(outcome))
                    _log.warning("job discarded: its input was refused", reason=str(outcome), **said)
                else:
                    reason = str(outcome) if isinstance(outcome, MeddaemonError) else type(outcome).__name__
                    state = jobs.fail(connection, job, reason, backoff_seconds=self._settings.backoff_seconds)
                    unforeseen = None if isinstance(outcome, MeddaemonError) else outcome
                    _log.error("job failed", state=state.value, reason=reason, exc_info=unforeseen, **said)
        except LeaseLost:
            _log.warning("job lost: its lease is over, nothing was written", **said)
        except DatabaseUnavailable as failure:
            # Nobody renews the lease any more: it runs out, and the job runs again.
            _away(failure)
        finally:
            self._let_go(hand, leases)

    def _let_go(self, hand: _Hand, leases: "_Leases") -> None:
        leases.drop(hand)
        if hand.is_prepared:
            hand.is_prepared = False
            self._stages.discard(hand.prepared)
            hand.prepared = None


class _Phase(StrEnum):
    """What the thread that infers is doing."""

    AWAITING = "awaiting"
    """It has no job: the next one is the one whose turn it is, and begins at once."""
    CHOOSING = "choosing"
    """It asks whether the job that was prepared begins: nobody claims another one meanwhile."""
    BUSY = "busy"


class _Slot:
    """The place of the one job that is prepared ahead, between the thread that prepares and the one that infers."""

    def __init__(self) -> None:
        self.news = threading.Event()
        """Set when the preparer has something to look at."""
        self.closed = False
        self._changed = threading.Condition()
        self._hand: _Hand | None = None
        self._phase = _Phase.AWAITING

    def state(self) -> tuple[_Hand | None, _Phase]:
        """Return the job in it, and what goes on meanwhile."""
        with self._changed:
            return self._hand, self._phase

    def put(self, hand: _Hand) -> None:
        with self._changed:
            self._hand = hand
            self._changed.notify_all()

    def take(self, stop: threading.Event) -> _Hand | None:
        """Wait for the next job and take it; None when there will be none."""
        with self._changed:
            self._phase = _Phase.AWAITING
            self.news.set()
            while self._hand is None and not self.closed and not stop.is_set():
                self._changed.wait(LOOK_SECONDS)
            if stop.is_set():
                return None
            self._phase = _Phase.CHOOSING
            hand, self._hand = self._hand, None
            return hand

    def begin(self) -> None:
        """Note that the job that was taken is inferred now: the next one may be prepared."""
        with self._changed:
            self._phase = _Phase.BUSY
        self.news.set()

    def remove(self, hand: _Hand) -> bool:
        """Take out this very job; return whether it was still there."""
        with self._changed:
            is_there = self._hand is hand
            if is_there:
                self._hand = None
            return is_there

    def take_back(self) -> _Hand | None:
        """Take out what is left."""
        with self._changed:
            hand, self._hand = self._hand, None
            return hand

    def close(self) -> None:
        """Let nobody wait any longer."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()
        self.news.set()


class _Leases:
    """Keeps the leases of all jobs in hand alive, and interrupts the inference whose lease is lost or time is over."""

    def __init__(
        self, database: Database, settings: WorkerSettings, interrupt: Callable[[], None], stop: threading.Event
    ) -> None:
        self._database = database
        self._settings = settings
        self._interrupt = interrupt
        self._stop = stop
        self._draining = ""
        """Why everything is interrupted, once it is."""
        self._hands: list[_Hand] = []
        # Held while a job goes from stage to stage, and while one is interrupted: no interrupt meets another job.
        self._changing = threading.Lock()
        self._done = threading.Event()
        self._threads = [
            threading.Thread(target=self._keep, name="leases", daemon=True),
            threading.Thread(target=self._drain, name="drain", daemon=True),
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def hold(self, hand: _Hand) -> _Hand:
        """Keep the lease of a job alive from now on."""
        with self._changing:
            self._hands.append(hand)
        return hand

    def drop(self, hand: _Hand) -> None:
        """Keep it alive no longer."""
        with self._changing:
            if hand in self._hands:
                self._hands.remove(hand)

    def enter(self, hand: _Hand, stage: Stage, *, keep: bool = False) -> None:
        """Note that a job is in this stage now; what disturbed an earlier one, and did not end it, is over."""
        with self._changing:
            hand.stage = stage
            if not keep:
                hand.disturbed = self._draining

    def _keep(self) -> None:
        while not self._done.wait(self._settings.heartbeat_seconds):
            with self._changing:
                # In one order for everybody who locks several jobs.
                hands = sorted((hand for hand in self._hands if not hand.lost), key=lambda hand: hand.job.id)
            for hand in hands:
                self._renew(hand)
            self._interrupt_lost()

    def _renew(self, hand: _Hand) -> None:
        try:
            asked = time.monotonic()
            with self._database.write() as connection:
                jobs.renew(connection, hand.job, lease_seconds=self._settings.lease_seconds)
            hand.expires = asked + self._settings.lease_seconds
        except LeaseLost:
            hand.lost = not self._is_settled(hand)
        except DatabaseUnavailable:
            # Away for a moment is survivable as long as the lease lasts.
            hand.lost = time.monotonic() > hand.expires

    def _is_settled(self, hand: _Hand) -> bool:
        """Return whether the lease is gone because the work is done: the commit comes just before its return."""
        try:
            with self._database.read() as connection:
                return jobs.is_completed(connection, hand.job)
        except DatabaseUnavailable:
            return False

    def _interrupt_lost(self) -> None:
        """Interrupt what is inferred for nothing: again each time, for it may have been about to begin."""
        with self._changing:
            if any(hand.lost and hand.stage is Stage.INFER for hand in self._hands):
                for hand in self._hands:
                    if hand.stage is Stage.PREPARE and not hand.disturbed:
                        hand.disturbed = "interrupted together with another job"
                self._interrupt()

    def _drain(self) -> None:
        while not self._done.wait(LOOK_SECONDS):
            if self._stop.is_set():
                break
        if self._done.wait(self._settings.drain_seconds):
            return
        self._draining = "this worker is stopping"
        # Again and again: what was about to begin when it was interrupted has begun by now.
        while not self._done.is_set():
            with self._changing:
                for hand in self._hands:
                    hand.disturbed = self._draining
                if any(hand.stage in {Stage.PREPARE, Stage.INFER} for hand in self._hands):
                    self._interrupt()
            self._done.wait(1.0)


def _away(failure: DatabaseUnavailable) -> None:
    _log.error("cannot reach the queue", reason=type(failure).__name__)
