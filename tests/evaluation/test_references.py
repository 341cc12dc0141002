"""What references say: reports of TID 1500, and which segments of two objects are the same thing."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

pytest.importorskip("sklearn", reason="the extra `evaluate` is not installed")
from meddaemon.domain.errors import ReferenceRefused
from meddaemon.evaluation.evaluate import same_segments
from meddaemon.evaluation.masks import DrawnOnPictures, Named, read_segmentation
from meddaemon.evaluation.pictures import places, unknown
from meddaemon.evaluation.readers import read_references
from meddaemon.evaluation.references import Labels, Rectangle, Reference, Sphere, Targets, Volumes
from tests.running import REPOSITORY, environment

NODULE, AIR, SPLEEN = "SCT:27925004", "SCT:36118008", "SCT:78961009"


def code(text: str) -> list[Dataset]:
    item = Dataset()
    item.CodingSchemeDesignator, item.CodeValue = text.split(":")
    item.CodeMeaning = "so called"
    return [item]


def item(kind: str, name: str, **values: object) -> Dataset:
    """Return a content item."""
    made = Dataset()
    made.ValueType, made.ConceptNameCodeSequence, made.RelationshipType = kind, code(name), "CONTAINS"
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def group(finding: str, *more: Dataset) -> Dataset:
    """Return a measurement group about a finding."""
    content = [item("CODE", "DCM:121071", ConceptCodeSequence=code(finding)), *more]
    return item("CONTAINER", "DCM:125007", ContentSequence=content)


def answer(value: str) -> Dataset:
    return item("CODE", "SCT:705057003", ConceptCodeSequence=code(value))


def volume(value: str, unit: str) -> Dataset:
    measured = Dataset()
    measured.NumericValue = value
    measured.MeasurementUnitsCodeSequence = code(f"UCUM:{unit}")
    return item("NUM", "SCT:118565006", MeasuredValueSequence=[measured])


def report(folder: Path, *groups: Dataset) -> Path:
    """Write a Comprehensive 3D SR of these groups."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.34"
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = "1.2.3.9"
    made.StudyInstanceUID, made.SeriesInstanceUID = "1.2.3", "1.2.3.8"
    made.ContentSequence = [item("CONTAINER", "DCM:126010", ContentSequence=list(groups))]
    path = folder / "report.dcm"
    made.save_as(path, enforce_file_format=True)
    return path


def said(path: Path) -> dict[type, Reference]:
    return {type(each.says): each for each in read_references([path])}


def test_a_report_names_findings_and_those_that_are_absent_and_not_those_that_nobody_could_tell(
    tmp_path: Path,
) -> None:
    told = said(
        report(tmp_path, group(NODULE), group(AIR, answer("SCT:272519000")), group(SPLEEN, answer("SCT:373068000")))
    )
    labels = told[Labels].says
    assert isinstance(labels, Labels)
    assert (dict(labels.present), labels.closed) == ({NODULE: True, AIR: False}, False)
    assert told[Labels].case.study_instance_uid == "1.2.3"


def test_what_is_absent_of_a_finding_is_not_the_finding(tmp_path: Path) -> None:
    """A nodule without calcification is a nodule; one that is said to be absent under its own name is none."""
    calcification = item("CODE", "SCT:54538001", ConceptCodeSequence=code("SCT:272519000"))
    unknown = item("CODE", "SCT:54538001", ConceptCodeSequence=code("SCT:373068000"))
    itself = item("CODE", AIR, ConceptCodeSequence=code("SCT:2667000"))
    labels = said(report(tmp_path, group(NODULE, calcification), group(AIR, itself), group(SPLEEN, unknown)))[Labels]
    assert isinstance(labels.says, Labels)
    assert dict(labels.says.present) == {NODULE: True, AIR: False, SPLEEN: True}


def test_volumes_of_a_report_are_millilitres_and_those_of_one_finding_add_up(tmp_path: Path) -> None:
    groups = (group(SPLEEN, volume("1500", "mm3")), group(SPLEEN, volume("2", "cm3")), group(NODULE, volume("3", "mL")))
    volumes = said(report(tmp_path, *groups))[Volumes].says
    assert isinstance(volumes, Volumes)
    assert volumes.millilitres == {SPLEEN: 3.5, NODULE: 3.0}


def test_what_is_derived_of_volumes_is_none_of_them(tmp_path: Path) -> None:
    """A total beside what it is of, a total alone, and how far several answers lie apart."""

    def derived(value: str, how: str) -> Dataset:
        made = volume(value, "mL")
        made.ContentSequence = [item("CODE", "DCM:121401", ConceptCodeSequence=code(how))]
        return made

    total, spread = "SCT:255619001", "SCT:386136009"
    groups = (
        group(SPLEEN, volume("1", "mL"), derived("0.25", spread)),
        group(SPLEEN, volume("2", "mL")),
        group(SPLEEN, derived("3", total)),
        group(NODULE, derived("4", total), derived("1", spread)),
    )
    volumes = said(report(tmp_path, *groups))[Volumes].says
    assert isinstance(volumes, Volumes)
    assert volumes.millilitres == {SPLEEN: 3.0, NODULE: 4.0}


def test_retired_codes_are_those_of_today(tmp_path: Path) -> None:
    """Spleen and volume as SNOMED RT had them; what it never had stays as it is."""
    measured = volume("12", "cm3")
    measured.ConceptNameCodeSequence = code("SRT:G-D705")
    told = said(report(tmp_path, group("SRT:T-C3000", measured), group("SRT:X-99999")))
    volumes, labels = told[Volumes].says, told[Labels].says
    assert isinstance(volumes, Volumes)
    assert volumes.millilitres == {SPLEEN: 12.0}
    assert isinstance(labels, Labels)
    assert list(labels.present) == [SPLEEN, "SRT:X-99999"]


@pytest.mark.shared
def test_a_real_segmentation_of_another_maker_is_read(shared_dicom: Path) -> None:
    files = list(shared_dicom.rglob("liver_SEG.dcm"))
    if not files:
        pytest.skip("not among the real files")
    drawn = read_segmentation(files[0])
    (liver,) = drawn.segments
    assert (liver.label, liver.code) == ("Liver", "SCT:10200004")
    assert drawn.grid.spacing == pytest.approx((1.0, 0.810547, 0.810547))
    pixels = dcmread(files[0]).pixel_array
    assert int(drawn.mask([1]).sum()) == int(pixels.sum()) == 107098


def test_places_of_a_report_are_spheres_in_the_patient_and_rectangles_on_images(tmp_path: Path) -> None:
    polyline = item("SCOORD3D", "DCM:111030", GraphicType="POLYLINE", GraphicData=[0, 0, 5, 4, 0, 5, 4, 3, 5, 0, 3, 5])
    image, referenced = Dataset(), Dataset()
    image.ValueType, image.RelationshipType = "IMAGE", "SELECTED FROM"
    referenced.ReferencedSOPClassUID, referenced.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3.1.1"
    image.ReferencedSOPSequence = [referenced]
    circle = item(
        "SCOORD", "DCM:111030", GraphicType="CIRCLE", GraphicData=[20.5, 10.5, 23.5, 10.5], ContentSequence=[image]
    )
    targets = said(report(tmp_path, group(NODULE, polyline), group(NODULE, circle), group(AIR)))[Targets].says
    assert isinstance(targets, Targets)
    sphere, rectangle = (each.place for each in targets.targets)
    assert sphere == Sphere(centre_lps=(2.0, 1.5, 5.0), radius_mm=2.5)
    # 0.5 is the centre of the first pixel in a report, and 0 to us.
    assert rectangle == Rectangle(sop_instance_uid="1.2.3.1.1", frame_number=1, low=(7.0, 17.0), high=(13.0, 23.0))


@pytest.mark.parametrize(
    ("harmed", "what"),
    [
        (volume("nan", "mL"), "a volume of nan mL"),
        (volume("-3", "mL"), "a volume of -3 mL"),
        (item("SCOORD3D", "DCM:111030", GraphicType="POINT", GraphicData=[float("nan"), 1, 2]), "not numbers"),
        (item("SCOORD3D", "DCM:111030", GraphicType="POINT", GraphicData=[]), "not a report that can be read"),
        (
            item(
                "SCOORD",
                "DCM:111030",
                GraphicType="POINT",
                GraphicData=[1, 2],
                ContentSequence=[answer("SCT:52101004")],
            ),
            "not a report that can be read",
        ),
    ],
)
def test_numbers_and_regions_that_are_none_are_refused_by_name(tmp_path: Path, harmed: Dataset, what: str) -> None:
    with pytest.raises(ReferenceRefused, match=what) as refused:
        read_references([report(tmp_path, group(NODULE, harmed))])
    assert "report.dcm" in str(refused.value)


def test_a_report_that_says_nothing_or_in_strange_units_is_refused_by_name(tmp_path: Path) -> None:
    for groups, wrong in (((), "nothing to compare"), ((group(SPLEEN, volume("3", "[foz_us]")),), "known are mL")):
        with pytest.raises(ReferenceRefused, match=wrong) as refused:
            read_references([report(tmp_path, *groups)])
        assert "report.dcm" in str(refused.value)


# --- the same thing ----------------------------------------------------------------------------------------------


def named(number: int, label: str = "", code: str = "") -> Named:
    return Named(number=number, label=label, code=code, meaning=code)


def test_segments_are_the_same_by_their_codes_whatever_they_are_called() -> None:
    mine = [named(1, "Spleen", SPLEEN), named(2, "Nodule", NODULE)]
    its = [named(5, "Milz", SPLEEN), named(6, "Spleen", AIR)]
    pairs, unknown = same_segments(mine, its)
    assert (pairs, unknown) == ([("Spleen", [1], [5])], ["Spleen"])
    # As some tools write them: every code is that of tissue, and the label tells.
    tissue = "SCT:85756007"
    assert same_segments(mine, [named(5, "nodule", tissue)]) == ([("Nodule", [2], [5])], [])


def test_lesions_that_are_coded_alike_are_taken_together_unless_their_labels_tell() -> None:
    mine = [named(1, "Lesion 1", NODULE), named(2, "Lesion 2", NODULE)]
    assert same_segments(mine, [named(4, "a", NODULE), named(5, "b", NODULE)])[0] == [(NODULE, [1, 2], [4, 5])]
    assert same_segments(mine, [named(4, "lesion 2", NODULE)])[0] == [("Lesion 2", [2], [4])]
    assert same_segments(mine[:1], [named(4, "a", NODULE), named(5, "b", NODULE)])[0] == [("Lesion 1", [1], [4, 5])]


def test_what_has_no_name_is_a_number_and_what_nobody_knows_is_named() -> None:
    mine = [named(1, "Spleen", SPLEEN), named(2, "Nodule", NODULE)]
    assert same_segments(mine, [named(2), named(7), named(8, "Liver")]) == (
        [("Nodule", [2], [2])],
        ["label 7", "Liver"],
    )


def test_without_the_extra_the_command_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['sklearn'] = None\n"
        "sys.argv = ['meddaemon', 'evaluate', '.', '--model', 'm', '--out', 'o']\n"
        "from meddaemon.cli.app import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=REPOSITORY, env=environment()
    )
    assert done.returncode == 1
    assert "sklearn" in done.stderr
    assert "pip install 'meddaemon[evaluate]'" in done.stderr


def test_an_object_says_which_images_it_speaks_of() -> None:
    """One frame of a run says nothing of the others; an instance without any frame has nothing on it."""

    def drawn(*images: tuple[str, int], named: str = "") -> DrawnOnPictures:
        instances = frozenset({uid for uid, _ in images} | set(named.split()))
        return DrawnOnPictures(
            images=images, instances=instances, size=(2, 2), segments=(), pixels_of=lambda number, on: None
        )

    run = [("1.2.1", 1), ("1.2.1", 2), ("1.2.2", 1), ("1.2.3", 1)]
    some = drawn(("1.2.1", 2), ("1.2.3", 0), ("1.2.9", 1), named="1.2.2")
    assert places(run, some) == {("1.2.1", 2): ("1.2.1", 2), ("1.2.2", 1): None, ("1.2.3", 1): ("1.2.3", 0)}
    assert unknown(run, some) == ["1.2.9"]
    assert unknown(run, drawn(("1.2.1", 7))) == ["1.2.1#7"]
    for unclear in (drawn(("1.2.1", 0)), drawn(("1.2.3", 0), ("1.2.3", 1))):
        with pytest.raises(ReferenceRefused, match="which of its frames"):
            places(run, unclear)
