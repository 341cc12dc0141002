"""What a Secondary Capture is asked (PS3.3 A.8): that it shows what was drawn, and says what it is."""

import hashlib
from collections import Counter
from collections.abc import Iterator

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from meddaemon.domain.result import EncodedObject
from meddaemon.results.capture import KIND, WRITER
from meddaemon.results.gate.exam import Check, Exam
from meddaemon.results.identity import RESEARCH_MARK, instance_uid


def _description(_: Exam, encoded: EncodedObject, dataset: Dataset) -> Iterator[str]:
    wanted = {
        "SOPClassUID": SecondaryCaptureImageStorage,
        "Modality": "OT",
        "ConversionType": "WSD",
        "ImageType": ["DERIVED", "SECONDARY"],
        "BurnedInAnnotation": "YES",
        "SamplesPerPixel": 3,
        "PhotometricInterpretation": "RGB",
        "PlanarConfiguration": 0,
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "PixelRepresentation": 0,
    }
    for keyword, value in wanted.items():
        if dataset.get(keyword) != value:
            yield f"{keyword} is {dataset.get(keyword)}, not {value}"
    if encoded.transfer_syntax_uid != ExplicitVRLittleEndian:
        yield f"TransferSyntaxUID {encoded.transfer_syntax_uid} is not {ExplicitVRLittleEndian}"
    if dataset.get("PatientOrientation"):
        yield "has a Patient Orientation, though its views have different ones"
    if RESEARCH_MARK not in str(dataset.get("DerivationDescription")):
        yield f"DerivationDescription lacks {RESEARCH_MARK!r}"


def _pixels(exam: Exam, _: EncodedObject, dataset: Dataset) -> Iterator[str]:
    """Hold the pixels against the UID, which their digest takes part in, and look for what was found in them."""
    if len(dataset.PixelData) != dataset.Rows * dataset.Columns * 3:
        yield f"{len(dataset.PixelData)} bytes of pixel data do not fit {dataset.Rows} x {dataset.Columns}"
        return
    digest = hashlib.sha256(dataset.PixelData).hexdigest()
    if str(dataset.SOPInstanceUID) != instance_uid(exam.request, KIND, WRITER, digest):
        yield "SOPInstanceUID is not that of these pixels"
    pixels = np.frombuffer(dataset.PixelData, np.uint8).reshape(-1, 3)
    if not pixels.any():
        yield "shows nothing"
    largest = exam.request.scene.largest
    if exam.request.shown is not None and largest and not (pixels == np.array(largest.colour)).all(axis=1).any():
        yield f"does not show the largest finding in its colour {largest.colour}"


def _sources(exam: Exam, _: EncodedObject, dataset: Dataset) -> Iterator[str]:
    named = Counter(str(item.ReferencedSOPInstanceUID) for item in dataset.get("SourceImageSequence", ()))
    inputs = exam.request.source.inputs
    wanted = Counter(str(each.SOPInstanceUID) for series in inputs for each in series.instances if "Rows" in each)
    if named != wanted:
        yield f"Source Image Sequence names {named.total()} instances and not each of {wanted.total()} once"


CHECKS: tuple[Check, ...] = (_description, _pixels, _sources)
"""What a Secondary Capture is asked."""
