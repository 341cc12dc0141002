"""What an Encapsulated PDF is asked (PS3.3 A.45.1)."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version

from pydicom.dataset import Dataset
from pydicom.uid import EncapsulatedPDFStorage, ExplicitVRLittleEndian

from meddaemon.domain.result import EncodedObject
from meddaemon.results.capture import WRITER
from meddaemon.results.gate.exam import Check, Exam
from meddaemon.results.gate.tree import name_of
from meddaemon.results.identity import RESEARCH_MARK, instance_uid
from meddaemon.results.paper import KIND, shows


def _document(exam: Exam, encoded: EncodedObject, dataset: Dataset) -> Iterator[str]:
    wanted = {
        "SOPClassUID": EncapsulatedPDFStorage,
        "Modality": "DOC",
        "ConversionType": "SYN",
        "VerificationFlag": "UNVERIFIED",
        "MIMETypeOfEncapsulatedDocument": "application/pdf",
        **shows(exam.request),
    }
    for keyword, value in wanted.items():
        if dataset.get(keyword) != value:
            yield f"{keyword} is {dataset.get(keyword)}, not {value}"
    if encoded.transfer_syntax_uid != ExplicitVRLittleEndian:
        yield f"TransferSyntaxUID {encoded.transfer_syntax_uid} is not {ExplicitVRLittleEndian}"
    if RESEARCH_MARK not in str(dataset.get("DocumentTitle")):
        yield f"DocumentTitle lacks {RESEARCH_MARK!r}"
    if name_of(dataset) != ("126000", "DCM"):
        yield f"title is {name_of(dataset)}, not Imaging Measurement Report (126000, DCM)"


def _content(exam: Exam, _: EncodedObject, dataset: Dataset) -> Iterator[str]:
    """Hold the document against the UID, which its digest takes part in."""
    held = bytes(dataset.EncapsulatedDocument)
    length = int(dataset.EncapsulatedDocumentLength)
    content = held[:length]
    if len(held) != length + length % 2 or not content.startswith(b"%PDF-") or b"%%EOF" not in content[-16:]:
        yield f"{len(held)} bytes are no PDF of {length} bytes"
        return
    digest = hashlib.sha256(content).hexdigest()
    if str(dataset.SOPInstanceUID) != instance_uid(
        exam.request, KIND, WRITER, f"reportlab {version('reportlab')}", digest
    ):
        yield "SOPInstanceUID is not that of this document"


def _sources(exam: Exam, _: EncodedObject, dataset: Dataset) -> Iterator[str]:
    named = Counter(str(item.ReferencedSOPInstanceUID) for item in dataset.get("SourceInstanceSequence", ()))
    wanted = Counter(uid for series in exam.request.source.inputs for uid in series.sop_instance_uids)
    if named != wanted:
        yield f"Source Instance Sequence names {named.total()} instances and not each of {wanted.total()} once"


CHECKS: tuple[Check, ...] = (_document, _content, _sources)
"""What an Encapsulated PDF is asked."""
