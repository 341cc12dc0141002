"""Sources of every make, each with a result that has something for every encoder: what their contract is tested on."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from dicom_factory import make_enhanced, make_series
from other_objects import image, recording
from pydicom import Dataset, dcmread
from result_samples import BRAIN, KIDNEY, LEFT, analysis_of, ball, contract, geometry_of, request_for

from meddaemon.domain.codes import CERTAINTY_OF_FINDING, PERCENT
from meddaemon.domain.outlet import EDITIONS, Edition, ObjectKind
from meddaemon.domain.picture import Pictures
from meddaemon.domain.result import (
    Analysis,
    Artefact,
    ArtefactKind,
    Box,
    Finding,
    Landmark,
    Measurement,
    ResultStatus,
)
from meddaemon.domain.uids import derived_uid
from meddaemon.domain.volume import Geometry, Volume
from meddaemon.results.encoding import EncodingRequest
from meddaemon.results.source import TYPE_2

EVERYTHING = frozenset(ObjectKind)
CYSTS = (KIDNEY, BRAIN)


def finding(number: int, **place: Any) -> Finding:
    """A finding with a certainty and tracking identifiers of its own."""
    return Finding(
        code=CYSTS[number % 2],
        segment_number=None,
        measurements=(Measurement(name=CERTAINTY_OF_FINDING, value=80.5 + number, unit=PERCENT),),
        tracking_id=f"finding {number}",
        tracking_uid=derived_uid("finding", str(number)),
        **place,
    )


def with_everything(
    paths: list[Path], geometry: Geometry | None = None, editions: tuple[Edition, ...] = EDITIONS[:1]
) -> EncodingRequest:
    """A result of two segments, a box, a landmark, a finding that is absent, and maps, with its volume in memory."""
    geometry = geometry or geometry_of(paths)
    labels = ball(geometry.shape)
    if not labels.any():
        labels[:, 2:10, 2:8] = 1  # a single plane is the end of a ball
    labels[:, :, geometry.shape[2] // 2 :] *= 2
    kinds = [("Brain", BRAIN, None), ("Left kidney", KIDNEY, LEFT)]
    analysis = analysis_of(labels, geometry, kinds=kinds)
    ramp = np.linspace(0, 1, labels.size, dtype=np.float32).reshape(labels.shape)
    findings = (
        finding(0, box=Box(label=1, score=0.8, low=(0.5, 1.5, 2.5), high=(3.5, 6.5, 7.5))),
        finding(1, landmark=Landmark(label=2, score=0.9, position=(2.0, 3.0, 4.0))),
        replace(finding(2), present=False),
    )
    return EncodingRequest(
        analysis=replace(
            analysis,
            findings=(*analysis.findings, *findings),
            artefacts=(
                Artefact(kind=ArtefactKind.SALIENCY, of="Cyst", values=ramp),
                Artefact(kind=ArtefactKind.PROBABILITY, of="Brain", values=(1 - ramp).astype(np.float16)),
            ),
        ),
        contract=contract(),
        sources=paths,
        kinds=EVERYTHING,
        editions=editions,
        shown=Volume(voxels=(ramp * 1000).astype(np.int16), geometry=geometry, series_instance_uid="1.2.3"),
    )


def volume(**changes: Any) -> Callable[[Path], EncodingRequest]:
    """A classic series that is `changes`."""
    return lambda folder: with_everything(make_series(folder, **({"rows": 16} | changes)))


def header(**changes: Any) -> Callable[[Path], EncodingRequest]:
    """A series with `changes` of its header, and a result on it that has one report: its segments, and maps."""

    def request(folder: Path) -> EncodingRequest:
        made = volume(**changes)(folder)
        return replace(made, analysis=replace(made.analysis, findings=made.analysis.findings[:2]))

    return request


def without(*keywords: str, empty: bool = False) -> Callable[[Path], EncodingRequest]:
    """A series in which attributes are empty or not there."""

    def edit(_: int, dataset: Dataset) -> None:
        for keyword in keywords:
            if empty:
                setattr(dataset, keyword, "")
            else:
                dataset.pop(keyword, None)

    return header(edit=edit)


def named(name: str, charset: Any) -> Callable[[Path], EncodingRequest]:
    """A series with the name of somebody in a character set."""
    return header(patient_name=name, charset=charset)


def tilted(folder: Path) -> EncodingRequest:
    """Planes that lie at uneven distances, and on a slant."""

    def shear(plane: int, dataset: Dataset) -> None:
        x, y, z = (float(each) for each in dataset.ImagePositionPatient)
        dataset.ImagePositionPatient = [x, y + 0.7 * plane, z + (0.5 if plane > 2 else 0)]

    paths = make_series(folder, rows=16, edit=shear)
    geometry = geometry_of(paths)
    headers = {str(each.SOPInstanceUID): each for each in map(dcmread, paths)}
    positions = np.array([headers[uid].ImagePositionPatient for uid in geometry.sop_instance_uids], float)
    return with_everything(paths, replace(geometry, positions_lps=positions))


def multi_frame(folder: Path) -> EncodingRequest:
    """Frames of one instance."""
    path = make_enhanced(folder, orientation="oblique", rows=16)
    header = dcmread(path, stop_before_pixels=True)
    uid, planes = str(header.SOPInstanceUID), int(header.NumberOfFrames)
    groups = header.PerFrameFunctionalGroupsSequence
    positions = np.array([each.PlanePositionSequence[0].ImagePositionPatient for each in groups], float)
    shared = header.SharedFunctionalGroupsSequence[0]
    directions = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    spacing = shared.PixelMeasuresSequence[0].PixelSpacing
    affine = np.eye(4)
    affine[:3, 0] = positions[1] - positions[0]
    affine[:3, 1] = directions[3:] * float(spacing[0])
    affine[:3, 2] = directions[:3] * float(spacing[1])
    affine[:3, 3] = positions[0]
    geometry = Geometry(
        shape=(planes, int(header.Rows), int(header.Columns)),
        affine_lps=affine,
        frame_of_reference_uid=str(header.FrameOfReferenceUID),
        sop_instance_uids=(uid,) * planes,
        frame_numbers=tuple(range(1, planes + 1)),
    )
    return with_everything([path], geometry, EDITIONS)


def pictures(*, colour: bool = False, **attributes: Any) -> Callable[[Path], EncodingRequest]:
    """Two pictures that lie nowhere in the patient, with a box on the one and a landmark on the other."""

    def request(folder: Path) -> EncodingRequest:
        folder.mkdir(parents=True, exist_ok=True)
        shape = (24, 18, 3) if colour else (24, 18)
        pixels = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape).astype(np.uint8)
        said = {"Modality": "DX", "PatientName": "Doe^Jane", "StudyID": "S", "PatientOrientation": ["L", "F"]}
        paths = [image(folder, pixels, name=str(number), **(said | attributes)) for number in (1, 2)]
        sources = tuple((f"1.2.3.{number}", 1) for number in (1, 2))
        findings = (
            finding(0, box=Box(label=1, score=0.8, low=(2.5, 3.5), high=(10.5, 9.5), source=sources[0])),
            finding(1, landmark=Landmark(label=2, score=0.9, position=(20.0, 5.0), source=sources[1])),
            finding(2, source=sources[1]),
        )
        frames = np.stack([pixels, pixels]).astype(np.float32)
        return EncodingRequest(
            analysis=Analysis(status=ResultStatus.PLAUSIBLE, reason="", segments=(), findings=findings),
            contract=contract(),
            sources=paths,
            kinds=EVERYTHING,
            editions=EDITIONS,
            shown=Pictures(frames=frames, sources=sources, series_instance_uid="1.2.5"),
        )

    return request


def waveform(folder: Path) -> EncodingRequest:
    """An ECG, and what it is said to show: no image at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = recording(folder)
    dataset = dcmread(path)
    dataset.PatientName, dataset.StudyID, dataset.InstanceNumber = "Doe^Jane", "S", 1
    dataset.save_as(path)
    return EncodingRequest(
        analysis=Analysis(
            status=ResultStatus.PLAUSIBLE,
            reason="",
            segments=(),
            findings=(finding(0), finding(1, source=("1.2.3", 1))),
        ),
        contract=contract(),
        sources=[path],
        kinds=EVERYTHING,
    )


def of_status(status: ResultStatus) -> Callable[[Path], EncodingRequest]:
    """A result that nobody can believe, or that says nothing."""

    def request(folder: Path) -> EncodingRequest:
        made = with_everything(make_series(folder, rows=16))
        if status is ResultStatus.IMPLAUSIBLE:
            return replace(
                made, analysis=replace(made.analysis, status=status, reason="2 mL is not within 700 to 2300 mL")
            )
        unmeasured = tuple(
            replace(each, present=False, measurements=tuple(replace(it, value=None) for it in each.measurements))
            for each in map(finding, range(2))
        )
        return replace(
            made,
            analysis=Analysis(status=status, reason="3 planes are too few", segments=(), findings=unmeasured),
            shown=None,
        )

    return request


def nothing_found(folder: Path) -> EncodingRequest:
    """A result whose segment is empty."""
    paths = make_series(folder, rows=16)
    made = request_for(paths, np.zeros(geometry_of(paths).shape, np.uint8), kinds=EVERYTHING, editions=EDITIONS)
    empty = tuple(
        replace(each, present=False, tracking_id="t", tracking_uid="1.2.9") for each in made.analysis.findings
    )
    return replace(made, analysis=replace(made.analysis, findings=empty))


def overlapping(folder: Path) -> EncodingRequest:
    """Masks of which one lies partly on the other."""
    paths = make_series(folder, rows=16, orientation="sagittal")
    made = with_everything(paths)
    one = ball(made.analysis.drawn[1].shape) > 0
    masks = np.stack([one, np.roll(one, 3, axis=2)])
    kinds = [("Brain", BRAIN, None), ("Left kidney", KIDNEY, LEFT)]
    return replace(made, analysis=analysis_of(masks, made.analysis.drawn[1], kinds=kinds))


SOURCES: Mapping[str, Callable[[Path], EncodingRequest]] = {
    "axial CT": volume(modality="CT", attributes={"BodyPartExamined": "HEAD", "WindowCenter": 40, "WindowWidth": 400}),
    "coronal": volume(orientation="coronal"),
    "sagittal": volume(orientation="sagittal"),
    "oblique": volume(orientation="oblique", attributes={"BodyPartExamined": "KNEE"}),
    "feet first": volume(orientation=(-1, 0, 0, 0, 1, 0), attributes={"PatientPosition": "FFS"}),
    "decubitus": volume(orientation=(0, 1, 0, -1, 0, 0), attributes={"PatientPosition": "HFDL"}),
    "uneven and tilted": tilted,
    "multi-frame": multi_frame,
    "one plane": volume(planes=1),
    "MONOCHROME1": volume(attributes={"PhotometricInterpretation": "MONOCHROME1"}),
    "lossy": volume(
        attributes={
            "LossyImageCompression": "01",
            "LossyImageCompressionRatio": "8.5",
            "LossyImageCompressionMethod": "ISO_10918_1",
        }
    ),
    "grey pictures": pictures(),
    "colour pictures": pictures(colour=True, Modality="US"),
    "pictures of a retired class": pictures(Modality="US", SOPClassUID="1.2.840.10008.5.1.4.1.1.6"),
    "waveform": waveform,
    "implausible": of_status(ResultStatus.IMPLAUSIBLE),
    "not evaluable": of_status(ResultStatus.NOT_EVALUABLE),
    "nothing found": nothing_found,
    "overlapping": overlapping,
    "no charset": named("Doe^Jane", None),
    "Latin": named("Buc^Jérôme", "ISO_IR 100"),
    "Russian": named("Люкceмбypг", "ISO_IR 144"),
    "Chinese": named("Wang^XiaoDong=王^小东", "GB18030"),
    "Japanese": named("Yamada^Tarou=山田^太郎=やまだ^たろう", ["", "ISO 2022 IR 87"]),
    "Korean": named("Hong^Gildong=洪^吉洞=홍^길동", ["", "ISO 2022 IR 149"]),
    "Unicode": named("Ζωή^Ñandú", "ISO_IR 192"),
    **{f"no {keyword}": without(keyword) for keyword in (*TYPE_2, "BodyPartExamined", "SliceThickness")},
    "nothing but empty": without(*TYPE_2, empty=True),
}
"""By what is special about each."""

OPTIONAL = (
    "ImageType",
    "PatientAge",
    "PatientPosition",
    "PositionReferenceIndicator",
    "SeriesDate",
    "SeriesTime",
    "AcquisitionDate",
    "AcquisitionTime",
    "ContentDate",
    "ContentTime",
    "StudyDescription",
    "SeriesDescription",
    "SeriesNumber",
    "InstanceNumber",
    "AcquisitionNumber",
    "Manufacturer",
    "ManufacturerModelName",
    "DeviceSerialNumber",
    "SoftwareVersions",
)
"""What else of a header may be missing, and makes no other object."""
LESS: Mapping[str, Callable[[Path], EncodingRequest]] = {f"no {keyword}": without(keyword) for keyword in OPTIONAL}
"""A source without each."""

ON_PICTURES = frozenset({ObjectKind.SR, ObjectKind.SC, ObjectKind.PR, ObjectKind.PDF, ObjectKind.KO})
WRITTEN: dict[str, frozenset[ObjectKind]] = {
    "grey pictures": ON_PICTURES,
    "colour pictures": ON_PICTURES - {ObjectKind.PR},
    "pictures of a retired class": ON_PICTURES,
    "waveform": frozenset({ObjectKind.SR, ObjectKind.SC, ObjectKind.PDF, ObjectKind.KO}),
    "not evaluable": frozenset({ObjectKind.SR, ObjectKind.SC, ObjectKind.PDF, ObjectKind.KO}),
    "overlapping": EVERYTHING - {ObjectKind.PROBABILITY, ObjectKind.PM},
    "nothing found": frozenset({ObjectKind.SEG, ObjectKind.SR, ObjectKind.SC, ObjectKind.PDF, ObjectKind.KO}),
}
"""What there must be at least, where that is not everything that a volume can have."""


def wanted(name: str) -> frozenset[ObjectKind]:
    """What must be written of a source at least."""
    return WRITTEN.get(name, EVERYTHING)
