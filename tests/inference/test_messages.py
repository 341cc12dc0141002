"""What goes between the worker and its children: whole, uncopied, unchangeable, and never trusted."""

import array
import contextlib
import fcntl
import json
import os
import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from meddaemon.domain.errors import ModelFailed, OutOfMemory
from meddaemon.domain.picture import PictureGrid, Pictures, Signal
from meddaemon.domain.result import Artefact, ArtefactKind, Box, Landmark, Prediction
from meddaemon.domain.volume import Geometry, Volume
from meddaemon.inference.messages import Ended, Sealed, allocate, receive, send
from meddaemon.inference.values import failure_from, input_from, input_message, prediction_from, prediction_message

TAKEN = ["bool", "uint8", "uint16", "int16", "int32", "float16", "float32", "float64"]
HEAD = struct.Struct(">QQ")


@contextlib.contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def soon() -> float:
    return time.monotonic() + 5


def raw(text: bytes, count: int = 0) -> bytes:
    return HEAD.pack(len(text), count) + text


def hand_over(connection: socket.socket, said: dict[str, object], *descriptors: int) -> None:
    """Send a message and descriptors as a child might that does not keep to our ways."""
    data = raw(json.dumps(said).encode(), len(descriptors))
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    connection.sendmsg([data], ancillary)


def geometry(shape: tuple[int, int, int]) -> Geometry:
    return Geometry(
        shape=shape,
        affine_lps=np.diag([2.0, 1.5, 0.5, 1.0]),
        frame_of_reference_uid="1.2.3",
        sop_instance_uids=tuple(f"1.2.{plane}" for plane in range(shape[0])),
        frame_numbers=(1,) * shape[0],
        positions_lps=np.array([[0.0, 0.0, plane**1.5] for plane in range(shape[0])]),
    )


def same(one: object, other: object) -> bool:
    """Whether two values are equal field by field, those included that this test does not know of."""
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if is_dataclass(one):
        return type(one) is type(other) and all(
            same(getattr(one, each.name), getattr(other, each.name)) for each in fields(one)
        )
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@settings(max_examples=60, deadline=None)
@given(
    values=st.sampled_from(TAKEN).flatmap(
        lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4))
    )
)
def test_every_array_arrives_as_it_was_sent(values: np.ndarray) -> None:
    with pair() as (ours, theirs):
        send(ours, {"n": np.float32(2.5)}, {"a": values, "b": values[..., ::-1] if values.ndim else values})
        received = receive(theirs, deadline=soon())
    assert received.said == {"n": 2.5}
    a, b = received.arrays["a"].array(), received.arrays["b"].array()
    assert (a.dtype, a.shape) == (values.dtype, values.shape)
    assert a.tobytes() == values.tobytes()
    assert b.shape == values.shape


def test_what_was_sealed_never_changes_and_what_is_mapped_is_private() -> None:
    made = allocate((3, 4), np.int16)
    made[:] = np.arange(12).reshape(3, 4)
    sealed = Sealed.of(made)
    assert made.tolist() == np.arange(12).reshape(3, 4).tolist(), "the sender may read on"
    with pytest.raises(ValueError, match="read-only"):
        made[0, 0] = 7
    with pytest.raises(OSError, match="not permitted"):
        os.pwrite(sealed.descriptor, b"x", 0)
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(sealed.descriptor, 1)
    mine, yours = sealed.array(), sealed.array()
    mine[:] = -1
    assert yours.tolist() == np.arange(12).reshape(3, 4).tolist()
    sealed.close()
    assert yours.sum() == 66, "the map outlives the descriptor"


def test_only_what_was_made_for_it_is_sealed_without_a_copy() -> None:
    made = allocate((6, 4), np.float32)
    part = Sealed.of(made[1:3])
    made[:] = 1
    assert part.array().sum() == 0, "a part is copied, and the rest can be written on"
    before = resident()
    large = allocate((64, 2**20), np.uint8)
    large[:] = 1
    sealed = Sealed.of(large)
    assert resident() - before < 80 * 2**20, "one array, not two"
    assert sealed.array()[::7, ::4096].all()
    del large, sealed
    assert Sealed.of(allocate((0, 3), np.int16)).array().shape == (0, 3)


def test_descriptors_are_given_back() -> None:
    before = descriptors()
    with pair() as (ours, theirs):
        for _ in range(20):
            send(ours, {}, {"a": np.zeros(5), "b": np.zeros(5)})
            received = receive(theirs, deadline=soon())
            values = received.arrays["a"].array()
            del received
            assert values.sum() == 0
            del values
            hand_over(ours, {"said": {}, "arrays": [{"name": "a", "dtype": "float64", "shape": [7]}]}, ours.fileno())
            with pytest.raises(ModelFailed):
                receive(theirs, deadline=soon())
    assert descriptors() == before


def sealed_descriptor(size: int, seals: int = 15) -> int:
    descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


@pytest.mark.parametrize(
    ("head", "size", "seals", "complaint"),
    [
        ({"dtype": "float32", "shape": [4]}, 15, 15, "15 bytes for an array of 16"),
        ({"dtype": "float32", "shape": [2**31, 2**31]}, 16, 15, "16 bytes for an array"),
        ({"dtype": "float32", "shape": [4]}, 16, fcntl.F_SEAL_SHRINK, "not sealed"),
        ({"dtype": "object", "shape": [2]}, 16, 15, "type and a shape"),
        ({"dtype": "float32", "shape": [-4]}, 16, 15, "type and a shape"),
        ({"dtype": "float32", "shape": [True, 4]}, 16, 15, "type and a shape"),
        ({"dtype": "float32", "shape": [4.0]}, 16, 15, "type and a shape"),
        ({"dtype": "float32", "shape": [1] * 6}, 4, 15, "type and a shape"),
        ({"dtype": ["float32"], "shape": [4]}, 16, 15, "type and a shape"),
        ({"dtype": "float32"}, 16, 15, "type and a shape"),
    ],
)
def test_an_array_that_is_not_what_it_says_is_refused(
    head: dict[str, object], size: int, seals: int, complaint: str
) -> None:
    descriptor = sealed_descriptor(size, seals)
    with pair() as (ours, theirs):
        hand_over(ours, {"said": {}, "arrays": [{"name": "a", **head}]}, descriptor)
        with pytest.raises(ModelFailed, match=complaint):
            receive(theirs, deadline=soon())
    os.close(descriptor)


def test_a_file_that_could_change_under_us_is_no_array() -> None:
    with tempfile.TemporaryFile() as file, pair() as (ours, theirs):
        file.truncate(16)
        hand_over(ours, {"said": {}, "arrays": [{"name": "a", "dtype": "float32", "shape": [4]}]}, file.fileno())
        with pytest.raises(ModelFailed, match="not sealed"):
            receive(theirs, deadline=soon())


def test_missing_and_too_many_files_are_refused() -> None:
    with pair() as (ours, theirs):
        ours.sendall(raw(b'{"said": {}, "arrays": []}', 1))
        with pytest.raises(ModelFailed, match="0 of 1 files"):
            receive(theirs, deadline=soon())
    with pair() as (ours, theirs):
        hand_over(ours, {"said": {}, "arrays": [{"name": "a", "dtype": "uint8", "shape": []}]})
        with pytest.raises(ModelFailed, match="not a message"):
            receive(theirs, deadline=soon())
    with pair() as (ours, theirs):
        hand_over(ours, {"said": {}, "arrays": []}, *[ours.fileno()] * 100)
        with pytest.raises(ModelFailed, match="more than 64 files"):
            receive(theirs, deadline=soon())


@pytest.mark.parametrize("text", [b"{", b"[]", b"7", b'{"said": 1, "arrays": []}', b"[" * 100_000, b"\xff", b"{}"])
def test_what_is_no_message_is_refused(text: bytes) -> None:
    with pair() as (ours, theirs):
        ours.sendall(raw(text))
        with pytest.raises(ModelFailed, match="not a message"):
            receive(theirs, deadline=soon())


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=200))
def test_garbage_is_an_error_of_ours_and_never_a_hang(data: bytes) -> None:
    with pair() as (ours, theirs):
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ModelFailed, Ended):
            receive(theirs, deadline=soon())


@settings(max_examples=50, deadline=None)
@given(cut=st.integers(min_value=0, max_value=60))
def test_a_truncated_message_is_the_end(cut: int) -> None:
    text = raw(json.dumps({"said": {"words": "so many"}, "arrays": []}).encode())
    with pair() as (ours, theirs):
        ours.sendall(text[: min(cut, len(text) - 1)])
        ours.shutdown(socket.SHUT_WR)
        with pytest.raises(Ended):
            receive(theirs, deadline=soon())


def test_neither_side_waits_for_ever() -> None:
    with pair() as (ours, theirs):
        with pytest.raises(TimeoutError):
            receive(theirs, deadline=time.monotonic() + 0.05)
        with pytest.raises(TimeoutError):
            send(ours, {"long": "x" * 10_000_000}, deadline=time.monotonic() + 0.2)


def test_every_part_of_a_prediction_arrives() -> None:
    sent = Prediction(
        series_instance_uid="1.2",
        labels=np.ones((2, 3, 4), np.uint16),
        masks=np.ones((5, 2, 3, 4), np.bool_),
        scores=(0.25, 1.0),
        sources=(("1.9", 1), ("1.9", 2)),
        boxes=(Box(label=1, score=0.5, low=(-0.5, 0.0), high=(1.5, 2.0), source=("1.9", 3)),),
        landmarks=(Landmark(label=2, score=1.0, position=(1.0, 2.0, 3.0)),),
        artefacts=(
            Artefact(kind=ArtefactKind.PROBABILITY, of="Liver", values=np.full((2, 3, 4), 0.5, np.float16)),
            Artefact(
                kind=ArtefactKind.SALIENCY, of="Nodule", values=np.full((5, 6), 0.25, np.float32), source=("1.9", 3)
            ),
        ),
        score_spread=(0.1, 0.2),
        volume_spread_ml=(3.5,),
        geometry=geometry((2, 3, 4)),
        pictures=PictureGrid(shape=(2, 3, 4), sources=(("1.9", 1), ("1.9", 2)), spacing_mm=(0.5, 0.25)),
        doubts=("values that are not finite",),
        provenance={"runtime": "x"},
        seconds={"infer": 1.5},
    )
    for each in fields(sent):
        assert getattr(sent, each.name) not in (None, (), {}) if each.name not in {"labels", "masks"} else True
    with pair() as (ours, theirs):
        send(ours, *prediction_message(sent))
        received = receive(theirs, deadline=soon())
    got = prediction_from(received.said["prediction"], received.arrays)
    assert same(got, sent)


@pytest.mark.parametrize(
    "edit",
    [
        {"geometry": None},
        {"geometry": {"shape": [2, 3]}},
        {
            "geometry": {
                **json.loads(json.dumps(asdict(geometry((2, 3, 4))), default=np.ndarray.tolist)),
                "positions_lps": [[0, 0, 1]],
            }
        },
        {"boxes": [{"label": 1, "score": 0.5, "low": [1], "high": [2], "source": None}]},
        {"boxes": [{"label": 1, "score": "x", "low": [1, 1], "high": [2, 2], "source": None}]},
        {"landmarks": 3},
        {"provenance": []},
        {"seconds": {"infer": "long"}},
        {"score_spread": [0.5]},
        {"artefacts": [{"kind": "saliency", "of": "x", "source": None}]},
        {"artefacts": [{"kind": "saliency", "of": "x", "source": None}] * 49},
    ],
)
def test_a_prediction_that_contradicts_itself_is_a_failure(edit: dict[str, object]) -> None:
    said, arrays_ = prediction_message(
        Prediction(series_instance_uid="1", labels=np.ones((2, 3, 4), np.uint8), geometry=geometry((2, 3, 4)))
    )
    sealed = {name: Sealed.of(each) for name, each in arrays_.items()}
    assert prediction_from(said["prediction"], sealed).labels is not None
    with pytest.raises(ModelFailed, match="contradicts itself"):
        prediction_from({**said["prediction"], **edit}, sealed)


@pytest.mark.parametrize(
    "value",
    [
        Volume(voxels=np.ones((2, 3, 4), np.float32), geometry=geometry((2, 3, 4)), series_instance_uid="1.5"),
        Pictures(
            frames=np.ones((2, 3, 4), np.float32),
            sources=(("1.1", 1), ("1.1", 2)),
            series_instance_uid="1.5",
            spacing_mm=(0.5, 0.25),
            spacing_is_of_detector=True,
            remarks={"sense": "inverted"},
        ),
        Signal(
            samples=np.ones((2, 9), np.float32),
            rate_hz=500.0,
            channels=("I", "II"),
            unit="uV",
            sop_instance_uid="1.6",
            series_instance_uid="1.5",
        ),
    ],
)
def test_every_kind_of_input_arrives(value: Volume | Pictures | Signal) -> None:
    said, values = input_message(value)
    with pair() as (ours, theirs):
        send(ours, said, {"values": values})
        received = receive(theirs, deadline=soon())
    got = input_from(received.said, received.arrays["values"])
    assert same(got, value)
    with pytest.raises(ModelFailed, match="contradicts itself"):
        input_from(received.said, Sealed.of(np.ones(7, np.float32)))


@pytest.mark.parametrize(
    "artefact",
    [
        Artefact(kind=ArtefactKind.SPREAD, of="Liver", values=np.ones((2, 3, 5), np.float16)),
        Artefact(kind=ArtefactKind.SPREAD, of="Liver", values=np.ones((2, 3, 4), np.float64)),  # type: ignore[arg-type]
        Artefact(kind=ArtefactKind.SPREAD, of="Liver", values=np.full((2, 3, 4), np.nan, np.float32)),
        Artefact(kind=ArtefactKind.SPREAD, of="Liver", values=np.ones((2, 3, 4), np.float16), source=("1.9", 1)),
    ],
)
def test_an_artefact_lies_on_the_grid_or_on_its_picture_and_is_finite(artefact: Artefact) -> None:
    said, arrays_ = prediction_message(
        Prediction(series_instance_uid="1", artefacts=(artefact,), geometry=geometry((2, 3, 4)))
    )
    with pytest.raises(ModelFailed, match="contradicts itself"):
        prediction_from(said["prediction"], {name: Sealed.of(each) for name, each in arrays_.items()})


def test_out_of_memory_is_told_apart() -> None:
    failure = failure_from({"failed": "too much", "out_of_memory": "gpu"})
    assert isinstance(failure, OutOfMemory)
    assert failure.where == "gpu"
    assert type(failure_from({"failed": "other", "out_of_memory": None})) is ModelFailed
    assert type(failure_from({"failed": "other", "out_of_memory": ["gpu"]})) is ModelFailed
