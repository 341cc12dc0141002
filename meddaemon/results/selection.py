"""Key Object Selections: the slices that matter, and the manifest of a run (PS3.3 A.35.4, PS3.16 TID 2010)."""

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy

from pydicom.dataset import Dataset
from pydicom.uid import (
    EncapsulatedPDFStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    KeyObjectSelectionDocumentStorage,
    RTStructureSetStorage,
)

from meddaemon.domain.codes import Code
from meddaemon.domain.outlet import EDITIONS, Edition, ObjectKind, go_together
from meddaemon.domain.result import EncodedObject, LeftOut
from meddaemon.results.envelope import finish
from meddaemon.results.identity import RESEARCH_MARK, device_uid, long_string
from meddaemon.results.request import EncodingRequest
from meddaemon.results.skeleton import MANIFEST, OF_INTEREST, begin, code_item, evidence, image_item, is_image, item

KIND = ObjectKind.KO
KEY, ROOT = "key", "manifest"
MOST_IMAGES = 64
"""Of the key images: nobody looks at more."""

_LANGUAGE = Code(value="121049", scheme="DCM", meaning="Language of Content Item and Descendants")
_ENGLISH = Code(value="en-US", scheme="RFC5646", meaning="English (United States)")
_OBSERVER_TYPE = Code(value="121005", scheme="DCM", meaning="Observer Type")
_DEVICE = Code(value="121007", scheme="DCM", meaning="Device")
_DEVICE_UID = Code(value="121012", scheme="DCM", meaning="Device Observer UID")
_DEVICE_NAME = Code(value="121013", scheme="DCM", meaning="Device Observer Name")
_DESCRIPTION = Code(value="113012", scheme="DCM", meaning="Key Object Description")

_NO_IMAGES = frozenset(
    {
        EncapsulatedPDFStorage,
        GrayscaleSoftcopyPresentationStateStorage,
        KeyObjectSelectionDocumentStorage,
        RTStructureSetStorage,
    }
)


def encode(request: EncodingRequest, before: Sequence[EncodedObject]) -> Iterator[EncodedObject | LeftOut]:
    """Yield the key images, where anything is shown on images, and one manifest for each edition.

    A manifest names every object of the run that is of its edition, the key images among them; so this encoder is
    the last one.
    """
    written = list(before)
    images = key_images(request)
    if not images:
        yield LeftOut(what=f"{KIND} {KEY}", why="nothing is shown on an image")
    if len(images) > MOST_IMAGES:
        why = f"nobody looks at more than {MOST_IMAGES}"
        yield LeftOut(what=f"{KIND} {KEY} of {len(images) - MOST_IMAGES} images", why=why)
    if images := images[:MOST_IMAGES]:
        key = _key(request, images)
        written.append(key)
        yield key
    for edition in request.editions:
        if objects := objects_of(written, edition):
            yield _manifest(request, objects, edition, number=EDITIONS.index(edition) + 2)


def key_images(request: EncodingRequest) -> list[tuple[tuple[str, int], list[str]]]:
    """Return the images that matter, (SOP Instance UID, frame) each, with the names of what each shows best.

    Of a segment that is where its area is largest, of a box or a point its centre; a finding that is of one image as
    a whole has that image.
    """
    scene = request.scene
    shown = [(scene.images[mark.key], mark.name) for mark in scene.marks]
    shown += [
        (finding.source, finding.code.meaning)
        for finding in request.analysis.findings
        if finding.source is not None and finding.present and is_image(request.source.instance(finding.source[0]))
    ]
    named: dict[tuple[str, int], list[str]] = {}
    for image, name in shown:
        named.setdefault(image, []).append(name)
    return [(image, list(dict.fromkeys(names))) for image, names in named.items()]


def objects_of(written: Iterable[EncodedObject], edition: Edition) -> list[EncodedObject]:
    """Return the objects of one edition."""
    return [each for each in written if go_together(each.edition, str(edition))]


def _key(request: EncodingRequest, images: list[tuple[tuple[str, int], list[str]]]) -> EncodedObject:
    source = request.source
    described = "; ".join(f"{', '.join(names)}: image {number}" for number, (_, names) in enumerate(images, 1))
    items = [_reference("IMAGE", image_item(request, image)) for image, _ in images]
    referred = [
        (source.series_instance_uid, each.ReferencedSOPSequence[0].ReferencedSOPClassUID, uid)
        for each, ((uid, _), _) in zip(items, images, strict=True)
    ]
    obj = _document(request, OF_INTEREST, described, items, referred, number=1, ordinal=KEY)
    return finish(obj, request, KIND, part=KEY)


def _manifest(
    request: EncodingRequest, objects: Sequence[EncodedObject], edition: Edition, number: int
) -> EncodedObject:
    items, referred = [], []
    for each in objects:
        reference = item(ReferencedSOPClassUID=each.sop_class_uid, ReferencedSOPInstanceUID=each.sop_instance_uid)
        items.append(_reference(value_type(each), reference))
        referred.append((each.series_instance_uid, each.sop_class_uid, each.sop_instance_uid))
    described = f"What {long_string(request.contract.title)} made of this study: {len(objects)} objects"
    ordinals = [ROOT, str(edition), *(uid for _, _, uid in referred)]
    obj = _document(request, MANIFEST, described, items, referred, number=number, ordinal="/".join(ordinals))
    return finish(obj, request, KIND, part=ROOT, edition=str(edition))


def value_type(encoded: EncodedObject) -> str:
    """Return how a document refers to an object (PS3.3 Table C.18.3-1, C.18.4-1)."""
    no_image = encoded.sop_class_uid in _NO_IMAGES or encoded.kind == ObjectKind.SR
    return "COMPOSITE" if no_image else "IMAGE"


def _document(
    request: EncodingRequest,
    title: Code,
    described: str,
    items: Sequence[Dataset],
    referred: Sequence[tuple[str, str, str]],
    *,
    number: int,
    ordinal: str,
) -> Dataset:
    obj = begin(request, KIND, KeyObjectSelectionDocumentStorage, "KO", ordinal, number=number)
    obj.ReferencedPerformedProcedureStepSequence = []
    if request.source.requests:
        obj.ReferencedRequestSequence = deepcopy(list(request.source.requests))
    obj.CurrentRequestedProcedureEvidenceSequence = evidence(request, referred)
    obj.ValueType = "CONTAINER"
    obj.ConceptNameCodeSequence = [code_item(title)]
    obj.ContinuityOfContent = "SEPARATE"
    obj.ContentTemplateSequence = [item(MappingResource="DCMR", TemplateIdentifier="2010")]
    text = f"{RESEARCH_MARK}. {described}"
    obj.ContentSequence = [
        _content("HAS CONCEPT MOD", "CODE", _LANGUAGE, ConceptCodeSequence=[code_item(_ENGLISH)]),
        _content("HAS OBS CONTEXT", "CODE", _OBSERVER_TYPE, ConceptCodeSequence=[code_item(_DEVICE)]),
        _content("HAS OBS CONTEXT", "UIDREF", _DEVICE_UID, UID=device_uid(request.contract)),
        _content("HAS OBS CONTEXT", "TEXT", _DEVICE_NAME, TextValue=long_string(request.contract.title)),
        _content("CONTAINS", "TEXT", _DESCRIPTION, TextValue=text[:1024]),
        *items,
    ]
    return obj


def _content(relationship: str, kind: str, name: Code, **attributes: object) -> Dataset:
    return item(RelationshipType=relationship, ValueType=kind, ConceptNameCodeSequence=[code_item(name)], **attributes)


def _reference(kind: str, reference: Dataset) -> Dataset:
    return item(RelationshipType="CONTAINS", ValueType=kind, ReferencedSOPSequence=[reference])
