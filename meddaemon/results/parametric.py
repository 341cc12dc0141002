"""Parametric Maps: numbers for each voxel that explain an answer (PS3.3 A.75)."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from highdicom.content import VOILUTTransformation
from highdicom.pm import ParametricMap, RealWorldValueMapping
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code as PydicomCode
from pydicom.uid import ExplicitVRLittleEndian

from meddaemon.domain.codes import STANDARD_DEVIATION, Code
from meddaemon.domain.outlet import ObjectKind
from meddaemon.domain.result import Artefact, ArtefactKind, EncodedObject, LeftOut
from meddaemon.results.envelope import device_serial_number, finish
from meddaemon.results.identity import MANUFACTURER, RESEARCH_MARK, instance_uid, long_string, series_uid
from meddaemon.results.request import EncodingRequest
from meddaemon.results.seg import images_of, name_frames
from meddaemon.results.skeleton import code_item, item, name_thickness, say_lossy, series_number

KIND = ObjectKind.PM
MOST_BYTES = 2**28
"""Of the values of one map: they are float32, a frame for each plane, and no reader takes them compressed."""

QUANTITIES: Mapping[ArtefactKind, Code] = {
    ArtefactKind.SALIENCY: Code(value="130404", scheme="DCM", meaning="Saliency"),
    ArtefactKind.PROBABILITY: Code(value="122157", scheme="DCM", meaning="Probability"),
    ArtefactKind.SPREAD: STANDARD_DEVIATION,
}


def encode(request: EncodingRequest, _: Sequence[EncodedObject]) -> Iterator[EncodedObject | LeftOut]:
    """Yield a map for each artefact that lies on the volume and is not too large; part `map 2` is of the second."""
    if not request.analysis.artefacts:
        yield LeftOut(what=KIND, why="nothing explains the answer: no saliency, probability or spread was kept")
    for number, artefact in enumerate(request.analysis.artefacts, 1):
        part = f"map {number}"
        if why := why_not(request, artefact):
            yield LeftOut(what=f"{KIND} {part}", why=f"{artefact.name}: {why}")
        else:
            yield finish(_map(request, artefact, number), request, KIND, part=part)


def why_not(request: EncodingRequest, artefact: Artefact) -> str:
    """Return why there is no map of an artefact; "" where there is one."""
    geometry, size = request.analysis.geometry, artefact.values.size * 4
    if geometry is None or artefact.source is not None:
        return "it lies on pictures, which have no place in the patient"
    if artefact.values.shape != geometry.shape:
        return "it does not lie on the voxels of the source"
    if size > MOST_BYTES:
        return f"its values take {size} bytes, and a map may have {MOST_BYTES}"
    return ""


def _map(request: EncodingRequest, artefact: Artefact, number: int) -> Dataset:
    contract, source = request.contract, request.source
    values = np.ascontiguousarray(artefact.values, dtype="<f4")
    low, high = _range(values)
    ordinal = ("map", str(number), artefact.name, hashlib.sha256(values.tobytes()).hexdigest())
    quantity, unit = QUANTITIES[artefact.kind], artefact.unit
    made = ParametricMap(
        source_images=images_of(request),
        pixel_array=values,
        series_instance_uid=series_uid(request, KIND),
        series_number=series_number(request, KIND),
        sop_instance_uid=instance_uid(request, KIND, *ordinal),
        instance_number=number,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MANUFACTURER,
        software_versions=MANUFACTURER,  # finish() writes them
        device_serial_number=device_serial_number(request),
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[
            RealWorldValueMapping(
                lut_label=artefact.kind.value.upper(),
                lut_explanation=long_string(artefact.name),
                unit=CodedConcept.from_code(PydicomCode(unit.value, unit.scheme, unit.meaning)),
                value_range=(low, high),
                slope=1.0,
                intercept=0.0,
                quantity_definition=CodedConcept.from_code(
                    PydicomCode(quantity.value, quantity.scheme, quantity.meaning)
                ),
            )
        ],
        voi_lut_transformations=[VOILUTTransformation(window_center=(low + high) / 2, window_width=high - low)],
        content_label=f"AI_{artefact.kind.value.upper()}",
        content_description=long_string(f"{artefact.name} - {RESEARCH_MARK}"),
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    uid = instance_uid(request, KIND, *ordinal, "dimensions")
    for each in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        each.DimensionOrganizationUID = uid
    name_frames(made, request)
    _ascend(made)
    for element in source.body_part:
        made.add(element)
    _name_anatomy(made)
    name_thickness(made, request)
    say_lossy(made, request)
    made.ContentCreatorName = ""  # a person's name, and there was none
    made.ImageComments = long_string(contract.title)
    return made


def _ascend(made: Dataset) -> None:
    """Put the frames into the order in which they lie along the normal of rows and columns.

    highdicom writes them against it, and dcmqi (1.5.7) takes the values in the order of the frames whatever their
    positions: it would show the map upside down.
    """
    frames = made.PerFrameFunctionalGroupsSequence
    order = np.argsort(heights_of(made), kind="stable")
    values = np.frombuffer(made.FloatPixelData, "<f4").reshape(len(frames), -1)
    made.PerFrameFunctionalGroupsSequence = [frames[int(index)] for index in order]
    made.FloatPixelData = values[order].tobytes()
    for number, frame in enumerate(made.PerFrameFunctionalGroupsSequence, 1):
        frame.FrameContentSequence[0].DimensionIndexValues = [number]


def heights_of(dataset: Dataset) -> list[float]:
    """Return how far each frame lies along the normal of rows and columns, in mm."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    directions = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    normal = np.cross(directions[:3], directions[3:])
    return [
        float(normal @ np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float))
        for frame in dataset.PerFrameFunctionalGroupsSequence
    ]


def _range(values: np.ndarray) -> tuple[float, float]:
    """Return the lowest and the highest value; from 0 to 1 where there are not two, and never less than a window."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    return (low, high) if high > low else (low, low + 1)


def _name_anatomy(made: Dataset) -> None:
    """Say where frames lie: unpaired, in the body at large (PS3.3 C.7.6.16.2.8), as this macro must be there."""
    shared = made.SharedFunctionalGroupsSequence[0]
    if "FrameAnatomySequence" not in shared:
        body = Code(value="38266002", scheme="SCT", meaning="Entire body")
        shared.FrameAnatomySequence = [item(FrameLaterality="U", AnatomicRegionSequence=[code_item(body)])]
