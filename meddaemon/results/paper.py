"""A report on paper: the summary picture, every finding, and what made them, as Encapsulated PDF (PS3.3 A.45.1)."""

import hashlib
from collections.abc import Iterator, Sequence
from importlib.metadata import version

from pydicom.uid import EncapsulatedPDFStorage

from meddaemon.domain.codes import Code
from meddaemon.domain.outlet import ObjectKind
from meddaemon.domain.result import EncodedObject
from meddaemon.results.capture import WRITER
from meddaemon.results.envelope import finish
from meddaemon.results.identity import RESEARCH_MARK, long_string
from meddaemon.results.request import EncodingRequest
from meddaemon.results.skeleton import begin, code_item, source_items

KIND = ObjectKind.PDF
_TITLE = Code(value="126000", scheme="DCM", meaning="Imaging Measurement Report")


def encode(request: EncodingRequest, _: Sequence[EncodedObject]) -> Iterator[EncodedObject]:
    """Yield the report as one document. Its pages name no patient: that is what the header is for."""
    from meddaemon.results.page import paper  # noqa: PLC0415  reportlab takes a quarter of a second, for few

    content = paper(request)
    ordinal = hashlib.sha256(content).hexdigest()
    obj = begin(request, KIND, EncapsulatedPDFStorage, "DOC", WRITER, f"reportlab {version('reportlab')}", ordinal)
    obj.ConversionType = "SYN"
    for keyword, said in shows(request).items():
        setattr(obj, keyword, said)
    obj.AcquisitionDateTime = ""
    obj.DocumentTitle = long_string(f"{request.contract.title} - {RESEARCH_MARK}")
    obj.ConceptNameCodeSequence = [code_item(_TITLE)]
    obj.VerificationFlag = "UNVERIFIED"
    if sources := source_items(request):
        obj.SourceInstanceSequence = sources
    obj.MIMETypeOfEncapsulatedDocument = "application/pdf"
    obj.EncapsulatedDocumentLength = len(content)
    obj.add_new("EncapsulatedDocument", "OB", content + b"\0" * (len(content) % 2))
    yield finish(obj, request, KIND)


def shows(request: EncodingRequest) -> dict[str, str]:
    """Return whether pages tell who the patient is: as the images do that are on them, by a text or by a face."""
    keywords = ("BurnedInAnnotation", "RecognizableVisualFeatures")
    return {each: "YES" if request.shown is not None and request.source.any_says(each) else "NO" for each in keywords}
