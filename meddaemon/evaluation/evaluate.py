"""From references and results to everything that is said of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import file_digest
from pathlib import Path
from typing import TypeVar

import numpy as np

from meddaemon.db.instances import path_of
from meddaemon.db.outcomes import FoundRow, Outcome
from meddaemon.db.results import ObjectRow
from meddaemon.domain.errors import ReferenceRefused
from meddaemon.domain.filters import folded, in_units
from meddaemon.evaluation import classification, detection
from meddaemon.evaluation.cases import (
    Matches,
    Pair,
    Unmatched,
    Vocabulary,
    answers_of,
    case_of,
    findings_of,
    key_of,
    truth_of,
)
from meddaemon.evaluation.classification import NONE, Classification, Judged
from meddaemon.evaluation.detection import Detected, Detection, overlap
from meddaemon.evaluation.estimates import Bootstrap
from meddaemon.evaluation.grid import NoOverlap, brought_together
from meddaemon.evaluation.masks import (
    SEGMENTATIONS,
    Drawn,
    Image,
    LiesNowhere,
    Named,
    is_nifti,
    read_label_map,
    read_pictures,
    read_segmentation,
)
from meddaemon.evaluation.pictures import images_of, listed, places, shown, spacing_of, unknown
from meddaemon.evaluation.references import (
    Cuboid,
    Labels,
    Masks,
    Place,
    Rectangle,
    Sphere,
    Target,
    Targets,
    Value,
    Values,
    Volumes,
)
from meddaemon.evaluation.regression import NumberCase, Regression, judge_number
from meddaemon.evaluation.segmentation import (
    Segmentation,
    SegmentCase,
    compare,
    compare_on_picture,
    compare_volumes,
    judge_segment,
)

_Read = TypeVar("_Read")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What came of it: a section for each kind of reference that there was, and what was not compared."""

    compared: tuple[Pair, ...]
    missing: tuple[Unmatched, ...]
    refused: tuple[Unmatched, ...]
    """References that have a result and cannot be held against it, or only in part."""
    classification: Classification | None
    segmentation: Segmentation | None
    detection: Detection | None
    regression: Regression | None
    remarks: tuple[tuple[str, str], ...]
    """What was done to cases before they were compared: (case, what)."""


@dataclass(kw_only=True)
class _Findings:
    """What is gathered on the way."""

    refused: list[Unmatched] = field(default_factory=list)
    compared: list[Pair] = field(default_factory=list)
    remarks: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How results are compared. `groups` says of findings (`scheme:value`) which exclude each other.

    A detection hits a lesion by its centre, within `hit_distance_mm` at least, and by each overlap of `hit_iou`.
    """

    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    hit_distance_mm: float = 0.0
    hit_iou: tuple[float, ...] = ()
    groups: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Files:
    """Where things lie: `results` is the folder of result objects, `images` are pictures by their SOP Instance UID."""

    results: Path
    images: Mapping[str, Path] = field(default_factory=dict)


def evaluate(matches: Matches, files: Files, options: Options) -> Comparison:
    """Compare every pair. Raises ReferenceRefused where a reference cannot be read or names what nobody knows."""
    gathered = _Findings()
    vocabulary = Vocabulary.of([*{each.outcome.result_id: each.outcome for each in matches.pairs}.values()])
    pairs = [known for each in matches.pairs if (known := _within(each, vocabulary, gathered))]
    labelled = [each for each in pairs if isinstance(each.reference.says, Labels)]
    targeted = [each for each in pairs if isinstance(each.reference.says, Targets)]
    measured = [each for each in pairs if isinstance(each.reference.says, Masks | Volumes)]
    classes = _classify(labelled, vocabulary, options, gathered) if labelled else None
    segments = _segment(measured, vocabulary, files, options, gathered) if measured else None
    # A report that only says that nothing is there is no reference for places unless another one names some.
    asked = any(isinstance(each.reference.says, Targets) and each.reference.says.asked for each in targeted)
    found = _detect(targeted, vocabulary, options, gathered) if asked else None
    valued = [each for each in pairs if isinstance(each.reference.says, Values)]
    numbers = _measure(valued, vocabulary, options, gathered) if valued else None
    return Comparison(
        compared=tuple(gathered.compared),
        missing=matches.missing,
        refused=tuple(gathered.refused),
        classification=classes,
        segmentation=segments,
        detection=found,
        regression=numbers,
        remarks=tuple(dict.fromkeys(gathered.remarks)),
    )


def _within(pair: Pair, vocabulary: Vocabulary, gathered: _Findings) -> Pair | None:
    """Return what a report says of what results speak of, None where that is nothing; of a table, all that it says."""
    says = pair.reference.says
    if not pair.reference.of_report:
        return pair
    known: Labels | Volumes | Targets
    if isinstance(says, Labels):
        known = replace(says, present={name: there for name, there in says.present.items() if vocabulary.knows(name)})
        beyond, empty = [name for name in says.present if name not in known.present], not known.present
        if beyond:
            reason = f"no result speaks of {', '.join(beyond)}: the rest was compared"
            gathered.refused.append(Unmatched(reference=pair.reference, reason=reason))
    elif isinstance(says, Volumes):
        known = Volumes(millilitres={name: much for name, much in says.millilitres.items() if vocabulary.knows(name)})
        empty = not known.millilitres
    elif isinstance(says, Targets):
        known = replace(says, targets=tuple(each for each in says.targets if vocabulary.knows(each.finding)))
        empty = bool(says.targets) and not known.targets
    else:
        return pair
    return None if empty else replace(pair, reference=replace(pair.reference, says=known))


def _classify(pairs: Sequence[Pair], vocabulary: Vocabulary, options: Options, gathered: _Findings) -> Classification:
    judged: dict[str, list[Judged]] = {}
    of_group: dict[str, list[tuple[str, str, str]]] = {}
    groups: dict[str, list[str]] = {}
    for code in vocabulary.names:
        if code in options.groups:
            groups.setdefault(options.groups[code], []).append(code)
    for pair in pairs:
        says = pair.reference.says
        if not isinstance(says, Labels):
            continue
        truth = truth_of(says, vocabulary, pair.reference.origin)
        answers = answers_of(pair.outcome, pair.reference.case)
        if isinstance(answers, str):
            gathered.refused.append(Unmatched(reference=pair.reference, reason=answers))
            continue
        silent = [vocabulary.names[code] for code in truth if code not in answers]
        if silent:
            reason = f"result {pair.outcome.result_id} says nothing of {', '.join(silent)}"
            gathered.refused.append(Unmatched(reference=pair.reference, reason=reason))
        gathered.compared.append(pair)
        for code, expected in truth.items():
            if code in answers:
                told = answers[code]
                judged.setdefault(code, []).append(
                    Judged(case=pair.case, study=pair.study, expected=expected, found=told.present, score=told.score)
                )
        for name, members in groups.items():
            found = [code for code in members if code in answers and answers[code].present]
            expected_of = _exclusive(members, truth, vocabulary, pair.reference.origin)
            if expected_of is not None and all(code in answers for code in members):
                answer = vocabulary.names[found[0]] if found else NONE
                of_group.setdefault(name, []).append((pair.study, expected_of, answer))
    return Classification(
        classes=tuple(
            classification.judge_class(meaning, judged[code], options.bootstrap)
            for code, meaning in vocabulary.names.items()
            if code in judged
        ),
        groups=tuple(
            classification.judge_group(
                name, [vocabulary.names[code] for code in groups[name]], of_group[name], options.bootstrap
            )
            for name in groups
            if name in of_group
        ),
    )


def _exclusive(members: Sequence[str], truth: Mapping[str, bool], vocabulary: Vocabulary, origin: str) -> str | None:
    """Return which class of a group the reference says, NONE where none is there; None where it does not say."""
    there = [code for code in members if truth.get(code)]
    if len(there) > 1:
        both = " and ".join(vocabulary.names[code] for code in there)
        raise ReferenceRefused(f"{origin}: {both} exclude each other in the model's contract: leave one of them out")
    if there:
        return vocabulary.names[there[0]]
    return NONE if all(code in truth for code in members) else None


def _segment(
    pairs: Sequence[Pair], vocabulary: Vocabulary, files: Files, options: Options, gathered: _Findings
) -> Segmentation:
    cases: dict[tuple[str, str], dict[str, SegmentCase]] = {}
    masked: set[tuple[str, str]] = set()
    for pair in pairs:
        try:
            if isinstance(pair.reference.says, Volumes):
                found = list(_volumes(pair, pair.reference.says, vocabulary, gathered))
            elif isinstance(pair.reference.says, Masks):
                found = list(_masks(pair, pair.reference.says, files, gathered))
            else:
                continue
        except (_Incomparable, NoOverlap) as why:
            gathered.refused.append(Unmatched(reference=pair.reference, reason=str(why)))
            continue
        if found:
            gathered.compared.append(pair)
        drawn = isinstance(pair.reference.says, Masks)
        for each in found:
            of_segment = cases.setdefault((each.segment, each.unit), {})
            if drawn and (each.segment, each.case) in masked:
                raise ReferenceRefused(
                    f"{pair.reference.origin}: another file draws {each.segment!r} of {each.case}: leave one out"
                )
            # A mask says more than a volume.
            if drawn or each.case not in of_segment:
                of_segment[each.case] = each
            if drawn:
                masked.add((each.segment, each.case))
    return Segmentation(
        segments=tuple(
            judge_segment(name, unit, list(of_segment.values()), options.bootstrap)
            for (name, unit), of_segment in cases.items()
        )
    )


class _Incomparable(Exception):
    """A result and its reference cannot be compared; the message says why."""


def _volumes(pair: Pair, says: Volumes, vocabulary: Vocabulary, gathered: _Findings) -> Iterable[SegmentCase]:
    for said, expected in says.millilitres.items():
        code = vocabulary.find(said, pair.reference.origin)
        measured = [each.volume_ml for each in pair.outcome.findings if key_of(each) == code]
        known = [each for each in measured if each is not None]
        if not known:
            reason = f"result {pair.outcome.result_id} has no volume of {vocabulary.names[code]}"
            gathered.refused.append(Unmatched(reference=pair.reference, reason=reason))
            continue
        yield compare_volumes(sum(known), expected, segment=vocabulary.names[code], case=pair.case, study=pair.study)


def _masks(pair: Pair, says: Masks, files: Files, gathered: _Findings) -> Iterable[SegmentCase]:
    images = images_of(pair.outcome)
    if images and not is_nifti(says.path):
        return _on_pictures(pair, says, images, files, gathered)
    return _in_patient(pair, says, files, gathered)


def _on_pictures(
    pair: Pair, says: Masks, images: Sequence[Image], files: Files, gathered: _Findings
) -> Iterable[SegmentCase]:
    """Hold what is drawn on each image against what the reference draws on it, pixel for pixel."""
    drawn, reference = _result_of(pair.outcome, files.results, read_pictures), read_pictures(says.path)
    if drawn.size != reference.size:
        ours, other = ("×".join(map(str, each.size)) for each in (drawn, reference))
        raise _Incomparable(f"the reference has {other} pixels, the images of the result {ours}: draw it on them")
    try:
        mine_of, its_of = places(images, drawn), places(images, reference)
    except ReferenceRefused as wrong:
        raise _Incomparable(f"of result or reference: {wrong}") from wrong
    case = pair.reference.case
    compared = [each for each in its_of if case.sop_instance_uid in {"", each[0]} and case.frame_number in {0, each[1]}]
    others = [] if case.sop_instance_uid else unknown(images, reference)
    if not compared:
        there = case.sop_instance_uid or listed(others) or "none"
        raise _Incomparable(f"result and reference have no image in common; asked for: {there}")
    if others:
        reason = f"result {pair.outcome.result_id} says nothing of {listed(others)}: the rest was compared"
        gathered.refused.append(Unmatched(reference=pair.reference, reason=reason))
    if left := [shown(each) for each in images if each not in its_of]:
        gathered.remarks.append((pair.case, f"the reference says nothing of {listed(left)}"))
    paired = _paired(pair, drawn.segments, reference.segments, gathered)
    for image in compared:
        spacing_mm = spacing_of(files.images.get(image[0]))
        for name, mine, its in paired:
            yield compare_on_picture(
                drawn.mask(mine, mine_of.get(image)),
                reference.mask(its, its_of[image]),
                segment=name,
                case=case_of(pair.outcome, image),
                study=pair.study,
                spacing_mm=spacing_mm,
            )


def _in_patient(pair: Pair, says: Masks, files: Files, gathered: _Findings) -> Iterable[SegmentCase]:
    drawn = _result_of(pair.outcome, files.results, read_segmentation)
    if is_nifti(says.path):
        reference = read_label_map(says.path, says.names or drawn.segments)
        gathered.remarks.append((pair.case, "a NIfTI file names no frame of reference: its place is taken as it says"))
    else:
        try:
            reference = read_segmentation(says.path)
        except LiesNowhere as wrong:
            raise _Incomparable(f"{wrong}, and the result does") from wrong
    theirs = reference.frame_of_reference_uid
    if theirs and theirs != drawn.frame_of_reference_uid:
        raise _Incomparable(
            f"the reference lies in frame of reference {theirs}, the result in "
            f"{drawn.frame_of_reference_uid or 'none'}: register one with the other, and draw it there"
        )
    if not theirs and not is_nifti(says.path):
        raise _Incomparable("the reference names no frame of reference: nobody can tell where it lies")
    if not drawn.grid.is_same(reference.grid):
        ours, other = ("×".join(map(str, each.grid.shape)) for each in (drawn, reference))
        gathered.remarks.append(
            (pair.case, f"the reference ({other}) was brought to the grid of the source ({ours}) by nearest neighbour")
        )
    for name, mine, its in _paired(pair, drawn.segments, reference.segments, gathered):
        yield _compared(pair, name, drawn, mine, reference, its)


def _paired(
    pair: Pair, mine: Sequence[Named], its: Sequence[Named], gathered: _Findings
) -> list[tuple[str, list[int], list[int]]]:
    """Return which segments of both are the same thing, and remark what is not. Raises _Incomparable."""
    paired, beyond = same_segments(mine, its)
    if beyond:
        gathered.remarks.append((pair.case, f"the result does not know {', '.join(beyond)} of the reference"))
    met = {number for _, numbers, _ in paired for number in numbers}
    if paired and (others := [each.label for each in mine if each.number not in met]):
        gathered.remarks.append((pair.case, f"the reference says nothing of {', '.join(others)} of the result"))
    if not paired:
        there = ", ".join(each.label for each in mine)
        raise _Incomparable(f"the reference draws nothing that the result knows, which is: {there}")
    return paired


def _compared(
    pair: Pair, name: str, drawn: Drawn, mine: Sequence[int], reference: Drawn, its: Sequence[int]
) -> SegmentCase:
    result, expected, box = brought_together(drawn.mask(mine), drawn.grid, reference.mask(its), reference.grid)
    return compare(
        result,
        expected,
        segment=name,
        case=pair.case,
        study=pair.study,
        spacing_mm=drawn.grid.spacing,
        plane_voxel_mm3=drawn.grid.voxel_volumes_mm3(box),
    )


def _result_of(outcome: Outcome, results_folder: Path, read: Callable[[Path], _Read]) -> _Read:
    """Return what a result draws. Raises _Incomparable."""
    problems = [f"result {outcome.result_id} ({outcome.status.value}) draws nothing: it has no Segmentation"]
    for stored in outcome.objects:
        if stored.sop_class_uid in SEGMENTATIONS:
            path = path_of(results_folder, stored.sha256)
            try:
                _refuse_damaged(path, stored)
                return read(path)
            except (ReferenceRefused, _Incomparable) as wrong:
                # There may be another one, in another form: probabilities are no segments.
                problems.append(f"the stored object {stored.sop_instance_uid} cannot be used: {wrong}")
    raise _Incomparable("; ".join(problems[1:] or problems))


def _refuse_damaged(path: Path, stored: ObjectRow) -> None:
    if not path.is_file():
        raise _Incomparable(f"the stored file {path.name} is gone: see `meddaemon store check`")
    with path.open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    if digest != stored.sha256:
        raise _Incomparable(f"the stored file {path.name} is damaged: see `meddaemon store scrub`")


def same_segments(
    mine: Sequence[Named], its: Sequence[Named]
) -> tuple[list[tuple[str, list[int], list[int]]], list[str]]:
    """Return which segments of both are the same thing (name, numbers, numbers), and what only the reference has.

    They are by their codes or, where the result has no such code and the reference none of its, by their labels; a
    number without a name is a segment number. Several that are coded alike are told apart by their labels where each
    label of the reference is one of the result, and are taken together where it is not.
    """
    pairs: list[tuple[str, list[int], list[int]]] = []
    unknown: list[str] = []
    of_code: dict[str, list[Named]] = {}
    said = {each.code for each in its if each.code}
    for segment in its:
        alike = [each for each in mine if segment.code and each.code == segment.code]
        if alike:
            of_code.setdefault(segment.code, []).append(segment)
            continue
        found = [each for each in mine if each.code not in said and _is_called(each, segment)]
        if len(found) == 1:
            pairs.append((found[0].label, [found[0].number], [segment.number]))
        else:
            unknown.append(segment.label or f"label {segment.number}")
    for code, segments in of_code.items():
        alike = [each for each in mine if each.code == code]
        by_label = {each.label.casefold(): each for each in alike}
        labels = [each.label.casefold() for each in segments]
        if len(by_label) == len(alike) > 1 and len(set(labels)) == len(labels) and set(labels) <= by_label.keys():
            told = [(by_label[label], each) for label, each in zip(labels, segments, strict=True)]
            pairs.extend((one.label, [one.number], [other.number]) for one, other in told)
        else:
            name = alike[0].label if len(alike) == 1 else alike[0].meaning
            pairs.append((name, [each.number for each in alike], [each.number for each in segments]))
    return pairs, unknown


def _is_called(mine: Named, other: Named) -> bool:
    if not other.code and not other.label:
        return mine.number == other.number
    return mine.label.casefold() == other.label.casefold()


def _measure(pairs: Sequence[Pair], vocabulary: Vocabulary, options: Options, gathered: _Findings) -> Regression:
    numbers: dict[tuple[str, str], dict[str, NumberCase]] = {}
    for pair in pairs:
        said = pair.reference.says.values if isinstance(pair.reference.says, Values) else ()
        compared = 0
        for each in said:
            try:
                name, unit, case = _number(pair, each, vocabulary)
            except _Incomparable as why:
                gathered.refused.append(Unmatched(reference=pair.reference, reason=str(why)))
                continue
            if numbers.setdefault((name, unit), {}).setdefault(pair.case, case) is not case:
                raise ReferenceRefused(f"{each.origin}: another line gives {name} of {pair.case}: leave one out")
            compared += 1
        if compared:
            gathered.compared.append(pair)
    return Regression(
        numbers=tuple(
            judge_number(name, unit, list(cases.values()), options.bootstrap) for (name, unit), cases in numbers.items()
        )
    )


def _number(pair: Pair, said: Value, vocabulary: Vocabulary) -> tuple[str, str, NumberCase]:
    """Return what a number is called, its unit and the case. Raises _Incomparable."""
    code, result = vocabulary.find(said.finding, said.origin), f"result {pair.outcome.result_id}"
    chosen = findings_of(pair.outcome, pair.reference.case)
    if isinstance(chosen, str):
        raise _Incomparable(chosen)
    findings = [each for each in chosen if key_of(each) == code]
    wanted = folded(said.measurement or code.partition(":")[2])
    measured = [each for one in findings for each in one.measured if wanted in map(folded, each.names)]
    name = vocabulary.names[code]
    if len(measured) != 1:
        there = ", ".join(dict.fromkeys(each.names[0] for one in findings for each in one.measured)) or "none"
        asked = said.measurement or "the number that it is itself"
        raise _Incomparable(f"{result} has {len(measured)} of {asked} of {name}; its numbers of that are: {there}")
    (found,) = measured
    if said.measurement:
        name = f"{name}, {found.names[0]}"
    if found.value is None:
        raise _Incomparable(f"{result} could not tell {name}")
    amounts = in_units(said.number, said.unit)
    if found.unit not in amounts:
        raise _Incomparable(f"{result} gives {name} in {found.unit!r}, the reference in {said.unit!r}")
    expected = amounts[found.unit]
    case = NumberCase(
        case=pair.case, study=pair.study, value=found.value, reference=expected, error=found.value - expected
    )
    return name, found.unit, case


def _detect(pairs: Sequence[Pair], vocabulary: Vocabulary, options: Options, gathered: _Findings) -> Detection:
    located = [code for code in vocabulary.names if _is_located(code, pairs)] or list(vocabulary.names)
    wanted: list[tuple[Pair, dict[str, list[Target]]]] = []
    for pair in pairs:
        targets = pair.reference.says.targets if isinstance(pair.reference.says, Targets) else ()
        of_pair: dict[str, list[Target]] = {}
        for target in targets:
            of_pair.setdefault(vocabulary.find(target.finding, pair.reference.origin), []).append(target)
        gathered.compared.append(pair)
        if options.hit_iou and any(isinstance(each.place, Sphere) for each in targets):
            reason = "its lesions are spheres, which have no overlap with a box: only centres are compared"
            gathered.refused.append(Unmatched(reference=pair.reference, reason=reason))
        wanted.append((pair, of_pair))
    located = list(dict.fromkeys([*located, *(code for _, of_pair in wanted for code in of_pair)]))
    return Detection(
        findings=tuple(
            detection.judge_detection(vocabulary.names[code], cases, options.bootstrap, iou=iou)
            for code in located
            for iou in (None, *options.hit_iou)
            if (
                cases := [
                    _detected(pair, code, of_pair.get(code, []), options.hit_distance_mm, iou)
                    for pair, of_pair in wanted
                    if iou is None or not any(isinstance(each.place, Sphere) for each in of_pair.get(code, []))
                ]
            )
        )
    )


def _detected(pair: Pair, code: str, targets: Sequence[Target], least_mm: float, iou: float | None) -> Detected:
    found = [each for each in pair.outcome.findings if key_of(each) == code and _is_somewhere(each)]

    def hit(index: int, target: int) -> float | None:
        place = targets[target].place
        if iou is None:
            return _distance(found[index], place, least_mm)
        part = _overlap(found[index], place)
        return 1 - part if part >= iou else None

    hits, misses = detection.assign(
        [each.certainty if each.certainty is not None else 1.0 for each in found],
        len(targets),
        hit,
        repeated_is_wrong=iou is not None,
    )
    return Detected(case=pair.case, study=pair.study, targets=len(targets), hits=hits, misses=misses)


def _is_located(code: str, pairs: Sequence[Pair]) -> bool:
    return any(key_of(each) == code and _is_somewhere(each) for pair in pairs for each in pair.outcome.findings)


def _is_somewhere(finding: FoundRow) -> bool:
    return finding.centre_lps is not None or finding.low is not None


def _distance(found: FoundRow, target: Place, least_mm: float) -> float | None:
    """Return how far the centre of a detection lies from that of a target which it hits; None where it does not."""
    if isinstance(target, Sphere):
        if found.centre_lps is None:
            return None
        apart = float(np.linalg.norm(np.subtract(found.centre_lps, target.centre_lps)))
        return apart if apart <= max(target.radius_mm, least_mm) else None
    box = _box_of(found, target)
    if box is None:
        return None
    centre = np.add(*box) / 2
    inside = bool((centre >= target.low).all() and (centre <= target.high).all())
    return float(np.linalg.norm(centre - np.add(target.low, target.high) / 2)) if inside else None


def _overlap(found: FoundRow, target: Place) -> float:
    """Return the intersection over union of a detection and a target; that of voxels is that of mm."""
    if isinstance(target, Sphere) or (box := _box_of(found, target)) is None:
        return 0.0
    return overlap(*box, target.low, target.high)


def _box_of(found: FoundRow, target: Rectangle | Cuboid) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return the corners of a detection in the coordinates of a target; None where it lies on another image."""
    if found.low is None or found.high is None:
        return None
    if isinstance(target, Cuboid):
        low, high = found.planes or (None, None)
        return None if low is None or high is None else ((low, *found.low), (high, *found.high))
    same = (found.sop_instance_uid, found.frame_number) == (target.sop_instance_uid, target.frame_number)
    return (found.low, found.high) if same else None
