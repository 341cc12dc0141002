"""Waveforms, such as a 12-lead ECG, to samples in their unit (PS3.3 C.10.9)."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from meddaemon.domain.errors import InputRefused
from meddaemon.domain.picture import Signal
from meddaemon.inference.dataset import integer, number, numbers, opened, refuse, text

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
"""The twelve leads in the order in which every twelve-lead model takes them, whatever their order in the file."""

MAXIMUM_SAMPLES = 2**28
"""More numbers than a day of twelve leads at 200 Hz has are refused before memory is asked for."""

_TYPES = {"SB": "i1", "UB": "u1", "SS": "i2", "US": "u2", "SL": "i4", "UL": "u4"}
_VOLTS: Mapping[str, float] = {"uV": 1.0, "mV": 1e3, "V": 1e6}
_MICROVOLT = "uV"
# SCP-ECG and ISO/IEEE 11073 number the leads alike (PS3.16 CID 3001).
_NUMBERS = {**{n: f"V{n - 2}" for n in range(3, 9)}, 1: "I", 2: "II", 61: "III", 62: "aVR", 63: "aVL", 64: "aVF"}
_CODE = re.compile(r"^(?:5\.6\.3-9-|2:)(\d{1,3})$")
_MEANING = re.compile(r"\blead (I{1,3}|aV[RLF]|V[1-6])\b", re.IGNORECASE)
_CANONICAL = {lead.casefold(): lead for lead in LEADS}


def read(paths: Sequence[Path]) -> Signal:
    """Return the one original recording of a series: its longest original multiplex group.

    Voltages are in microvolt. The leads of a 12-lead ECG come out in the order of `LEADS`, other channels as stored.

    Raises `InputRefused`: `unreadable`, `several_waveforms`, `no_waveform`, `missing_attribute`, `malformed`,
    `encoding`, `size`, `short_waveform_data`, `mixed_units`, `padding`, `repeated_channel`, `not_finite`.
    """
    if len(paths) != 1:
        raise InputRefused("several_waveforms", f"{len(paths)} instances: nobody says which one is meant")
    with opened(paths[0], whole=True) as dataset:
        groups = list(dataset.get("WaveformSequence") or ())
        if not groups:
            refuse(dataset, "no_waveform", "has no Waveform Sequence")
        chosen = _original(groups)
        group = groups[chosen]
        rate = number(group, "SamplingFrequency", 0.0)
        if not (np.isfinite(rate) and rate > 0):
            refuse(dataset, "malformed", "Sampling Frequency is no frequency")
        samples = _stored(dataset, group, big_endian=dataset.original_encoding[1] is False)
        definitions = list(group.get("ChannelDefinitionSequence") or ())
        if len(definitions) != len(samples):
            refuse(dataset, "malformed", f"{len(samples)} channels, {len(definitions)} definitions")
        values, unit = _measured(dataset, samples, definitions)
        names = [_name(each, index) for index, each in enumerate(definitions)]
        if len(set(names)) != len(names):
            refuse(dataset, "repeated_channel", "two channels have one name")
        order = [names.index(lead) for lead in LEADS] if set(names) == set(LEADS) else list(range(len(names)))
        return Signal(
            samples=np.ascontiguousarray(values[order]),
            rate_hz=rate,
            channels=tuple(names[index] for index in order),
            unit=unit,
            sop_instance_uid=text(dataset, "SOPInstanceUID"),
            series_instance_uid=text(dataset, "SeriesInstanceUID"),
            remarks=_remarks(groups, chosen, definitions),
        )


def _original(groups: Sequence[Dataset]) -> int:
    """Return which group is the recording itself: an average beat is derived from it, and shorter."""

    def rank(index: int) -> tuple[bool, float]:
        group = groups[index]
        seconds = integer(group, "NumberOfWaveformSamples", 0) / (number(group, "SamplingFrequency", 0.0) or np.inf)
        return text(group, "WaveformOriginality") != "ORIGINAL", -seconds

    return min(range(len(groups)), key=rank)


def _stored(dataset: Dataset, group: Dataset, *, big_endian: bool) -> NDArray[np.generic]:
    """Return the stored samples [channel, sample]; refuses more than the data hold."""
    channels, count = integer(group, "NumberOfWaveformChannels"), integer(group, "NumberOfWaveformSamples")
    interpretation = text(group, "WaveformSampleInterpretation")
    kind = _TYPES.get(interpretation)
    if kind is None or integer(group, "WaveformBitsAllocated") != 8 * int(kind[1]):
        refuse(dataset, "encoding", f"samples of interpretation {interpretation[:4]!r} are not taken")
    if channels < 1 or count < 1 or channels * count > MAXIMUM_SAMPLES:
        refuse(dataset, "size", f"{channels} channels of {count} samples are not taken", channels=channels)
    dtype = np.dtype(kind).newbyteorder(">" if big_endian else "<")
    data = group.get("WaveformData") or b""
    needed = channels * count * dtype.itemsize
    if len(data) < needed:
        refuse(dataset, "short_waveform_data", f"{needed} bytes are needed, {len(data)} are there")
    samples: NDArray[np.generic] = np.frombuffer(data[:needed], dtype).reshape(count, channels).T
    padding = group.get("WaveformPaddingValue")
    if padding is not None and padding != b"":
        value = np.frombuffer(bytes(padding)[: dtype.itemsize], dtype)[0] if isinstance(padding, bytes) else padding
        padded = int(np.count_nonzero(samples == value))
        if padded:
            refuse(dataset, "padding", f"{padded} samples were not recorded", padded=padded)
    return samples


def _measured(
    dataset: Dataset, stored: NDArray[np.generic], definitions: Sequence[Dataset]
) -> tuple[NDArray[np.float32], str]:
    """Return the samples in their unit: stored · sensitivity · correction + baseline (PS3.3 C.10.9.1.4)."""
    values = np.empty(stored.shape, np.float32)
    units: dict[str, None] = {}
    for index, each in enumerate(definitions):
        codes = each.get("ChannelSensitivityUnitsSequence") or ()
        unit = text(codes[0], "CodeValue") if codes else ""
        scale = _VOLTS.get(unit)
        units[_MICROVOLT if scale else unit] = None
        slope = number(each, "ChannelSensitivity", 1.0) * number(each, "ChannelSensitivityCorrectionFactor", 1.0)
        line = stored[index].astype(np.float64) * slope + number(each, "ChannelBaseline", 0.0)
        with np.errstate(over="ignore"):  # infinity is refused below
            values[index] = line * (scale or 1.0)
    if len(units) != 1:
        refuse(dataset, "mixed_units", f"the channels have {len(units)} different units")
    if not np.isfinite(values).all():
        refuse(dataset, "not_finite", "a sample is not a finite number")
    return values, next(iter(units))


def _name(definition: Dataset, index: int) -> str:
    """Return the lead that a channel is, else its label, else its number."""
    source = definition.get("ChannelSourceSequence") or ()
    if source:
        code = _CODE.match(text(source[0], "CodeValue"))
        lead = _NUMBERS.get(int(code[1])) if code else None
        said = _MEANING.search(text(source[0], "CodeMeaning"))
        if lead is None and said:
            lead = _CANONICAL[said[1].casefold()]
        if lead:
            return lead
    label = text(definition, "ChannelLabel") or (text(source[0], "CodeMeaning") if source else "")
    return label or f"channel {index + 1}"


def _remarks(groups: Sequence[Dataset], chosen: int, definitions: Sequence[Dataset]) -> dict[str, str]:
    remarks = {}
    if len(groups) > 1:
        label = text(groups[chosen], "MultiplexGroupLabel")
        remarks["waveform"] = f"multiplex group {chosen + 1} of {len(groups)}" + (f", {label[:16]}" if label else "")
    skews = {
        each for one in definitions for name in ("ChannelSampleSkew", "ChannelTimeSkew") for each in numbers(one, name)
    }
    if skews - {0.0}:
        remarks["skew"] = "the channels were not sampled at the same time, and are not shifted"
    return remarks
