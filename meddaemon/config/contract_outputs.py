"""What a contract file says of a model's output: segments, classes, scores and objects, and what is plausible."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

from meddaemon.config.contract_terms import (
    CodeTable,
    Limits,
    LongString,
    Score,
    Strict,
    check_concept,
    check_in_context_group,
    check_unique,
)
from meddaemon.config.problems import Problems, did_you_mean
from meddaemon.domain.contract import (
    ClassContract,
    Combine,
    FormulaContract,
    InputKind,
    LesionContract,
    MeasurementKind,
    ModelKind,
    ObjectContract,
    OutputLimits,
    PlausibleRange,
    ScoreContract,
    SegmentContract,
)
from meddaemon.domain.formulas import InvalidFormula, Measured, measured_in, parse_formula

_Byte = Annotated[int, Field(ge=0, le=255)]

SECTIONS = {
    ModelKind.SEGMENTATION: "segments",
    ModelKind.CLASSIFICATION: "classes",
    ModelKind.REGRESSION: "scores",
    ModelKind.DETECTION: "objects",
    ModelKind.LANDMARKS: "objects",
}
"""Which array of a contract says what the output of a model means, by its kind."""


_MEASURED = {True: (MeasurementKind.AREA,), False: (MeasurementKind.VOLUME,)}
"""What is measured of segments on pictures, and of others, where the contract does not say."""

_MOST_LESIONS = 1000
_LONGEST_LESION_NAME = 64 - len(f" {_MOST_LESIONS}")
"""A lesion is called by its segment's name and its number, which is a text of 64 characters at most (VR LO)."""


class PlausibleTable(Strict):
    """Limits of a measured volume in mL."""

    min: Annotated[float, Field(ge=0)]
    max: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min >= self.max:
            raise ValueError(f"min {self.min:g} is not less than max {self.max:g}")
        return self


class LesionTable(Strict):
    """`lesions` of one of `[[segments]]`."""

    minimum_ml: Annotated[float, Field(ge=0)] = LesionContract.minimum_ml
    connectivity: Literal[6, 18, 26] = 26
    most: Annotated[int, Field(ge=1, le=_MOST_LESIONS)] = LesionContract.most

    def as_contract(self) -> LesionContract:
        """Return what becomes of lesions as the domain speaks of it."""
        return LesionContract(minimum_ml=self.minimum_ml, connectivity=self.connectivity, most=self.most)


class SegmentTable(Strict):
    """One of `[[segments]]`."""

    label: Annotated[int, Field(ge=1, le=65535)]
    name: LongString
    category: CodeTable
    type: CodeTable
    finding: CodeTable | None = None
    laterality: CodeTable | None = None
    colour: tuple[_Byte, _Byte, _Byte]
    measure: tuple[Annotated[MeasurementKind, Field(strict=False)], ...] | None = None
    plausible_volume_ml: PlausibleTable | None = None
    lesions: LesionTable | None = None

    def as_contract(self, first: InputKind) -> SegmentContract:
        """Return the segment as the domain speaks of it; `first` is what the first input is made of."""
        plausible = self.plausible_volume_ml
        return SegmentContract(
            label=self.label,
            name=self.name,
            category=self.category.as_code(),
            type=self.type.as_code(),
            colour=self.colour,
            laterality=self.laterality.as_code() if self.laterality else None,
            finding=self.finding.as_code() if self.finding else None,
            measure=_MEASURED[first is InputKind.PICTURES] if self.measure is None else self.measure,
            plausible_volume_ml=PlausibleRange(minimum=plausible.min, maximum=plausible.max) if plausible else None,
            lesions=self.lesions.as_contract() if self.lesions else None,
        )


class ClassTable(Strict):
    """One of `[[classes]]`, in the order of the scores that the network gives."""

    name: LongString
    finding: CodeTable
    threshold: Score | None = None
    group: Annotated[str, Field(max_length=64)] = ""

    def as_contract(self) -> ClassContract:
        """Return the class as the domain speaks of it."""
        return ClassContract(name=self.name, finding=self.finding.as_code(), threshold=self.threshold, group=self.group)


class ScoreTable(Strict):
    """One of `[[scores]]`, in the order of the numbers that the network gives."""

    name: CodeTable
    unit: CodeTable
    plausible: Limits | None = None

    def as_contract(self) -> ScoreContract:
        """Return the score as the domain speaks of it."""
        return ScoreContract(
            name=self.name.as_code(),
            unit=self.unit.as_code(),
            plausible=self.plausible.as_range() if self.plausible else None,
        )


class ObjectTable(Strict):
    """One of `[[objects]]`: a label of a box or a landmark."""

    label: Annotated[int, Field(ge=0, le=65535)]
    name: LongString
    finding: CodeTable
    threshold: Score = 0.0

    def as_contract(self) -> ObjectContract:
        """Return the object as the domain speaks of it."""
        return ObjectContract(
            label=self.label, name=self.name, finding=self.finding.as_code(), threshold=self.threshold
        )


class FormulaTable(Strict):
    """One of `[[formulas]]`: a number that is made of measurements."""

    name: CodeTable
    unit: CodeTable
    formula: Annotated[str, Field(min_length=1)]
    plausible: Limits | None = None

    def as_contract(self) -> FormulaContract:
        """Return the formula as the domain speaks of it. Raises InvalidFormula."""
        return FormulaContract(
            name=self.name.as_code(),
            unit=self.unit.as_code(),
            formula=parse_formula(self.formula),
            plausible=self.plausible.as_range() if self.plausible else None,
        )


class OutputLimitsTable(Strict):
    """The table `[output_limits]`."""

    may_be_empty: bool = False
    maximum_foreground: Annotated[float, Field(gt=0, le=1)] = OutputLimits.maximum_foreground
    probability_tolerance: Annotated[float, Field(gt=0, lt=1)] = OutputLimits.probability_tolerance

    def as_contract(self) -> OutputLimits:
        """Return the limits as the domain speaks of them."""
        return OutputLimits(
            may_be_empty=self.may_be_empty,
            maximum_foreground=self.maximum_foreground,
            probability_tolerance=self.probability_tolerance,
        )


class OutputTables(BaseModel):
    """What the output means: the array that the kind of the model asks for, and no other."""

    kind: Annotated[ModelKind, Field(strict=False)] = ModelKind.SEGMENTATION
    segments: tuple[SegmentTable, ...] = ()
    classes: tuple[ClassTable, ...] = ()
    scores: tuple[ScoreTable, ...] = ()
    objects: tuple[ObjectTable, ...] = ()
    formulas: tuple[FormulaTable, ...] = ()
    combine: Annotated[Combine, Field(strict=False)] | None = None
    output_limits: OutputLimitsTable = OutputLimitsTable()

    def check(self, problems: Problems) -> None:
        """Note what does not belong together, and codes that PS3.16 does not have or that mean something else."""
        self._check_sections(problems)
        check_unique("segments", "label", [each.label for each in self.segments], problems)
        check_unique("segments", "name", [each.name for each in self.segments], problems)
        check_unique("classes", "name", [each.name for each in self.classes], problems)
        check_unique("scores", "name", [each.name.meaning for each in self.scores], problems)
        check_unique("formulas", "name", [each.name.meaning for each in self.formulas], problems)
        check_unique("objects", "label", [each.label for each in self.objects], problems)
        check_unique("objects", "name", [each.name for each in self.objects], problems)
        for index, segment in enumerate(self.segments):
            # The context groups that SEG takes its codes from (PS3.3 C.8.20.4).
            check_in_context_group(segment.category, 7150, ("segments", index, "category"), problems)
            check_in_context_group(segment.type, 7151, ("segments", index, "type"), problems)
            check_in_context_group(segment.laterality, 244, ("segments", index, "laterality"), problems)
        numbers: dict[str, Sequence[ScoreTable | FormulaTable]] = {"scores": self.scores, "formulas": self.formulas}
        for section, each_of in numbers.items():
            for index, number in enumerate(each_of):
                check_concept(number.name, (section, index, "name"), problems)
                if number.unit.scheme != "UCUM":
                    problems.add((section, index, "unit", "scheme"), "units are of UCUM (PS3.3 10.2.1)")
        for section in ("classes", "objects"):
            for index, each in enumerate(getattr(self, section)):
                check_concept(each.finding, (section, index, "finding"), problems)
        _check_groups(self.classes, problems)

    def _check_sections(self, problems: Problems) -> None:
        wanted = SECTIONS[self.kind]
        if not getattr(self, wanted):
            problems.add((wanted,), f"a model of kind {self.kind.value!r} needs at least one of [[{wanted}]]")
        for section in dict.fromkeys(SECTIONS.values()):
            if section != wanted and getattr(self, section):
                problems.add((section,), f"a model of kind {self.kind.value!r} has [[{wanted}]], no [[{section}]]")


def check_measures(segments: Sequence[SegmentTable], first: InputKind, problems: Problems) -> None:
    """Note what cannot be measured: a picture has no volume, and a volume no one area."""
    on_pictures = first is InputKind.PICTURES
    for index, each in enumerate(segments):
        asked = each.measure or ()
        if on_pictures and any(kind is not MeasurementKind.AREA for kind in asked):
            problems.add(("segments", index, "measure"), f"of {first.value}, only 'area' can be measured")
        elif not on_pictures and MeasurementKind.AREA in asked:
            problems.add(("segments", index, "measure"), f"of {first.value}, everything but 'area' can be measured")
        elif not on_pictures and asked and MeasurementKind.VOLUME not in asked:
            message = "needs 'volume' as well: of an empty segment nothing else can be measured"
            problems.add(("segments", index, "measure"), message)
        for place, kind in enumerate(asked):
            if kind in asked[:place]:
                problems.add(("segments", index, "measure", place), f"{kind.value!r} stands there already")
        if each.plausible_volume_ml is not None and on_pictures:
            problems.add(("segments", index, "plausible_volume_ml"), "segments on pictures have no volume")
        if each.lesions is not None and on_pictures:
            problems.add(("segments", index, "lesions"), "are counted in volumes: pictures may show one of them twice")
        if each.lesions is not None and len(each.name) > _LONGEST_LESION_NAME:
            message = f"with lesions, which are numbered, has at most {_LONGEST_LESION_NAME} characters"
            problems.add(("segments", index, "name"), message)


def check_formulas(outputs: OutputTables, first: InputKind, problems: Problems) -> None:
    """Note formulas that cannot be read or computed: of what is no segment, or of what is not measured."""
    segments = {each.name: each.as_contract(first) for each in outputs.segments}
    if outputs.formulas and (outputs.kind is not ModelKind.SEGMENTATION or first is InputKind.PICTURES):
        problems.add(("formulas",), "are of segments in a volume, which this model has not")
        return
    for index, each in enumerate(outputs.formulas):
        keys = ("formulas", index, "formula")
        try:
            asked = dict.fromkeys(measured_in(parse_formula(each.formula)))
        except InvalidFormula as invalid:
            problems.add(keys, str(invalid))
            continue
        if not asked:
            problems.add(keys, "names no measurement: it is always the same number")
        for one in asked:
            segment = segments.get(one.segment)
            if segment is None:
                problems.add(keys, f"there is no segment {one.segment!r}{did_you_mean(one.segment, segments)}")
            elif one.measure not in segment.measures:
                problems.add(keys, _unmeasured(one, segment))


def _unmeasured(asked: Measured, segment: SegmentContract) -> str:
    if segment.lesions is not None:
        return f"{asked.measure!r} is measured of each lesion of {segment.name!r}; of all together: 'count', 'volume'"
    known = ", ".join(map(repr, sorted(segment.measures))) or "nothing"
    if asked.measure in {each.value for each in MeasurementKind}:
        return f"{asked.measure!r} of {segment.name!r} is not in its 'measure': {known}"
    return (
        f"{asked.measure!r} is nothing that is measured{did_you_mean(asked.measure, segment.measures)}; known: {known}"
    )


def check_combine(combine: Combine | None, outputs: OutputTables, first: InputKind, problems: Problems) -> None:
    """Note where nothing is combined, where it would make no sense, and where nobody said what to do."""
    scored = outputs.kind in {ModelKind.CLASSIFICATION, ModelKind.REGRESSION}
    if scored and first is InputKind.SLICES and combine in {None, Combine.REFUSE}:
        problems.add(("combine",), 'slices have a score each: say "mean", "max" or "each"')
    elif combine is not None and not (scored and first in {InputKind.PICTURES, InputKind.SLICES}):
        problems.add(("combine",), "is for the scores of several pictures or slices, which this model has not")
    elif combine is Combine.MAX and any(each.group for each in outputs.classes):
        problems.add(("combine",), "the highest scores of classes that exclude each other do not add up to 1")


def _check_groups(classes: Sequence[ClassTable], problems: Problems) -> None:
    groups = [each.group for each in classes]
    for index, each in enumerate(classes):
        if not each.group and each.threshold is None:
            problems.add(("classes", index), "needs a threshold from 0 to 1, or a group of classes that exclude it")
        if each.group and groups.count(each.group) == 1:
            problems.add(("classes", index, "group"), f"{each.group!r} has no other class: nothing excludes this one")
