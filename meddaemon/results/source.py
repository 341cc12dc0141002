"""The source instances of a result, read header-only and made safe to derive objects from.

A result inherits patient and study from the images it was computed on (PS3.3 A.51, A.35.13: same Patient and Study
IE). Real headers lack type 2 attributes, carry retired dates, odd character sets and values that no writer accepts,
so nothing is handed on as it stands: everything is decoded to Unicode, a value of another notation that can mean one
thing only is written in that of its VR (`1970.01.31`, `53Y`), and one that cannot be written becomes empty (type 2) or
is left out (type 3), which is said. Text that can be written is copied as it is, even where it is too long for its VR:
archives match patients and orders on the exact value, and studies on their UID, valid or not.
"""

import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# The table by which highdicom decides what it can derive from; it has no public name and raises KeyError.
from highdicom._standard_utils import get_sop_class_iod_map
from numpy.typing import NDArray
from pydicom import config, dcmread
from pydicom.datadict import dictionary_VM, dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataelem import DataElement, empty_value_for_VR
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.uid import (
    CTImageStorage,
    NuclearMedicineImageStorage,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
    XRayAngiographicImageStorage,
)
from pydicom.valuerep import VR, format_number_as_ds, validate_value

from meddaemon.domain.character_sets import CharacterSets
from meddaemon.domain.errors import ContradictoryIdentity, InputRefused
from meddaemon.domain.volume import Geometry
from meddaemon.results.texts import character_sets_of, understood

TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
"""Type 2 attributes of the Patient and General Study modules (PS3.3 C.7.1.1, C.7.2.1): empty when not known."""

INHERITED = (
    *TYPE_2,
    # Patient (PS3.3 C.7.1.1)
    "IssuerOfPatientID",
    "TypeOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "PatientBirthTime",
    "PatientBirthDateInAlternativeCalendar",
    "PatientDeathDateInAlternativeCalendar",
    "PatientAlternativeCalendar",
    "QualityControlSubject",
    "StrainDescription",
    "StrainNomenclature",
    "StrainStockSequence",
    "StrainAdditionalInformation",
    "StrainCodeSequence",
    "GeneticModificationsSequence",
    "OtherPatientNames",
    "OtherPatientIDsSequence",
    "EthnicGroup",
    "EthnicGroupCodeSequence",
    "PatientSpeciesDescription",
    "PatientSpeciesCodeSequence",
    "PatientBreedDescription",
    "PatientBreedCodeSequence",
    "BreedRegistrationSequence",
    "ResponsiblePerson",
    "ResponsiblePersonRole",
    "ResponsibleOrganization",
    "PatientComments",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    # General Study (PS3.3 C.7.2.1)
    "StudyInstanceUID",
    "IssuerOfAccessionNumberSequence",
    "ReferringPhysicianIdentificationSequence",
    "ConsultingPhysicianName",
    "ConsultingPhysicianIdentificationSequence",
    "StudyDescription",
    "ProcedureCodeSequence",
    "PhysiciansOfRecord",
    "PhysiciansOfRecordIdentificationSequence",
    "NameOfPhysiciansReadingStudy",
    "PhysiciansReadingStudyIdentificationSequence",
    "RequestingService",
    "RequestingServiceCodeSequence",
    "ReasonForPerformedProcedureCodeSequence",
    # Patient Study (PS3.3 C.7.2.2)
    "AdmittingDiagnosesDescription",
    "AdmittingDiagnosesCodeSequence",
    "PatientAge",
    "PatientSize",
    "PatientSizeCodeSequence",
    "PatientBodyMassIndex",
    "PatientWeight",
    "MedicalAlerts",
    "Allergies",
    "Occupation",
    "SmokingStatus",
    "AdditionalPatientHistory",
    "PregnancyStatus",
    "LastMenstrualDate",
    "PatientSexNeutered",
    "ReasonForVisit",
    "ReasonForVisitCodeSequence",
    "AdmissionID",
    "IssuerOfAdmissionIDSequence",
    "ServiceEpisodeID",
    "ServiceEpisodeDescription",
    "IssuerOfServiceEpisodeIDSequence",
    "PatientState",
    # Clinical Trial Subject and Study (PS3.3 C.7.1.3, C.7.2.3)
    "ClinicalTrialSponsorName",
    "ClinicalTrialProtocolID",
    "ClinicalTrialProtocolName",
    "IssuerOfClinicalTrialProtocolID",
    "OtherClinicalTrialProtocolIDsSequence",
    "ClinicalTrialSiteID",
    "ClinicalTrialSiteName",
    "IssuerOfClinicalTrialSiteID",
    "ClinicalTrialSubjectID",
    "IssuerOfClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID",
    "IssuerOfClinicalTrialSubjectReadingID",
    "ClinicalTrialProtocolEthicsCommitteeName",
    "ClinicalTrialProtocolEthicsCommitteeApprovalNumber",
    "ClinicalTrialTimePointID",
    "ClinicalTrialTimePointDescription",
    "LongitudinalTemporalOffsetFromEvent",
    "LongitudinalTemporalEventType",
    "ClinicalTrialTimePointTypeCodeSequence",
    "IssuerOfClinicalTrialTimePointID",
    "ConsentForClinicalTrialUseSequence",
    # SOP Common (PS3.3 C.12.1): what dates in the object mean
    "TimezoneOffsetFromUTC",
    "LongitudinalTemporalInformationModified",
)
"""Attributes that a result takes over from its source, by keyword.

Referenced Study and Referenced Patient Sequence stay behind: they name instances of retired SOP classes that no
archive holds, and a result must not refer to what is not there.
"""

# Laterality (type 2C of General Series, PS3.3 C.7.3.1) is for images that have no finer one; dciodvfy calls it an
# error in a Segmentation, empty or not, whose segments carry their own laterality.
_BODY_PART = ("BodyPartExamined",)
_EQUIPMENT = (
    "Manufacturer",
    "ManufacturerModelName",
    "DeviceSerialNumber",
    "SoftwareVersions",
    "InstitutionName",
    "InstitutionalDepartmentName",
    "StationName",
)
_REQUEST = (
    "AccessionNumber",
    "IssuerOfAccessionNumberSequence",
    "StudyInstanceUID",
    "RequestedProcedureID",
    "RequestedProcedureDescription",
    "RequestedProcedureCodeSequence",
    "ReasonForTheRequestedProcedure",
    "ReasonForRequestedProcedureCodeSequence",
    "PlacerOrderNumberImagingServiceRequest",
    "OrderPlacerIdentifierSequence",
    "FillerOrderNumberImagingServiceRequest",
    "OrderFillerIdentifierSequence",
)
_MOMENTS = (
    ("ContentDate", "ContentTime"),
    ("AcquisitionDate", "AcquisitionTime"),
    ("SeriesDate", "SeriesTime"),
    ("StudyDate", "StudyTime"),
    ("AcquisitionDateTime", None),
)
_GEOMETRY = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "Modality",
    "Rows",
    "Columns",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "InstanceNumber",
    "NumberOfFrames",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
    # What pictures are: how they are shown, and which way round (PS3.3 C.7.6.1, C.7.6.3, C.11.2)
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "WindowCenter",
    "WindowWidth",
    "PatientOrientation",
    "ImagerPixelSpacing",
    "PixelAspectRatio",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "ModalityLUTSequence",
    "VOILUTFunction",
    "VOILUTSequence",
    "PixelRepresentation",
    # What whoever derives a picture from them must say, too (PS3.3 C.7.3.1, C.7.6.1, C.8.11.3)
    "Laterality",
    "ImageLaterality",
    "BurnedInAnnotation",
    "RecognizableVisualFeatures",
)
_MULTI_FRAME = ("NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_PLANE = (
    ("PlanePositionSequence", "ImagePositionPatient"),
    ("PlaneOrientationSequence", "ImageOrientationPatient"),
    ("PixelMeasuresSequence", "PixelSpacing"),
    ("PixelMeasuresSequence", "SliceThickness"),
)
"""What says where a plane lies: in which functional group of a frame, and as what of a single-frame image."""
_READ = list(
    dict.fromkeys(
        (
            "SpecificCharacterSet",
            *INHERITED,
            *_BODY_PART,
            *_EQUIPMENT,
            "RequestAttributesSequence",
            *(keyword for moment in _MOMENTS for keyword in moment if keyword),
            *_GEOMETRY,
            "SeriesNumber",
        )
    )
)

# Archives hold images of classes that are retired (PS3.4 B.6).
_SUCCESSORS = {
    "1.2.840.10008.5.1.4.1.1.3": UltrasoundMultiFrameImageStorage,
    "1.2.840.10008.5.1.4.1.1.5": NuclearMedicineImageStorage,
    "1.2.840.10008.5.1.4.1.1.6": UltrasoundImageStorage,
    "1.2.840.10008.5.1.4.1.1.12.3": XRayAngiographicImageStorage,
}

_IDENTIFIERS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_OF_THE_STUDY = ("PatientID", "IssuerOfPatientID", "StudyInstanceUID")

# VRs whose values have a grammar (PS3.5 Table 6.2-1); all other VRs hold free text or sequences here.
_GRAMMAR = frozenset({VR.AE, VR.AS, VR.CS, VR.DA, VR.DS, VR.DT, VR.IS, VR.TM, VR.UI, VR.UR})
_REAL = frozenset({VR.FD, VR.FL})
_NUMERIC = frozenset({*_REAL, VR.SL, VR.SS, VR.SV, VR.UL, VR.US, VR.UV})
_WAVEFORM_STORAGE = "1.2.840.10008.5.1.4.1.1.9."
"""What the UIDs of all waveform storage classes begin with (PS3.4 B.5)."""
_LONGEST_DS = 16
_PATIENT_SEXES = frozenset({"M", "F", "O"})
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\ufffd]")
_NOT_A_UID = re.compile(r"[^!-\[\]-~]")
_TIME = re.compile(r"(\d{2})(\d{2})?(\d{2})?(?:\.(\d{1,6}))?")


class Moment(NamedTuple):
    """A date (VR DA) and a time (VR TM)."""

    date: str
    time: str


# No source date at all: any fixed value keeps the bytes reproducible, and this one is plainly not a date of care.
_NO_MOMENT = Moment("19000101", "000000")


@dataclass(frozen=True, kw_only=True)
class InputSeries:
    """The instances of one input of a model, with nothing but their identity and geometry."""

    instances: tuple[Dataset, ...]
    modality: str

    @property
    def series_instance_uid(self) -> str:
        """The series of the instances."""
        return str(self.instances[0].SeriesInstanceUID)

    @property
    def frame_of_reference_uid(self) -> str:
        """The frame of reference of all instances; empty where they have none, as pictures and waveforms, or several.

        That one has several happens only where nothing is drawn on them.
        """
        uids = {str(instance.get("FrameOfReferenceUID") or "") for instance in self.instances}
        return uids.pop() if len(uids) == 1 else ""

    @property
    def sop_instance_uids(self) -> tuple[str, ...]:
        """The instances, in the order of the planes or of the pictures."""
        return tuple(str(instance.SOPInstanceUID) for instance in self.instances)

    def instance(self, uid: str) -> Dataset:
        """Return the instance of that UID. Raises KeyError where there is none."""
        return self._by_uid[uid]

    @cached_property
    def _by_uid(self) -> dict[str, Dataset]:
        return {str(instance.SOPInstanceUID): instance for instance in self.instances}


@dataclass(frozen=True, kw_only=True)
class SourceSeries(InputSeries):
    """What results need to know of the images, or of the waveform, that they were computed on.

    `header` holds the inherited attributes, `body_part` BodyPartExamined where it is usable,
    `equipment` the acquisition device, `requests` the items for Referenced Request Sequence (PS3.3 C.17.2), of all
    inputs, each once: all normalised, in Unicode. `character_sets` are those of the header as it was read, `left_out`
    the attributes of it that cannot be written, by keyword. `instances` are the images that the
    result lies on, in plane order (one item when the source is multi-frame), pictures in the order of their instance
    numbers. `others` are the further inputs of the model. `moment` is the latest date and time that any input carries.
    """

    header: Dataset
    body_part: Dataset
    equipment: Dataset
    requests: tuple[Dataset, ...]
    moment: Moment
    series_number: int | None
    character_sets: CharacterSets
    left_out: tuple[str, ...]
    others: tuple[InputSeries, ...] = ()

    @property
    def study_instance_uid(self) -> str:
        """The study that source and results belong to."""
        return str(self.header.StudyInstanceUID)

    @cached_property
    def inputs(self) -> tuple[InputSeries, ...]:
        """Every input once, the one first that the result lies on."""
        known: dict[str, InputSeries] = {}
        for each in (self, *self.others):
            # Two inputs may be of one series, each of other images: of another b-value, for one.
            before = known.get(each.series_instance_uid)
            instances = {} if before is None else dict(zip(before.sop_instance_uids, before.instances, strict=True))
            instances |= zip(each.sop_instance_uids, each.instances, strict=True)
            known[each.series_instance_uid] = InputSeries(instances=tuple(instances.values()), modality=each.modality)
        return tuple(known.values())

    @property
    def laterality(self) -> str:
        """The side that is shown, `L` or `R`; empty where no image says one, or they say different ones."""
        sides = {str(each.get("ImageLaterality") or each.get("Laterality") or "") for each in self.instances}
        return sides.pop() if len(sides) == 1 and sides <= {"L", "R"} else ""

    def any_says(self, keyword: str) -> bool:
        """Return whether one of the images says YES to something that a picture of them has, too."""
        return any(each.get(keyword) == "YES" for each in self.instances)

    @property
    def is_multi_frame(self) -> bool:
        """Whether planes are frames of an instance."""
        return any(map(is_multi_frame, self.instances))

    @cached_property
    def positions(self) -> dict[tuple[str, int], NDArray[np.float64]]:
        """ImagePositionPatient in LPS mm by (SOP Instance UID, frame number from 1); pictures have none."""
        return {
            (str(instance.SOPInstanceUID), number): np.array([float(value) for value in position])
            for instance in self.instances
            for number, position in enumerate(_frames(instance, "PlanePositionSequence", "ImagePositionPatient"), 1)
            if position
        }

    @cached_property
    def orientations(self) -> dict[tuple[str, int], NDArray[np.float64]]:
        """ImageOrientationPatient by (SOP Instance UID, frame number from 1)."""
        return {
            (str(instance.SOPInstanceUID), number): np.array([float(value) for value in orientation])
            for instance in self.instances
            for number, orientation in enumerate(
                _frames(instance, "PlaneOrientationSequence", "ImageOrientationPatient"), 1
            )
            if orientation
        }

    def image(self, uid: str, frame: int) -> Dataset:
        """Return one plane as a single-frame image: the instance itself, or what it says of that frame.

        The latter is called a CT image: highdicom goes by the class, and takes one multi-frame instance at most.
        """
        instance = self.instance(uid)
        if not is_multi_frame(instance):
            return instance
        image = Dataset()
        for element in instance:
            if element.keyword not in (*_MULTI_FRAME, *(keyword for _, keyword in _PLANE)):
                image.add(element)
        for group, keyword in _PLANE:
            for value in _frames(instance, group, keyword, only=frame):
                setattr(image, keyword, value)
        image.add_new(image["SOPClassUID"].tag, image["SOPClassUID"].VR, CTImageStorage)
        return image


def is_multi_frame(instance: Dataset) -> bool:
    """Return whether the planes of an instance are its frames, each of which says something of its own."""
    return "PerFrameFunctionalGroupsSequence" in instance


def frames_of(instance: Dataset) -> int:
    """Return how many frames an instance has: one where it says nothing of any."""
    return int(instance.get("NumberOfFrames") or 1)


def read_source(
    paths: Sequence[Path], geometry: Geometry | None = None, *, others: Sequence[Sequence[Path]] = ()
) -> SourceSeries:
    """Read the headers of the source instances and normalise what results inherit from them.

    With `geometry`, the instances are put into its plane order, whatever the order of `paths`; those that the volume
    left out carry no result. Without, they are pictures, a waveform, or images on which nothing lies. `others` are the
    files of the further inputs, series by series.
    Raises `ContradictoryIdentity` when the instances name more than one patient or study, or those of one input more
    than one series, and `InputRefused` when they cannot carry a result: unreadable, not the instances of `geometry`,
    without study or, under a geometry, without frame of reference.
    """
    # pydicom's warnings quote values, and values may be a patient's.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        datasets = [_read(path) for path in paths]
        further = [[_read(path) for path in series] for series in others]
        everything = [*datasets, *(each for series in further for each in series)]
        _refuse_unidentified(everything)
        for keyword in _OF_THE_STUDY:
            _refuse_several_values(everything, keyword)
        for series in (datasets, *further):
            _refuse_several_values(series, "SeriesInstanceUID")
        if geometry is None:
            datasets = _in_order_of_pictures(datasets)
        else:
            datasets = _in_plane_order(datasets, geometry)
            # What the volume left out may lie elsewhere: a localizer, another stack.
            _refuse_without(datasets, "FrameOfReferenceUID")
            _refuse_several_values(datasets, "FrameOfReferenceUID")
        first = datasets[0]
        header = _normalised(first, INHERITED, keep_empty=True)
        for keyword in TYPE_2:
            if keyword not in header:
                setattr(header, keyword, "")
        return SourceSeries(
            header=header,
            body_part=_normalised(first, _BODY_PART),
            equipment=_normalised(first, _EQUIPMENT),
            requests=_requests([*datasets, *(each for series in further for each in _in_order_of_pictures(series))]),
            instances=tuple(_bare(dataset) for dataset in datasets),
            moment=_latest_moment([*datasets, *(each for series in further for each in series)]),
            modality=_modality(first),
            series_number=_whole_number(first, "SeriesNumber"),
            character_sets=character_sets_of(first),
            left_out=tuple(_lost(first, header)),
            others=tuple(
                InputSeries(
                    instances=tuple(_bare(each) for each in _in_order_of_pictures(series)),
                    modality=_modality(series[0]),
                )
                for series in further
                if series
            ),
        )


def is_waveform(instance: Dataset) -> bool:
    """Return whether an instance is a waveform, which content items name otherwise than an image."""
    return str(instance.SOPClassUID).startswith(_WAVEFORM_STORAGE)


def _read(path: Path) -> Dataset:
    try:
        return understood(dcmread(path, stop_before_pixels=True, specific_tags=_READ))
    except InvalidDicomError as error:
        raise InputRefused("unreadable_source", f"{path.name} is not a DICOM file") from error


@cache
def _iods() -> Mapping[str, str]:
    """Return highdicom's table of SOP classes, in which those that are retired have the modules of their successors."""
    table = get_sop_class_iod_map()
    for retired, successor in _SUCCESSORS.items():
        table.setdefault(retired, table[successor])
    return table


def _refuse_unidentified(datasets: Sequence[Dataset]) -> None:
    """Refuse inputs that nothing can be derived from."""
    if not datasets:
        raise InputRefused("no_source", "a result needs at least one source instance")
    for keyword in _IDENTIFIERS:
        _refuse_without(datasets, keyword)
    unknown = {str(dataset.SOPClassUID) for dataset in datasets} - set(_iods())
    if unknown:
        raise InputRefused("unknown_sop_class", f"no result can be derived from {sorted(unknown)}")


def _refuse_without(datasets: Sequence[Dataset], keyword: str) -> None:
    if any(not dataset.get(keyword) for dataset in datasets):
        raise InputRefused("missing_identifier", f"a source instance has no {keyword}", numbers={"keyword": keyword})


def _refuse_several_values(datasets: Sequence[Dataset], keyword: str) -> None:
    # The message counts the values and names none: a PatientID is a patient's.
    values = {str(dataset.get(keyword) or "").strip() for dataset in datasets}
    if len(values) > 1:
        raise ContradictoryIdentity(
            "contradictory_identity",
            f"the source instances carry {len(values)} different values of {keyword}",
            numbers={"keyword": keyword, "values": len(values)},
        )


def _in_plane_order(datasets: Sequence[Dataset], geometry: Geometry) -> list[Dataset]:
    by_uid = {str(dataset.SOPInstanceUID): dataset for dataset in datasets}
    wanted = tuple(dict.fromkeys(geometry.sop_instance_uids))
    # The volume may be built from some of them: a contract may leave out localizers, other stacks, other times.
    if len(by_uid) != len(datasets) or not set(wanted) <= set(by_uid):
        raise InputRefused(
            "sources_differ",
            f"{len(datasets)} source files do not hold the {len(wanted)} instances that the volume was built from",
            numbers={"files": len(datasets), "instances": len(wanted)},
        )
    return [by_uid[uid] for uid in wanted]


def _in_order_of_pictures(datasets: Sequence[Dataset]) -> list[Dataset]:
    """Return instances that lie in no common volume in the order in which they are looked at."""
    return sorted(datasets, key=lambda each: (_whole_number(each, "InstanceNumber") or 0, str(each.SOPInstanceUID)))


def _elements(dataset: Dataset, keywords: Sequence[str]) -> Iterator[DataElement]:
    """Yield the elements that can be read at all; a value that pydicom cannot convert counts as absent."""
    for keyword in keywords:
        tag = tag_for_keyword(keyword)
        if tag is None or tag not in dataset:
            continue
        try:
            element = dataset[tag]
        except (ValueError, TypeError, OverflowError, NotImplementedError):
            continue
        # Of a number that is none it keeps the text.
        values = element.value if isinstance(element.value, MultiValue) else [element.value]
        if element.VR not in (VR.DS, VR.IS) or element.is_empty or not any(isinstance(each, str) for each in values):
            yield element


def _normalised(dataset: Dataset, keywords: Sequence[str], *, keep_empty: bool = False) -> Dataset:
    """Return a new data set with those of the attributes that can be written; private ones never."""
    result = Dataset()
    for element in _elements(dataset, keywords):
        vr = _vr_of(element)
        value = None if element.is_empty else _normalised_value(element, vr)
        if value is not None or (keep_empty and element.is_empty):
            written = empty_value_for_VR(vr) if value is None else value
            result.add(DataElement(element.tag, vr, written, validation_mode=config.IGNORE))
    return result


def _lost(dataset: Dataset, header: Dataset) -> Iterator[str]:
    """Yield the inherited attributes that have a value, or items, which a header does not carry."""
    readable = {element.keyword: element for element in _elements(dataset, INHERITED)}
    for keyword in INHERITED:
        found, kept = readable.get(keyword), header.get_item(keyword)
        items = found is not None and found.VR == VR.SQ and kept is not None and len(found.value) != len(kept.value)
        if keyword in dataset and (found is None or (not found.is_empty and (kept is None or kept.is_empty)) or items):
            yield keyword


def _vr_of(element: DataElement) -> str:
    """Return the VR that an attribute has, whatever the source says."""
    vr = dictionary_VR(element.tag)
    return str(element.VR) if " or " in vr else vr


def _normalised_value(element: DataElement, vr: str) -> Any:
    """Return what to write for an element: its value in Unicode, or None when it cannot be written."""
    if VR.SQ in (vr, element.VR):
        items = map(_normalised_item, element.value) if vr == element.VR else ()
        return [item for item in items if _is_complete(element.keyword, item)] or None
    many = isinstance(element.value, MultiValue | list | tuple)
    found = list(element.value) if many else [element.value]
    if any(isinstance(value, bytes) for value in found):
        return None
    if vr in _NUMERIC:
        try:
            found = [float(value) if vr in _REAL else int(value) for value in found]
        except ValueError:
            return None
        return found[0] if len(found) == 1 else None
    values = [_in_notation(vr, str(value)) for value in found]
    if not _is_writable(element, vr, values):
        return None
    return values if many else values[0]


def _in_notation(vr: str, value: str) -> str:
    """Return a value in the notation of its VR where another one is used that can mean nothing else."""
    if vr == VR.DA and re.fullmatch(r"\d{4}([.-])\d\d\1\d\d", value):
        return value.replace(value[4], "")
    if vr == VR.TM and re.fullmatch(r"\d\d:\d\d(:\d\d(\.\d{1,6})?)?", value):
        return value.replace(":", "")
    if vr == VR.AS and re.fullmatch(r"\d{1,2}[DWMY]", value):
        return value.zfill(4)
    if vr == VR.DS and len(value) > _LONGEST_DS and math.isfinite(float(value)):
        return format_number_as_ds(float(value))
    return value.strip().upper() if vr == VR.CS else value


def _normalised_item(item: Dataset) -> Dataset:
    # Not by iterating the item: that converts every value, and some cannot be converted.
    named = [keyword_for_tag(tag) for tag in item.keys() if not tag.is_private]  # noqa: SIM118
    # Nothing in a code may be empty (PS3.3 Table 8.8-1): its attributes have values or are absent.
    is_code = "CodingSchemeDesignator" in item
    keywords = [keyword for keyword in named if keyword not in ("", "SpecificCharacterSet")]
    return _normalised(item, keywords, keep_empty=not is_code)


def _is_complete(keyword: str, item: Dataset) -> bool:
    """Tell whether an item says what it must: an incomplete code is worse than none."""
    if keyword.endswith("CodeSequence"):
        coded = any(item.get(name) for name in ("CodeValue", "LongCodeValue", "URNCodeValue"))
        scheme = item.get("CodingSchemeDesignator") or item.get("URNCodeValue")
        return bool(coded and item.get("CodeMeaning") and scheme)
    return any(not element.is_empty for element in item)


def _is_writable(element: DataElement, vr: str, values: list[str]) -> bool:
    if element.keyword == "PatientSex":
        return len(values) == 1 and values[0] in _PATIENT_SEXES
    if vr not in _GRAMMAR:
        return not any(_CONTROL.search(value) for value in values)
    is_range = vr in (VR.DA, VR.TM) and any("-" in value for value in values)  # as queries have them
    if is_range or (len(values) > 1 and dictionary_VM(element.tag) == "1"):
        return False
    if vr == VR.UI:
        return not any(_NOT_A_UID.search(value) for value in values)
    try:
        for value in values:
            validate_value(vr, value, config.RAISE)
    except ValueError:
        return False
    return True


def _requests(datasets: Iterable[Dataset]) -> tuple[Dataset, ...]:
    """Return Referenced Request items (PS3.3 C.17.2.3) from the Request Attributes of all instances, each once."""
    items: list[Dataset] = []
    for dataset in datasets:
        items.extend(item for item in _requests_of(dataset) if item not in items)
    return tuple(items)


def _requests_of(dataset: Dataset) -> Iterator[Dataset]:
    for element in _elements(dataset, ("RequestAttributesSequence",)):
        for attributes in element.value or ():
            item = _normalised(attributes, _REQUEST)
            if not item:
                continue
            if "StudyInstanceUID" not in item:
                item.StudyInstanceUID = str(dataset.StudyInstanceUID)
            if "AccessionNumber" not in item:
                # A number and who gave it are one.
                item.pop("IssuerOfAccessionNumberSequence", None)
                item.update(_normalised(dataset, ("AccessionNumber", "IssuerOfAccessionNumberSequence")))
                item.setdefault("AccessionNumber", "")
            item.ReferencedStudySequence = []
            if "RequestedProcedureCodeSequence" not in item:
                item.RequestedProcedureCodeSequence = []
            for keyword in (
                "RequestedProcedureID",
                "RequestedProcedureDescription",
                "PlacerOrderNumberImagingServiceRequest",
                "FillerOrderNumberImagingServiceRequest",
            ):
                if keyword not in item:
                    setattr(item, keyword, "")
            yield item


def _bare(dataset: Dataset) -> Dataset:
    """Return identity and geometry of one image, with the type 2 attributes that writers insist on left empty."""
    bare = Dataset()
    bare.SpecificCharacterSet = "ISO_IR 192"
    for keyword in TYPE_2:
        setattr(bare, keyword, "")
    for element in _elements(dataset, _GEOMETRY):
        bare.add(element)
    if dataset.original_encoding[1] is False:
        bare.pop("VOILUTSequence", None)  # words in bytes of the other order
    if "SliceThickness" not in bare and "PerFrameFunctionalGroupsSequence" not in bare:
        bare.SliceThickness = None
    return bare


def _frames(instance: Dataset, group: str, keyword: str, only: int = 0) -> Iterator[Any]:
    """Yield what the frames of an instance say, each or `only` one, themselves or all together (PS3.3 C.7.6.16).

    It is None of what lies nowhere, as a picture.
    """
    if not is_multi_frame(instance):
        yield instance.get(keyword)
        return
    frames = instance.PerFrameFunctionalGroupsSequence
    shared = list(instance.get("SharedFunctionalGroupsSequence") or ())[:1]
    for own in frames[only - 1 : only] if only else frames:
        said = next((each[group].value[0] for each in (own, *shared) if each.get(group)), Dataset())
        yield said.get(keyword)


def _latest_moment(datasets: Sequence[Dataset]) -> Moment:
    """Return the latest moment any instance carries: results are dated by their source, never by the clock."""
    moments = [moment for dataset in datasets for moment in _moments(dataset)]
    return max(moments, default=_NO_MOMENT)


def _moments(dataset: Dataset) -> Iterator[Moment]:
    present = {
        element.keyword: str(element.value) for element in _elements(dataset, [*filter(None, sum(_MOMENTS, ()))])
    }
    for date, time in _MOMENTS:
        text = present.get(date, "")
        moment = _moment(text[:8], present.get(time, "") if time else re.split("[+-]", text[8:])[0])
        if moment is not None:
            yield moment


def _moment(date: str, time: str) -> Moment | None:
    try:
        datetime.strptime(date, "%Y%m%d")
    except ValueError:
        return None
    match = _TIME.fullmatch(time.strip())
    if match is None:
        return Moment(date, "000000")
    hours, minutes, seconds, fraction = (part or "" for part in match.groups())
    whole = f"{hours}{minutes or '00'}{seconds or '00'}"
    return Moment(date, whole + (f".{fraction}" if fraction.strip("0") else ""))


def _modality(dataset: Dataset) -> str:
    return str(dataset.get("Modality") or "")


def _whole_number(dataset: Dataset, keyword: str) -> int | None:
    for element in _elements(dataset, (keyword,)):
        return None if element.is_empty or isinstance(element.value, MultiValue) else int(element.value)
    return None
