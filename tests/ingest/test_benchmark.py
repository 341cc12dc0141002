"""The benchmark of receivers end to end, with what is installed here, and that its proof notices a broken word."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import dcmread
from sqlalchemy import delete

from benchmarks.ingest import data_sets
from benchmarks.ingest.dcmtk_senders import FILE_SENDERS
from benchmarks.ingest.proof import NotKept, Proof
from benchmarks.ingest.receivers import DCMTK, NULL, ORTHANC, OURS, PYNETDICOM, RAW, RECEIVERS
from meddaemon.db import tables
from meddaemon.ingest.part10 import read_part10
from meddaemon.ingest.receive import Receiver
from meddaemon.ingest.store import InstanceStore
from tests.running import REPOSITORY, Home, environment

KIND = data_sets.KINDS["MG"].scaled(0.1, 0.001, 3)


def test_every_installed_receiver_is_measured_and_keeps_what_it_acknowledges(tmp_path: Path) -> None:
    chosen = [name for name in (OURS, DCMTK, ORTHANC, PYNETDICOM, RAW, NULL) if not RECEIVERS[name].missing]
    ended = subprocess.run(
        (sys.executable, "-m", "benchmarks.ingest", "--receivers", *chosen, "--kinds", "CT", "--associations", "1", "3",
         "--rounds", "1", "--scale", "0.01", "--size", "0.01", "--folder", str(tmp_path),
         "--json", str(tmp_path / "runs.json")),
        cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    runs = json.loads((tmp_path / "runs.json").read_text())["runs"]
    by_files = [(name, "CT ×1", sender.name) for name in chosen for sender in FILE_SENDERS if not sender.missing]
    assert {(run["receiver"], run["load"], run["sender"]) for run in runs} == {
        *((name, load, "raw sender") for name in chosen for load in ("CT ×1", "CT ×3")),
        *(each for each in by_files if each[0] not in {RAW, NULL}),
    }
    assert {(run["instances"], run["problem"]) for run in runs} == {(3, "")}
    assert all(run["seconds"] > 0 and run["peak_mebibytes"] > 5 for run in runs)
    assert next(run for run in runs if run["receiver"] == OURS)["cpu_seconds"] > 0
    assert f"| CT ×3 | {OURS}" in ended.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["runs.json"]


def test_images_are_valid_distinct_and_the_same_every_time(tmp_path: Path) -> None:
    for kind in data_sets.KINDS.values():
        small = kind.scaled(0, 0.001, 2)
        data_sets.write_files(small, 7, tmp_path / kind.name)
        first, second = (dcmread(path) for path in sorted((tmp_path / kind.name).iterdir()))
        assert first.SOPInstanceUID != second.SOPInstanceUID
        assert first.SOPInstanceUID == first.file_meta.MediaStorageSOPInstanceUID
        assert first.PixelData != second.PixelData
        assert first.pixel_array.shape == (small.rows, small.columns)
        assert data_sets.image(small, 7, 0, 0) == data_sets.image(small, 7, 0, 0)
        assert data_sets.image(small, 7, 0, 0).head != data_sets.image(small, 8, 0, 0).head


@pytest.mark.parametrize("loss", ["file", "row", "last byte", "other pixels"])
def test_the_proof_notices(loss: str, tmp_path: Path) -> None:
    home = Home.make(tmp_path / "home")
    data_sets.write_files(KIND, 1, tmp_path / "files")
    sent = list(data_sets.images(KIND, 1, 0, 1))
    store = InstanceStore(home.store, minimum_free_bytes=0)
    with home.database() as database:
        receiver = Receiver(database, store, quiet_seconds=3600)
        for path in (tmp_path / "files").iterdir():
            receiver.take(read_part10(path))
        store.close()
        proof = Proof(database=database, instances=store.instances, patience_seconds=0.1)
        kept = proof.await_registered([image.sop_instance_uid for image in sent])
        proof.require_exact(kept, sent)
        victim = kept[sent[1].sop_instance_uid]
        breaking: dict[str, Callable[[], object]] = {
            "file": victim.unlink,
            "last byte": lambda: os.truncate(victim, victim.stat().st_size - 1),
            "other pixels": lambda: sent.__setitem__(1, replace(sent[1], pixels=sent[0].pixels)),
        }
        if loss == "row":
            with database.write() as connection:
                connection.execute(delete(tables.instance).where(tables.instance.c.sha256 == victim.stem))
        else:
            breaking[loss]()
        uids = [image.sop_instance_uid for image in sent]
        with pytest.raises(NotKept):
            proof.require_exact(proof.await_registered(uids), sent)
