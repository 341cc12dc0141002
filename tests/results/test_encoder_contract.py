"""What every encoder promises, whatever it writes, of sources of every make (`sources.py`).

An encoder that is added to `ENCODERS` is held to this without a change here.
"""

import hashlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import UID
from sources import EVERYTHING, LESS, SOURCES, wanted

from meddaemon.domain.outlet import EDITIONS, Edition, ObjectKind
from meddaemon.domain.result import EncodedObject
from meddaemon.results.encoding import ENCODERS, EncodingRequest, encode
from meddaemon.results.gate import check
from meddaemon.results.source import TYPE_2

LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"


def read(encoded: EncodedObject) -> Dataset:
    return dcmread(BytesIO(encoded.content))


@pytest.mark.parametrize("name", [*SOURCES, *LESS])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_encoder_keeps_the_contract(name: str, tmp_path: Path) -> None:
    request = {**SOURCES, **LESS}[name](tmp_path / "source")
    objects: list[EncodedObject] = []
    for encoder in ENCODERS:
        found = list(encoder.encode(request, tuple(objects)))
        made = [each for each in found if isinstance(each, EncodedObject)]
        assert found, f"nothing of {encoder.kind}, and no reason"
        assert {each.kind for each in made} <= {encoder.kind}
        objects += made
    check(objects, request)
    assert wanted(name) <= {each.kind for each in objects}
    names_are_good(objects)
    identity_is_that_of_the_source(objects, request)


def names_are_good(objects: Sequence[EncodedObject]) -> None:
    """Every object has a name and UIDs of its own, which say the same as the object."""
    assert max(Counter((each.kind, each.part, each.edition) for each in objects).values()) == 1
    assert max(Counter(each.sop_instance_uid for each in objects).values()) == 1
    marks = {mark for edition in EDITIONS for mark in edition.parts}
    for each in objects:
        assert each.edition in marks
        assert max(len(each.kind), len(each.part), len(each.edition)) <= 16
        dataset = read(each)
        # pydicom's dictionary is older than Label Map Segmentation.
        assert UID(each.sop_class_uid).type == "SOP Class" or each.sop_class_uid == LABEL_MAP
        assert dataset.SOPInstanceUID == dataset.file_meta.MediaStorageSOPInstanceUID == each.sop_instance_uid
        assert dataset.SOPClassUID == dataset.file_meta.MediaStorageSOPClassUID == each.sop_class_uid
        assert dataset.SeriesInstanceUID == each.series_instance_uid
        assert dataset.file_meta.TransferSyntaxUID == each.transfer_syntax_uid
    numbers = {each.series_instance_uid: read(each).SeriesNumber for each in objects}
    classes = {(each.series_instance_uid, each.kind) for each in objects}
    assert len(classes) == len(numbers)


def identity_is_that_of_the_source(objects: Sequence[EncodedObject], request: EncodingRequest) -> None:
    """Patient and study of every object read as those of the images, empty where they have none."""
    source = dcmread(request.sources[0], stop_before_pixels=True)
    for each in objects:
        dataset = read(each)
        assert dataset.SpecificCharacterSet == "ISO_IR 192"
        assert dataset.StudyInstanceUID == source.StudyInstanceUID
        for keyword in (*TYPE_2, "StudyDescription"):
            found, there = (str("" if it.get(keyword) is None else it.get(keyword)) for it in (dataset, source))
            assert found == there, (each.name, keyword)


@pytest.mark.parametrize("kind", ObjectKind)
def test_what_nobody_asks_for_is_not_made(kind: ObjectKind, tmp_path: Path) -> None:
    request = SOURCES["oblique"](tmp_path)
    written = encode(replace(request, kinds=frozenset({kind}), editions=(Edition(),)))
    assert {each.kind for each in written} <= {kind}
    # A manifest alone would have nothing to name but the key images.
    assert written or kind == ObjectKind.PROBABILITY


def test_there_is_one_encoder_for_each_kind_and_the_last_one_names_all() -> None:
    assert max(Counter(encoder.kind for encoder in ENCODERS).values()) == 1
    assert ENCODERS[-1].kind == ObjectKind.KO
    assert frozenset(ObjectKind) == EVERYTHING


DIGESTS = """
import sys, hashlib
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from sources import SOURCES
from meddaemon.results.encoding import encode
for name in ("uneven and tilted", "grey pictures"):
    for each in encode(SOURCES[name](Path(sys.argv[1]) / name)):
        print(each.sop_instance_uid, hashlib.sha256(each.content).hexdigest())
"""


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    elsewhere = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DIGESTS, str(tmp_path / "there"), *folders],
        env=os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=True,
    )
    here = [
        f"{each.sop_instance_uid} {hashlib.sha256(each.content).hexdigest()}"
        for name in ("uneven and tilted", "grey pictures")
        for each in encode(SOURCES[name](tmp_path / "here" / name))
    ]
    assert elsewhere.stdout.splitlines() == here
