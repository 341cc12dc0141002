"""What every result object shares around its content: patient, study, equipment, dates, file meta and bytes."""

import re
from collections.abc import Callable
from copy import deepcopy
from io import BytesIO

from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID, GrayscaleSoftcopyPresentationStateStorage, RTStructureSetStorage

from meddaemon import __version__
from meddaemon.domain.character_sets import UTF_8
from meddaemon.domain.result import EncodedObject
from meddaemon.domain.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from meddaemon.results.identity import MANUFACTURER, device_uid, long_string, series_description
from meddaemon.results.request import EncodingRequest
from meddaemon.results.texts import say


def software_versions(request: EncodingRequest) -> tuple[str, ...]:
    """Return SoftwareVersions: this daemon's, and the model's."""
    return __version__, long_string(f"{request.contract.name} {request.contract.version}")


def device_serial_number(request: EncodingRequest) -> str:
    """Return the serial number of a device that is software: the digest of the model, as far as VR LO holds it."""
    return long_string(request.contract.digest)


def encoded(obj: Dataset) -> bytes:
    """Return an object as a Part 10 file."""
    buffer = BytesIO()
    obj.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def has_content_moment(sop_class_uid: str) -> bool:
    """Return whether objects of a class have a Content Date and Time; presentations and structure sets have not."""
    return sop_class_uid not in {GrayscaleSoftcopyPresentationStateStorage, RTStructureSetStorage}


def finish(
    obj: Dataset,
    request: EncodingRequest,
    kind: str,
    encode: Callable[[Dataset], bytes] = encoded,
    *,
    part: str = "",
    edition: str = "",
) -> EncodedObject:
    """Complete an object that was built and `encode` it as a Part 10 file; `part` and `edition` as its name has them.

    Everything that highdicom takes from the clock, from chance or from an untrusted header is replaced here: it is
    handed nothing of the patient, because it refuses or logs values that archives need verbatim.
    """
    source = request.source
    for element in source.header:
        obj.add(deepcopy(element))
    obj.SpecificCharacterSet = UTF_8
    obj.SeriesDescription = series_description(request)
    obj.InstanceCreationDate, obj.InstanceCreationTime = source.moment
    obj.SeriesDate, obj.SeriesTime = source.moment
    if has_content_moment(str(obj.SOPClassUID)):
        obj.ContentDate, obj.ContentTime = source.moment
    obj.ManufacturerModelName = MANUFACTURER
    obj.SoftwareVersions = list(software_versions(request))
    obj.DeviceSerialNumber = device_serial_number(request)
    obj.ContributingEquipmentSequence = _contributing_equipment(request)
    if schemes := _private_schemes(request):
        obj.CodingSchemeIdentificationSequence = schemes
    if request.in_source_set:
        say(obj, request.character_sets)
    obj.file_meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    obj.file_meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return EncodedObject(
        kind=kind,
        part=part,
        edition=edition,
        sop_class_uid=str(obj.SOPClassUID),
        sop_instance_uid=str(obj.SOPInstanceUID),
        series_instance_uid=str(obj.SeriesInstanceUID),
        transfer_syntax_uid=str(obj.file_meta.TransferSyntaxUID),
        content=encode(obj),
    )


def _private_schemes(request: EncodingRequest) -> list[Dataset]:
    """Return who is to be asked what the private codes of a result mean (PS3.3 C.12.1.1.1)."""
    analysis = request.analysis
    codes_used = [code for each in analysis.segments for code in (each.category, each.type)]
    for finding in analysis.findings:
        codes_used.append(finding.code)
        codes_used.extend(code for each in finding.measurements for code in (each.name, each.unit))
    items: list[Dataset] = []
    for scheme in sorted({code.scheme for code in codes_used if code.scheme.startswith("99")}):
        item = Dataset()
        item.CodingSchemeDesignator = scheme
        item.CodingSchemeName = "Private codes"
        own = scheme == f"99{MANUFACTURER.upper()}"
        item.CodingSchemeResponsibleOrganization = (
            MANUFACTURER if own else request.contract.manufacturer or MANUFACTURER
        )
        items.append(item)
    return items


def _contributing_equipment(request: EncodingRequest) -> list[Dataset]:
    """Return the scanner and the model (PS3.3 C.12.1, Contributing Equipment Sequence)."""
    contract, acquisition = request.contract, request.source.equipment
    items: list[Dataset] = []
    if "Manufacturer" in acquisition:
        scanner = _equipment_item(codes.DCM.AcquisitionEquipment, "Acquisition of the source images")
        scanner.update(deepcopy(acquisition))
        items.append(scanner)
    model = _equipment_item(codes.DCM.ProcessingEquipment, contract.title)
    model.Manufacturer = long_string(contract.manufacturer) or MANUFACTURER
    model.ManufacturerModelName = long_string(contract.name)
    model.SoftwareVersions = long_string(contract.version)
    model.DeviceUID = device_uid(contract)
    return [*items, model]


def _equipment_item(purpose: Code, description: str) -> Dataset:
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [CodedConcept.from_code(purpose)]
    item.ContributionDescription = re.sub(r"\s+", " ", description)
    return item
