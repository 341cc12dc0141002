"""The beginning of an object that no library writes for us, and the items that all such objects are made of."""

from collections.abc import Sequence
from typing import Any

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from meddaemon.domain.codes import Code
from meddaemon.domain.outlet import ObjectKind
from meddaemon.results.identity import MANUFACTURER, instance_uid, series_uid
from meddaemon.results.request import EncodingRequest
from meddaemon.results.source import frames_of

STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"
"""Detached Study Management: retired, and type 1 in RT Referenced Study (PS3.3 Table C.8-43)."""
OF_INTEREST = Code(value="113000", scheme="DCM", meaning="Of Interest")
MANIFEST = Code(value="113030", scheme="DCM", meaning="Manifest")
SOURCE_IMAGE = Code(value="121322", scheme="DCM", meaning="Source image for image processing operation")


def series_number(request: EncodingRequest, kind: ObjectKind) -> int:
    """Return the SeriesNumber of the results of one kind: each has its own in the range of the request."""
    # After that of the Segmentation, and of the reports, which have one each.
    return request.first_series_number + 10 + list(ObjectKind).index(kind)


def begin(
    request: EncodingRequest,
    kind: ObjectKind,
    sop_class: str,
    modality: str,
    *ordinal: str,
    number: int = 1,
    syntax: str = ExplicitVRLittleEndian,
) -> Dataset:
    """Return an object with its SOP Common, series and equipment attributes; `finish` writes what all results share.

    `ordinal` is what beside the analysis its bytes depend on: it takes part in the SOP Instance UID.
    """
    obj = Dataset()
    obj.SOPClassUID = sop_class
    obj.SOPInstanceUID = instance_uid(request, kind, *ordinal)
    obj.SeriesInstanceUID = series_uid(request, kind)
    obj.SeriesNumber = series_number(request, kind)
    obj.InstanceNumber = number
    obj.Modality = modality
    obj.Manufacturer = MANUFACTURER
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\0\1"
    meta.MediaStorageSOPClassUID = UID(sop_class)
    meta.MediaStorageSOPInstanceUID = UID(obj.SOPInstanceUID)
    meta.TransferSyntaxUID = UID(syntax)
    obj.file_meta = meta
    return obj


def item(**attributes: Any) -> Dataset:
    """Return a sequence item with these attributes."""
    made = Dataset()
    for keyword, value in attributes.items():
        setattr(made, keyword, value)
    return made


def code_item(code: Code) -> Dataset:
    """Return a code (PS3.3 section 8.8)."""
    return item(CodeValue=code.value, CodingSchemeDesignator=code.scheme, CodeMeaning=code.meaning)


def image_item(request: EncodingRequest, image: tuple[str, int]) -> Dataset:
    """Return a reference to an image of the source, to its frame where it has several (PS3.3 Table 10-3)."""
    uid, frame = image
    source = request.source.instance(uid)
    made = item(ReferencedSOPClassUID=str(source.SOPClassUID), ReferencedSOPInstanceUID=uid)
    if frames_of(source) > 1:
        made.ReferencedFrameNumber = frame
    return made


def source_items(request: EncodingRequest, purpose: Code | None = None, *, images: bool = False) -> list[Dataset]:
    """Return a reference to each instance of every input, or to each image, with the purpose where one is given."""
    made = [
        item(ReferencedSOPClassUID=str(each.SOPClassUID), ReferencedSOPInstanceUID=str(each.SOPInstanceUID))
        for series in request.source.inputs
        for each in series.instances
        if not images or is_image(each)
    ]
    for each in made:
        if purpose is not None:
            each.PurposeOfReferenceCodeSequence = [code_item(purpose)]
    return made


def name_thickness(made: Dataset, request: EncodingRequest) -> None:
    """Say how thick the planes are where the images do not: as thick as they were measured (PS3.3 C.7.6.16.2.1)."""
    measures, geometry = made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0], request.analysis.geometry
    if measures.get("SliceThickness") is None and geometry is not None:
        measures.SliceThickness = float(f"{geometry.spacing[0]:.10g}")


def name_side(made: Dataset, request: EncodingRequest) -> None:
    """Say which body part is shown, and which side of it, where the images tell; else that nobody knows the side.

    Of a body part that is paired the side must be said, and nobody knows which are (PS3.3 C.7.3.1).
    """
    made.Laterality = request.source.laterality
    if made.Laterality:
        made.update(request.source.body_part)


def say_lossy(made: Dataset, request: EncodingRequest) -> None:
    """Say whether any image of the source was compressed with loss: once is for ever (PS3.3 C.7.6.1.1.5)."""
    lossy = next((each for each in request.source.instances if each.get("LossyImageCompression") == "01"), None)
    made.LossyImageCompression = "00" if lossy is None else "01"
    for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        made.pop(keyword, None)
        if lossy is not None and keyword in lossy:
            made.add(lossy[keyword])


def is_image(instance: Dataset) -> bool:
    """Return whether an instance of the source is an image; a waveform is none."""
    return "Rows" in instance


def evidence(request: EncodingRequest, referred: Sequence[tuple[str, str, str]]) -> list[Dataset]:
    """Return the study - series - instance hierarchy of what is referred to: (series, class, instance) each."""
    series: dict[str, list[Dataset]] = {}
    for series_instance_uid, sop_class, uid in dict.fromkeys(referred):
        reference = item(ReferencedSOPClassUID=sop_class, ReferencedSOPInstanceUID=uid)
        series.setdefault(series_instance_uid, []).append(reference)
    return [
        item(
            StudyInstanceUID=request.source.study_instance_uid,
            ReferencedSeriesSequence=[
                item(SeriesInstanceUID=uid, ReferencedSOPSequence=items) for uid, items in series.items()
            ],
        )
    ]
