"""Limits of inputs and outputs through the whole daemon: marked results, with the reason, and nothing delivered."""

import json
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset

from meddaemon.db import tables
from meddaemon.domain.states import JobState
from tests.dicom_factory import make_series
from tests.other_objects import channel, group, image, recording
from tests.running import Home, wait_until
from tests.system.site import Pacs, head, make_site, send

LIMITS = """
[output_limits]
may_be_empty = true
maximum_foreground = 0.5
"""


def site(folder: Path, port: int) -> Home:
    """A home whose model takes at least five planes and may find nothing; of a series of 30 it makes NaN."""
    home = make_site(folder, {"pacs": port})
    script = folder / "models" / "toy" / "scripts" / "toy.py"
    drawing = "return (x > 50).float()"
    script.write_text(script.read_text().replace(drawing, f"{drawing} * (float('nan') if order == 30 else 1)"))
    contract = folder / "models" / "toy" / "contract.toml"
    text = contract.read_text().replace("plausible_volume_ml = { min = 0.001, max = 1000 }\n", LIMITS)
    contract.write_text(text.replace('key = "image"\n', 'key = "image"\nlimits = { planes = { min = 5 } }\n'))
    return home


def painted(folder: Path, study: str, value: int) -> list[Path]:
    """A series of one value everywhere; the toy draws what is brighter than 50."""
    return make_series(folder, voxels=np.full((6, 16, 12), value, np.int16), seed=study, study=study)


def finished(home: Home, count: int) -> list[object]:
    def done() -> bool:
        jobs = home.rows(tables.job)
        return len(jobs) == count and all(row.state == JobState.COMPLETED for row in jobs)

    wait_until(done, what=f"{count} jobs to be completed")
    return list(home.rows(tables.result))


def numbers(report: Dataset) -> list[float]:
    """Return every number of a report."""

    def inside(items: list[Dataset]) -> list[float]:
        return [
            value
            for item in items
            for value in (
                *([float(item.MeasuredValueSequence[0].NumericValue)] if item.ValueType == "NUM" else []),
                *inside(item.get("ContentSequence", [])),
            )
        ]

    return inside(report.ContentSequence)


@pytest.mark.fault(91, 173)
def test_limits_mark_a_result_and_nothing_of_it_is_delivered(tmp_path: Path) -> None:
    pacs = Pacs()
    with pacs.listening() as port:
        home = site(tmp_path / "home", port)
        with home.running("serve") as daemon:
            send(head(tmp_path / "thin", planes=4, study="thin"), daemon.port())
            finished(home, 1)
            send(painted(tmp_path / "full", "full", 101), daemon.port())
            finished(home, 2)
            send(painted(tmp_path / "broken", "broken", 30), daemon.port())
            finished(home, 3)
            assert not pacs.received
            send(painted(tmp_path / "empty", "empty", 10), daemon.port())
            finished(home, 4)
            wait_until(lambda: pacs.of("SR"), what="the report that nothing was found")
            explained = [home.cli("explain", str(study)).stdout for study in (1, 2)]
            rows = json.loads(home.cli("results", "--format", "json").stdout)
    statuses = [(row.status, row.reason) for row in home.rows(tables.result)]
    assert statuses == [
        ("not_evaluable", "beyond_limits: input image: planes 4; the model takes at least 5"),
        ("implausible", "100.0% of all voxels are segmented; plausible are at most 50.0%"),
        ("implausible", "the prediction holds 1152 values that are not finite"),
        ("plausible", ""),
    ]
    assert "planes 4; the model takes at least 5" in explained[0]
    assert "Brain: not measured" in explained[0]
    assert "100.0% of all voxels are segmented" in explained[1]
    thin, full, broken, empty = rows[::-1]
    assert (thin["value"], thin["present"], thin["objects"]) == (None, False, 0)
    assert (full["present"], full["objects"]) == (True, 0)
    assert (broken["present"], broken["objects"]) == (False, 0)
    assert (empty["value"], empty["present"], empty["objects"]) == (0.0, False, 2)
    # Nothing found is an answer: it is reported, and its segmentation is empty.
    (segmentation,), (report,) = pacs.of("SEG"), pacs.of("SR")
    assert numbers(report) == [0.0]
    assert not np.any(segmentation.pixel_array)


NETWORK = """
import torch

class Toy(torch.nn.Module):
    def forward(self, x):
        {answer}
"""
BUNDLE = {
    "imports": ["$import torch", "$from scripts.toy import Toy"],
    "bundle_root": ".",
    "network": "$Toy()",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
        ],
    },
    "inferer": {"_target_": "SimpleInferer"},
}
HEAD = """
name = "{name}"
title = "{name}"
version = "1"
manufacturer = "nobody"
kind = "{kind}"
"""
RADIOGRAPH = """
[[inputs]]
key = "image"
kind = "pictures"
voi = "window"
series = { attribute = "Modality", equals = "DX" }
limits = { modalities = ["DX"], planes = { max = 1 } }

[[classes]]
name = "air"
finding = { value = "36118008", scheme = "SCT", meaning = "Pneumothorax" }
threshold = 0.5

[[classes]]
name = "nodule"
finding = { value = "27925004", scheme = "SCT", meaning = "Nodule" }
threshold = 0.5
"""
ECG = """
[[inputs]]
key = "image"
kind = "waveform"
series = { attribute = "Modality", equals = "ECG" }

[[scores]]
name = { value = "V1", scheme = "99TEST", meaning = "Largest deflection" }
unit = { value = "uV", scheme = "UCUM", meaning = "microvolt" }
plausible = { max = 10000 }
"""
RULE = """
[[rules]]
name = "{name}"
models = ["{name}"]
destinations = ["pacs"]
"""


def add_model(home: Home, name: str, kind: str, contract: str, answer: str) -> None:
    """Deploy a bundle whose network gives this answer, and a rule that runs it."""
    folder = home.folder / "models" / name
    (folder / "configs").mkdir(parents=True)
    (folder / "scripts").mkdir()
    (folder / "scripts/__init__.py").touch()
    (folder / "scripts/toy.py").write_text(NETWORK.format(answer=answer))
    (folder / "configs/inference.json").write_text(json.dumps(BUNDLE))
    (folder / "configs/metadata.json").write_text(json.dumps({"name": name, "version": "1"}))
    (folder / "contract.toml").write_text(HEAD.format(name=name, kind=kind) + contract)
    home.config.write_text(home.config.read_text() + RULE.format(name=name))


def test_a_classifier_and_a_regression_end_in_rows_and_deliver_nothing(tmp_path: Path) -> None:
    """A radiograph in inverse grey and an ECG, each to its own model."""
    brightness = np.full((16, 20), 4095 // 4, np.uint16)
    radiograph = image(
        tmp_path,
        brightness,
        Modality="DX",
        PhotometricInterpretation="MONOCHROME1",
        BitsStored=12,
        HighBit=11,
        WindowCenter="2048",
        WindowWidth="4096",
    )
    samples = np.array([[3, -7, 5], [1, 2, 3]], np.int16)
    (tmp_path / "ecg").mkdir()
    ecg = recording(tmp_path / "ecg", group(samples, [channel("I", unit="mV"), channel("II")]))
    pacs = Pacs()
    with pacs.listening() as port:
        home = make_site(tmp_path / "home", {"pacs": port})
        add_model(
            home, "chest", "classification", RADIOGRAPH, "return torch.stack([x.mean(), 1 - x.mean()]).unsqueeze(0)"
        )
        add_model(home, "heart", "regression", ECG, "return x.abs().max().reshape(1, 1)")
        with home.running("serve") as daemon:
            send([radiograph, ecg], daemon.port())
            finished(home, 2)
            rows = {row["finding"]: row for row in json.loads(home.cli("results", "--format", "json").stdout)}
            explained = "".join(home.cli("explain", str(study)).stdout for study in (1, 2))
            log = daemon.log_text()
    assert {row["status"] for row in rows.values()} == {"plausible"}
    # A quarter of the range in inverse grey is three quarters bright.
    assert rows["Pneumothorax"]["value"] == pytest.approx(75, abs=0.1)
    assert rows["Nodule"]["value"] == pytest.approx(25, abs=0.1)
    assert [rows[name]["present"] for name in ("Pneumothorax", "Nodule")] == [True, False]
    assert (rows["Largest deflection"]["value"], rows["Largest deflection"]["unit"]) == (7000.0, "uV")
    assert [row["objects"] for row in rows.values()] == [0, 0, 0]
    assert explained.count("no DICOM object carries it: nothing is drawn") == 2
    assert '"objects": []' in log or "objects=[]" in log
    assert not pacs.received
    assert home.rows(tables.delivery) == []
