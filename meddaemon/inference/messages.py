"""What the worker and its model child say to each other, over one stream socket.

A message is a JSON object and, after it, raw bytes: lengths as two 8-byte big-endian numbers, JSON, bytes. Nothing
is pickled: the child runs code of bundles and decodes hostile files, so the worker takes values from it, never code.
"""

import json
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from meddaemon.domain.errors import (
    ContradictoryIdentity,
    InputRefused,
    ModelFailed,
    UndecodablePixels,
    UnsoundVolume,
)
from meddaemon.domain.result import Prediction
from meddaemon.domain.volume import Geometry

REFUSALS: Mapping[str, type[InputRefused]] = {
    kind.__name__: kind for kind in (InputRefused, UnsoundVolume, UndecodablePixels, ContradictoryIdentity)
}

_HEAD = struct.Struct(">QQ")
_MAX_TEXT = 2**26
_MAX_BYTES = 2**32


class Ended(Exception):
    """The other side closed the connection."""


def send(connection: socket.socket, message: Mapping[str, Any], content: memoryview | bytes = b"") -> None:
    """Send one message."""
    text = json.dumps(message, default=_plain).encode()
    connection.sendall(_HEAD.pack(len(text), len(content)) + text)
    connection.sendall(content)


def receive(connection: socket.socket, *, deadline: float | None = None) -> tuple[dict[str, Any], bytearray]:
    """Return the next message and its bytes.

    Raises `Ended` at the end of the connection, `TimeoutError` at `deadline` (of `time.monotonic`), and
    `ModelFailed` when what comes is not a message.
    """
    text_length, content_length = _HEAD.unpack(_read(connection, _HEAD.size, deadline))
    if text_length > _MAX_TEXT or content_length > _MAX_BYTES:
        raise ModelFailed(f"the model child sent a message of {text_length} + {content_length} bytes")
    try:
        message = json.loads(_read(connection, text_length, deadline))
    except ValueError as error:
        raise ModelFailed("the model child sent something that is not a message") from error
    if not isinstance(message, dict):
        raise ModelFailed("the model child sent something that is not a message")
    return message, _read(connection, content_length, deadline)


def _read(connection: socket.socket, length: int, deadline: float | None) -> bytearray:
    data = bytearray(length)
    view = memoryview(data)
    while view:
        if deadline is not None:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError
            connection.settimeout(remaining)
        count = connection.recv_into(view)
        if count == 0:
            raise Ended
        view = view[count:]
    return data


def prediction_message(prediction: Prediction) -> tuple[dict[str, Any], memoryview]:
    """Return the prediction as a message and the bytes of its labels."""
    drawn, geometry = prediction.drawn
    labels = np.ascontiguousarray(drawn)
    message = {
        "prediction": {
            "dtype": labels.dtype.name,
            "shape": geometry.shape,
            "affine_lps": geometry.affine_lps.tolist(),
            "frame_of_reference_uid": geometry.frame_of_reference_uid,
            "sop_instance_uids": geometry.sop_instance_uids,
            "frame_numbers": geometry.frame_numbers,
            "series_instance_uid": prediction.series_instance_uid,
            "provenance": prediction.provenance,
            "seconds": prediction.seconds,
        }
    }
    return message, labels.data.cast("B")


def prediction_from(message: Mapping[str, Any], content: bytearray) -> Prediction:
    """Return the prediction that a message carries; raises `ModelFailed` when its parts contradict each other."""
    try:
        planes, rows, columns = (int(each) for each in message["shape"])
        dtype = {"uint8": np.uint8, "uint16": np.uint16}[message["dtype"]]
        labels = np.frombuffer(content, dtype=dtype).reshape(planes, rows, columns)
        geometry = Geometry(
            shape=(planes, rows, columns),
            affine_lps=np.array(message["affine_lps"], dtype=np.float64).reshape(4, 4),
            frame_of_reference_uid=str(message["frame_of_reference_uid"]),
            sop_instance_uids=tuple(map(str, message["sop_instance_uids"])),
            frame_numbers=tuple(map(int, message["frame_numbers"])),
        )
        if not len(geometry.sop_instance_uids) == len(geometry.frame_numbers) == planes:
            raise ValueError("as many sources as planes")
        return Prediction(
            labels=labels,
            geometry=geometry,
            series_instance_uid=str(message["series_instance_uid"]),
            provenance={str(key): str(value) for key, value in message["provenance"].items()},
            seconds={str(key): float(value) for key, value in message["seconds"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelFailed(f"the model child sent a prediction that contradicts itself: {error}") from error


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


def _plain(value: object) -> object:
    """Return NumPy numbers as Python's; anything else as text."""
    return value.item() if isinstance(value, np.generic) else str(value)
