"""Inputs, predictions and refusals as messages, and back: what comes from a child is checked part by part."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from meddaemon.domain.conditions import ALWAYS
from meddaemon.domain.contract import (
    Duplicates,
    GeometryPolicy,
    InputContract,
    InputKind,
    InputLimits,
    Mixed,
    Range,
    Times,
    Unevenness,
    Voi,
)
from meddaemon.domain.errors import (
    ContradictoryIdentity,
    InputRefused,
    ModelFailed,
    NotEvaluable,
    OutOfMemory,
    UndecodablePixels,
    UnsoundVolume,
)
from meddaemon.domain.picture import PictureGrid, Pictures, Signal
from meddaemon.domain.result import MAX_ARTEFACT_BYTES, MAX_ARTEFACTS, Artefact, ArtefactKind, Box, Landmark, Prediction
from meddaemon.domain.volume import Geometry, Volume, VoxelMeaning
from meddaemon.inference.messages import Sealed

Input: TypeAlias = Volume | Pictures | Signal
"""What one input of a model may be."""

REFUSALS: Mapping[str, type[InputRefused]] = {
    kind.__name__: kind
    for kind in (InputRefused, UnsoundVolume, UndecodablePixels, ContradictoryIdentity, NotEvaluable)
}
Value = TypeVar("Value")
_MAX_OBJECTS = 100_000
_MAX_NAME = 64
_LIMITS = ("spacing_mm", "extent_mm", "planes", "intensity")


def input_as_message(wanted: InputContract) -> dict[str, Any]:
    """Return what the reading process must know of an input, as JSON values."""
    limits = wanted.limits
    ranges = {name: getattr(limits, name) for name in _LIMITS}
    return {
        "key": wanted.key,
        "name": wanted.slot,
        "kind": wanted.kind.value,
        "voi": wanted.voi.value,
        "unit": wanted.unit,
        "padding": wanted.padding,
        "geometry": {**vars(wanted.geometry), "at": dict(wanted.geometry.at)},
        "modalities": list(limits.modalities),
        "attributes": {keyword: list(values) for keyword, values in limits.attributes.items()},
        "limits": {name: [each.minimum, each.maximum] for name, each in ranges.items() if each is not None},
    }


def input_from_message(message: Mapping[str, Any]) -> InputContract:
    """Return the input that `input_as_message` made a message of; which series may fill it is settled."""
    ranges = {name: Range(minimum=low, maximum=high) for name, (low, high) in message["limits"].items()}
    return InputContract(
        key=message["key"],
        name=message["name"],
        series=ALWAYS,
        kind=InputKind(message["kind"]),
        voi=Voi(message["voi"]),
        unit=message["unit"],
        padding=message["padding"],
        geometry=_policy(message["geometry"]),
        limits=InputLimits(
            modalities=tuple(message["modalities"]),
            attributes={keyword: tuple(values) for keyword, values in message["attributes"].items()},
            **ranges,
        ),
    )


def _policy(message: Mapping[str, Any]) -> GeometryPolicy:
    return GeometryPolicy(
        tilt=Unevenness(message["tilt"]),
        irregular=Unevenness(message["irregular"]),
        gap=Unevenness(message["gap"]),
        mixed=Mixed(message["mixed"]),
        at={str(keyword): float(value) for keyword, value in message["at"].items()},
        time=Times(message["time"]),
        duplicates=Duplicates(message["duplicates"]),
    )


def input_message(value: Input) -> tuple[dict[str, Any], NDArray[Any]]:
    """Return an input as a message and its one array."""
    if isinstance(value, Volume):
        parts = {**_parts(value, without="voxels"), "geometry": _parts(value.geometry)}
        return {"volume": parts}, array_of(value)
    if isinstance(value, Pictures):
        return {"pictures": _parts(value, without="frames")}, array_of(value)
    return {"signal": _parts(value, without="samples")}, array_of(value)


def array_of(value: Input) -> NDArray[np.float32] | NDArray[np.int16]:
    """Return the one array of an input."""
    if isinstance(value, Volume):
        return value.voxels
    return value.frames if isinstance(value, Pictures) else value.samples


def input_from(message: Mapping[str, Any], array: Sealed) -> Input:
    """Return the input that a message carries; raises `ModelFailed` when its parts contradict each other."""
    return _told("an input", lambda: _input(message, array.array()))


def _input(message: Mapping[str, Any], values: NDArray[Any]) -> Input:
    if "volume" in message:
        parts = message["volume"]
        geometry = _geometry(parts["geometry"])
        if geometry.shape != values.shape:
            raise ValueError(f"voxels {values.shape} on a grid of {geometry.shape}")
        return Volume(
            voxels=values,
            geometry=geometry,
            series_instance_uid=str(parts["series_instance_uid"]),
            remarks=_texts(parts["remarks"]),
            padding=int(parts["padding"]),
            meaning=VoxelMeaning(parts["meaning"]),
        )
    if "pictures" in message:
        parts = message["pictures"]
        sources = tuple((str(uid), int(frame)) for uid, frame in parts["sources"])
        if values.ndim not in {3, 4} or len(sources) != len(values):
            raise ValueError(f"{len(sources)} sources of frames {values.shape}")
        return Pictures(
            frames=values,
            sources=sources,
            series_instance_uid=str(parts["series_instance_uid"]),
            spacing_mm=_spacing(parts["spacing_mm"]),
            spacing_is_of_detector=bool(parts["spacing_is_of_detector"]),
            remarks=_texts(parts["remarks"]),
            padding=int(parts["padding"]),
        )
    parts = message["signal"]
    channels = tuple(map(str, parts["channels"]))
    if values.ndim != 2 or len(channels) != len(values):
        raise ValueError(f"{len(channels)} channels of samples {values.shape}")
    return Signal(
        samples=values,
        rate_hz=float(parts["rate_hz"]),
        channels=channels,
        unit=str(parts["unit"]),
        sop_instance_uid=str(parts["sop_instance_uid"]),
        series_instance_uid=str(parts["series_instance_uid"]),
        remarks=_texts(parts["remarks"]),
    )


def prediction_message(prediction: Prediction) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return a prediction as a message and its arrays."""
    arrays: dict[str, NDArray[Any] | None] = {"labels": prediction.labels, "masks": prediction.masks}
    arrays |= {f"artefact {index}": each.values for index, each in enumerate(prediction.artefacts)}
    geometry = prediction.geometry
    said = {
        "series_instance_uid": prediction.series_instance_uid,
        "geometry": None if geometry is None else _parts(geometry),
        "pictures": None if prediction.pictures is None else _parts(prediction.pictures),
        "scores": list(prediction.scores),
        "sources": [list(each) for each in prediction.sources],
        "boxes": [asdict(box) for box in prediction.boxes],
        "landmarks": [asdict(landmark) for landmark in prediction.landmarks],
        "artefacts": [{"kind": each.kind.value, "of": each.of, "source": each.source} for each in prediction.artefacts],
        "score_spread": list(prediction.score_spread),
        "volume_spread_ml": list(prediction.volume_spread_ml),
        "doubts": list(prediction.doubts),
        "provenance": prediction.provenance,
        "seconds": prediction.seconds,
    }
    return {"prediction": said}, {name: each for name, each in arrays.items() if each is not None}


def prediction_from(message: Mapping[str, Any], arrays: Mapping[str, Sealed]) -> Prediction:
    """Return the prediction that a message carries; raises `ModelFailed` when its parts contradict each other."""
    return _told("a prediction", lambda: _prediction(message, {name: each.array() for name, each in arrays.items()}))


def _prediction(message: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Prediction:
    geometry = None if message["geometry"] is None else _geometry(message["geometry"])
    pictures = None if message["pictures"] is None else _picture_grid(message["pictures"])
    grid = geometry or pictures
    labels, masks = arrays.get("labels"), arrays.get("masks")
    if labels is not None and (labels.dtype not in {np.dtype("u1"), np.dtype("u2")} or not _fits(grid, labels)):
        raise ValueError(f"labels {labels.dtype} {labels.shape}")
    if masks is not None and (masks.dtype != np.bool_ or masks.ndim != 4 or not _fits(grid, masks[0])):
        raise ValueError(f"masks {masks.dtype} {masks.shape}")
    if len(message["score_spread"]) not in {0, len(message["scores"])}:
        raise ValueError(f"{len(message['score_spread'])} spreads of {len(message['scores'])} scores")
    return Prediction(
        series_instance_uid=str(message["series_instance_uid"]),
        labels=labels,
        masks=masks,
        scores=tuple(float(each) for each in message["scores"]),
        sources=tuple((str(uid), int(frame)) for uid, frame in _few(message["sources"])),
        boxes=tuple(_box(each) for each in _few(message["boxes"])),
        landmarks=tuple(_landmark(each) for each in _few(message["landmarks"])),
        artefacts=_artefacts(message["artefacts"], arrays, geometry),
        score_spread=tuple(float(each) for each in message["score_spread"]),
        volume_spread_ml=tuple(float(each) for each in message["volume_spread_ml"]),
        geometry=geometry,
        pictures=pictures,
        doubts=tuple(str(each)[:1000] for each in message["doubts"]),
        provenance=_texts(message["provenance"]),
        seconds={str(key): float(value) for key, value in message["seconds"].items()},
    )


def _artefacts(
    parts: Sequence[Mapping[str, Any]], arrays: Mapping[str, NDArray[Any]], geometry: Geometry | None
) -> tuple[Artefact, ...]:
    if len(parts) > MAX_ARTEFACTS:
        raise ValueError(f"{len(parts)} artefacts")
    found = []
    for index, each in enumerate(parts):
        values, source = arrays[f"artefact {index}"], _source(each["source"])
        fits = values.ndim == 2 if source else _fits(geometry, values)
        if values.dtype not in {np.dtype("f2"), np.dtype("f4")} or not fits or not np.isfinite(values).all():
            raise ValueError(f"an artefact {values.dtype} {values.shape}, or one that is not finite")
        found.append(
            Artefact(kind=ArtefactKind(each["kind"]), of=str(each["of"])[:_MAX_NAME], values=values, source=source)
        )
    if (size := sum(each.values.nbytes for each in found)) > MAX_ARTEFACT_BYTES:
        raise ValueError(f"artefacts of {size} bytes")
    return tuple(found)


def _fits(grid: Geometry | PictureGrid | None, values: NDArray[Any]) -> bool:
    return grid is not None and grid.shape == values.shape


def _picture_grid(parts: Mapping[str, Any]) -> PictureGrid:
    frames, rows, columns = (int(each) for each in parts["shape"])
    sources = tuple((str(uid), int(frame)) for uid, frame in parts["sources"])
    if len(sources) != frames:
        raise ValueError(f"{len(sources)} sources of {frames} frames")
    return PictureGrid(shape=(frames, rows, columns), sources=sources, spacing_mm=_spacing(parts["spacing_mm"]))


def _spacing(parts: Sequence[Any] | None) -> tuple[float, float] | None:
    return None if parts is None else (float(parts[0]), float(parts[1]))


def _box(parts: Mapping[str, Any]) -> Box:
    low, high = (tuple(map(float, parts[key])) for key in ("low", "high"))
    if len(low) != len(high) or len(low) not in {2, 3}:
        raise ValueError(f"a box from {low} to {high}")
    return Box(
        label=int(parts["label"]), score=float(parts["score"]), low=low, high=high, source=_source(parts["source"])
    )


def _landmark(parts: Mapping[str, Any]) -> Landmark:
    position = tuple(map(float, parts["position"]))
    if len(position) not in {2, 3}:
        raise ValueError(f"a landmark at {position}")
    return Landmark(
        label=int(parts["label"]), score=float(parts["score"]), position=position, source=_source(parts["source"])
    )


def _source(parts: Sequence[Any] | None) -> tuple[str, int] | None:
    return None if parts is None else (str(parts[0]), int(parts[1]))


def _few(parts: Sequence[Any]) -> Sequence[Any]:
    if len(parts) > _MAX_OBJECTS:
        raise ValueError(f"{len(parts)} objects")
    return parts


def _texts(parts: Mapping[str, Any]) -> dict[str, str]:
    return {str(key): str(value) for key, value in parts.items()}


def _geometry(parts: Mapping[str, Any]) -> Geometry:
    planes, rows, columns = (int(each) for each in parts["shape"])
    positions = parts.get("positions_lps")
    geometry = Geometry(
        shape=(planes, rows, columns),
        affine_lps=np.array(parts["affine_lps"], dtype=np.float64).reshape(4, 4),
        frame_of_reference_uid=str(parts["frame_of_reference_uid"]),
        sop_instance_uids=tuple(map(str, parts["sop_instance_uids"])),
        frame_numbers=tuple(map(int, parts["frame_numbers"])),
        positions_lps=None if positions is None else np.array(positions, dtype=np.float64).reshape(planes, 3),
    )
    if not np.isfinite(geometry.affine_lps).all() or not np.isfinite(geometry.positions).all():
        raise ValueError("an affine or positions that are not finite")
    if not len(geometry.sop_instance_uids) == len(geometry.frame_numbers) == planes:
        raise ValueError("as many sources as planes")
    return geometry


def refusal_message(refusal: InputRefused) -> dict[str, Any]:
    """Return a refused input as a message."""
    return {
        "refused": {
            "kind": type(refusal).__name__,
            "text": str(refusal),
            "reason": refusal.reason,
            "sop_instance_uid": refusal.sop_instance_uid,
            "numbers": refusal.numbers,
        }
    }


def refusal_from(message: Mapping[str, Any]) -> InputRefused:
    """Return the refused input that a message carries, as the class that it was."""
    return _told("a refusal", lambda: _refusal(message))


def _refusal(message: Mapping[str, Any]) -> InputRefused:
    kind = REFUSALS.get(str(message.get("kind")), InputRefused)
    uid, numbers = message.get("sop_instance_uid"), message.get("numbers")
    refusal = kind(
        str(message.get("reason")),
        "",
        sop_instance_uid=None if uid is None else str(uid),
        numbers=numbers if isinstance(numbers, dict) else {},
    )
    refusal.args = (str(message.get("text")),)
    return refusal


def failure_from(message: Mapping[str, Any]) -> ModelFailed:
    """Return the failure that a message carries: `OutOfMemory` where the child says that this was it."""
    text, where = str(message.get("failed")), str(message.get("out_of_memory"))
    return OutOfMemory(text, where) if where in {"gpu", "host"} else ModelFailed(text)


def _told(what: str, read: Callable[[], Value]) -> Value:
    """Return what was read; a message that contradicts itself is the failure of the child that sent it."""
    try:
        return read()
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ModelFailed(f"a child sent {what} that contradicts itself: {error}") from error


def remarks_of(message: Mapping[str, Any]) -> dict[str, str]:
    """Return what was done to an input, of the message that carries it."""
    kinds = ("volume", "pictures", "signal")
    return _told("an input", lambda: next(_texts(message[kind]["remarks"]) for kind in kinds if kind in message))


def _parts(value: Volume | Pictures | PictureGrid | Signal | Geometry, *, without: str = "") -> dict[str, Any]:
    """Return the fields of a value as they are: `asdict` would copy its array."""
    return {each.name: getattr(value, each.name) for each in fields(value) if each.name != without}
