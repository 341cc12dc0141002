"""Presentations, key objects, maps, papers and structure sets, as readers that are not ours see them."""

import re
import shutil
import subprocess
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pypdfium2
import pytest
from dicom_factory import make_series
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from result_samples import KIDNEY, analysis_of, geometry_of, request_for
from skimage.draw import polygon2mask
from sources import SOURCES, with_everything

from meddaemon.domain.outlet import EDITIONS, ObjectKind
from meddaemon.domain.result import Artefact, ArtefactKind, LeftOut
from meddaemon.results import parametric, presentation, structure
from meddaemon.results.encoding import EncodingRequest, encode
from meddaemon.results.presentation import drawn_on, lines_of
from meddaemon.results.window import rescale_of, window_of


def only(request: EncodingRequest, *kinds: ObjectKind) -> list[Dataset]:
    return [dcmread(BytesIO(each.content)) for each in encode(replace(request, kinds=frozenset(kinds)))]


def left_out(request: EncodingRequest, kind: ObjectKind) -> dict[str, str]:
    said: list[LeftOut] = []
    encode(replace(request, kinds=frozenset({kind})), said.append)
    return {each.what: each.why for each in said}


@pytest.mark.parametrize("name", ["oblique", "uneven and tilted", "multi-frame", "overlapping", "feet first"])
def test_contours_filled_are_the_segments(name: str, tmp_path: Path) -> None:
    """By coordinates in the patient alone, as a planning system does it: no code of ours but the volume's geometry."""
    request = SOURCES[name](tmp_path)
    drawing, geometry = request.analysis.drawn
    (dataset,) = only(request, ObjectKind.RTSTRUCT)
    for region in dataset.ROIContourSequence:
        filled = np.zeros(geometry.shape, bool)
        for contour in region.ContourSequence:
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            near = [np.abs((points - position) @ geometry.axes[:, 0]).max() for position in geometry.positions]
            plane = int(np.argmin(near))
            reference = contour.ContourImageSequence[0]
            frame = int(reference.get("ReferencedFrameNumber", 1))
            assert (reference.ReferencedSOPInstanceUID, frame) == request.scene.images[plane]
            axes = geometry.affine_lps[:3, 1:3]
            corners = np.linalg.lstsq(axes, (points - geometry.positions[plane]).T, rcond=None)[0].T
            filled[plane] ^= polygon2mask(geometry.shape[1:], corners)
        wanted = np.stack([drawing.mask(int(region.ReferencedROINumber), plane) for plane in range(geometry.shape[0])])
        np.testing.assert_array_equal(filled, wanted)


def test_a_hole_is_a_contour_of_its_own_and_a_long_one_is_written_whole(tmp_path: Path) -> None:
    paths = make_series(tmp_path, planes=1, rows=120, columns=130)
    labels = np.zeros(geometry_of(paths).shape, np.uint8)
    labels[0, 1:, :] = np.arange(130) % 2  # a comb, with 65 teeth
    labels[0, 0, :129] = 1
    labels[0, 40:80, 20:120] = 1
    labels[0, 50:60, 50:60] = 0
    (dataset,) = only(request_for(paths, labels), ObjectKind.RTSTRUCT)
    contours = dataset.ROIContourSequence[0].ContourSequence
    assert len(contours) > 1
    assert dataset.original_encoding == (True, True)


def test_a_structure_set_that_nobody_could_load_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = SOURCES["axial CT"](tmp_path)
    monkeypatch.setattr(structure, "MOST_POINTS", 10)
    assert only(request, ObjectKind.RTSTRUCT) == []
    assert left_out(request, ObjectKind.RTSTRUCT) == {
        "RTSTRUCT": "its contours have more points than the 10 that they may have"
    }


@pytest.mark.parametrize("name", ["oblique", "multi-frame", "decubitus"])
def test_a_map_holds_each_value_where_it_belongs(name: str, tmp_path: Path) -> None:
    request = SOURCES[name](tmp_path)
    first, second = encode(replace(request, kinds=frozenset({ObjectKind.PM})))
    assert (first.part, second.part) == ("map 1", "map 2")
    for encoded, artefact in zip((first, second), request.analysis.artefacts, strict=True):
        volume = hd.imread(BytesIO(encoded.content)).get_volume(apply_real_world_transform=True)
        there = np.rint(np.linalg.inv(request.analysis.drawn[1].affine_lps) @ volume.affine).astype(int)
        values = volume.array if there[0, 0] == 1 else volume.array[::-1]
        np.testing.assert_array_equal(values, artefact.values.astype(np.float32))


@pytest.mark.peer
@pytest.mark.parametrize("name", ["oblique", "multi-frame"])
def test_dcmqi_reads_a_map(name: str, tmp_path: Path) -> None:
    tool = shutil.which("paramap2itkimage") or next(
        (str(each) for each in Path("/opt/meddev/validators").rglob("paramap2itkimage") if each.is_file()), None
    )
    if tool is None:
        pytest.skip("dcmqi is not here")
    request = SOURCES[name](tmp_path / "source")
    encoded = next(iter(encode(replace(request, kinds=frozenset({ObjectKind.PM})))))
    (tmp_path / "map.dcm").write_bytes(encoded.content)
    subprocess.run(
        [tool, "--inputDICOM", "map.dcm", "--outputDirectory", ".", "-t", "nii"], cwd=tmp_path, check=True, timeout=60
    )
    import nibabel  # noqa: PLC0415  only with dcmqi

    image = nibabel.load(next(tmp_path.glob("*.nii*")))
    geometry = request.analysis.drawn[1]
    there = np.linalg.inv(image.affine) @ geometry.affine_ras
    values = np.asarray(image.dataobj)
    artefact = request.analysis.artefacts[0].values
    for index in np.ndindex(*artefact.shape):
        at = np.rint((there @ (*index, 1))[:3]).astype(int)
        assert (at >= 0).all()
        assert values[tuple(at)] == pytest.approx(artefact[index], abs=1e-6)


def test_a_map_that_is_too_large_or_of_a_picture_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = SOURCES["axial CT"](tmp_path)
    on_picture = Artefact(kind=ArtefactKind.SALIENCY, of="x", values=np.zeros((16, 10), np.float32), source=("1.2", 1))
    pictured = replace(request, analysis=replace(request.analysis, artefacts=(on_picture,)))
    assert only(pictured, ObjectKind.PM) == []
    why = "it lies on pictures, which have no place in the patient"
    assert left_out(pictured, ObjectKind.PM) == {"PM map 1": f"{on_picture.name}: {why}"}
    monkeypatch.setattr(parametric, "MOST_BYTES", 100)
    assert only(request, ObjectKind.PM) == []
    said = left_out(request, ObjectKind.PM)
    assert list(said) == ["PM map 1", "PM map 2"]
    assert "its values take 3200 bytes, and a map may have 100" in said["PM map 1"]


def test_a_map_of_one_value_can_be_written(tmp_path: Path) -> None:
    request = SOURCES["axial CT"](tmp_path)
    flat = [
        Artefact(kind=ArtefactKind.SPREAD, of="x", values=np.full((5, 16, 10), value, np.float32))
        for value in (0.25, np.nan)
    ]
    assert len(only(replace(request, analysis=replace(request.analysis, artefacts=tuple(flat))), ObjectKind.PM)) == 2


def test_a_presentation_of_colour_is_not_made(tmp_path: Path) -> None:
    assert only(SOURCES["colour pictures"](tmp_path), ObjectKind.PR) == []


def test_a_presentation_says_what_the_images_say(tmp_path: Path) -> None:
    request = SOURCES["axial CT"](tmp_path)
    (dataset,) = only(request, ObjectKind.PR)
    assert (dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType) == (1, -1024, "HU")
    (window,) = dataset.SoftcopyVOILUTSequence
    assert (window.WindowCenter, window.WindowWidth) == (40, 400)
    assert "ContentDate" not in dataset
    assert dataset.ContentCreatorName == ""
    (inverse,) = only(SOURCES["MONOCHROME1"](tmp_path / "inverse"), ObjectKind.PR)
    assert inverse.PresentationLUTShape == "INVERSE"


def test_images_that_are_scaled_otherwise_are_not_of_the_same_presentation(tmp_path: Path) -> None:
    def scale(plane: int, dataset: Dataset) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = 1 + plane, 0

    request = with_everything(make_series(tmp_path, rows=16, edit=scale))
    (dataset,) = only(request, ObjectKind.PR)
    ((image,),) = (each.ReferencedImageSequence for each in dataset.ReferencedSeriesSequence)
    areas = request.scene.areas.sum(axis=1)
    boxed = {request.scene.images[int(each)][0] for each in np.argsort(areas)[-3:]}
    assert image.ReferencedSOPInstanceUID in boxed


def test_a_presentation_is_bounded_and_keeps_what_shows_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = SOURCES["axial CT"](tmp_path)
    everything = drawn_on(request)
    assert left_out(request, ObjectKind.PR) == {}
    monkeypatch.setattr(presentation, "MOST_IMAGES", 2)
    assert list(left_out(request, ObjectKind.PR)) == [f"PR on {len(everything) - 2} images"]
    two = drawn_on(request)
    assert len(two) == 2 < len(everything)
    monkeypatch.setattr(presentation, "MOST_POINTS", 1)
    assert len(drawn_on(request)) == 1
    assert set(drawn_on(request)) <= set(two)


def test_a_long_line_is_cut_into_pieces_that_follow_each_other() -> None:
    polygon = np.stack([np.arange(10_000), np.arange(10_000) % 7], axis=1).astype(float)
    lines = lines_of(polygon, closed=True)
    assert max(map(len, lines)) <= presentation.LONGEST_LINE
    for one, other in zip(lines, [*lines[1:], lines[0]], strict=True):
        np.testing.assert_array_equal(one[-1], other[0])
    joined = np.concatenate([line[:-1] for line in lines])
    np.testing.assert_array_equal(joined, polygon)


def test_windows_and_scales_that_are_none_are_left_out() -> None:
    instance = Dataset()
    assert window_of(instance, 1) is None
    assert rescale_of(instance, 1) == (1, 0, "US")
    instance.WindowCenter, instance.WindowWidth = 40, 0
    assert window_of(instance, 1) is None
    instance.WindowWidth, instance.VOILUTFunction = 0.5, "LINEAR_EXACT"
    assert window_of(instance, 1) == (40, 0.5, "LINEAR_EXACT")
    frame, inner = Dataset(), Dataset()
    inner.WindowCenter, inner.WindowWidth = [7, 8], [9, 10]
    frame.FrameVOILUTSequence = [inner]
    instance.PerFrameFunctionalGroupsSequence = [Dataset(), frame]
    assert window_of(instance, 2) == (7, 9, "LINEAR")
    instance.ModalityLUTSequence = [Dataset()]
    assert rescale_of(instance, 1) is None


def referred(dataset: Dataset) -> list[Dataset]:
    return [item.ReferencedSOPSequence[0] for item in dataset.ContentSequence if "ReferencedSOPSequence" in item]


def test_key_images_are_those_with_the_largest_area_and_the_centres(tmp_path: Path) -> None:
    request = SOURCES["axial CT"](tmp_path)
    (key,) = only(request, ObjectKind.KO)[:1]
    named = [str(each.ReferencedSOPInstanceUID) for each in referred(key)]
    drawing, geometry = request.analysis.drawn
    for segment in request.analysis.segments:
        areas = [np.count_nonzero(drawing.mask(segment.number, plane)) for plane in range(geometry.shape[0])]
        assert geometry.sop_instance_uids[int(np.argmax(areas))] in named
    assert geometry.sop_instance_uids[2] in named  # centres of the box and of the landmark
    assert len(set(named)) == len(named)
    assert key.ConceptNameCodeSequence[0].CodeValue == "113000"


def test_key_images_of_one_instance_are_its_frames(tmp_path: Path) -> None:
    request = SOURCES["multi-frame"](tmp_path)
    (key,) = only(request, ObjectKind.KO)[:1]
    assert all("ReferencedFrameNumber" in each for each in referred(key))
    opened = hd.ko.KeyObjectSelectionDocument.from_dataset(key)
    assert opened.content.get_references()


def test_there_is_one_manifest_for_each_edition_and_it_names_its_own_only(tmp_path: Path) -> None:
    request = replace(SOURCES["axial CT"](tmp_path), editions=EDITIONS)
    written = encode(request)
    roots = [each for each in written if each.part == "manifest"]
    assert {each.edition for each in roots} == {str(each) for each in EDITIONS}
    assert written[-len(roots) :] == tuple(roots)
    for edition in EDITIONS:
        (root,) = (dcmread(BytesIO(each.content)) for each in roots if each.edition == str(edition))
        named = {str(each.ReferencedSOPInstanceUID) for each in referred(root)}
        own = {each.sop_instance_uid for each in written if each.edition in edition.parts and each.part != "manifest"}
        assert named == own
        assert root.ConceptNameCodeSequence[0].CodeValue == "113030"


def pages(dataset: Dataset) -> tuple[str, list[NDArray[np.uint8]]]:
    """The text of a document, and how its pages look."""
    content = dataset.EncapsulatedDocument[: dataset.EncapsulatedDocumentLength]
    document = pypdfium2.PdfDocument(content)
    text = "\n".join(page.get_textpage().get_text_range() for page in document)
    return text, [page.render(scale=1).to_numpy() for page in document]


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


def test_a_paper_says_what_was_found_and_who_found_it(tmp_path: Path) -> None:
    request = SOURCES["axial CT"](tmp_path)
    (dataset,) = only(request, ObjectKind.PDF)
    text, looks = pages(dataset)
    for said in (
        "NOT FOR DIAGNOSTIC USE",
        "Left kidney",
        "Certainty of Finding: 80.5 %",
        "absent",
        request.contract.digest,
        request.contract.weights_digest,
        "brain 1.0.2",
    ):
        assert squeezed(said) in squeezed(text)
    for whose in ("Doe", "Jane", "P-1", "1970"):
        assert whose not in text
    # The picture is on it, with the finding in its colour.
    blue, green, red = (int(each) for each in request.analysis.segments[0].colour[::-1])
    near = np.abs(looks[0][..., :3].astype(int) - (blue, green, red)).max(axis=2) < 30
    assert near.sum() > 50


def test_a_paper_has_as_many_pages_as_it_takes_and_no_mark_up_of_others(tmp_path: Path) -> None:
    request = SOURCES["not evaluable"](tmp_path)
    odd = replace(request.analysis.findings[0].code, meaning="<b>a & b</b> ☠")
    many = tuple(replace(each, code=odd) for each in request.analysis.findings) * 60
    (dataset,) = only(replace(request, analysis=replace(request.analysis, findings=many)), ObjectKind.PDF)
    text, looks = pages(dataset)
    assert len(looks) > 2
    assert any(f"<b>a & b</b> {each}" in text for each in ("☠", r"\u2620"))
    assert "NOT EVALUABLE" in text


@pytest.mark.peer
def test_dcmtk_finds_a_presentation_sound(tmp_path: Path) -> None:
    tool = shutil.which("dcmpschk")
    if tool is None:
        pytest.skip("DCMTK is not here")
    for name in ("axial CT", "multi-frame", "grey pictures", "MONOCHROME1"):
        (encoded,) = encode(replace(SOURCES[name](tmp_path / name), kinds=frozenset({ObjectKind.PR})))
        (tmp_path / "pr.dcm").write_bytes(encoded.content)
        done = subprocess.run([tool, str(tmp_path / "pr.dcm")], capture_output=True, text=True, check=True)
        assert "Test passed" in done.stdout + done.stderr


def test_a_hundred_segments_are_drawn(tmp_path: Path) -> None:
    paths = make_series(tmp_path, planes=3, rows=40, columns=40)
    labels = np.repeat(np.arange(1, 101, dtype=np.uint8).reshape(1, 10, 10), 3, axis=0).repeat(4, 1).repeat(4, 2)
    kinds = [(f"Part {number}", KIDNEY, None) for number in range(1, 101)]
    request = request_for(paths, analysis=analysis_of(labels, geometry_of(paths), kinds=kinds))
    written = encode(replace(request, kinds=frozenset({ObjectKind.PR, ObjectKind.RTSTRUCT, ObjectKind.KO})))
    assert [each.kind for each in written] == ["RTSTRUCT", "PR", "KO", "KO"]
