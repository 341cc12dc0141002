"""The same input, model and configuration give the same UIDs and the same bytes; anything else gives other UIDs."""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dicom_factory import make_series
from result_samples import analysis_of, ball, contract, request_for

from meddaemon.domain.result import EncodedObject
from meddaemon.results.encoding import EncodingRequest, ObjectReference, encode

_PROGRAM = """
import hashlib, sys
from pathlib import Path
from result_samples import request_for
from meddaemon.results.encoding import encode
for encoded in encode(request_for(sorted(Path(sys.argv[1]).iterdir()))):
    print(encoded.kind, encoded.sop_instance_uid, hashlib.sha256(encoded.content).hexdigest())
"""


def in_another_process(folder: Path, **environment: str) -> list[str]:
    here = Path(__file__).resolve().parent
    path = os.pathsep.join(map(str, (here, here.parent, here.parents[1])))
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(folder)],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_two_processes_write_the_same_bytes_at_different_times_and_places(tmp_path: Path) -> None:
    make_series(tmp_path / "series", orientation="oblique", modality="CT")
    first = in_another_process(tmp_path / "series", PYTHONHASHSEED="1", TZ="UTC")
    assert [line.split()[0] for line in first] == ["SEG", "SR"]
    # DICOM times have a resolution of a second here: another second must have begun for the clock to show.
    deadline = time.time() + 10
    began = int(time.time())
    while int(time.time()) == began and time.time() < deadline:
        pass
    assert in_another_process(tmp_path / "series", PYTHONHASHSEED="2", TZ="Asia/Tokyo") == first
    here = encode(request_for(sorted((tmp_path / "series").iterdir())))
    digests = [f"{each.kind} {each.sop_instance_uid} {hashlib.sha256(each.content).hexdigest()}" for each in here]
    assert digests == first


def uids(objects: tuple[EncodedObject, ...]) -> list[tuple[str, str]]:
    return [(each.sop_instance_uid, each.series_instance_uid) for each in objects]


def other_labels(request: EncodingRequest) -> EncodingRequest:
    labels = 1 - ball(request.analysis.geometry.shape)
    return replace(request, analysis=analysis_of(labels, request.analysis.geometry))


@pytest.mark.parametrize(
    ("change", "new_series"),
    [
        (lambda request: replace(request, contract=contract(digest="ab" * 32)), True),
        (lambda request: replace(request, contract=contract(version="1.0.3")), True),
        (lambda request: replace(request, contract=contract(name="other")), True),
        (lambda request: replace(request, configuration="threshold 0.4"), True),
        (other_labels, False),
    ],
)
def test_whatever_changes_the_result_changes_its_uids(
    tmp_path: Path, change: Callable[[EncodingRequest], EncodingRequest], new_series: bool
) -> None:
    request = request_for(make_series(tmp_path))
    before, after = uids(encode(request)), uids(encode(change(request)))
    for (instance, series), (other_instance, other_series) in zip(before, after, strict=True):
        assert instance != other_instance
        assert (series != other_series) is new_series


def test_another_input_set_gives_other_uids(tmp_path: Path) -> None:
    paths = make_series(tmp_path, planes=5)
    before, after = uids(encode(request_for(paths))), uids(encode(request_for(paths[:4])))
    assert not {uid for pair in before for uid in pair} & {uid for pair in after for uid in pair}


def test_a_report_that_replaces_another_is_another_report(tmp_path: Path) -> None:
    request = request_for(make_series(tmp_path))
    before = ObjectReference(
        sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34", sop_instance_uid="2.25.11", series_instance_uid="2.25.12"
    )
    _, first = encode(request)
    _, second = encode(replace(request, predecessors=(before,)))
    assert first.sop_instance_uid != second.sop_instance_uid


def test_nothing_is_written_twice_under_one_series_or_number(tmp_path: Path) -> None:
    objects = encode(request_for(make_series(tmp_path)))
    assert len({each.series_instance_uid for each in objects}) == len(objects)
    assert len({each.sop_instance_uid for each in objects}) == len(objects)


def test_labels_of_either_width_are_the_same_result(tmp_path: Path) -> None:
    request = request_for(make_series(tmp_path))
    wide = replace(request, analysis=replace(request.analysis, labels=request.analysis.labels.astype(np.uint16)))
    assert encode(wide) == encode(request)
