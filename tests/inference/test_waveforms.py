"""Waveforms to samples: a real 12-lead ECG against pydicom, and recordings made here whose numbers are known."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRBigEndian
from pydicom.waveforms import multiplex_array

from meddaemon.domain.errors import InputRefused
from meddaemon.inference.waveforms import LEADS, read
from tests.other_objects import channel, group, recording

RAMP = np.arange(8, dtype=np.int16).reshape(2, 4) - 3


@pytest.mark.shared
def test_a_real_ecg_is_what_pydicom_makes_of_it(shared_dicom: Path) -> None:
    path = shared_dicom / "nonimage/waveform_ecg.dcm"
    signal = read([path])
    expected = multiplex_array(dcmread(path), 0, as_raw=False)
    assert signal.samples.shape == (12, 10000)
    assert np.array_equal(signal.samples, expected.T.astype(np.float32))
    assert (signal.channels, signal.rate_hz, signal.unit) == (LEADS, 1000.0, "uV")
    assert signal.remarks == {"waveform": "multiplex group 1 of 2, RHYTHM"}
    assert (signal.sop_instance_uid, signal.series_instance_uid) == (
        dcmread(path).SOPInstanceUID,
        dcmread(path).SeriesInstanceUID,
    )


def test_samples_have_their_sensitivity_correction_baseline_and_unit(tmp_path: Path) -> None:
    channels = [
        channel("I", ChannelSensitivity=2.5, ChannelSensitivityCorrectionFactor=2, ChannelBaseline=10),
        channel("II", unit="mV", ChannelSensitivity=0.001),
    ]
    signal = read([recording(tmp_path, group(RAMP, channels))])
    assert signal.samples[0].tolist() == (RAMP[0] * 5.0 + 10).tolist()
    assert signal.samples[1] == pytest.approx(RAMP[1])
    assert (signal.channels, signal.unit, signal.rate_hz) == (("I", "II"), "uV", 500.0)


@pytest.mark.parametrize("scheme", ["SCPECG", "MDC"])
def test_twelve_leads_come_in_their_order_whatever_that_of_the_file(tmp_path: Path, scheme: str) -> None:
    stored = tuple(reversed(LEADS))
    samples = np.repeat(np.arange(12, dtype=np.int16)[:, None], 5, axis=1)
    signal = read([recording(tmp_path, group(samples, [channel(each, scheme=scheme) for each in stored]))])
    assert signal.channels == LEADS
    assert signal.samples[:, 0].tolist() == list(range(11, -1, -1))


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4"])
def test_every_sample_format_is_read(tmp_path: Path, dtype: str) -> None:
    limits = np.iinfo(dtype)
    samples = np.array([[limits.min, limits.max, 1, 0]], dtype)
    signal = read([recording(tmp_path, group(samples, [channel("I")]))])
    assert signal.samples[0].tolist() == samples[0].astype(np.float32).tolist()


def test_big_endian_words_are_turned(tmp_path: Path) -> None:
    item = group(RAMP.astype(">i2"), [channel("I"), channel("II")], WaveformSampleInterpretation="SS")
    signal = read([recording(tmp_path, item, syntax=ExplicitVRBigEndian)])
    assert signal.samples.tolist() == RAMP.tolist()


def test_the_recording_is_read_not_the_average_beat(tmp_path: Path) -> None:
    average = group(np.zeros((2, 9), np.int16), [channel("I"), channel("II")], WaveformOriginality="DERIVED")
    short = group(np.zeros((2, 2), np.int16), [channel("I"), channel("II")])
    signal = read([recording(tmp_path, average, short, group(RAMP, [channel("I"), channel("II")]))])
    assert signal.samples.tolist() == RAMP.tolist()
    assert signal.remarks["waveform"] == "multiplex group 3 of 3"


def test_channels_that_were_not_sampled_together_are_remarked(tmp_path: Path) -> None:
    signal = read([recording(tmp_path, group(RAMP, [channel("I"), channel("II", ChannelTimeSkew=0.001)]))])
    assert "not sampled at the same time" in signal.remarks["skew"]


TWO = [channel("I"), channel("II")]
WRONG: dict[str, tuple[Callable[[], list[Dataset]], str]] = {
    "nothing": (list, "no_waveform"),
    "too short": (lambda: [group(RAMP, TWO, NumberOfWaveformSamples=5)], "short_waveform_data"),
    "no data": (lambda: [group(RAMP, TWO, WaveformData=None)], "short_waveform_data"),
    "a claim of terabytes": (lambda: [group(RAMP, TWO, NumberOfWaveformSamples=2**32 - 1)], "size"),
    "no samples": (lambda: [group(RAMP, TWO, NumberOfWaveformSamples=0)], "size"),
    "no number of samples": (lambda: [group(RAMP, TWO, NumberOfWaveformSamples=None)], "missing_attribute"),
    "mu-law": (lambda: [group(RAMP, TWO, WaveformSampleInterpretation="MB")], "encoding"),
    "bits that are not its own": (lambda: [group(RAMP, TWO, WaveformBitsAllocated=8)], "encoding"),
    "a definition too few": (lambda: [group(RAMP, TWO[:1])], "malformed"),
    "no frequency": (lambda: [group(RAMP, TWO, SamplingFrequency=None)], "malformed"),
    "a negative frequency": (lambda: [group(RAMP, TWO, SamplingFrequency=-500)], "malformed"),
    "one lead twice": (lambda: [group(RAMP, [channel("I"), channel("I")])], "repeated_channel"),
    "volts and pressure": (lambda: [group(RAMP, [channel("I"), channel("II", unit="mm[Hg]")])], "mixed_units"),
    "samples that were not recorded": (
        lambda: [group(RAMP, TWO, WaveformPaddingValue=np.int16(-3).tobytes())],
        "padding",
    ),
    "a sensitivity beyond all": (
        lambda: [group(RAMP, [channel("I", ChannelSensitivity="1e300"), channel("II")])],
        "not_finite",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_sound_recording_is_refused_by_name(tmp_path: Path, name: str) -> None:
    make, reason = WRONG[name]
    with pytest.raises(InputRefused) as refused:
        read([recording(tmp_path, *make())])
    assert refused.value.reason == reason
    assert "NOBODY" not in str(refused.value)


def test_several_recordings_and_files_that_are_none_are_refused(tmp_path: Path) -> None:
    path = recording(tmp_path, group(RAMP, TWO))
    with pytest.raises(InputRefused, match="several_waveforms"):
        read([path, path])
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(InputRefused) as refused:
        read([path])
    assert refused.value.reason in {"unreadable", "no_waveform", "missing_attribute"}
