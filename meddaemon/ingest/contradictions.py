"""In what the instances of one study contradict each other (pure): who the patient is, what a series is, whose it is.

A result that is attached to the wrong patient is worse than none, so a study that tells of two is held until a person
has looked at it. What is empty contradicts nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from meddaemon.domain.identity import Contradiction, name_groups, normal
from meddaemon.domain.series import Instance, Study
from meddaemon.domain.uids import digest_of

_Asked = Callable[[Sequence[str]], str]


def contradictions(study: Study, shared: Mapping[str, Sequence[str]]) -> list[Contradiction]:
    """Return every contradiction; `shared` maps its series that others have, too, to the UIDs of those studies."""
    everything = [instance for series in study.series for instance in series.instances]
    found = [*_patient(everything)]
    for series in study.series:
        found.extend(_differing("Modality", series.series_instance_uid, series.instances, normal))
        if others := shared.get(series.series_instance_uid):
            uid = series.series_instance_uid
            said = f"SeriesInstanceUID {uid} is also that of a series of study {', '.join(others)}"
            value = digest_of(*sorted(others))
            found.append(Contradiction(kind="SeriesInstanceUID", subject=uid, value=value, reason=said))
    return found


def unidentified(study: Study) -> list[Contradiction]:
    """Return, as something to be held for, that a study names nobody: Patient ID and Patient's Name are type 2."""
    everything = [instance for series in study.series for instance in series.instances]
    if any(normal(each.header.get(keyword, ())) for each in everything for keyword in ("PatientID", "PatientName")):
        return []
    reason = f"no Patient ID and no Patient's Name in any of its {len(everything)} instances"
    return [Contradiction(kind="unidentified", subject="", value="", reason=reason)]


def _patient(instances: Sequence[Instance]) -> Iterator[Contradiction]:
    for keyword in ("PatientID", "IssuerOfPatientID", "PatientSex"):
        yield from _differing(keyword, "", instances, normal)
    yield from _differing("PatientBirthDate", "", instances, _digits)
    for number in range(3):
        # Each group by itself: one writer leaves the ideographic group out, another the alphabetic one.
        yield from _differing("PatientName", "", instances, _group(number))


def _differing(keyword: str, subject: str, instances: Iterable[Instance], asked: _Asked) -> Iterator[Contradiction]:
    seen: dict[str, list[str]] = {}
    for instance in instances:
        if value := asked(instance.header.get(keyword, ())):
            seen.setdefault(value, []).append(instance.sop_instance_uid)
    if len(seen) > 1:
        examples = ", ".join(f"{uids[0]} ({len(uids)} such)" for uids in list(seen.values())[:5])
        where = f" of series {subject}" if subject else ""
        yield Contradiction(
            kind=keyword,
            subject=subject,
            value=digest_of(*sorted(seen)),
            reason=f"{len(seen)} different values of {keyword}{where}: instance {examples}",
        )


def _digits(components: Sequence[str]) -> str:
    return "".join(character for character in normal(components) if character.isdigit())


def _group(number: int) -> _Asked:
    def asked(components: Sequence[str]) -> str:
        groups = name_groups(components)
        return groups[number] if number < len(groups) else ""

    return asked
