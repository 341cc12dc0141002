"""What the images of a source say is said of what is derived from them, too; and what they say badly harms nothing."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_factory import make_series
from pydicom import Dataset, config, dcmread
from pydicom.dataelem import DataElement
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian
from sources import SOURCES, header, multi_frame, pictures, volume

from meddaemon.domain.outlet import EDITIONS
from meddaemon.results.encoding import EncodingRequest, ObjectReference, encode
from meddaemon.results.source import read_source
from meddaemon.results.window import Lookup, lookup_of


def written(request: EncodingRequest, *kinds: str) -> dict[str, Dataset]:
    """The objects of these kinds of a result, the first of each."""
    made = encode(replace(request, kinds=frozenset(kinds)))
    return {each.kind: dcmread(BytesIO(each.content)) for each in reversed(made)}


@pytest.mark.parametrize("number", [8999, 9000, 9099, 9100])
def test_a_source_may_have_any_number(tmp_path: Path, number: int) -> None:
    request = header(attributes={"SeriesNumber": number}, planes=2)(tmp_path)
    made = encode(replace(request, kinds=frozenset({"SEG", "SR", "KO"})))
    numbers = {int(dcmread(BytesIO(each.content), stop_before_pixels=True).SeriesNumber) for each in made}
    assert min(numbers) == (9100 if 9000 <= number < 9100 else 9000)
    assert number not in numbers


def table(*, entries: int = 256, first: int = 0, **changes: Any) -> Dataset:
    """A VOI LUT that is no straight line."""
    lut = Dataset()
    words = (np.arange(entries, dtype=np.uint32) ** 2 // entries * 256).astype("<u2")
    lut.add_new("LUTDescriptor", "SS" if first < 0 else "US", [entries, first, 16])
    lut.add_new("LUTData", "OW", words.tobytes())
    for keyword, value in changes.items():
        setattr(lut, keyword, value)
    return lut


@pytest.mark.parametrize("first", [0, -100])
def test_a_presentation_has_the_voi_lut_of_its_images(tmp_path: Path, first: int) -> None:
    """Without one a viewer shows all values that there might be: next to nothing of a mammogram."""
    presented = written(pictures(VOILUTSequence=[table(first=first)])(tmp_path), "PR")["PR"]
    (voi,) = presented.SoftcopyVOILUTSequence
    assert "WindowCenter" not in voi
    (lut,) = voi.VOILUTSequence
    assert list(lut.LUTDescriptor) == [256, first, 16]
    assert lut.LUTData == table().LUTData
    assert len(voi.ReferencedImageSequence) == 2


def test_a_window_goes_before_a_table(tmp_path: Path) -> None:
    said = {"VOILUTSequence": [table()], "WindowCenter": 40, "WindowWidth": 400}
    (voi,) = written(pictures(**said)(tmp_path), "PR")["PR"].SoftcopyVOILUTSequence
    assert (voi.WindowCenter, voi.WindowWidth, "VOILUTSequence" in voi) == (40, 400, False)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_table_that_was_written_without_a_vr_is_the_same_and_one_of_other_bytes_is_none(
    tmp_path: Path, syntax: str
) -> None:
    said = {"VOILUTSequence": [table(first=-100)], "PixelRepresentation": 1}
    (path,) = make_series(tmp_path, planes=1, attributes=said)
    read, dataset = dcmread(path, stop_before_pixels=True), Dataset()
    dataset.update(read)
    dataset.file_meta = read.file_meta
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path, enforce_file_format=True)
    (instance,) = read_source([path]).instances
    wanted = Lookup(256, -100, 16, table().LUTData)
    assert lookup_of(instance, 1) == (wanted if syntax == ImplicitVRLittleEndian else None)


@pytest.mark.parametrize(
    "changes",
    [{"LUTData": b"\0\0"}, {"LUTDescriptor": [256, 0, 7]}, {"LUTDescriptor": 256}, {"LUTData": None}],
    ids=["too short", "too few bits", "no descriptor", "no data"],
)
def test_a_table_that_contradicts_itself_is_none(changes: Mapping[str, Any]) -> None:
    instance = Dataset()
    instance.VOILUTSequence = [table(**changes)]
    assert lookup_of(instance, 1) is None


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"PixelSpacing": [0.5]}, ("PresentationPixelAspectRatio", [1, 1])),
        ({"PixelSpacing": [0, 0], "ImagerPixelSpacing": [0.25, 0.5]}, ("PresentationPixelSpacing", [0.25, 0.5])),
        ({"PixelAspectRatio": 3}, ("PresentationPixelAspectRatio", [1, 1])),
        ({"PixelAspectRatio": [0, 0]}, ("PresentationPixelAspectRatio", [1, 1])),
        ({"PixelAspectRatio": [4, 3]}, ("PresentationPixelAspectRatio", [4, 3])),
    ],
)
def test_pixels_are_as_large_as_the_image_says_soundly(
    tmp_path: Path, attributes: Mapping[str, Any], said: tuple[str, list[float]]
) -> None:
    (area,) = written(pictures(**attributes)(tmp_path), "PR")["PR"].DisplayedAreaSelectionSequence
    assert [float(each) for each in area[said[0]].value] == said[1]


def test_values_of_ct_are_hounsfield_units_where_it_does_not_say(tmp_path: Path) -> None:
    for modality, told in (("CT", "HU"), ("MR", "US")):
        said = {"RescaleType": None}
        request = volume(modality=modality, rescale=(2.0, -1000.0), attributes=said)(tmp_path / modality)
        assert written(request, "PR")["PR"].RescaleType == told


def one_of(plane: int, **attributes: Any) -> Callable[[int, Dataset], None]:
    """Attributes of one image only."""

    def edit(each: int, dataset: Dataset) -> None:
        for keyword, value in attributes.items() if each == plane else ():
            setattr(dataset, keyword, value)

    return edit


def test_whatever_has_pixels_is_lossy_where_any_image_was(tmp_path: Path) -> None:
    said = {"LossyImageCompression": "01", "LossyImageCompressionRatio": "8.5"}
    kinds = ("SEG", "PROBABILITY", "PM", "SC")
    made = written(volume(edit=one_of(2, **said))(tmp_path), *kinds)
    for kind in kinds:
        assert (made[kind].LossyImageCompression, made[kind].LossyImageCompressionRatio) == ("01", 8.5)


def test_pages_tell_who_the_patient_is_where_their_pictures_do(tmp_path: Path) -> None:
    request = pictures(BurnedInAnnotation="YES", RecognizableVisualFeatures="YES")(tmp_path / "1")
    made = written(request, "SC", "PDF")
    assert (made["PDF"].BurnedInAnnotation, made["PDF"].RecognizableVisualFeatures) == ("YES", "YES")
    assert made["SC"].RecognizableVisualFeatures == "YES"
    without_pictures = written(replace(request, shown=None), "PDF")["PDF"]
    assert (without_pictures.BurnedInAnnotation, without_pictures.RecognizableVisualFeatures) == ("NO", "NO")
    others = written(SOURCES["grey pictures"](tmp_path / "2"), "SC", "PDF")
    assert (others["PDF"].BurnedInAnnotation, "RecognizableVisualFeatures" in others["SC"]) == ("NO", False)


@pytest.mark.parametrize(
    ("edit", "side"),
    [
        (None, "R"),
        (one_of(2, Laterality="L"), ""),
        (one_of(2, Laterality=""), ""),
        (one_of(2, ImageLaterality="R", Laterality="L"), "R"),
    ],
    ids=["one side", "both sides", "one does not say", "the finer one"],
)
def test_the_side_that_every_image_says_is_carried_over(
    tmp_path: Path, edit: Callable[[int, Dataset], None] | None, side: str
) -> None:
    said = {"BodyPartExamined": "KNEE", "Laterality": "R"}
    kinds = ("PR",) if edit else ("PR", "SC")
    made = written(volume(attributes=said, edit=edit)(tmp_path), "SEG", *kinds)
    for kind in kinds:
        found = (made[kind].Laterality or "", made[kind].get("BodyPartExamined", ""))
        assert found == (side, "KNEE" if side else "")
    assert "Laterality" not in made["SEG"]


def test_directions_that_differ_in_the_last_digit_have_maps(tmp_path: Path) -> None:
    def turn(plane: int, dataset: Dataset) -> None:
        first, *others = dataset.ImageOrientationPatient
        dataset.ImageOrientationPatient = [first - 1e-6 * plane, *others]

    made = encode(replace(volume(edit=turn)(tmp_path), kinds=frozenset({"SEG", "PM"})))
    assert [each.name for each in made] == ["SEG binary", "PM map 1", "PM map 2"]


def test_frames_that_each_say_how_they_lie_have_maps(tmp_path: Path) -> None:
    """As scanners write them; the frame that a map's is of is named."""
    request = multi_frame(tmp_path)
    (path,) = request.sources
    dataset = dcmread(path)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        frame.PlaneOrientationSequence = shared.PlaneOrientationSequence
        frame.PixelMeasuresSequence = shared.PixelMeasuresSequence
    del shared.PlaneOrientationSequence, shared.PixelMeasuresSequence
    dataset.save_as(path)
    frames = written(request, "PM")["PM"].PerFrameFunctionalGroupsSequence
    named = [each.DerivationImageSequence[0].SourceImageSequence[0] for each in frames]
    assert [each.ReferencedFrameNumber for each in named] == [1, 2, 3, 4, 5]
    assert {each.ReferencedSOPClassUID for each in named} == {dataset.SOPClassUID}


def test_a_functional_group_without_an_item_says_nothing(tmp_path: Path) -> None:
    (path,) = multi_frame(tmp_path).sources
    dataset = dcmread(path)
    dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence = []
    dataset.save_as(path)
    uid = str(dataset.SOPInstanceUID)
    assert sorted(read_source([path]).positions) == [(uid, frame) for frame in range(2, 6)]


def test_a_weight_that_no_number_holds_is_left_out(tmp_path: Path) -> None:
    heavy = DataElement("PatientWeight", "DS", "1e9999999999999999999", validation_mode=config.IGNORE)
    source = read_source(make_series(tmp_path, planes=2, edit=lambda _, dataset: dataset.add(heavy)))
    assert "PatientWeight" not in source.header
    assert source.left_out == ("PatientWeight",)


def test_two_inputs_of_one_series_are_both_in_evidence(tmp_path: Path) -> None:
    """Images of two b-values: the result lies on those of one, and was made of both."""
    others = make_series(tmp_path / "b", edit=lambda plane, each: setattr(each, "SOPInstanceUID", f"2.25.{plane + 1}"))
    request = volume()(tmp_path / "a")
    report = written(replace(request, others=[others]), "SEG", "SR", "KO", "RTSTRUCT")["SR"]
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    series = study.ReferencedSeriesSequence
    named = [image.ReferencedSOPInstanceUID for each in series for image in each.ReferencedSOPSequence]
    assert {f"2.25.{plane + 1}" for plane in range(5)} < set(named)
    assert len(named) == len(set(named))


def test_whatever_else_is_asked_for_a_uid_names_the_same_bytes(tmp_path: Path) -> None:
    base = volume(planes=2)(tmp_path)
    asked = [replace(base, kinds=frozenset(each)) for each in ({"SR"}, {"SEG", "SR"})]
    former = tuple(
        ObjectReference(
            sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34",
            sop_instance_uid=f"2.25.{number}",
            series_instance_uid=f"2.25.1{number}",
            part=part,
            edition="3d",
        )
        for number, part in enumerate(("classes", "boxes", "volumes"), 1)
    )
    asked += [replace(each, predecessors=former) for each in asked]
    manifest = replace(base, kinds=frozenset({"SEG", "KO"}))
    asked += [replace(manifest, editions=each) for each in (EDITIONS[:2], EDITIONS[1::-1])]
    bytes_of: dict[str, set[bytes]] = {}
    for request in asked:
        for each in encode(request):
            bytes_of.setdefault(each.sop_instance_uid, set()).add(each.content)
    assert {len(each) for each in bytes_of.values()} == {1}
