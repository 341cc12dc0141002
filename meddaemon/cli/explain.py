"""Why a study did or did not run: everything that is known of it, in the order in which it happened."""

from collections.abc import Iterator, Mapping
from textwrap import shorten
from types import MappingProxyType
from typing import Any

from meddaemon.cli.delivered import delivered, name_of
from meddaemon.cli.output import shown
from meddaemon.db import (
    announcements,
    gates,
    history,
    holds,
    inquiries,
    jobs,
    results,
    studies,
)
from meddaemon.db.engine import Connection
from meddaemon.domain.errors import NotFound
from meddaemon.domain.outlet import Outlet
from meddaemon.domain.result import ResultStatus
from meddaemon.domain.states import JobEvent, StudyState, sources

_HELD_FOR = {holds.INCOMPLETE: "incomplete, found", "unidentified": "names nobody, found"}
NO_OUTLETS: Mapping[str, Outlet] = MappingProxyType({})


def explain(connection: Connection, wanted: str, outlets: Mapping[str, Outlet] = NO_OUTLETS) -> Iterator[str]:
    """Yield the lines that explain a study, named by id, UID of study, series or instance, or accession number.

    An object that was refused has no study here; its UID is explained by the refusal. A study that was announced, and
    of which nothing has arrived, is explained by what was announced. `outlets` says what the destinations take: what
    they do not get is explained, too. Raises NotFound.
    """
    refusals = history.refusals(connection, wanted)
    try:
        study_id = studies.find_study(connection, wanted)
    except NotFound:
        announced = announcements.of_study(connection, wanted)
        if not refusals and not announced:
            raise
        if announced:
            yield f"study {wanted}: no instance has arrived"
        yield from _announcements(announced)
        yield from _refusals(refusals)
        return
    (study,) = studies.summaries(connection, study_id=study_id)
    yield f"study {study.id}  {study.study_instance_uid}"
    yield (
        f"  {study.state.value}, generation {study.generation}: {study.series} series, {study.instances} instances, "
        f"received {shown(study.first_received_at)} to {shown(study.last_received_at)}"
    )
    yield from _contradictions(holds.listing(connection, study_id))
    yield from _series(history.series(connection, study_id))
    yield from _announcements(announcements.of_study(connection, study.study_instance_uid))
    yield from _inquiries(inquiries.of_study(connection, study_id))
    of_study = history.refusals(connection, study.study_instance_uid)
    yield from _refusals([*refusals, *(each for each in of_study if each not in refusals)])
    for rule, reason in study.waiting.items():
        yield f"  rule {rule!r} waits: {shown(reason)}"
    if study.waiting and study.due_at:
        yield f"  looked at again at {shown(study.due_at)} or when more is known"
    if study.state is StudyState.HELD:
        yield f"  held: no rule is carried out before an operator says `meddaemon studies release {study.id}`"
    said_why = study.state is StudyState.HELD or bool(study.waiting)
    yield from _decisions(history.decisions(connection, study_id), said_why=said_why)
    yield from _jobs(connection, study_id)
    yield from _results(connection, study_id, outlets)


def _contradictions(rows: list[holds.ContradictionRow]) -> Iterator[str]:
    for row in rows:
        state = f"released {shown(row.released_at)}" if row.released_at else "holds the study"
        what = _HELD_FOR.get(row.kind, "contradiction found")
        yield f"  {what} {shown(row.at)}, {state}: {shown(row.reason)}"


def _announcements(rows: list[announcements.AnnouncementRow]) -> Iterator[str]:
    for row in rows:
        state = row.announcement.state.value.lower()
        yield f"  announced, {state}, {shown(row.changed_at)}: {shown(row.announcement.remark)}"


def _inquiries(rows: list[inquiries.Inquiry]) -> Iterator[str]:
    for row in rows:
        count = "" if row.instances is None else f"{row.instances} instances"
        if row.answered_at is None:
            said = "has not answered yet" + (f"; before, it had {count}" if count else "")
        else:
            said = f"answered {shown(row.answered_at)}: {shown(row.problem) or f'it has {count}'}"
        yield f"  {shown(row.ae_title)} was asked what it has of this study and {said}"


def _series(rows: list[history.SeriesRow]) -> Iterator[str]:
    for row in rows:
        notes = [
            f"{count} {what}"
            for count, what in (
                (row.conflicts, "in conflict: another object with the same SOP Instance UID came first"),
                (row.own_results, "of our own results, returned"),
                (row.missing, "missing from the store"),
            )
            if count
        ]
        yield (
            f"  series {row.series_instance_uid}  {shown(row.modality) or '(no modality)'}  "
            f"{shown(row.series_description)}  {row.instances} instances from {shown(row.calling_ae_titles)}"
            + (f"  ({'; '.join(notes)})" if notes else "")
        )


def _refusals(rows: list[history.RefusalRow]) -> Iterator[str]:
    for row in rows:
        yield (
            f"  refused {shown(row.at)}  instance {row.sop_instance_uid or '(none)'}  "
            f"status {row.status_code}: {shown(row.reason)}"
        )


def _decisions(rows: list[history.DecisionRow], *, said_why: bool) -> Iterator[str]:
    if not rows and not said_why:
        yield "  no rule has been asked yet (the quiet time has not passed), or there are no rules"
    for row in rows:
        verdict = "matched" if row.matched else "did not match"
        yield f"  generation {row.generation}, rule {row.rule!r} {verdict} at {shown(row.at)}: {shown(row.reason)}"
        for said in row.detail.get("signals", ()):
            yield f"    {shown(said)}"
        if required := row.detail.get("required"):
            yield f"    requires {shown(row.detail['requires'])}:"
            yield from _outcome(required, "      ")
        if study := row.detail.get("study"):
            yield from _outcome(study, "    study: ")
        for model, inputs in row.detail.get("models", {}).items():
            for key, explained in inputs.items():
                yield f"    model {model}, input {key}: {explained['chosen'] or 'no series fits'}"
                for series in explained["series"]:
                    yield from _asked_series(series)
        for model, reason in row.detail.get("not_admitted", {}).items():
            yield f"    model {model} gets no work: {shown(reason)}"
        for model, reason in row.detail.get("admitted_by_force", {}).items():
            yield f"    model {model} was admitted by force: {shown(reason)}"
        if row.detail.get("jobs"):
            yield f"    jobs: {', '.join(map(str, row.detail['jobs']))}"


def _asked_series(series: Mapping[str, Any]) -> Iterator[str]:
    fits = "fits" if series["fits"] else "does not fit"
    yield (
        f"      series {series['series_instance_uid']} ({shown(series['modality'])}, "
        f"{shown(series['series_description'])}, {series['instances']} instances, {series['kind']}) {fits}"
        + (f": {series['why']}" if "why" in series else "")
    )
    for part in ("rule", "model"):
        if part in series:
            yield from _outcome(series[part], f"        {part}: ")


def _outcome(outcome: Mapping[str, Any], indent: str) -> Iterator[str]:
    """Yield an outcome and its parts; one that held and has a label is told in one line, with the values it saw."""
    mark = "yes" if outcome["held"] else "no"
    if outcome.get("label"):
        values = ", ".join(dict.fromkeys(_values(outcome))) if outcome["held"] else ""
        yield f"{indent}{mark}: {shown(outcome['label'])}{f' ({values})' if values else ''}"
        if not outcome["held"]:
            yield from _outcome({**outcome, "label": ""}, " " * (len(indent) + 2))
        return
    seen = f"; saw {shown(outcome['seen'])}" if "seen" in outcome else ""
    if outcome["asked"] != "all of" or not outcome["held"] or outcome.get("parts"):
        yield f"{indent}{mark}: {shorten(shown(outcome['asked']), 100)}{seen}"
    for part in outcome.get("parts", ()):
        yield from _outcome(part, " " * (len(indent) + 2))


def _values(outcome: Mapping[str, Any]) -> Iterator[str]:
    """Yield each attribute that an outcome rests on, with the value that it saw."""
    if "seen" in outcome:
        attribute = outcome["asked"].split(" ", 1)[0]
        yield f"{attribute} {shorten(shown(outcome['seen']), 40)}"
    for part in outcome.get("parts", ()):
        if part["held"] or outcome["asked"] == "not":
            yield from _values(part)


def _jobs(connection: Connection, study_id: int) -> Iterator[str]:
    listed = jobs.listing(connection, study_id=study_id, limit=1000)
    forced = history.admitted_by_force(connection, [job.id for job in listed])
    for job in reversed(listed):
        yield (
            f"  job {job.id}  {job.model} for rule {job.rule!r}, generation {job.generation}: {job.state.value}, "
            f"attempt {job.attempt} of {job.maximum_attempts}" + (f": {shown(job.reason)}" if job.reason else "")
        )
        if job.id in forced:
            yield f"    its model was admitted by force: {shown(forced[job.id])}"
        if job.state in sources(JobEvent.CLAIM) and (why := gates.why_shut(connection, job.window)):
            yield f"    waits: {shown(why)}"
        for event in jobs.history(connection, job.id):
            detail = f": {shown(event.detail)}" if event.detail else ""
            by = f" by {event.worker}" if event.worker else ""
            yield f"    {shown(event.at)} {event.event.value} -> {event.state.value}{by}{detail}"


def _results(connection: Connection, study_id: int, outlets: Mapping[str, Outlet]) -> Iterator[str]:
    for head in results.heads(connection, study_id=study_id):
        ended = "" if head.current else ", withdrawn: nobody asks for it any more"
        if head.successor is not None:
            ended = f", superseded by job {head.successor}"
        if head.requeued:
            ended = ", outdated: its job was queued again"
        yield f"  result {head.id} of job {head.job_id}: {head.model} {head.model_version}, {head.status}{ended}"
        if forced := head.provenance.get("admitted_by_force"):
            yield f"    by a model that was admitted by force: {shown(forced)}"
        if head.reason:
            yield f"    {shown(head.reason)}"
        # What was done to an input, and what of it was left out.
        for what, done in head.provenance.items():
            if what.startswith("input "):
                yield f"    {shown(what)}: {shown(done)}"
        for row in results.query(connection, study_id=study_id, superseded=True):
            if row.result_id == head.id:
                yield f"    {row.finding}: {_said(row)}"
        yield "    seconds: " + ", ".join(f"{step} {seconds:g}" for step, seconds in head.seconds.items())
        yield from _carried(connection, head, outlets)


def _carried(connection: Connection, head: results.ResultHead, outlets: Mapping[str, Outlet]) -> Iterator[str]:
    """Yield what carries a result: its objects, what is kept beside them, and where the objects went."""
    for what, why in head.provenance.items():
        if what.startswith("left out "):
            yield f"    {shown(what)}: {shown(why)}"
    for item in results.objects_of(connection, head.id):
        yield f"    {name_of(item)} {item.sop_instance_uid}, {item.size} bytes"
    for kept in results.artefacts(connection, result_id=head.id):
        yield f"    {kept.kind.value} of {shown(kept.of)}: {kept.voxels}, {kept.size} bytes"
    yield from delivered(connection, head, outlets)


def _said(row: results.ResultRow) -> str:
    """Return what was measured of a finding, and whether and where it is."""
    if row.value is None:
        return "not measured" if row.status is ResultStatus.NOT_EVALUABLE else "not found"
    absent = "" if row.present else ", not present"
    derived = f", {row.derivation}" if row.derivation else ""
    return f"{row.measurement}{derived} {row.value:.6g} {row.unit}{absent}" + (f", {row.place}" if row.place else "")
