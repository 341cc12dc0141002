"""Every form of a segmentation passes the validators there are, and readers count the voxels that were drawn.

They run when MEDDAEMON_VALIDATORS names their `validate.sh`.
"""

import json
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_factory import make_series
from result_samples import ball, geometry_of
from test_seg_forms import BOTH, drawn, probable, smooth
from test_seg_sources import drawn_on, two_instances

from meddaemon.domain.outlet import ObjectKind
from meddaemon.results.encoding import EncodingRequest, encode


def slices(folder: Path) -> EncodingRequest:
    paths = make_series(folder, planes=6, rows=32, columns=24, modality="CT", orientation="sagittal")
    labels = ball(geometry_of(paths).shape)
    labels[3:] *= 2
    request = drawn(paths, labels, 2, editions=BOTH)
    return probable(request, {1: smooth(labels.shape), 2: 1 - smooth(labels.shape, 9.0)})


def many(folder: Path) -> EncodingRequest:
    paths = make_series(folder, planes=3, rows=32, columns=24, modality="CT", orientation="sagittal")
    labels = (np.arange(3 * 32 * 24) % 301).reshape(3, 32, 24).astype(np.uint16)
    return drawn(paths, labels, 300, editions=BOTH[1:], kinds=frozenset({ObjectKind.SEG}))


def frames(folder: Path) -> EncodingRequest:
    request = drawn_on(two_instances(folder))
    labels = request.analysis.drawn[0].labels
    assert labels is not None
    return probable(request, {2: smooth(labels.shape)})


@pytest.mark.peer
@pytest.mark.timeout(600)
@pytest.mark.parametrize("make", [slices, many, frames])
def test_no_validator_finds_an_error_in_any_form(tmp_path: Path, make: Callable[[Path], EncodingRequest]) -> None:
    script = os.environ.get("MEDDAEMON_VALIDATORS")
    if not script:
        pytest.skip("MEDDAEMON_VALIDATORS does not name a validate.sh")
    asked = make(tmp_path / "source")
    folder, messages = tmp_path / "together", tmp_path / "messages"
    folder.mkdir()
    for number, path in enumerate(asked.sources):
        shutil.copy(path, folder / f"source{number}.dcm")
    names = {}
    for encoded in encode(asked):
        name = encoded.name.replace(" ", "_") + ".dcm"
        names[name] = encoded
        (folder / name).write_bytes(encoded.content)
    command = ["bash", script, str(folder), str(messages)]
    done = subprocess.run(command, env=os.environ | {"JOBS": "2"}, capture_output=True, text=True, check=False)
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.split()[:1] and line.split()[0] in names}
    assert rows.keys() == names.keys(), done.stdout + done.stderr
    drawing, _ = asked.analysis.drawn
    counts = sum(np.bincount(drawing.numbers(plane).ravel(), minlength=400) for plane in range(drawing.shape[0]))
    for name, row in rows.items():
        errors = sum(map(int, re.findall(r"(\d+)/\d+", row)))
        said = (messages / f"{name}.ohif.txt").read_text()
        if names[name].kind == ObjectKind.PROBABILITY:
            # OHIF reads none of this type (its issue 1346); nobody else complains.
            assert errors == said.count("Error") == said.count("Fractional segmentations are not yet supported"), row
            continue
        assert errors == 0, row + said
        if found := re.search(r"voxels per segment: (\{.*?\})", said):
            seen = {int(number): count for number, count in json.loads(found[1]).items()}
            # OHIF holds a segment number in 8 bits, of either form: the 257th shows as the first.
            wanted = Counter[int]()
            for number in np.flatnonzero(counts[1:]).tolist():
                wanted[(number + 1) % 256] += int(counts[number + 1])
            del wanted[0]
            assert seen == wanted
    assert make is frames or any("voxels per segment" in each.read_text() for each in messages.glob("*.ohif.txt"))
