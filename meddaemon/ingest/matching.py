"""Which models run on a complete study, decided by rules and explained (pure).

For every rule: does its study condition hold; then for each model, which series may fill each input: the series
must be of a kind that the rule admits (only images, unless the rule says so), satisfy the rule's series condition
and the model's own chooser. Nothing is left out of the record: each series is asked, with the values it showed.
A model that is not admitted gets no work.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from meddaemon.domain.conditions import outcome_as_dict, unmet
from meddaemon.domain.contract import InputContract, InputKind, Mixed, ModelContract
from meddaemon.domain.rules import Rule
from meddaemon.domain.series import Series, SeriesKind, Study
from meddaemon.ingest.describe import kind_of

MAXIMUM_CAVEAT = 1000


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One model to run, the series that fills each of its inputs, and why the result must not be believed, if so."""

    model: str
    inputs: Mapping[str, Series]
    caveat: str = ""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What one rule decided about one study, why, and everything it saw (`detail`, plain JSON values)."""

    rule: str
    matched: bool
    reason: str
    detail: Mapping[str, object]
    plans: tuple[Plan, ...] = ()


def decide(rule: Rule, study: Study, contracts: Mapping[str, ModelContract]) -> Decision:
    """Decide one rule for one study."""
    asked = rule.study.evaluate(study.attributes)
    detail: dict[str, object] = {"study": outcome_as_dict(asked)}
    if not asked.held:
        return Decision(rule=rule.name, matched=False, reason="the study condition does not hold", detail=detail)
    plans: list[Plan] = []
    reasons: list[str] = []
    models: dict[str, object] = {}
    not_admitted: dict[str, str] = {}
    forced: dict[str, str] = {}
    for name in rule.models:
        admission = contracts[name].admission
        if admission.refusal:
            not_admitted[name] = admission.refusal
            reasons.append(f"{name}: is not admitted")
            continue
        inputs, explained = _fill(rule, study, contracts[name])
        models[name] = explained
        if missing := [key for key, series in inputs.items() if series is None]:
            reasons.append(f"{name}: no series for input {', '.join(missing)}")
        else:
            plans.append(Plan(model=name, inputs={key: series for key, series in inputs.items() if series}))
            reasons.append(f"{name}: runs")
            if admission.forced:
                forced[name] = admission.forced
    detail["models"] = models
    if not_admitted:
        detail["not_admitted"] = not_admitted
    if forced:
        detail["admitted_by_force"] = forced
    return Decision(rule=rule.name, matched=bool(plans), reason="; ".join(reasons), detail=detail, plans=tuple(plans))


def decide_fallback(
    rule: Rule, study: Study, contracts: Mapping[str, ModelContract], matched: Sequence[str]
) -> Decision:
    """Decide a fallback rule, which is looked at only when no other rule matched."""
    if matched:
        reason = f"fallback not needed: {', '.join(matched)} matched"
        return Decision(rule=rule.name, matched=False, reason=reason, detail={})
    return decide(rule, study, contracts)


def plan_by_force(contract: ModelContract, series: Series) -> Plan:
    """Plan a model on a series that an operator chose; what the model's own chooser says against it is a caveat."""
    objections = [
        objection for wanted in contract.inputs for objection in unmet(wanted.series.evaluate(series.attributes))
    ]
    if any(_kept_from(wanted, series, ()) for wanted in contract.inputs):
        objections.insert(0, f"it is a {series.kind.value} series")
    said = f"forced onto a series that {contract.name} does not take: {'; '.join(objections[:3])}"
    return Plan(
        model=contract.name,
        inputs={each.slot: series for each in contract.inputs},
        caveat=said[:MAXIMUM_CAVEAT] if objections else "",
    )


def _fill(rule: Rule, study: Study, contract: ModelContract) -> tuple[dict[str, Series | None], dict[str, object]]:
    """Choose a series for each input of a model; return the choice and the explanation."""
    chosen: dict[str, Series | None] = {}
    explained: dict[str, object] = {}
    for wanted in contract.inputs:
        candidates: list[Series] = []
        asked: list[dict[str, object]] = []
        for series in study.series:
            fits, explanation = _ask(rule, wanted, series)
            asked.append(explanation)
            if fits:
                candidates.append(series)
        best = min(candidates, key=lambda series: _rank(wanted, series), default=None)
        chosen[wanted.slot] = best
        explained[wanted.slot] = {"chosen": best.series_instance_uid if best else None, "series": asked}
    return chosen, explained


def _ask(rule: Rule, wanted: InputContract, series: Series) -> tuple[bool, dict[str, object]]:
    explanation: dict[str, object] = {
        "series_instance_uid": series.series_instance_uid,
        "modality": "\\".join(next(iter(series.attributes.get("Modality", ())), ())),
        "series_description": "\\".join(next(iter(series.attributes.get("SeriesDescription", ())), ())),
        "instances": len(series.instances),
        "kind": series.kind.value,
    }
    if why := _kept_from(wanted, series, rule.admit):
        explanation |= {"fits": False, "why": why}
        return False, explanation
    by_rule, by_model = rule.series.evaluate(series.attributes), wanted.series.evaluate(series.attributes)
    fits = by_rule.held and by_model.held
    explanation |= {"fits": fits, "rule": outcome_as_dict(by_rule), "model": outcome_as_dict(by_model)}
    return fits, explanation


def _kept_from(wanted: InputContract, series: Series, admitted: Collection[SeriesKind]) -> str:
    """Return why a series of its kind does not reach an input, whatever it says of itself; empty where it may."""
    if (series.kind is SeriesKind.WAVEFORM) != (wanted.kind is InputKind.WAVEFORM):
        return f"{series.kind.value} series do not fill an input of kind {wanted.kind.value}"
    if series.kind in {SeriesKind.IMAGE, SeriesKind.WAVEFORM, *admitted} or _may_leave_localizers_out(wanted, series):
        return ""
    return f"{series.kind.value} series reach a model only when the rule admits them"


def _may_leave_localizers_out(wanted: InputContract, series: Series) -> bool:
    """Tell whether a series is one of localizers only because some are among its images, and they will be left out."""
    if series.kind is not SeriesKind.LOCALIZER or wanted.geometry.mixed is not Mixed.LARGEST:
        return False
    return any(kind_of(instance) is SeriesKind.IMAGE for instance in series.instances)


def _rank(wanted: InputContract, series: Series) -> tuple[object, ...]:
    """Sort key: earliest satisfied preference, then most instances, then UID so that the choice never wavers."""
    preferences = tuple(not condition.evaluate(series.attributes).held for condition in wanted.prefer)
    return (preferences, -len(series.instances), series.series_instance_uid)
