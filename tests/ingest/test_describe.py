from pathlib import Path

import pytest
from pydicom.uid import (
    Comprehensive3DSRStorage,
    CTImageStorage,
    GeneralECGWaveformStorage,
    RTDoseStorage,
    SegmentationStorage,
    TwelveLeadECGWaveformStorage,
    XRayRadiationDoseSRStorage,
)

from meddaemon.domain.series import Instance, SeriesKind
from meddaemon.ingest.describe import describe_series, describe_study, kind_of, orientation_of


def an_instance(*, sop_class: str = CTImageStorage, number: int = 1, **header: str) -> Instance:
    values = {"Rows": "512", **header}
    return Instance(
        sop_instance_uid=f"1.{number}",
        sop_class_uid=sop_class,
        transfer_syntax_uid="1.2",
        path=Path("/nowhere"),
        sha256=str(number),
        size=1,
        header={keyword: tuple(value.split("\\")) if value else () for keyword, value in values.items()},
        calling_ae_title="CT1",
        called_ae_title="US",
    )


@pytest.mark.parametrize(
    ("kind", "instance"),
    [
        ("image", an_instance(ImageType=r"ORIGINAL\PRIMARY\AXIAL")),
        ("image", an_instance()),
        ("image", an_instance(SeriesDescription="Autopilot thorax")),
        ("localizer", an_instance(ImageType=r"ORIGINAL\PRIMARY\LOCALIZER")),
        ("localizer", an_instance(SeriesDescription="3-plane SCOUT")),
        ("localizer", an_instance(SeriesDescription="Topogram  0.6")),
        ("localizer", an_instance(ProtocolName="Survey_SHC")),
        ("mosaic", an_instance(ImageType=r"ORIGINAL\PRIMARY\M\ND\MOSAIC")),
        ("dose_report", an_instance(sop_class=XRayRadiationDoseSRStorage, Rows="")),
        ("dose_report", an_instance(ImageType=r"DERIVED\SECONDARY\SCREEN SAVE")),
        ("dose_report", an_instance(ImageType=r"DERIVED\SECONDARY", SeriesDescription="Dose Report")),
        ("waveform", an_instance(sop_class=TwelveLeadECGWaveformStorage, Rows="")),
        ("waveform", an_instance(sop_class=GeneralECGWaveformStorage, Rows="")),
        ("non_image", an_instance(Rows="")),
        ("non_image", an_instance(sop_class=Comprehensive3DSRStorage, Rows="")),
        ("non_image", an_instance(sop_class=SegmentationStorage)),
        ("non_image", an_instance(sop_class=RTDoseStorage)),
    ],
)
def test_what_an_instance_is_for(kind: str, instance: Instance) -> None:
    assert kind_of(instance).value == kind


@pytest.mark.fault(84)
def test_one_instance_of_another_kind_keeps_the_series_from_models() -> None:
    images = tuple(an_instance(number=number) for number in range(5))
    scout = an_instance(number=9, ImageType=r"ORIGINAL\PRIMARY\LOCALIZER")
    assert describe_series("1", images).kind is SeriesKind.IMAGE
    assert describe_series("1", (*images, scout)).kind is SeriesKind.LOCALIZER


@pytest.mark.parametrize(
    ("orientation", "cosines"),
    [
        ("axial", r"1\0\0\0\1\0"),
        ("axial", r"-1\0\0\0\1\0"),
        ("axial", r"0.97\0.24\0\-0.24\0.97\0"),
        ("coronal", r"1\0\0\0\0\-1"),
        ("sagittal", r"0\1\0\0\0\-1"),
        ("oblique", r"0.8\0.6\0\-0.36\0.48\0.8"),
        ("none", ""),
        ("none", r"1\0\0\0\1"),
        ("none", r"a\b\c\d\e\f"),
        ("none", r"nan\0\0\0\1\0"),
        ("none", r"inf\0\0\0\1\0"),
        ("none", r"0\0\0\0\0\0"),
        ("none", r"1\0\0\1\0\0"),
        ("axial", r"0.5\0\0\0\0.5\0"),  # not of unit length: the direction counts
    ],
)
def test_the_orientation_is_that_of_the_slice_normal(orientation: str, cosines: str) -> None:
    assert orientation_of([an_instance(ImageOrientationPatient=cosines)]) == orientation


def test_different_orientations_are_mixed() -> None:
    slices = [an_instance(ImageOrientationPatient=each) for each in (r"1\0\0\0\1\0", r"1\0\0\0\0\-1")]
    assert orientation_of(slices) == "mixed"
    assert orientation_of(slices[:1] * 2) == "axial"


def test_a_series_shows_each_distinct_value_once() -> None:
    series = describe_series(
        "1", tuple(an_instance(number=number, EchoTime=str(number % 2), Modality="MR") for number in range(6))
    )
    assert series.attributes["EchoTime"] == (("0",), ("1",))
    assert series.attributes["Modality"] == (("MR",),)
    assert series.attributes["instances"] == (("6",),)
    assert series.attributes["kind"] == (("image",),)
    assert series.attributes["orientation"] == (("none",),)
    assert series.attributes["calling_ae_title"] == (("CT1",),)
    assert series.attributes["called_ae_title"] == (("US",),)


def test_a_study_shows_the_values_of_all_its_series() -> None:
    study = describe_study(
        study_id=7,
        study_instance_uid="9",
        generation=2,
        instances={"1": (an_instance(Modality="CT"),), "2": (an_instance(Modality="SR", Rows=""),)},
    )
    assert study.attributes["Modality"] == (("CT",), ("SR",))
    assert study.attributes["instances"] == (("2",),)
    assert [series.kind.value for series in study.series] == ["image", "non_image"]
