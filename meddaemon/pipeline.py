"""The whole story on one screen: `admit` a quiet study, take a job through `JobStages`.

Both end in one transaction each. `admit`: what the rules decided and the jobs they make. `publish`, the last stage:
findings, outbox rows and the job's completion. What became of a job that failed, `tell_of_failure` writes down later.
Delivery drains the outbox on its own.
"""

import errno
import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

from meddaemon.config.settings import Settings
from meddaemon.db import (
    announcements,
    commitments,
    failures,
    holds,
    inquiries,
    instances,
    jobs,
    requests,
    results,
    studies,
)
from meddaemon.db.engine import Connection, Database, DatabaseUnavailable
from meddaemon.db.failures import Failure
from meddaemon.db.instances import path_of
from meddaemon.db.jobs import Job, NewJob
from meddaemon.db.results import ObjectRow, StoredArtefact, StoredObject
from meddaemon.domain.completeness import Step
from meddaemon.domain.contract import ModelContract
from meddaemon.domain.errors import (
    InputRefused,
    LeaseLost,
    MeddaemonError,
    ModelFailed,
    NotAdmitted,
    NotEvaluable,
    NotFound,
    StudyHeld,
    told_outside,
)
from meddaemon.domain.outlet import ObjectKind
from meddaemon.domain.picture import Pictures, Signal
from meddaemon.domain.result import Analysis, Artefact, EncodedObject, LeftOut, Prediction, ResultStatus
from meddaemon.domain.rules import FORCED, Rule
from meddaemon.domain.schedule import patience
from meddaemon.domain.series import Study
from meddaemon.domain.states import JobState
from meddaemon.domain.uids import digest_of
from meddaemon.domain.volume import Volume
from meddaemon.durable import Staging, write_new
from meddaemon.failpoints import reach
from meddaemon.inference.analysis import analyse, failed, unasked
from meddaemon.inference.loading import Prepared
from meddaemon.inference.warm import WarmModels
from meddaemon.ingest.commitment import examine
from meddaemon.ingest.completeness import ANSWER_SECONDS, ask, hear, is_left_to_a_person, readiness
from meddaemon.ingest.contradictions import contradictions, unidentified
from meddaemon.ingest.describe import describe_study
from meddaemon.ingest.matching import Decision, plan_by_force
from meddaemon.ingest.part10 import header_of, with_keywords
from meddaemon.results import nifti
from meddaemon.results.commitment import report
from meddaemon.results.delivery import Retry
from meddaemon.results.dimse import Problem, RemoteEntity
from meddaemon.results.encoding import EncodingRequest, ObjectReference, encode
from meddaemon.results.query import count_instances
from meddaemon.results.transport import Verdict
from meddaemon.telemetry import log

LOOK_AGAIN_SECONDS = 60.0
FILING_SECONDS = 1.0
"""When a question about objects is looked at again that are about to be filed."""
FAILURE_TRIES = 3
FAILURE_LEASES = 5
"""How often it is tried to tell of a failure, and how many times as long as that of a job its lease is."""
LONGEST_REASON = 1024
"""Characters of the reason of a failure that its document gives."""
_log = log(__name__)


def admit(database: Database, settings: Settings) -> int:
    """Ask the rules whose time has come, study by study; return how many studies were looked at."""
    _notice(database, settings)
    looked_at = 0
    while True:
        with database.read() as connection:
            due = studies.due_ids(connection)
        admitted = sum(_admit_guarded(database, settings, study_id) for study_id in due)
        looked_at += admitted
        if not admitted:
            return looked_at


def _admit_guarded(database: Database, settings: Settings, study_id: int) -> bool:
    """Admit one study; one that cannot be looked at does not keep the others from being admitted."""
    try:
        _complete_headers(database, settings, study_id)
        return _admit_one(database, settings, study_id)
    except DatabaseUnavailable:
        raise
    except Exception as unforeseen:  # noqa: BLE001  one of the few places where errors become outcomes
        reason = f"{type(unforeseen).__name__} while the rules were asked: asked again in {LOOK_AGAIN_SECONDS:g} s"
        _log.error("cannot decide on a study", study=study_id, reason=reason, exc_info=unforeseen)
        with database.write() as connection:
            studies.postpone(connection, study_id, LOOK_AGAIN_SECONDS, reason)
        return False


def force(
    database: Database,
    settings: Settings,
    *,
    wanted: str,
    model: str,
    series: str | None,
    destinations: tuple[str, ...],
) -> int:
    """Queue a model on a study, or on one of its series, whatever the rules say; return the job's id.

    Only the choice is forced: an unsound volume is refused and an implausible result is marked all the same. A job
    that did this work before and was discarded or cancelled runs again.
    Raises NotFound when study, series or model is not there, NotAdmitted when the model gets no work, StudyHeld when
    the study contradicts itself.
    """
    if model not in settings.contracts:
        raise NotFound(f"no model {model!r}; there are: {', '.join(sorted(settings.contracts)) or 'none'}")
    if refusal := settings.contracts[model].admission.refusal:
        raise NotAdmitted(f"model {model!r} gets no work: {refusal}")
    with database.read() as connection:
        study_id = studies.find_study(connection, wanted)
    _complete_headers(database, settings, study_id)
    with database.write() as connection:
        requests.lock(connection, study_id)
        summary = studies.summaries(connection, study_id=study_id)[0]
        study = _load(connection, settings, summary.id, summary.study_instance_uid, summary.generation)
        if kinds := _contradicted_in(connection, study):
            raise StudyHeld(
                f"study {study.id} contradicts itself ({', '.join(kinds)}): see `meddaemon explain {study.id}`, "
                f"then `meddaemon studies release {study.id}`"
            )
        candidates = [each for each in study.series if series in {None, each.series_instance_uid}]
        if not candidates:
            raise NotFound(f"study {study.id} has no series {series}; see `meddaemon explain {study.id}`")
        chosen = max(candidates, key=lambda each: len(each.instances))
        plan = plan_by_force(settings.contracts[model], chosen)
        forced = settings.contracts[model].admission.forced
        # Series by series: what is forced on one does not take the place of what is forced on another.
        name = f"{FORCED}{model} on {digest_of(chosen.series_instance_uid)[:12]}"
        rule = Rule(name=name, models=(model,), destinations=destinations, priority=0)
        decision = Decision(
            rule=rule.name,
            matched=True,
            reason=f"forced by the operator on series {chosen.series_instance_uid}"
            + (f": {plan.caveat}" if plan.caveat else ""),
            detail={"admitted_by_force": {model: forced}} if forced else {},
            plans=(plan,),
        )
        (job_id,) = _carry_out(connection, study, rule, decision, settings)
        requests.settle(connection, study.id, study.generation, settings.outlets)
        if jobs.get(connection, job_id).state in {JobState.DISCARDED, JobState.CANCELLED}:
            requests.requeue(connection, job_id)
    return job_id


def _notice(database: Database, settings: Settings) -> None:
    """Let studies be looked at of which something was announced, or arrived that was announced or missing."""
    with database.read() as connection:
        untold = announcements.untold(connection)
        fulfilled = announcements.fulfilled(connection)
        supplemented = holds.supplemented(connection)
    # Each in a transaction of its own: nobody who has one study locked waits for another.
    for announcement_id in untold:
        with database.write() as connection:
            announcements.tell(connection, announcement_id)
    for study_id in fulfilled:
        with database.write() as connection:
            announcements.hasten(connection, study_id)
    for study_id in supplemented:
        with database.write() as connection:
            holds.reconsider(connection, study_id, quiet_seconds=settings.shortest_quiet_seconds)


def _admit_one(database: Database, settings: Settings, study_id: int) -> bool:
    with database.write() as connection:
        due = studies.lock_due(connection, study_id)
        if due is None:
            return False
        requests.lock(connection, due.id)
        study = _load(connection, settings, due.id, due.study_instance_uid, due.generation)
        if kinds := _contradicted_in(connection, study, unnamed=settings.completeness.hold_unidentified):
            holds.hold(connection, study.id)
            _log.warning("held a study", study=study.id, contradictions=kinds)
            return True
        decided = studies.decided_rules(connection, due.id, due.generation)
        waiting = [rule for rule in settings.rules if rule.name not in decided]
        signals = hear(connection, settings, due, waiting)
        later: list[float] = []
        reasons: dict[str, str] = {}
        held: list[str] = []
        # A fallback waits for every other rule: it is asked last, and only when all others have been.
        for rule in sorted(waiting, key=lambda rule: rule.fallback):
            others = [each.name for each in waiting if not each.fallback and each.name not in decided]
            if rule.fallback and others:
                reasons[rule.name] = f"other rules are asked first: {', '.join(others)}"
                continue
            ready = readiness(rule, settings, study, due, signals)
            if ready.step is Step.HOLD and is_left_to_a_person(connection, study, rule, ready):
                held.append(rule.name)
                reasons[rule.name] = f"a person decides: {ready.reason}"
                continue
            if ready.step is Step.WAIT:
                later.append(ready.seconds)
                reasons[rule.name] = ready.reason
                continue
            matched = [each.name for each in settings.rules if decided.get(each.name)]
            decision = ask(rule, study, settings, matched, signals, ready)
            decided[rule.name] = decision.matched
            _carry_out(connection, study, rule, decision, settings)
            if ready.step is Step.DISCARD:
                # What it made of an earlier generation stands: this one says nothing against it.
                continue
            requests.let_go(connection, study_id=study.id, rule=rule.name, keep={plan.model for plan in decision.plans})
        for name in requests.rules_of(connection, study.id) - {rule.name for rule in settings.rules}:
            requests.let_go(connection, study_id=study.id, rule=name)
        requests.settle(connection, study.id, study.generation, settings.outlets)
        studies.wait_for(connection, due.id, min(later, default=0.0 if held else None), reasons)
        if held and not later:
            holds.hold(connection, study.id)
            _log.warning("held an incomplete study", study=study.id, rules=held)
        reach("admitting")
    reach("admitted")
    return True


def inquire(database: Database, remote: RemoteEntity) -> bool:
    """Put one question to a peer: how many instances it has of a study that it sent; False when none waits."""
    with database.read() as connection:
        question = inquiries.next_for(connection, remote.ae_title)
    if question is None:
        return False
    said = count_instances(remote, question.study_instance_uid, within_seconds=ANSWER_SECONDS)
    problem = said.reason if isinstance(said, Problem) else ""
    with database.write() as connection:
        instances_there = said if isinstance(said, int) else None
        inquiries.answer(connection, question, instances=instances_there, problem=problem)
    _log.info("asked the sender of a study what it has", study=question.study_id, instances=instances_there)
    if problem:
        _log.warning("the sender of a study did not say what it has", study=question.study_id, reason=problem)
    return True


def _load(connection: Connection, settings: Settings, study_id: int, study_instance_uid: str, generation: int) -> Study:
    return describe_study(
        study_id=study_id,
        study_instance_uid=study_instance_uid,
        generation=generation,
        instances=studies.load_instances(connection, study_id, settings.store.instances),
        labels=settings.listener.labels,
    )


def _contradicted_in(connection: Connection, study: Study, *, unnamed: bool = False) -> list[str]:
    """Return in what a study contradicts itself, or that it names nobody, apart from what an operator has released."""
    found = contradictions(study, studies.shared_series(connection, study.id))
    if unnamed:
        found += unidentified(study)
    return list(dict.fromkeys(each.kind for each in holds.record(connection, study.id, found)))


def _complete_headers(database: Database, settings: Settings, study_id: int) -> None:
    """Read what rules ask for now and did not ask for when the instances arrived, before any transaction is held."""
    with database.read() as connection:
        loaded = studies.load_instances(connection, study_id, settings.store.instances)
    known = [instance for members in loaded.values() for instance in members]
    completed = [(instance, with_keywords(instance, settings.keywords)) for instance in known]
    changed = [after for before, after in completed if after is not before]
    if changed:
        with database.write() as connection:
            for instance in changed:
                instances.update_header(connection, instance.sha256, instance.header)


def _carry_out(connection: Connection, study: Study, rule: Rule, decision: Decision, settings: Settings) -> list[int]:
    """Ask for the jobs of a decision and keep the decision; both or neither."""
    queued: list[int] = []
    remarks: list[str] = []
    for plan in decision.plans:
        contract = settings.contracts[plan.model]
        inputs = {
            key: tuple(sorted(instance.sha256 for instance in series.instances)) for key, series in plan.inputs.items()
        }
        job_id, is_new = requests.ask(
            connection,
            NewJob(
                key=_key(study, contract, inputs, plan.caveat),
                study_id=study.id,
                generation=study.generation,
                rule=rule.name,
                model=plan.model,
                model_digest=contract.digest,
                inputs=inputs,
                priority=rule.priority,
                maximum_attempts=settings.worker.maximum_attempts,
                patience=patience(rule.priority, settings.worker.ageing_seconds, rule.deadline_seconds),
                window=rule.window,
                deadline_seconds=rule.deadline_seconds,
                when_late=rule.when_late,
                caveat=plan.caveat,
            ),
            rule.destinations,
        )
        if not is_new:
            known = jobs.get(connection, job_id)
            remarks.append(f"job {job_id} is this work already: {known.state.value} {known.reason}".rstrip())
        queued.append(job_id)
    detail = {**decision.detail, "jobs": queued}
    studies.record_decision(
        connection,
        study_id=study.id,
        generation=study.generation,
        rule=rule.name,
        matched=decision.matched,
        reason="; ".join((decision.reason, *remarks)),
        detail=detail,
    )
    _log.info("rule decided", study=study.id, rule=rule.name, matched=decision.matched, jobs=queued)
    return queued


def _key(study: Study, contract: ModelContract, inputs: Mapping[str, tuple[str, ...]], caveat: str) -> str:
    flat = [part for key in sorted(inputs) for part in (key, *inputs[key])]
    return digest_of(study.study_instance_uid, contract.name, contract.digest, caveat, *flat)


@dataclass(frozen=True, kw_only=True)
class PreparedJob:
    """A job whose input is in memory; `ready` is the answer where the input is beyond what its model was made for."""

    contract: ModelContract
    inputs: Mapping[str, list[Path]]
    ready: Prepared | Prediction

    def shown(self) -> Volume | Pictures | None:
        """Return the input that the result lies on: the first; None where nobody looks at it, as at a waveform.

        Every input is mapped and checked anew: ask once.
        """
        if isinstance(self.ready, Prediction):
            return None
        first = self.ready.values()[self.contract.inputs[0].slot]
        return None if isinstance(first, Signal) else first

    def close(self) -> None:
        """Give the memory of the input back."""
        if isinstance(self.ready, Prepared):
            self.ready.close()


@dataclass(frozen=True, kw_only=True)
class InferredJob:
    """A job whose model has answered, or was not asked."""

    prepared: PreparedJob
    prediction: Prediction


class JobStages:
    """A job from its instances to findings, result objects and outbox rows: the stages that a worker takes it through.

    Each raises InputRefused (never to be retried), ModelFailed, ObjectRefusedByGate, LeaseLost, OSError.
    """

    def __init__(self, database: Database, settings: Settings, models: WarmModels, staging: Staging) -> None:
        self._database = database
        self._settings = settings
        self._models = models
        self._staging = staging

    def prepare(self, job: Job) -> PreparedJob:
        """Find the model's contract and the input files, and read and decode these."""
        contract, inputs = _contract(self._settings, job), _input_files(self._settings, job)
        try:
            return PreparedJob(contract=contract, inputs=inputs, ready=self._models.prepare(contract, inputs))
        except NotEvaluable as beyond:
            return PreparedJob(contract=contract, inputs=inputs, ready=unasked(beyond))

    def infer(self, job: Job, prepared: PreparedJob) -> InferredJob:
        """Run the model, unless there is nothing to ask it."""
        if isinstance(prepared.ready, Prediction):
            return InferredJob(prepared=prepared, prediction=prepared.ready)
        with ExitStack() as unless_inferred:
            unless_inferred.callback(prepared.ready.close)
            try:
                prediction = self._models.predict(prepared.contract, prepared.ready)
            except NotEvaluable as beyond:
                prediction = unasked(beyond)
            # What the result lies on is looked at once more when it is published.
            prepared.ready.let_go()
            unless_inferred.pop_all()
            return InferredJob(prepared=prepared, prediction=prediction)

    def discard(self, prepared: PreparedJob) -> None:
        """Give the memory of the input back."""
        prepared.close()

    def publish(self, job: Job, inferred: InferredJob) -> None:
        """Make findings and result objects of the prediction, and complete the job with them."""
        with closing(inferred.prepared):
            _publish(self._database, self._settings, self._staging, job, inferred)

    def interrupt(self) -> None:
        """Make the model that is running fail at once."""
        self._models.interrupt()


def _publish(database: Database, settings: Settings, staging: Staging, job: Job, inferred: InferredJob) -> None:
    reach("inferred")
    contract, inputs, prediction = inferred.prepared.contract, inferred.prepared.inputs, inferred.prediction
    started = time.monotonic()
    with database.read() as connection:
        predecessors = results.predecessor_objects(connection, job)
    shown = inferred.prepared.shown()
    analysis = analyse(prediction, contract, entropy=job.key, shown=shown)
    if job.caveat:
        reason = "; ".join(filter(None, (job.caveat, analysis.reason)))
        believed = analysis.status is ResultStatus.PLAUSIBLE
        analysis = replace(analysis, status=ResultStatus.IMPLAUSIBLE if believed else analysis.status, reason=reason)
    # Of everything, also of what nobody believes: a destination says which results it takes.
    left_out: list[LeftOut] = []
    objects = _encoded(settings, contract, inputs, analysis, predecessors, shown, left_out)
    stored = [_store(settings, staging, encoded) for encoded in objects]
    kept = [_keep(settings, staging, artefact, analysis) for artefact in analysis.artefacts]
    seconds = {**prediction.seconds, "encode": time.monotonic() - started}
    seconds = {step: round(value, 3) for step, value in seconds.items()}
    with database.write() as connection:
        results.record(
            connection,
            jobs.complete(connection, job),
            analysis,
            stored,
            model_version=contract.version,
            series_instance_uid=prediction.series_instance_uid,
            provenance={**prediction.provenance, **_admitted_by_force(contract), **_not_carried(left_out)},
            seconds=seconds,
            outlets=settings.outlets,
            artefacts=kept,
        )
        reach("recording")
    reach("recorded")
    said = {"status": analysis.status.value, "reason": analysis.reason, "objects": [each.kind for each in objects]}
    said["left_out"] = [f"{each.what}: {each.why}" for each in left_out]
    _log.info("result", job=job.id, kind=contract.kind.value, **said, **seconds)


def tell_of_failure(database: Database, settings: Settings, staging: Staging) -> bool:
    """Write the result of one job that failed, and its document, unless none is to be told of; return whether one was.

    Neither the model nor its weights are asked for, only what the contract calls its findings. Where there can be no
    document (the contract is not here any more, the sources are gone or contradict each other, the gate refuses it),
    the result says why. What may pass is tried again, and so is what the process did not survive.
    """
    with database.write() as connection:
        failure = failures.claim(
            connection,
            model_digests=[contract.digest for contract in settings.contracts.values()],
            lease_seconds=settings.worker.lease_seconds * FAILURE_LEASES,
        )
        predecessors = results.predecessor_objects(connection, failure.job) if failure else []
    if failure is None:
        return False
    reach("telling")
    try:
        _tell_of(database, settings, staging, failure, predecessors)
    except LeaseLost as lost:
        _log.warning("a failure is not told of", job=failure.job.id, reason=str(lost))
    return True


def _tell_of(
    database: Database, settings: Settings, staging: Staging, failure: Failure, predecessors: Sequence[ObjectRow]
) -> None:
    job, started = failure.job, time.monotonic()
    stored: list[StoredObject] = []
    left_out: list[LeftOut] = []
    problem = ""
    try:
        objects = _failure_objects(settings, failure, predecessors, left_out)
        stored = [_store(settings, staging, each) for each in objects]
    except MeddaemonError as never:
        problem = str(never)
    except Exception as unforeseen:  # noqa: BLE001  one of the few places where errors become outcomes
        problem = type(unforeseen).__name__
        _log.error("cannot tell of a failure", job=job.id, tries=failure.tries, reason=problem, exc_info=unforeseen)
        if failure.tries < FAILURE_TRIES:
            with database.write() as connection:
                failures.postpone(connection, failure, delay_seconds=settings.worker.backoff_seconds * failure.tries)
            return
    contract = settings.contracts.get(job.model)
    known = contract if contract is not None and contract.digest == job.model_digest else None
    reason = f"{job.reason}; there is no document of it: {problem}" if problem else job.reason
    with database.write() as connection:
        failures.conclude(connection, failure)
        results.record(
            connection,
            job,
            Analysis(status=ResultStatus.FAILED, reason=reason, segments=(), findings=()),
            stored if not problem else [],
            model_version=known.version if known else "",
            series_instance_uid=failure.series_instance_uid,
            provenance={**(_admitted_by_force(known) if known else {}), **_not_carried(left_out)},
            seconds={"encode": round(time.monotonic() - started, 3)},
            outlets=settings.outlets,
        )
        reach("told")
    _log.info("failure told of", job=job.id, objects=[each.encoded.kind for each in stored], reason=reason)


def _failure_objects(
    settings: Settings, failure: Failure, predecessors: Sequence[ObjectRow], left_out: list[LeftOut]
) -> tuple[EncodedObject, ...]:
    """Return the document of a failure, and what else is made of a result that says nothing; note what is left out."""
    if failure.tries > FAILURE_TRIES:
        raise MeddaemonError(f"none of {FAILURE_TRIES} tries to write it came to an end")
    job = failure.job
    contract = _contract(settings, job)
    analysis = failed(contract, told_outside(job.reason)[:LONGEST_REASON], entropy=job.key)
    return _encoded(settings, contract, _input_files(settings, job), analysis, predecessors, None, left_out)


def _not_carried(left_out: Iterable[LeftOut]) -> dict[str, str]:
    return {f"left out {each.what}": each.why for each in left_out}


def _encoded(
    settings: Settings,
    contract: ModelContract,
    inputs: Mapping[str, list[Path]],
    analysis: Analysis,
    predecessors: Sequence[ObjectRow],
    shown: Volume | Pictures | None,
    left_out: list[LeftOut],
) -> tuple[EncodedObject, ...]:
    """Return the objects of a result, which lies on the first input of the model; note what is `left_out` of them."""
    first, *others = (inputs[each.slot] for each in contract.inputs)
    return encode(
        EncodingRequest(
            analysis=analysis,
            contract=contract,
            sources=first,
            others=others,
            editions=settings.editions,
            kinds=settings.kinds,
            shown=shown,
            predecessors=tuple(
                ObjectReference(
                    sop_class_uid=each.sop_class_uid,
                    sop_instance_uid=each.sop_instance_uid,
                    series_instance_uid=each.series_instance_uid,
                    part=each.part,
                    edition=each.edition,
                )
                for each in predecessors
                if each.kind == ObjectKind.SR
            ),
            in_source_set=settings.delivery.charset == "source",
        ),
        left_out.append,
    )


def commit(database: Database, store: Path, peers: Mapping[str, RemoteEntity], retry: Retry) -> bool:
    """Answer for one request for storage commitment: read what it names, and tell the peer; False when none waits.

    The files are read at every attempt: what is told is true when it is told.
    """
    with database.write() as connection:
        claim = commitments.claim(connection, lease_seconds=retry.lease_seconds, longest_seconds=retry.longest_seconds)
    if claim is None:
        return False
    remote = peers.get(claim.request.calling_ae_title)
    outcome = examine(database, store, claim.request)
    gone = Problem(verdict=Verdict.HOLD, reason="the AE that asked is not among [[peers]] any more")
    if outcome is None:
        with database.write() as connection:
            commitments.fail(connection, claim, reason="some of it is still being filed", delay_seconds=FILING_SECONDS)
        return True
    problem = gone if remote is None else report(remote, outcome)
    said = {"commitment": claim.id, "committed": len(outcome.committed), "failed": len(outcome.failed)}
    try:
        with database.write() as connection:
            if problem is None:
                commitments.accept(connection, claim, failed=len(outcome.failed))
                _log.info("storage commitment reported", **said)
            elif problem.verdict is Verdict.HOLD:
                commitments.refuse(connection, claim, reason=problem.reason)
                _log.error("storage commitment held for a person", reason=problem.reason, **said)
            else:
                delay = retry.delay(claim.attempt)
                commitments.fail(connection, claim, reason=problem.reason, delay_seconds=delay)
                _log.warning("storage commitment not reported, will try again", reason=problem.reason, **said)
    except LeaseLost as lost:
        _log.warning("another sender took this report over", reason=str(lost), **said)
    return True


def _contract(settings: Settings, job: Job) -> ModelContract:
    contract = settings.contracts.get(job.model)
    if contract is None or contract.digest != job.model_digest:
        found = "is not configured" if contract is None else f"has digest {contract.digest[:12]} now"
        # The worker claims only what it can run, so this says that something is badly wrong.
        raise ModelFailed(f"model {job.model} {found}, the job was made for digest {job.model_digest[:12]}")
    return contract


def _admitted_by_force(contract: ModelContract) -> dict[str, str]:
    return {"admitted_by_force": contract.admission.forced} if contract.admission.forced else {}


def _input_files(settings: Settings, job: Job) -> dict[str, list[Path]]:
    files = {key: [path_of(settings.store.instances, each) for each in digests] for key, digests in job.inputs.items()}
    if not settings.store.instances.is_dir():
        raise FileNotFoundError(errno.ENOENT, "the store is gone: is its volume mounted?", settings.store.instances)
    for path in (path for paths in files.values() for path in paths):
        if not path.is_file():
            raise InputRefused("missing_instance", f"the stored file {path.name} is gone: restore it, then requeue")
    return files


def _store(settings: Settings, staging: Staging, encoded: EncodedObject) -> StoredObject:
    stored = StoredObject.of(encoded, header_of(encoded.content))
    write_new(path_of(settings.store.results, stored.sha256), encoded.content, staging)
    return stored


def _keep(settings: Settings, staging: Staging, artefact: Artefact, analysis: Analysis) -> StoredArtefact:
    """Write an artefact to the results folder, by its digest, before anybody is told of it."""
    content = nifti.encode(artefact, analysis.geometry)
    sha256 = hashlib.sha256(content).hexdigest()
    write_new(path_of(settings.store.results, sha256), content, staging)
    return StoredArtefact(artefact=artefact, sha256=sha256, size=len(content))
