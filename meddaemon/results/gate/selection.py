"""What a Key Object Selection is asked (PS3.3 A.35.4): what it names, and that it can be found."""

from collections import Counter
from collections.abc import Iterator

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, KeyObjectSelectionDocumentStorage

from meddaemon.domain.outlet import go_together
from meddaemon.domain.result import EncodedObject
from meddaemon.results.gate.exam import Check, Exam, requests
from meddaemon.results.gate.tree import instances_in, is_code, name_of, named, shape
from meddaemon.results.identity import RESEARCH_MARK, device_uid
from meddaemon.results.selection import MOST_IMAGES, ROOT, value_type
from meddaemon.results.skeleton import MANIFEST, OF_INTEREST


def _document(exam: Exam, encoded: EncodedObject, dataset: Dataset) -> Iterator[str]:
    for keyword, value in (("SOPClassUID", KeyObjectSelectionDocumentStorage), ("Modality", "KO")):
        if dataset.get(keyword) != value:
            yield f"{keyword} is {dataset.get(keyword)}, not {value}"
    if encoded.transfer_syntax_uid != ExplicitVRLittleEndian:
        yield f"TransferSyntaxUID {encoded.transfer_syntax_uid} is not {ExplicitVRLittleEndian}"
    yield from shape(dataset)
    title = MANIFEST if encoded.part == ROOT else OF_INTEREST
    if dataset.get("ValueType") != "CONTAINER" or not is_code(dataset.get("ConceptNameCodeSequence"), title):
        yield f"title is {name_of(dataset)}, not {title}"
    template = dataset.get("ContentTemplateSequence") or [Dataset()]
    if (template[0].get("TemplateIdentifier"), template[0].get("MappingResource")) != ("2010", "DCMR"):
        yield "root does not name template 2010 of DCMR"
    if [item.get("UID") for item in named(dataset, ("121012", "DCM"))] != [device_uid(exam.request.contract)]:
        yield "device observer UID is not the model's"
    if not any(RESEARCH_MARK in str(item.get("TextValue")) for item in named(dataset, ("113012", "DCM"))):
        yield f"description lacks {RESEARCH_MARK!r}"
    yield from requests(exam, dataset)


def _evidence(_: Exam, __: EncodedObject, dataset: Dataset) -> Iterator[str]:
    held = Counter(
        str(each.ReferencedSOPInstanceUID)
        for each in instances_in(dataset, "CurrentRequestedProcedureEvidenceSequence")
    )
    referred = {uid for uid, _, _ in _referred(dataset)}
    if set(held) != referred or held.total() != len(held):
        yield f"evidence names {held.total()} instances and not each of {len(referred)} that are referred to once"


def _key_images(exam: Exam, encoded: EncodedObject, dataset: Dataset) -> Iterator[str]:
    if encoded.part == ROOT:
        return
    scene, analysis = exam.request.scene, exam.request.analysis
    found = _referred(dataset)
    images = {(uid, frame) for uid, frame, _ in found}
    if any(kind != "IMAGE" for _, _, kind in found) or not 1 <= len(found) == len(images) <= MOST_IMAGES:
        yield f"{len(found)} references are not to different images, at most {MOST_IMAGES}"
    if len(found) == MOST_IMAGES:
        return
    for mark in scene.marks:
        if mark.segment is not None:
            area = scene.areas[:, mark.segment - 1]
            best = {scene.images[int(index)] for index in range(len(area)) if area[index] == area.max()}
            if not best & images:
                yield f"does not name the image that shows most of segment {mark.segment}"
    for number, finding in enumerate(analysis.findings, 1):
        place = analysis.location(finding)
        if not finding.present or place is None:
            continue
        at = (place.sop_instance_uid, place.frame_number)
        if at in scene.images and at not in images:
            yield f"does not name the image of finding {number}"


def _manifest(exam: Exam, encoded: EncodedObject, dataset: Dataset) -> Iterator[str]:
    if encoded.part != ROOT:
        return
    wanted = {
        (each.sop_instance_uid, 1, value_type(each))
        for each in exam.objects
        if not (each.kind == encoded.kind and each.part == ROOT) and go_together(each.edition, encoded.edition)
    }
    found = _referred(dataset)
    if set(found) != wanted or len(found) != len(wanted):
        yield f"names {len(found)} objects and not each of the {len(wanted)} of its edition"
    if encoded.edition not in {str(edition) for edition in exam.request.editions}:
        yield f"is of edition {encoded.edition}, which nobody asked for"


def _referred(dataset: Dataset) -> list[tuple[str, int, str]]:
    """Return the (SOP Instance UID, frame, value type) of each content item that refers to an object."""
    return [
        (str(item.ReferencedSOPInstanceUID), int(item.get("ReferencedFrameNumber") or 1), str(content.ValueType))
        for content in dataset.ContentSequence
        for item in content.get("ReferencedSOPSequence", ())
    ]


CHECKS: tuple[Check, ...] = (_document, _evidence, _key_images, _manifest)
"""What a Key Object Selection is asked."""
