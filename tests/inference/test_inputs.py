"""The files of a job to what a model takes, through the real reading process: kinds, channels, limits, one study."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from toy_contract import toy_contract

from meddaemon.domain.conditions import ALWAYS
from meddaemon.domain.contract import (
    Duplicates,
    GeometryPolicy,
    InputContract,
    InputKind,
    InputLimits,
    Mixed,
    ModelContract,
    ModelKind,
    Range,
    Times,
    Unevenness,
    Voi,
)
from meddaemon.domain.errors import ContradictoryIdentity, InputRefused, NotEvaluable, UndecodablePixels
from meddaemon.domain.picture import Pictures, Signal
from meddaemon.domain.volume import Volume
from meddaemon.inference.loading import Loader
from meddaemon.inference.values import Input, input_as_message, input_from_message, remarks_of
from tests.dicom_factory import make_series


@pytest.fixture(scope="module")
def loader() -> Iterator[Loader]:
    loader = Loader()
    try:
        yield loader
    finally:
        loader.close()


def contract(*inputs: InputContract) -> ModelContract:
    return toy_contract(inputs=inputs, kind=ModelKind.CLASSIFICATION)


def wanted(name: str = "image", **said: Any) -> InputContract:
    return InputContract(key="image", name=name, series=ALWAYS, **said)


def loaded(loader: Loader, *inputs: InputContract, files: Mapping[str, Sequence[Path]]) -> dict[str, Input]:
    with loader.load(contract(*inputs), files, time_limit=60) as prepared:
        return prepared.values()


def test_what_the_reading_process_is_told_comes_back_as_it_was() -> None:
    asked = wanted(
        kind=InputKind.PICTURES,
        voi=Voi.WINDOW,
        unit="SUVbw",
        padding=-1024.0,
        geometry=GeometryPolicy(
            tilt=Unevenness.RESAMPLE,
            gap=Unevenness.RESAMPLE,
            mixed=Mixed.LARGEST,
            at={"DiffusionBValue": 1000.0},
            time=Times.LAST,
            duplicates=Duplicates.DROP,
        ),
        limits=InputLimits(
            modalities=("CR", "DX"),
            attributes={"BodyPartExamined": ("CHEST",)},
            planes=Range(minimum=2),
            intensity=Range(minimum=-1, maximum=1),
        ),
    )
    assert input_from_message(input_as_message(asked)) == asked


@pytest.mark.parametrize("kind", [InputKind.VOLUME, InputKind.SLICES])
def test_volumes_and_slices_are_volumes(loader: Loader, tmp_path: Path, kind: InputKind) -> None:
    files = {"image": make_series(tmp_path, planes=4)}
    value = loaded(loader, wanted(kind=kind), files=files)["image"]
    assert isinstance(value, Volume)
    assert value.voxels.shape[0] == 4


@pytest.mark.fault(84)
def test_limits_are_those_of_what_is_taken_and_what_was_done_is_told(loader: Loader, tmp_path: Path) -> None:
    """Through the reading process: a localizer, which comes first and has another protocol, is left out."""
    scout = make_series(
        tmp_path / "0",
        planes=1,
        orientation="coronal",
        attributes={
            "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"],
            "ProtocolName": "SCOUT",
            "SOPInstanceUID": "2.25.1",
        },
    )
    voxels = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6) % 10
    main = make_series(tmp_path / "1", voxels=voxels, attributes={"ProtocolName": "T1", "PixelPaddingValue": 7})
    asked = wanted(
        geometry=GeometryPolicy(mixed=Mixed.LARGEST),
        padding=-5.0,
        limits=InputLimits(attributes={"ProtocolName": ("T1",)}, planes=Range(minimum=4, maximum=4)),
    )
    with loader.load(contract(asked), {"image": [*scout, *main]}, time_limit=60) as prepared:
        (value,) = prepared.values().values()
        ((said, _),) = prepared.inputs.values()
        assert isinstance(value, Volume)
        assert value.remarks["localizers_left_out"] == "1 planes: 2.25.1"
        assert value.padding == 12
        assert np.array_equal(value.voxels == -5, voxels == 7)
        assert remarks_of(said) == value.remarks


@pytest.mark.shared
def test_a_tilted_series_is_read_only_where_the_contract_takes_it(loader: Loader, shared_dicom: Path) -> None:
    files = {"image": sorted((shared_dicom / "series/ct_phantom_tilt_m18_5").glob("*"))}
    with pytest.raises(InputRefused) as refused:
        loaded(loader, wanted(), files=files)
    assert refused.value.reason == "tilt"
    policy = GeometryPolicy(tilt=Unevenness.RESAMPLE)
    value = loaded(loader, wanted(geometry=policy), files=files)["image"]
    assert isinstance(value, Volume)
    first = {dcmread(path, stop_before_pixels=True).SOPInstanceUID: path for path in files["image"]}
    for plane, uid in enumerate(value.geometry.sop_instance_uids):
        said = dcmread(first[uid], stop_before_pixels=True).ImagePositionPatient
        assert value.geometry.positions[plane] == pytest.approx(said, abs=1e-3)


@pytest.mark.shared
def test_a_radiograph_comes_as_the_contract_asks(loader: Loader, shared_dicom: Path) -> None:
    path = shared_dicom / "cxr/RG1_J2KI.dcm"
    value = loaded(loader, wanted(kind=InputKind.PICTURES, voi=Voi.WINDOW), files={"image": [path]})["image"]
    assert isinstance(value, Pictures)
    assert value.frames.shape == (1, 1955, 1841)
    assert 0 <= value.frames.min() < value.frames.max() <= 1
    assert value.sources == ((dcmread(path).SOPInstanceUID, 1),)
    assert value.remarks["inverted"]


@pytest.mark.shared
def test_an_ecg_comes_as_a_signal(loader: Loader, shared_dicom: Path) -> None:
    files = {"image": [shared_dicom / "nonimage/waveform_ecg.dcm"]}
    value = loaded(loader, wanted(kind=InputKind.WAVEFORM), files=files)["image"]
    assert isinstance(value, Signal)
    assert (value.samples.shape, value.rate_hz, value.channels[0]) == ((12, 10000), 1000.0, "I")


@pytest.mark.shared
@pytest.mark.parametrize(
    ("kind", "name", "reason"),
    [
        (InputKind.VOLUME, "cxr/PatientA.dcm", "missing_frame_of_reference_uid"),
        (InputKind.WAVEFORM, "cxr/PatientA.dcm", "no_waveform"),
        (InputKind.PICTURES, "nonimage/waveform_ecg.dcm", "photometric_interpretation"),
    ],
)
def test_a_series_of_another_kind_is_refused_by_name(
    loader: Loader, shared_dicom: Path, kind: InputKind, name: str, reason: str
) -> None:
    with pytest.raises(InputRefused) as refused:
        loaded(loader, wanted(kind=kind), files={"image": [shared_dicom / name]})
    assert refused.value.reason == reason


def test_channels_come_by_their_names(loader: Loader, tmp_path: Path) -> None:
    files = {
        name: make_series(tmp_path / name, seed=name, study="one", voxels=np.full((4, 5, 6), value, np.int16))
        for name, value in (("t1", 1), ("t2", 2))
    }
    values = loaded(loader, wanted("t1"), wanted("t2"), files=files)
    assert [int(value.voxels.max()) for value in values.values() if isinstance(value, Volume)] == [1, 2]
    assert list(values) == ["t1", "t2"]


@pytest.mark.shared
def test_inputs_of_different_kinds_are_of_one_study(loader: Loader, shared_dicom: Path, tmp_path: Path) -> None:
    files = {
        "ecg": [shared_dicom / "nonimage/waveform_ecg.dcm"],
        "image": make_series(tmp_path, planes=4),
    }
    with pytest.raises(ContradictoryIdentity, match="mixed_patient"):
        loaded(loader, wanted("ecg", kind=InputKind.WAVEFORM), wanted("image"), files=files)


@pytest.mark.fault(91)
def test_what_is_beyond_the_limits_is_not_evaluable_with_all_the_numbers(loader: Loader, tmp_path: Path) -> None:
    files = {"image": make_series(tmp_path, planes=4, modality="MR")}
    limits = InputLimits(modalities=("CT",), planes=Range(minimum=20), spacing_mm=Range(maximum=1.3))
    with pytest.raises(NotEvaluable) as refused:
        loaded(loader, wanted(limits=limits), files=files)
    assert str(refused.value) == (
        "beyond_limits: input image: Modality MR; the model takes CT; "
        "input image: spacing 2 × 1.5 × 1.25 mm; the model takes at most 1.3 mm; "
        "input image: planes 4; the model takes at least 20"
    )
    assert refused.value.numbers == {"series_instance_uid": dcmread(files["image"][0]).SeriesInstanceUID}
    assert refused.value.reason == "beyond_limits"
    within = InputLimits(modalities=("CT", "MR"), planes=Range(maximum=4), spacing_mm=Range(minimum=1.25, maximum=2))
    assert loaded(loader, wanted(limits=within), files=files)


def test_each_channel_has_limits_of_its_own(loader: Loader, tmp_path: Path) -> None:
    files = {
        name: make_series(tmp_path / name, seed=name, study="one", planes=planes)
        for name, planes in (("t1", 6), ("t2", 4))
    }
    limited = wanted("t2", limits=InputLimits(planes=Range(minimum=5)))
    with pytest.raises(NotEvaluable, match="input t2: planes 4; the model takes at least 5"):
        loaded(loader, wanted("t1"), limited, files=files)


@pytest.mark.shared
def test_a_damaged_picture_names_its_instance(loader: Loader, shared_dicom: Path, tmp_path: Path) -> None:
    content = bytearray((shared_dicom / "cxr/PatientA.dcm").read_bytes())
    at = content.index(b"\xff\xd8\xff")
    content[at + 2 : at + 400] = bytes(398)
    path = tmp_path / "damaged.dcm"
    path.write_bytes(content)
    with pytest.raises(UndecodablePixels) as refused:
        loaded(loader, wanted(kind=InputKind.PICTURES), files={"image": [path]})
    assert refused.value.sop_instance_uid == dcmread(path, stop_before_pixels=True).SOPInstanceUID
