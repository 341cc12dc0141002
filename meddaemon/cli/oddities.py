"""What is odd about where results go, as it is written: allowed, and hardly meant."""

from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from ipaddress import ip_address

from meddaemon.config.destinations import DestinationSettings
from meddaemon.config.settings import Settings
from meddaemon.domain.contract import ModelContract
from meddaemon.domain.custody import Proof
from meddaemon.domain.filters import Measured, Row, Text, holds, names_of, parts_of, unmeasured
from meddaemon.inference.analysis import not_evaluable
from meddaemon.roles.probing import Check

_KNOWN = frozenset({"finding", "segment", "measurement", "model"})
"""Fields of a condition whose values follow from contracts."""


def oddities(settings: Settings) -> Iterator[Check]:
    """Yield a remark on each destination that gets nothing, or the same twice, or whose word would not reach us."""
    for destination in settings.destinations:
        for said in _of(settings, destination):
            yield Check(what=f"destination {destination.name}", well=None, said=said)


def _of(settings: Settings, destination: DestinationSettings) -> Iterator[str]:
    rules = [rule for rule in settings.rules if destination.name in rule.destinations]
    if settings.rules and not rules:
        yield "no rule names it: nothing goes there"
    for other in settings.destinations[: settings.destinations.index(destination)]:
        both = [rule.name for rule in rules if other.name in rule.destinations]
        if both and _place(other) == _place(destination):
            yield f"is the same place as {other.name!r}: what both take of rule {both[0]!r} goes there twice"
    models = {model for rule in rules for model in rule.models} & settings.contracts.keys()
    yield from _unsaid(destination, [settings.contracts[model] for model in sorted(models)])
    elsewhere = bool(destination.host) and not _is_here(destination.host)
    if destination.custody == Proof.COMMITMENT.value and elsewhere and _is_here(settings.listener.host):
        yield (
            f"who reports storage commitment after {settings.custody.association_seconds:g} s calls our listener, "
            f"which takes calls from this machine only: [listener] host is {settings.listener.host!r}"
        )


def _place(destination: DestinationSettings) -> tuple[object, ...]:
    """Return where results go; back to the sender is a place of its own."""
    return (
        destination.kind,
        destination.ae_title,
        destination.host,
        destination.port,
        destination.url,
        destination.directory,
    )


def _unsaid(destination: DestinationSettings, contracts: Collection[ModelContract]) -> Iterator[str]:
    """Yield what the condition of a destination asks for, and none of the models that send there says."""
    wanted = destination.outlet.when
    if wanted is None or not contracts:
        return
    names = ", ".join(each.name for each in contracts)
    measured = [each for contract in contracts for each in _measured(contract)]
    for name in dict.fromkeys(unmeasured(wanted, measured)):
        known = ", ".join(sorted({each.names[0] for each in measured if len(each.names) > 1}))
        yield f"its condition asks for {name!r}, which {names} does not measure, or not in such a unit; known: {known}"
    row = Row(fields=_fields(contracts, measured), measurements=(), present=True, made=datetime.now(UTC))
    for part in parts_of(wanted):
        if isinstance(part, Text) and part.field in _KNOWN and not holds(part, row):
            yield f"its condition asks for {part.field} {' or '.join(map(repr, part.values))}, which {names} never says"


def _measured(contract: ModelContract) -> Iterator[Measured]:
    """Yield all that a model measures, asked again under augmentations, too."""
    for finding in not_evaluable(contract, "", entropy="").findings:
        for each in finding.measurements:
            names = names_of(each.key, each.name.value, each.name.meaning, derived=each.derivation is not None)
            yield Measured(names=names, value=None, unit=each.unit.value)
            yield Measured(names=(f"{each.key}_spread",), value=None, unit=each.unit.value)


def _fields(contracts: Collection[ModelContract], measured: Collection[Measured]) -> dict[str, list[str]]:
    segments = [segment for contract in contracts for segment in contract.segments]
    findings = [found for contract in contracts for found in not_evaluable(contract, "", entropy="").findings]
    return {
        "finding": [name for each in findings for name in (each.code.value, each.code.meaning)],
        "segment": [name for each in segments for name in (each.name, each.type.value, each.type.meaning)],
        "measurement": [name for each in measured for name in each.names],
        "model": [each.name for each in contracts],
    }


def _is_here(host: str) -> bool:
    """Return whether a host is this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
