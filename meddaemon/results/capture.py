"""Secondary Capture: the summary of a result as one picture, for any viewer (PS3.3 A.8)."""

import hashlib
from collections.abc import Iterator, Sequence
from importlib.metadata import version

from pydicom.uid import SecondaryCaptureImageStorage

from meddaemon.domain.outlet import ObjectKind
from meddaemon.domain.result import EncodedObject
from meddaemon.results.drawing import summary
from meddaemon.results.envelope import finish
from meddaemon.results.identity import RESEARCH_MARK, long_string
from meddaemon.results.request import EncodingRequest
from meddaemon.results.skeleton import SOURCE_IMAGE, begin, name_side, say_lossy, source_items

KIND = ObjectKind.SC
WRITER = f"pillow {version('pillow')}"


def encode(request: EncodingRequest, _: Sequence[EncodedObject]) -> Iterator[EncodedObject]:
    """Yield the summary as one RGB image; there is one of every result, also of one that shows nothing.

    Conversion Type is WSD, a picture that a workstation drew. Burned In Annotation is YES: there is text in the
    pixels, though it names no patient.
    """
    pixels = summary(request)
    content = pixels.tobytes()
    obj = begin(request, KIND, SecondaryCaptureImageStorage, "OT", WRITER, hashlib.sha256(content).hexdigest())
    obj.ConversionType = "WSD"
    obj.ImageType = ["DERIVED", "SECONDARY"]
    obj.BurnedInAnnotation = "YES"
    if request.source.any_says("RecognizableVisualFeatures"):
        obj.RecognizableVisualFeatures = "YES"
    obj.PatientOrientation = ""
    obj.DerivationDescription = long_string(f"{request.contract.title} - {RESEARCH_MARK}")
    if sources := source_items(request, SOURCE_IMAGE, images=True):
        obj.SourceImageSequence = sources
    say_lossy(obj, request)
    obj.SamplesPerPixel = 3
    obj.PhotometricInterpretation = "RGB"
    obj.PlanarConfiguration = 0
    obj.Rows, obj.Columns = pixels.shape[:2]
    obj.BitsAllocated = obj.BitsStored = 8
    obj.HighBit = 7
    obj.PixelRepresentation = 0
    obj.add_new("PixelData", "OB", content)
    name_side(obj, request)
    yield finish(obj, request, KIND)
