"""`meddaemon evaluate` from files and a real database, whose results the pipeline has published, to both reports."""

import copy
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

pytest.importorskip("sklearn", reason="the extra `evaluate` is not installed")
pytest.importorskip("matplotlib", reason="the extra `evaluate` is not installed")
nibabel = pytest.importorskip("nibabel")
jsonschema = pytest.importorskip("jsonschema")
from meddaemon.cli.app import main  # noqa: E402
from meddaemon.domain.result import Box  # noqa: E402
from meddaemon.evaluation.report import SCHEMA  # noqa: E402
from meddaemon.inference.warm import Limits, WarmModels  # noqa: E402
from tests.dicom_factory import affine_lps  # noqa: E402
from tests.evaluation.hospital import SHAPE, SPACING, Hospital, found  # noqa: E402
from tests.evaluation.report_schema import schema_text  # noqa: E402
from tests.running import REPOSITORY, environment  # noqa: E402

VOXEL_ML = 2.0 * 1.5 * 1.25 / 1000


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    folder = tmp_path_factory.mktemp("hospital")
    with WarmModels(folder / "scratch", Limits(sandbox="off")) as models:
        made = found(folder, models)
        yield made
        made.database.close()


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], hospital: Hospital
) -> Callable[..., tuple[int, str, str]]:
    """Run `meddaemon evaluate` in this process: loading torch takes longer than all that it does."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        told = ["meddaemon", "evaluate", *map(str, arguments), "--config", str(hospital.home.config)]
        told += [] if "--resamples" in told else ["--resamples", "100"]
        monkeypatch.setattr(sys, "argv", told)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def report_in(folder: Path) -> dict[str, Any]:
    """Return the report of a folder, which satisfies its schema, and has a page that is whole."""
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(report)
    page = (folder / "report.html").read_text()
    assert re.findall(r"""(?:src|href)=["'](?!#)""", page) == []  # nothing is fetched from anywhere
    assert "<script" not in page
    for picture in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        ElementTree.fromstring(picture)
    return report


def plane(*planes: int) -> NDArray[np.uint8]:
    """Labels of one plane, or several, of a rectangle of 4 x 3 voxels."""
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[list(planes), 3:7, 2:5] = 1
    return labels


def write_nifti(path: Path, labels: NDArray[np.uint8]) -> Path:
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_lps(orientation="oblique", spacing=SPACING)
    ras[:, :3] = ras[:, 2::-1]
    nibabel.save(nibabel.Nifti1Image(labels.transpose(2, 1, 0), ras), path)
    return path


def elsewhere(path: Path, target: Path) -> None:
    dataset = dcmread(path)
    dataset.FrameOfReferenceUID = "1.2.3.4.5"
    dataset.save_as(target)


# --- segmentation ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(hospital: Hospital, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Eight studies and what somebody else drew on them; return the folder, and each series by its name."""
    folder = tmp_path_factory.mktemp("reference")
    names = ("same", "shifted", "moved", "beyond", "alone", "again", "empty", "waiting")
    series = {name: hospital.study(name) for name in names}
    same = hospital.draw("same", plane(2, 3))
    shutil.copy(hospital.segmentation(same), folder / "same.dcm")
    hospital.draw("shifted", plane(2))
    write_nifti(folder / f"{series['shifted']}.nii.gz", plane(3))
    elsewhere(hospital.segmentation(hospital.draw("moved", plane(1))), folder / "moved.dcm")
    hospital.give_up("beyond", "beyond_limits: input image: planes 6; the model takes at least 7")
    write_nifti(folder / f"{hospital.uid('beyond')}.nii.gz", plane(1))
    hospital.draw("alone", plane(1))
    hospital.draw("again", plane(0), rule="again")
    again = hospital.draw("again", plane(2, 3), rule="again")
    shutil.copy(hospital.segmentation(again), folder / "again.dcm")
    hospital.draw("empty", np.zeros(SHAPE, np.uint8))
    write_nifti(folder / "nothing.nii.gz", np.zeros(SHAPE, np.uint8))
    write_nifti(folder / "waiting.nii.gz", plane(1))
    lines = [f"{hospital.uid('empty')},nothing.nii.gz", f"{hospital.uid('waiting')},waiting.nii.gz"]
    (folder / "masks.csv").write_text("\n".join(["study_instance_uid,mask", *lines, "1.2.3.404,waiting.nii.gz"]) + "\n")
    return folder, series


def test_segments_are_held_against_their_reference(
    hospital: Hospital, drawn: tuple[Path, dict[str, str]], cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    folder, series = drawn
    code, out, err = cli(folder, "--model", "toy", "--out", tmp_path, "--resamples", "200")
    assert (code, out.splitlines()[-1].partition(";")[0]) == (
        0,
        "4 compared, 3 missing, 1 refused, 1 without a reference, 1 superseded",
    ) or pytest.fail(out + err)
    report = report_in(tmp_path)
    (brain,) = report["segmentation"]["segments"]
    cases = {each["case"]: each for each in brain["cases"]}
    for name in ("same", "again"):
        told = cases[series[name]]
        assert (told["dice"], told["surface_distance_mm"], told["hausdorff95_mm"]) == (1.0, 0.0, 0.0)
        assert told["size"] == told["reference_size"] == pytest.approx(24 * VOXEL_ML)
    shifted = cases[series["shifted"]]
    assert (shifted["dice"], shifted["size_error"]) == (0.0, pytest.approx(0.0))
    assert shifted["surface_distance_mm"] == pytest.approx(SPACING[0], abs=1e-4)
    assert shifted["hausdorff95_mm"] == pytest.approx(SPACING[0], abs=1e-4)
    empty = cases[series["empty"]]
    assert (empty["dice"], empty["hausdorff95_mm"], empty["relative_size_error"]) == (None, None, None)
    assert "both empty" in empty["reasons"]["dice"]
    assert brain["dice"]["value"] == pytest.approx(2 / 3)
    assert brain["dice"]["count"] == 3
    assert brain["dice"]["low"] <= 2 / 3 <= brain["dice"]["high"]
    assert brain["bias"]["value"] == pytest.approx(0.0, abs=1e-9)
    assert (report["classification"], report["detection"]) == (None, None)
    listed = report["cases"]
    remarks = {each["study_instance_uid"]: each["remark"] for each in listed["missing"]}
    assert "not evaluable: beyond_limits" in remarks[hospital.uid("beyond")]
    assert remarks[hospital.uid("waiting")] == "no current result: the model was not asked for it"
    assert remarks["1.2.3.404"] == "no study of this UID is here"
    (refused,) = listed["refused"]
    assert (refused["series_instance_uid"], refused["reference"]) == (series["moved"], "moved.dcm")
    assert "frame of reference 1.2.3.4.5" in refused["remark"]
    assert "moved.dcm" in err
    assert report["notes"][-1].startswith("3 references have no result to be compared with and 1 were refused")
    (alone,) = listed["unreferenced"]
    assert alone["series_instance_uid"] == series["alone"]
    assert listed["superseded"] == 1
    (nifti,) = [each for each in listed["compared"] if each["series_instance_uid"] == series["shifted"]]
    assert "no frame of reference" in nifti["remark"]


def test_the_same_evaluation_is_the_same_bytes(
    drawn: tuple[Path, dict[str, str]], cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    for name in ("one", "two"):
        assert cli(drawn[0], "--model", "toy", "--out", tmp_path / name, "--resamples", "100")[0] == 0
    for name in ("report.json", "report.html"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_coarser_reference_is_brought_to_the_source_and_the_report_says_so(
    hospital: Hospital, drawn: tuple[Path, dict[str, str]], cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """Drawn on every other row and column, twice as wide: 4 x 4 voxels of the source where the result has 4 x 3."""
    affine = affine_lps(orientation="oblique", spacing=SPACING)
    coarse = affine.copy()
    coarse[:3, 3] += (affine[:3, 1] + affine[:3, 2]) / 2
    coarse[:3, 1:3] *= 2
    labels = np.zeros((6, 6, 4), dtype=np.uint8)
    labels[2:4, 1:4, 1:3] = 1
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ coarse
    ras[:, :3] = ras[:, 2::-1]
    nibabel.save(nibabel.Nifti1Image(labels.transpose(2, 1, 0), ras), tmp_path / f"{drawn[1]['same']}.nii.gz")
    code, _, err = cli(tmp_path / f"{drawn[1]['same']}.nii.gz", "--model", "toy", "--out", tmp_path / "out")
    assert code == 0, err
    report = report_in(tmp_path / "out")
    ((told,),) = [each["cases"] for each in report["segmentation"]["segments"]]
    # Rows 2-7 and columns 2-5 of the source, of which the result has rows 3-6 and columns 2-4.
    assert told["dice"] == pytest.approx(2 * 24 / (24 + 48))
    assert told["reference_size"] == pytest.approx(48 * VOXEL_ML)
    (case,) = report["cases"]["compared"]
    assert "6×6×4" in case["remark"]
    assert "nearest neighbour" in case["remark"]


def test_numbers_of_a_label_map_have_the_names_that_are_given(
    drawn: tuple[Path, dict[str, str]], cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    labels = plane(2, 3)
    labels[labels == 1] = 7
    labels[0, 0, 0] = 3
    file = write_nifti(tmp_path / f"{drawn[1]['same']}.nii.gz", labels)
    code, _, err = cli(file, "--model", "toy", "--out", tmp_path / "out", "--label", "7=Brain")
    assert code == 0, err
    report = report_in(tmp_path / "out")
    assert [each["dice"]["value"] for each in report["segmentation"]["segments"]] == [1.0]
    assert "does not know label 3" in report["cases"]["compared"][0]["remark"]
    code, _, err = cli(file, "--model", "toy", "--out", tmp_path / "out", "--label", "7")
    assert (code, "--label 7: say NUMBER=SEGMENT" in err) == (2, True)


def test_a_stored_object_that_is_damaged_is_refused(
    hospital: Hospital, drawn: tuple[Path, dict[str, str]], cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    hospital.study("rotten")
    stored = hospital.segmentation(hospital.draw("rotten", plane(4)))
    shutil.copy(stored, tmp_path / "rotten.dcm")
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.chmod(0o600)
    stored.write_bytes(content)
    code, _, err = cli(tmp_path / "rotten.dcm", "--model", "toy", "--out", tmp_path / "out")
    assert code == 1
    assert "is damaged" in err
    assert "no reference could be compared" in err
    assert len(report_in(tmp_path / "out")["cases"]["refused"]) == 1


def test_our_own_report_is_a_reference_for_volumes_and_findings(
    hospital: Hospital, cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    hospital.study("reported")
    result = hospital.draw("reported", plane(1, 2))
    report_file = dcmread(hospital.report(result))

    def half(items: list[Dataset]) -> None:
        for item in items:
            if item.ValueType == "NUM":
                item.MeasuredValueSequence[0].NumericValue = str(12 * VOXEL_ML)
            half(item.get("ContentSequence", []))

    half(report_file.ContentSequence)
    report_file.save_as(tmp_path / "report.dcm")
    code, _, err = cli(tmp_path / "report.dcm", "--model", "toy", "--out", tmp_path / "out")
    assert code == 0, err
    report = report_in(tmp_path / "out")
    ((told,),) = [each["cases"] for each in report["segmentation"]["segments"]]
    assert (told["dice"], told["relative_size_error"]) == (None, pytest.approx(1.0, rel=1e-4))
    assert "volumes only" in told["reasons"]["dice"]
    (brain,) = report["classification"]["classes"]
    assert (brain["name"], brain["true_positive"], brain["auc"]["value"]) == ("Brain", 1, None)
    assert brain["auc"]["reason"]


def film(*rows: int) -> NDArray[np.uint8]:
    """Labels of an image: all columns from 10 to 30 of two rows from each of these on."""
    labels = np.zeros((64, 48), dtype=np.uint8)
    for row in rows:
        labels[row : row + 2, 10:30] = 1
    return labels


def segments_of(cli: Callable[..., tuple[int, str, str]], reference: Path, out: Path) -> dict[str, Any]:
    """Evaluate the segments of images; return the report, with every case by its image and unit."""
    code, _, err = cli(reference, "--model", "films", "--out", out)
    assert code == 0, err
    report = report_in(out)
    return report | {
        "by_image": {
            (each["case"].partition(" ")[2], each["unit"]): each
            for table in report["segmentation"]["segments"]
            for each in table["cases"]
        }
    }


def test_segments_on_images_are_held_against_the_image_that_the_reference_names(
    hospital: Hospital, cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """Two images, one of each drawn two rows lower; in the reference their frames come the other way round."""
    (one, _), (two, _) = hospital.pictures("1.2.9.1", 2, PixelSpacing=[0.5, 0.25])
    result = hospital.draw_on_pictures("1.2.9.1", np.stack([film(10), film(20, 40)]))
    reference = dcmread(hospital.segmentation(result))
    frames = reference.PerFrameFunctionalGroupsSequence
    drawn = np.packbits(np.stack([film(20), film(12)]), bitorder="little").tobytes()
    reference.PixelData, reference.PerFrameFunctionalGroupsSequence = drawn, frames[::-1]
    reference.save_as(tmp_path / "reference.dcm")
    report = segments_of(cli, tmp_path / "reference.dcm", tmp_path / "out")
    first, second = (report["by_image"][f"{uid}#1", "mm2"] for uid in (one, two))
    # Two rows of 0.5 mm beside two others: one step away and two.
    assert (first["dice"], first["size_error"]) == (0.0, 0.0)
    assert (first["surface_distance_mm"], first["hausdorff95_mm"]) == pytest.approx((0.75, 1.0))
    assert (second["dice"], second["size"], second["reference_size"]) == (2 * 40 / 120, 10.0, 5.0)
    assert second["hausdorff95_mm"] == pytest.approx(20 * 0.5)
    (table,) = report["segmentation"]["segments"]
    assert (table["name"], table["unit"], table["bias"]["value"]) == ("Lung", "mm2", 2.5)
    assert table["bias"]["reason"] == "an interval needs two patients or more"
    assert [each["remark"] for each in report["cases"]["compared"]] == [""]


def test_without_spacing_in_the_patient_areas_are_pixels_and_surfaces_have_no_distance(
    hospital: Hospital, cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """Each image may be in a reference of its own, or not be in any; what is beyond the result is listed."""
    (uid, _), (other, _) = hospital.pictures("1.2.9.2", 2, ImagerPixelSpacing=[0.5, 0.25])
    result = hospital.draw_on_pictures("1.2.9.2", np.stack([film(10), film()]))
    reference = dcmread(hospital.segmentation(result))
    (named,) = reference.ReferencedSeriesSequence
    named.ReferencedInstanceSequence = [named.ReferencedInstanceSequence[0]]
    reference.SourceImageSequence = reference.SourceImageSequence[:1]
    kept = [reference.PerFrameFunctionalGroupsSequence[0]]
    reference.NumberOfFrames, reference.PerFrameFunctionalGroupsSequence = 1, kept
    reference.PixelData = np.packbits(film(10, 11), bitorder="little").tobytes()
    reference.save_as(tmp_path / "one.dcm")
    report = segments_of(cli, tmp_path / "one.dcm", tmp_path / "out")
    ((image, unit),) = report["by_image"]
    assert (image, unit) == (f"{uid}#1", "{pixels}")
    told = report["by_image"][image, unit]
    assert (told["dice"], told["size"], told["reference_size"]) == (pytest.approx(80 / 100), 40.0, 60.0)
    assert (told["surface_distance_mm"], told["hausdorff95_mm"]) == (None, None)
    assert "how far its pixels lie apart" in told["reasons"]["hausdorff95_mm"]
    assert other in report["cases"]["compared"][0]["remark"]
    # The same for the other image, where the reference is empty; and an image of which the result says nothing.
    stranger = copy.deepcopy(named.ReferencedInstanceSequence[0])
    stranger.ReferencedSOPInstanceUID = "1.2.3.99"
    empty = copy.deepcopy(stranger)
    empty.ReferencedSOPInstanceUID = other
    named.ReferencedInstanceSequence = [empty, stranger]
    derived = kept[0].DerivationImageSequence[0].SourceImageSequence[0]
    derived.ReferencedSOPInstanceUID = "1.2.3.99"
    reference.SourceImageSequence = [empty, stranger]
    reference.save_as(tmp_path / "two.dcm")
    report = segments_of(cli, tmp_path / "two.dcm", tmp_path / "out")
    ((image, _),) = report["by_image"]
    assert (image, report["by_image"][image, unit]["dice"]) == (f"{other}#1", None)
    assert ["1.2.3.99" in each["remark"] for each in report["cases"]["refused"]] == [True]


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda frame, _: frame.DerivationImageSequence[0].SourceImageSequence.clear(), "names 0 images"),
        (
            lambda frame, _: setattr(
                frame.DerivationImageSequence[0].SourceImageSequence[0], "SpatialLocationsPreserved", "NO"
            ),
            "pixel for pixel",
        ),
        (lambda _, whole: setattr(whole, "Columns", 24), "64×24 pixels"),
    ],
)
def test_a_reference_that_does_not_lie_on_the_images_is_refused(
    hospital: Hospital,
    cli: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    harm: Callable[[Dataset, Dataset], object],
    said: str,
) -> None:
    study = "1.2.9.3"
    if study not in hospital.files:
        hospital.pictures(study, 2)
        hospital.draw_on_pictures(study, np.stack([film(10), film(20)]))
    (result,) = (row for row in hospital.results("films") if row.series_instance_uid == f"{study}.1")
    reference = dcmread(hospital.segmentation(result.id))
    harm(reference.PerFrameFunctionalGroupsSequence[0], reference)
    reference.save_as(tmp_path / "harmed.dcm")
    code, _, err = cli(tmp_path / "harmed.dcm", "--model", "films", "--out", tmp_path / "out")
    assert (code, said in err) == (1, True), err


def test_images_are_no_reference_for_a_volume(
    hospital: Hospital, cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    hospital.pictures("1.2.9.4")
    film_seg = dcmread(hospital.segmentation(hospital.draw_on_pictures("1.2.9.4", film(10)[np.newaxis])))
    series = hospital.study("a volume")
    hospital.draw("a volume", plane(2))
    film_seg.StudyInstanceUID = hospital.uid("a volume")
    film_seg.ReferencedSeriesSequence[0].SeriesInstanceUID = series
    film_seg.save_as(tmp_path / "flat.dcm")
    code, _, err = cli(tmp_path / "flat.dcm", "--model", "toy", "--out", tmp_path / "out")
    assert (code, "lie nowhere in the patient, and the result does" in err) == (1, True), err


# --- classification ----------------------------------------------------------------------------------------------

SAID = {
    # nodule, pneumonia, clear (they exclude each other), air
    "1.2.8.1": (0.8, 0.1, 0.1, 0.9),
    "1.2.8.2": (0.2, 0.7, 0.1, 0.2),
    "1.2.8.3": (0.1, 0.2, 0.7, 0.4),
    "1.2.8.4": (0.6, 0.3, 0.1, 0.6),
    "1.2.8.5": (0.3, 0.2, 0.5, 0.1),
}
TRUE = {
    "1.2.8.1": "Nodule;Pneumothorax",
    "1.2.8.2": "Pneumonia",
    "1.2.8.3": "Normal;Pneumothorax",
    "1.2.8.4": "Pneumonia",
    "1.2.8.5": "Normal",
    "1.2.8.6": "Normal",
}


@pytest.fixture(scope="module")
def classified(hospital: Hospital) -> None:
    for study, scores in SAID.items():
        hospital.classify(study, scores)
    each_view = (0.8, 0.1, 0.1, 0.9, 0.1, 0.8, 0.1, 0.1)
    assert hospital.classify("1.2.8.9", each_view, images=2) == [("1.2.3.8.9.1", 1), ("1.2.3.8.9.2", 1)]


@pytest.mark.usefixtures("classified")
def test_classes_are_held_against_a_table(cli: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    lines = [f"{study},{name}" for study, names in TRUE.items() for name in names.split(";")]
    table = tmp_path / "labels.csv"
    table.write_text("study_instance_uid,finding\r\n" + "\r\n".join(lines) + "\r\n", encoding="utf-8-sig")
    code, _, err = cli(table, "--model", "chest", "--out", tmp_path / "out", "--resamples", "200")
    assert code == 0, err
    report = report_in(tmp_path / "out")
    told = {each["name"]: each for each in report["classification"]["classes"]}
    counts = ("true_positive", "false_positive", "false_negative", "true_negative")
    assert {name: tuple(each[count] for count in counts) for name, each in told.items()} == {
        "Nodule": (1, 1, 0, 3),
        "Pneumonia": (1, 0, 1, 3),
        "Normal": (2, 0, 0, 3),
        "Pneumothorax": (1, 1, 1, 2),
    }
    air = told["Pneumothorax"]
    assert (air["sensitivity"]["value"], air["specificity"]["value"]) == (1 / 2, pytest.approx(2 / 3))
    assert (air["precision"]["value"], air["f1"]["value"], air["accuracy"]["value"]) == (0.5, 0.5, 0.6)
    # 0.9 and 0.4 against 0.2, 0.6 and 0.1: five of six pairs.
    assert air["auc"]["value"] == pytest.approx(5 / 6)
    (group,) = report["classification"]["groups"]
    assert (group["name"], group["labels"]) == ("lung", ["Nodule", "Pneumonia", "Normal"])
    assert group["matrix"] == [[1, 0, 0], [1, 1, 0], [0, 0, 2]]
    assert group["accuracy"]["value"] == 4 / 5
    assert [each["study_instance_uid"] for each in report["cases"]["missing"]] == ["1.2.8.6"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<svg") == 2
    assert "1.2.8.6" in page


@pytest.mark.usefixtures("classified")
def test_a_result_for_each_image_wants_a_reference_for_each(
    cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    table = tmp_path / "labels.csv"
    heading = "study_instance_uid,sop_instance_uid,finding,present"
    image = "1.2.8.9,1.2.3.8.9.{},{},{}"
    said = [image.format(1, "36118008", 1), image.format(2, "SCT:36118008", "no"), image.format(3, "Pneumothorax", 1)]
    table.write_text("\n".join([heading, *said, "1.2.8.9,,Pneumothorax,1"]) + "\n")
    code, _, err = cli(table, "--model", "chest", "--out", tmp_path / "out")
    assert code == 0, err
    report = report_in(tmp_path / "out")
    (air,) = report["classification"]["classes"]
    assert (air["true_positive"], air["true_negative"], air["accuracy"]["count"]) == (1, 1, 2)
    # Both images are of one study.
    assert (air["auc"]["value"], air["auc"]["low"]) == (1.0, None)
    assert "two patients" in air["auc"]["reason"]
    remarks = [each["remark"] for each in report["cases"]["refused"]]
    assert ["says nothing of this image" in remarks[0], "answers for 2 images" in remarks[1]] == [True, True]


@pytest.mark.usefixtures("classified")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("study_instance_uid,finding\n1.2.8.1,Nodul\n", "labels.csv:2: no result speaks of 'Nodul'"),
        ("study_instance_uid,finding\n1.2.8.1,Nodule\n1.2.8.1,Pneumonia\n", "exclude each other"),
        ("study_instance_uid,finding,present\n1.2.8.1,Nodule,maybe\n", "labels.csv:2: name a finding"),
        (
            "study_instance_uid,finding,present\n1.2.8.1,Nodule,1\n1.2.8.1,Nodule,0\n",
            "csv:3: 'Nodule' is present",
        ),
        (
            "study_instance_uid,series_instance_uid,finding\n1.2.8.1,,Nodule\n1.2.8.1,1.2.8.1.1,Nodule\n",
            "labels.csv:2 speaks of study 1.2.8.1, series 1.2.8.1.1 already",
        ),
        (
            "study_instance_uid,finding,present\n1.2.8.1,Nodule,1\n1.2.8.1,SCT:27925004,0\n",
            "'SCT:27925004' is present and absent in one case",
        ),
        ("study,finding\n1.2.8.1,Nodule\n", "labels.csv:1: unknown column 'study'"),
        ("study_instance_uid,patient_name\n1.2.8.1,Doe\n", "unknown column 'patient_name'"),
        ("study_instance_uid\n1.2.8.1\n", "beside study_instance_uid"),
        ("study_instance_uid,finding\n4711,Nodule\n", "labels.csv:2: study_instance_uid is '4711', which is no UID"),
        ("study_instance_uid,finding\n1.2.8.1\n", "labels.csv:2: it has not as many cells"),
        ("study_instance_uid,finding\n", "no line but its heading"),
        ("study_instance_uid,mask\n1.2.8.1,gone.nii.gz\n", "labels.csv:2: there is no file"),
        ("study_instance_uid,finding,x,y,z,diameter_mm\n1.2.8.1,Nodule,1,2,nan,4\n", "labels.csv:2: z is 'nan'"),
        ("study_instance_uid,finding,x,y,z,diameter_mm\n1.2.8.1,Nodule,1,2,3,0\n", "must be more than 0"),
        ("study_instance_uid,finding\n1.2.8.1,N\xe4h", "it is not UTF-8"),
    ],
)
def test_a_table_that_is_wrong_is_refused_by_file_line_and_what_to_do(
    cli: Callable[..., tuple[int, str, str]], tmp_path: Path, text: str, said: str
) -> None:
    table = tmp_path / "labels.csv"
    table.write_bytes(text.encode("latin-1"))
    code, _, err = cli(table, "--model", "chest", "--out", tmp_path / "out")
    assert code == 1
    assert said in err
    assert "labels.csv" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("classified")
def test_a_model_without_results_and_files_of_another_kind_are_named(
    cli: Callable[..., tuple[int, str, str]], hospital: Hospital, drawn: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("not at all")
    (tmp_path / "of.nii.gz").write_bytes(b"")
    _, first = hospital.files, hospital.files["same"][0]
    for reference, model, said in (
        (tmp_path / "notes.txt", "toy", "notes.txt: it is no DICOM file, no NIfTI file"),
        (first, "toy", "neither a Segmentation nor a report"),
        (tmp_path / "of.nii.gz", "toy", "does not say whose it is"),
        (tmp_path / "gone", "toy", "no such file or folder"),
        (drawn[0] / "same.dcm", "other", "models with results: chest"),
    ):
        code, _, err = cli(reference, "--model", model, "--out", tmp_path / "out")
        assert code == 1
        assert said in err


# --- detection ---------------------------------------------------------------------------------------------------


def test_detections_are_held_against_lesions(
    hospital: Hospital, cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    affine = affine_lps(orientation="oblique", spacing=SPACING)

    def box(plane: float, row: float, column: float, score: float) -> Box:
        centre = np.array([plane, row, column])
        return Box(label=1, score=score, low=tuple(centre - 0.5), high=tuple(centre + 0.5))

    def at(plane: float, row: float, column: float) -> str:
        return ",".join(f"{value:.6f}" for value in (affine @ [plane, row, column, 1])[:3])

    for name in ("two", "none"):
        hospital.study(f"nodules {name}")
    hospital.detect("nodules two", [box(1, 2, 2, 0.9), box(1, 2, 3, 0.8), box(4, 9, 6, 0.6), box(5, 1, 1, 0.3)])
    hospital.detect("nodules none", [box(3, 3, 3, 0.5)])
    two, none = hospital.uid("nodules two"), hospital.uid("nodules none")
    table = tmp_path / "nodules.csv"
    table.write_text(
        "study_instance_uid,finding,x,y,z,diameter_mm\n"
        f"{two},Nodule,{at(1, 2, 2)},4\n{two},nodule,{at(4, 8, 6)},4\n{two},27925004,{at(0, 11, 7)},4\n{none},,,,,\n"
    )
    code, _, err = cli(table, "--model", "nodules", "--out", tmp_path / "out")
    assert code == 0, err
    report = report_in(tmp_path / "out")
    (nodule,) = report["detection"]["findings"]
    # 0.9 hits the first; 0.8 lies on it, too, and counts for nothing; 0.6 hits the second, 1.5 mm from its centre.
    assert (nodule["cases"], nodule["targets"], nodule["hits"], nodule["false_positives"]) == (2, 3, 2, 2)
    assert nodule["sensitivity"]["value"] == pytest.approx(2 / 3)
    assert nodule["curve"] == [[0.0, 0.0], [0.0, pytest.approx(1 / 3)], [0.0, pytest.approx(2 / 3)]] + [
        [rate, pytest.approx(2 / 3)] for rate in (0.5, 1.0)
    ]
    assert nodule["score"]["value"] == pytest.approx(2 / 3)
    # Recall 1/3 and 2/3 are reached without a false positive, and no more than that: 67 of 101 values of recall.
    assert (nodule["iou"], nodule["average_precision"]["value"]) == (None, pytest.approx(67 / 101))
    assert (tmp_path / "out" / "report.html").read_text().count("<svg") == 1
    # Nothing lies so far from its centre any more.
    small = table.read_text().replace(",4\n", ",1\n")
    table.write_text(small)
    assert cli(table, "--model", "nodules", "--out", tmp_path / "out")[0] == 0
    (nodule,) = report_in(tmp_path / "out")["detection"]["findings"]
    assert (nodule["hits"], nodule["false_positives"]) == (1, 4)
    assert cli(table, "--model", "nodules", "--out", tmp_path / "out", "--hit-distance", "2")[0] == 0
    (nodule,) = report_in(tmp_path / "out")["detection"]["findings"]
    assert (nodule["hits"], nodule["false_positives"]) == (2, 2)


def test_detections_on_pictures_are_held_against_rectangles(
    hospital: Hospital, cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    images = hospital.pictures("1.2.7", 2)

    def box(row: float, column: float, score: float, image: int) -> Box:
        return Box(
            label=1, score=score, low=(row - 2, column - 2), high=(row + 2, column + 2), source=images[image - 1]
        )

    hospital.detect_on_pictures("1.2.7", [box(10, 20, 0.9, 1), box(10, 20, 0.7, 2), box(50, 20, 0.4, 2)])
    table = tmp_path / "boxes.csv"
    table.write_text(
        "study_instance_uid,sop_instance_uid,finding,low_row,low_column,high_row,high_column\n"
        "1.2.7,1.2.3.7.1,Nodule,8.5,17.5,12.5,22.5\n1.2.7,1.2.3.7.2,Nodule,40,15,49,25\n"
    )
    code, _, err = cli(table, "--model", "nodules", "--out", tmp_path / "out")
    assert code == 0, err
    (nodule,) = report_in(tmp_path / "out")["detection"]["findings"]
    assert (nodule["targets"], nodule["hits"], nodule["false_positives"]) == (2, 1, 2)
    # Rows 8.5 to 12.5 and 8 to 12 have 3.5 in common, columns 17.5 to 22.5 and 18 to 22 have 4.
    part = 14 / (20 + 16 - 14)
    for iou, hits in ((part - 0.01, 1), (part + 0.01, 0)):
        assert cli(table, "--model", "nodules", "--out", tmp_path / "out", "--hit-iou", iou)[0] == 0
        by_centre, by_overlap = report_in(tmp_path / "out")["detection"]["findings"]
        assert (by_centre["iou"], by_centre["hits"], by_overlap["iou"]) == (None, 1, pytest.approx(iou))
        assert (by_overlap["hits"], by_overlap["false_positives"]) == (hits, 3 - hits)


def test_detections_in_a_volume_are_held_against_boxes_of_its_voxels(
    hospital: Hospital, cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    hospital.study("nodules boxed")
    low, high = (1.0, 2.0, 3.0), (3.0, 6.0, 7.0)
    hospital.detect("nodules boxed", [Box(label=1, score=0.9, low=low, high=high)])
    study = hospital.uid("nodules boxed")
    heading = "study_instance_uid,finding,low_plane,low_row,low_column,high_plane,high_row,high_column"
    table = tmp_path / "boxes.csv"
    # Half of it, and beside it: 16 of 32 + 16 voxels more.
    table.write_text(f"{heading}\n{study},Nodule,1,4,3,3,8,7\n{study},Nodule,4,4,3,5,8,7\n")
    asked = ("--model", "nodules", "--out", tmp_path / "out", "--hit-iou", "0.33", "--hit-iou", "0.34")
    code, _, err = cli(table, *asked)
    assert code == 0, err
    told = [
        (each["iou"], each["targets"], each["hits"]) for each in report_in(tmp_path / "out")["detection"]["findings"]
    ]
    assert told == [(None, 2, 1), (0.33, 2, 1), (0.34, 2, 0)]
    # A sphere has no overlap with a box, and that is said.
    table.write_text(f"study_instance_uid,finding,x,y,z,diameter_mm\n{study},Nodule,0,0,0,4\n")
    code, _, err = cli(table, *asked)
    (only,) = report_in(tmp_path / "out")["detection"]["findings"]
    assert (code, only["iou"]) == (0, None)
    assert "its lesions are spheres" in err


# --- numbers -------------------------------------------------------------------------------------------------------


def test_numbers_are_held_against_a_table_in_any_unit(
    hospital: Hospital, cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    planes = {"one": (1,), "two": (1, 2), "three": (1, 2, 3), "gone": ()}
    for name, drawn_on in planes.items():
        hospital.study(f"number {name}")
        if drawn_on:
            hospital.draw(f"number {name}", plane(*drawn_on))
    uid = {name: hospital.uid(f"number {name}") for name in planes}
    table = tmp_path / "volumes.csv"
    lines = [
        f"{uid['one']};Brain;volume;{12 * VOXEL_ML};mL",
        f"{uid['two']};Brain;Volume;{12 * VOXEL_ML * 1000};mm3",
        f"{uid['three']};12738006;volume;{36 * VOXEL_ML};cm3",
        f"{uid['gone']};Brain;volume;5;mL",
        f"{uid['one']};Brain;mean;5;[hnsf'U]",
    ]
    table.write_text("\n".join(["study_instance_uid;finding;measurement;value;unit", *lines]) + "\n")
    code, out, err = cli(table, "--model", "toy", "--out", tmp_path / "out")
    assert code == 0, err
    assert out.startswith("3 compared, 1 missing, 1 refused")
    report = report_in(tmp_path / "out")
    (volume,) = report["regression"]["numbers"]
    assert (volume["name"], volume["unit"], len(volume["cases"])) == ("Brain, volume", "mL", 3)
    errors = [0.0, 12 * VOXEL_ML, 0.0]
    assert [each["error"] for each in volume["cases"]] == pytest.approx(errors, abs=1e-4)
    assert volume["bias"]["value"] == pytest.approx(np.mean(errors), abs=1e-4)
    assert volume["root_mean_square_error"]["value"] == pytest.approx(np.sqrt(np.mean(np.square(errors))), abs=1e-4)
    assert volume["spearman"]["value"] == pytest.approx(np.sqrt(3) / 2)
    assert [each["study_instance_uid"] for each in report["cases"]["missing"]] == [uid["gone"]]
    assert "has 0 of mean of Brain" in report["cases"]["refused"][0]["remark"]
    assert "Lin&#x27;s concordance" in (tmp_path / "out" / "report.html").read_text()
    for wrong, said in (
        (f"{uid['one']};Brain;volume;5;mm", "gives Brain, volume in 'mL', the reference in 'mm'"),
        (f"{uid['one']};Brian;volume;5;mL", "no result speaks of 'Brian'"),
        (f"{uid['one']};Brain;volume;12,5;mL", "value is '12,5', which is no number"),
        (f"{lines[0]}\n{lines[0]}", "another line gives Brain, volume"),
    ):
        table.write_text(f"study_instance_uid;finding;measurement;value;unit\n{wrong}\n")
        code, _, err = cli(table, "--model", "toy", "--out", tmp_path / "out")
        assert code == 1
        assert said in err


def test_a_report_that_speaks_of_more_than_the_model_does_is_compared_in_part(
    hospital: Hospital, cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    hospital.study("reported more")
    report_file = dcmread(hospital.report(hospital.draw("reported more", plane(1, 2))))
    (groups,) = [each for each in report_file.ContentSequence if each.ConceptNameCodeSequence[0].CodeValue == "126010"]
    other = copy.deepcopy(groups.ContentSequence[0])
    for item in other.ContentSequence:
        if item.ConceptNameCodeSequence[0].CodeValue == "121071":
            item.ConceptCodeSequence[0].CodeValue = "10200004"
    groups.ContentSequence.append(other)
    report_file.save_as(tmp_path / "report.dcm")
    code, _, err = cli(tmp_path / "report.dcm", "--model", "toy", "--out", tmp_path / "out")
    assert code == 0, err
    report = report_in(tmp_path / "out")
    assert [each["name"] for each in report["classification"]["classes"]] == ["Brain"]
    assert [each["remark"] for each in report["cases"]["refused"]] == [
        "no result speaks of SCT:10200004: the rest was compared"
    ]


# --- what it is made of --------------------------------------------------------------------------------------------


def test_the_schema_is_that_of_the_values() -> None:
    """After a change of the report: `python -m tests.evaluation.report_schema`, and another version of the format."""
    assert SCHEMA.read_text() == schema_text()


def test_nobody_else_loads_what_evaluation_needs() -> None:
    program = (
        "import sys, meddaemon.cli.app, meddaemon.evaluation.cases, meddaemon.evaluation.readers\n"
        "print([name for name in ('torch', 'monai', 'sklearn', 'matplotlib', 'nibabel') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=REPOSITORY, env=environment()
    )
    assert done.stdout == "[]\n"
