"""The document around the groups: title, observer, procedure, image library, evidence, what it replaces (TID 1500)."""

from collections.abc import Sequence
from copy import deepcopy

import highdicom.sr as hd
from highdicom.sr import RelationshipTypeValues as Relation
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code as PydicomCode
from pydicom.uid import ExplicitVRLittleEndian

from meddaemon.domain.outlet import ObjectKind, ReportForm
from meddaemon.domain.result import EncodedObject
from meddaemon.domain.uids import digest_of
from meddaemon.results.envelope import device_serial_number, finish
from meddaemon.results.identity import MANUFACTURER, device_uid, instance_uid, long_string, series_uid
from meddaemon.results.report.content import Entry, Part, caveat
from meddaemon.results.report.groups import group
from meddaemon.results.request import EncodingRequest, ObjectReference
from meddaemon.results.source import InputSeries, SourceSeries, is_waveform

_CLASSES = {ReportForm.COMPREHENSIVE_3D: hd.Comprehensive3DSR, ReportForm.COMPREHENSIVE: hd.ComprehensiveSR}

# As every reader of TID 1600 knows it; the code dictionary of pydicom says "Source (attribute)".
_SOURCE = hd.CodedConcept(value="260753009", scheme_designator="SCT", meaning="Source")

# CID 29 (acquisition modality) and CID 100 (quantitative diagnostic imaging procedure), of which validators know only
# what it had in 2019: no radiographs, no angiographs.
_MODALITIES: dict[str, PydicomCode] = {code.value: code for code in codes.cid29.concepts.values()}
_PROCEDURES = {
    "CT": codes.cid100.CTUnspecifiedBodyRegion,
    "MR": codes.cid100.MRIUnspecifiedBodyRegion,
    "PT": codes.cid100.PETUnspecifiedBodyRegion,
    "NM": codes.cid100.NMUnspecifiedBodyRegion,
}


def write(
    request: EncodingRequest,
    part: Part,
    entries: Sequence[Entry],
    seg: EncodedObject | None,
    form: ReportForm,
    edition: str,
    replaced: Sequence[ObjectReference],
) -> EncodedObject:
    """Write one document: its groups are of one kind, and point at the segments of `seg` where there is one.

    It is UNVERIFIED and PRELIMINARY, because nobody has looked at it; a result that may not be believed, or says
    nothing, is PARTIAL and tells why.
    """
    source = request.source
    why = caveat(request.analysis)
    # Which groups it has, to what they refer and what it replaces depends on what else is asked for.
    within = [
        digest_of(*(each.tracking_uid for each in entries)),
        digest_of(*(each.sop_instance_uid for each in replaced)),
        *([seg.sop_instance_uid] if seg is not None else []),
    ]
    document = _CLASSES[form](
        evidence=[
            *(instance for series in source.inputs for instance in series.instances),
            *([_evidence_item(seg, source)] if seg is not None else []),
        ],
        content=_report(request, part, entries, seg)[0],
        # A series each: viewers show one document of a series (OHIF/Viewers issue 6243).
        series_instance_uid=series_uid(request, ObjectKind.SR, part, edition),
        series_number=request.first_series_number + 1 + list(Part).index(part),
        sop_instance_uid=instance_uid(request, ObjectKind.SR, part, edition, *within),
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=not why,
        is_final=False,
        is_verified=False,
        requested_procedures=deepcopy(list(source.requests)) or None,
        previous_versions=[_predecessor(each, source) for each in replaced] or None,
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    if why:
        document.CompletionFlagDescription = long_string(why)
    return finish(document, request, ObjectKind.SR, part=part, edition=edition)


def _report(
    request: EncodingRequest, part: Part, entries: Sequence[Entry], seg: EncodedObject | None
) -> hd.MeasurementReport:
    contract = request.contract
    observer = hd.ObserverContext(
        codes.DCM.Device,
        hd.DeviceObserverIdentifyingAttributes(
            uid=device_uid(contract),
            name=contract.title,
            manufacturer_name=contract.manufacturer or MANUFACTURER,
            model_name=contract.name,
            serial_number=device_serial_number(request),
        ),
    )
    report = hd.MeasurementReport(
        observation_context=hd.ObservationContext(observer_device_context=observer),
        procedure_reported=_procedure(request.source),
        imaging_measurements=[group(request, part, entry, seg) for entry in entries],
        title=codes.DCM.ImagingMeasurementReport,
        language_of_content_item_and_descendants=hd.LanguageOfContentItemAndDescendants(
            hd.CodedConcept(value="en-US", scheme_designator="RFC5646", meaning="English (United States)")
        ),
    )
    library = _image_library(request.source)
    if library is not None:
        # TID 1500 is ordered: the Image Library (row 8) comes before the Imaging Measurements (row 9).
        content = report[0].ContentSequence
        content.insert(len(content) - 1, library)
    return report


def _procedure(source: SourceSeries) -> PydicomCode:
    """Return the imaging procedure that was analysed: as the study names it in terms of CID 100, else by modality.

    A site's own code stays in the Procedure Code Sequence that the report inherits; readers of TID 1500 know CID 100.
    """
    known: dict[tuple[str, str], PydicomCode] = {
        (code.value, code.scheme_designator): code for code in codes.cid100.concepts.values()
    }
    for item in source.header.get("ProcedureCodeSequence") or ():
        code = known.get((str(item.get("CodeValue")), str(item.get("CodingSchemeDesignator"))))
        if code is not None:
            return code
    fallback: PydicomCode = _PROCEDURES.get(source.modality, codes.cid100.ImagingProcedure)
    return fallback


def _image_library(source: SourceSeries) -> hd.ContainerContentItem | None:
    """Return TID 1600 with one group for each input and one bare IMAGE item per instance; None without any image.

    highdicom's own describes every image anew: 11 s and 1.1 MB for 300 slices, against 0.4 s and 0.1 MB.
    """
    groups = [_library_group(series) for series in source.inputs if not is_waveform(series.instances[0])]
    if not groups:
        return None
    library = hd.ContainerContentItem(name=codes.DCM.ImageLibrary, relationship_type=Relation.CONTAINS)
    library.ContentSequence = hd.ContentSequence(groups)
    return library


def _library_group(series: InputSeries) -> hd.ContainerContentItem:
    group = hd.ContainerContentItem(name=codes.DCM.ImageLibraryGroup, relationship_type=Relation.CONTAINS)
    group.ContentSequence = hd.ContentSequence()
    if series.modality in _MODALITIES:
        group.ContentSequence.append(
            hd.CodeContentItem(
                name=codes.DCM.Modality,
                value=_MODALITIES[series.modality],
                relationship_type=Relation.HAS_ACQ_CONTEXT,
            )
        )
    if series.frame_of_reference_uid:
        group.ContentSequence.append(
            hd.UIDRefContentItem(
                name=codes.DCM.FrameOfReferenceUID,
                value=series.frame_of_reference_uid,
                relationship_type=Relation.HAS_ACQ_CONTEXT,
            )
        )
    group.ContentSequence.extend(
        hd.ImageContentItem(
            name=_SOURCE,
            referenced_sop_class_uid=str(instance.SOPClassUID),
            referenced_sop_instance_uid=str(instance.SOPInstanceUID),
            relationship_type=Relation.CONTAINS,
        )
        for instance in series.instances
    )
    return group


def _evidence_item(seg: EncodedObject, source: SourceSeries) -> Dataset:
    item = Dataset()
    item.SOPClassUID, item.SOPInstanceUID = seg.sop_class_uid, seg.sop_instance_uid
    item.StudyInstanceUID, item.SeriesInstanceUID = source.study_instance_uid, seg.series_instance_uid
    return item


def _predecessor(replaced: ObjectReference, source: SourceSeries) -> Dataset:
    item = Dataset()
    item.SOPClassUID = replaced.sop_class_uid
    item.SOPInstanceUID = replaced.sop_instance_uid
    item.SeriesInstanceUID = replaced.series_instance_uid
    item.StudyInstanceUID = source.study_instance_uid
    return item
