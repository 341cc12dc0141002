"""The gate refuses each fault in the documents on boxes and on classes, whatever came of the run."""

from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.sequence import Sequence as Items
from reported_samples import SAMPLES
from result_samples import contract
from test_gate import drop_items, edit, items, put

from meddaemon.domain.errors import ObjectRefusedByGate
from meddaemon.domain.outlet import Edition, ReportForm
from meddaemon.domain.result import EncodedObject
from meddaemon.results.encoding import EncodingRequest, encode
from meddaemon.results.gate import check

Written = tuple[EncodingRequest, tuple[EncodedObject, ...]]
BOTH = (Edition(), Edition(report=ReportForm.COMPREHENSIVE))


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Written]:
    names = ("detected_on_picture", "detected_in_volume", "each_classified", "not_evaluated", "unbelievable")
    made = {name: replace(SAMPLES[name](tmp_path_factory.mktemp(name)), editions=BOTH) for name in names}
    return {name: (request, encode(request)) for name, request in made.items()}


def faulty(written: tuple[EncodedObject, ...], part: str, mutate: Callable[[Dataset], object]) -> list[EncodedObject]:
    """The same objects with the newer document of a part edited."""
    edited = []
    for each in written:
        if (each.part, each.edition) == (part, "3d"):
            dataset = dcmread(BytesIO(each.content))
            mutate(dataset)
            buffer = BytesIO()
            dataset.save_as(buffer)
            each = replace(each, content=buffer.getvalue())  # noqa: PLW2901
        edited.append(each)
    return edited


def in_group(change: Callable[[Dataset], object], number: int = 0) -> Callable[[Dataset], object]:
    return lambda dataset: change(items(dataset, "125007")[number])


def region(change: Callable[[Dataset], object]) -> Callable[[Dataset], object]:
    return edit("111030", change)


def move(by: float) -> Callable[[Dataset], object]:
    """Move a region by so many pixels along both axes."""
    return region(lambda item: put(item, "GraphicData", [each + by for each in item.GraphicData]))


def say(name: str, value: str) -> Callable[[Dataset], object]:
    return edit(name, lambda item: put(item.ConceptCodeSequence[0], "CodeValue", value))


def image_of(item: Dataset) -> Dataset:
    holder = item if "ReferencedSOPSequence" in item else item.ContentSequence[0]
    return holder.ReferencedSOPSequence[0]


def name_another(name: str, uid: Callable[[Dataset], str]) -> Callable[[Dataset], object]:
    """Let the first item of that name refer to another image of the library."""

    def mutate(dataset: Dataset) -> None:
        image_of(items(dataset, name)[0]).ReferencedSOPInstanceUID = uid(dataset)

    return mutate


def another(name: str) -> Callable[[Dataset], object]:
    def other(dataset: Dataset) -> str:
        taken = image_of(items(dataset, name)[0]).ReferencedSOPInstanceUID
        listed = [str(image_of(each).ReferencedSOPInstanceUID) for each in items(dataset, "260753009")]
        return next(uid for uid in listed if uid != taken)

    return name_another(name, other)


def add_number(group: Dataset) -> None:
    number, measured = Dataset(), Dataset()
    number.RelationshipType, number.ValueType = "CONTAINS", "NUM"
    number.ConceptNameCodeSequence = [code("118565006", "SCT", "Volume")]
    measured.NumericValue, measured.MeasurementUnitsCodeSequence = "0", [code("mL", "UCUM", "Milliliter")]
    number.MeasuredValueSequence = [measured]
    group.ContentSequence.append(number)


def code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def without_value(item: Dataset) -> None:
    item.MeasuredValueSequence = Items()


def drop_second_comment(dataset: Dataset) -> None:
    """The first comment is the research mark, the second says why nobody may believe the result."""
    for group in items(dataset, "125007"):
        comments = items(group, "121106")
        group.ContentSequence = [each for each in group.ContentSequence if each not in comments[1:2]]


FAULTS: list[tuple[str, str, str, Callable[[Dataset], object], str]] = [
    # What, in which sample, in which part, how, and what the refusal must say.
    ("half a pixel", "detected_on_picture", "boxes", move(0.5), "region does not lie on rows"),
    ("a pixel", "detected_on_picture", "boxes", move(-1), "region does not lie on rows"),
    (
        "rows for columns",
        "detected_on_picture",
        "boxes",
        region(
            lambda item: put(
                item,
                "GraphicData",
                [each for pair in zip(*[iter(item.GraphicData)] * 2, strict=True) for each in pair[::-1]],
            )
        ),
        "region does not lie on rows",
    ),
    ("another picture", "detected_on_picture", "boxes", another("111030"), "lies on image"),
    ("another plane", "detected_in_volume", "boxes", another("111030"), "lies on image"),
    (
        "a frame of an image without frames",
        "detected_in_volume",
        "boxes",
        region(lambda item: put(image_of(item), "ReferencedFrameNumber", 1)),
        "lies on frame 1",
    ),
    (
        "open polygon",
        "detected_on_picture",
        "boxes",
        region(lambda item: put(item, "GraphicData", list(item.GraphicData)[:-2])),
        "not closed",
    ),
    (
        "triangle",
        "detected_on_picture",
        "boxes",
        region(lambda item: put(item, "GraphicData", [*item.GraphicData[:6], *item.GraphicData[8:]])),
        "region is no box",
    ),
    ("point", "detected_on_picture", "boxes", region(lambda item: put(item, "GraphicType", "POINT")), "is a POINT"),
    ("no region", "detected_on_picture", "boxes", lambda d: drop_items(d, "111030"), "0 regions"),
    (
        "outside",
        "detected_on_picture",
        "boxes",
        region(lambda item: put(item, "GraphicData", [3, 2, 11, 2, 11, 7, 3, 7, 3, 2])),
        "SCOORD leaves its image",
    ),
    (
        "other template",
        "detected_in_volume",
        "boxes",
        in_group(lambda g: put(g.ContentTemplateSequence[0], "TemplateIdentifier", "1411")),
        "template 1410",
    ),
    (
        "swapped groups",
        "detected_in_volume",
        "boxes",
        lambda d: put(items(d, "126010")[0], "ContentSequence", items(d, "126010")[0].ContentSequence[::-1]),
        "tracking",
    ),
    (
        "shared tracking",
        "detected_in_volume",
        "boxes",
        lambda d: put(items(d, "112040")[1], "UID", items(d, "112040")[0].UID),
        "not unique",
    ),
    ("not there", "detected_in_volume", "boxes", say("705057003", "272519000"), "(705057003, SCT) is not"),
    (
        "another certainty",
        "detected_in_volume",
        "boxes",
        edit("111012", lambda i: put(i.MeasuredValueSequence[0], "NumericValue", "8")),
        "is not the measured",
    ),
    (
        "group dropped",
        "detected_in_volume",
        "boxes",
        lambda d: items(d, "126010")[0].ContentSequence.pop(),
        "2 measurement groups for 3",
    ),
    ("found instead of absent", "each_classified", "classes", say("705057003", "373068000"), "(705057003, SCT) is not"),
    ("no presence", "each_classified", "classes", lambda d: drop_items(d, "705057003"), "(705057003, SCT) is not"),
    ("other view", "each_classified", "classes", another("121112"), "lies on image"),
    ("no view", "each_classified", "classes", lambda d: drop_items(d, "121112"), "is about 0 images, not one"),
    ("other class", "each_classified", "classes", say("121071", "1"), "Finding is not"),
    ("number without value", "each_classified", "classes", edit("111012", without_value), "finite decimal string"),
    ("no certainty", "each_classified", "classes", lambda d: drop_items(d, "111012"), "0 numbers for 1"),
    ("no research mark", "each_classified", "classes", lambda d: drop_items(d, "121106"), "has no comment"),
    ("a summary too good", "not_evaluated", "classes", say("111017", "111241"), "(111017, DCM) is not"),
    (
        "a number nobody measured",
        "not_evaluated",
        "classes",
        in_group(add_number),
        "has a number, but nothing was evaluated",
    ),
    ("absent instead of unknown", "not_evaluated", "classes", say("705057003", "272519000"), "(705057003, SCT) is not"),
    (
        "complete",
        "not_evaluated",
        "classes",
        lambda d: put(d, "CompletionFlag", "COMPLETE"),
        "CompletionFlag is COMPLETE",
    ),
    (
        "no reason",
        "not_evaluated",
        "classes",
        lambda d: d.pop("CompletionFlagDescription"),
        "does not say why it is partial",
    ),
    (
        "believed",
        "unbelievable",
        "classes",
        lambda d: put(d, "CompletionFlag", "COMPLETE"),
        "CompletionFlag is COMPLETE",
    ),
    (
        "nothing said against it",
        "unbelievable",
        "classes",
        drop_second_comment,
        "does not say why it is not to be believed",
    ),
    (
        "evidence without an input",
        "each_classified",
        "classes",
        lambda d: (
            d.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence.pop()
        ),
        "of an input are not in evidence",
    ),
    (
        "a predecessor of its own",
        "each_classified",
        "classes",
        lambda d: put(d, "PredecessorDocumentsSequence", d.CurrentRequestedProcedureEvidenceSequence),
        "Predecessor Documents Sequence names",
    ),
]


@pytest.mark.parametrize(
    ("sample", "part", "mutate", "says"), [each[1:] for each in FAULTS], ids=[each[0] for each in FAULTS]
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_faulty_document_is_refused(
    samples: dict[str, Written], sample: str, part: str, mutate: Callable[[Dataset], object], says: str
) -> None:
    request, written = samples[sample]
    with pytest.raises(ObjectRefusedByGate) as caught:
        check(faulty(written, part, mutate), request)
    assert says in str(caught.value)
    assert all(line.startswith(f"SR {part} 3d") for line in str(caught.value).splitlines())


def test_what_was_written_passes(samples: dict[str, Written]) -> None:
    for request, written in samples.values():
        check(
            [each for part in ("boxes", "classes") for each in faulty(written, part, id) if each.part == part], request
        )


def test_a_document_that_is_missing_is_missed(samples: dict[str, Written]) -> None:
    request, written = samples["detected_on_picture"]
    for lost in written:
        with pytest.raises(ObjectRefusedByGate, match=f"there is no report {lost.part} {lost.edition}"):
            check([each for each in written if each is not lost], request)


def test_a_document_under_the_class_of_the_other_form_is_refused(samples: dict[str, Written]) -> None:
    request, written = samples["each_classified"]
    newer, older = written
    swapped: list[Any] = [replace(newer, edition="2d"), replace(older, edition="3d")]
    with pytest.raises(ObjectRefusedByGate, match="is not that of the form '2d'"):
        check(swapped, request)


def test_a_document_of_another_model_is_refused(samples: dict[str, Written], tmp_path: Path) -> None:
    request, written = samples["each_classified"]
    other = replace(request, contract=replace(request.contract, digest=contract(digest="ab" * 32).digest))
    with pytest.raises(ObjectRefusedByGate, match="device observer UID"):
        check(written, other)
