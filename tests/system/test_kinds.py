"""Models of every kind and their limits through the whole daemon: from the wire to rows, and what is delivered."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset

from meddaemon.db import tables
from meddaemon.domain.states import JobState
from tests.admission import let_in
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
    let_in(contract)
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
    let_in(folder / "contract.toml")
    home.config.write_text(home.config.read_text() + RULE.format(name=name))


@dataclass
class Told:
    """What the daemon made of everything: its tables, and what its commands said of each study by its name."""

    pacs: Pacs
    results: dict[str, Any]
    rows: dict[str, list[dict[str, Any]]]
    explained: dict[str, str]
    deliveries: int
    log: str


STUDIES = ("thin", "full", "broken", "radiograph", "ecg", "empty")
"""What is sent, in this order: of the first three nothing is delivered."""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Send six studies to one daemon with three models, one after the other."""
    folder = tmp_path_factory.mktemp("kinds")
    samples = np.array([[3, -7, 5], [1, 2, 3]], np.int16)
    window = {"WindowCenter": "2048", "WindowWidth": "4096", "BitsStored": 12, "HighBit": 11}
    quarter = np.full((16, 20), 4095 // 4, np.uint16)
    for name in ("radiograph", "ecg"):
        (folder / name).mkdir()
    files = {
        "thin": head(folder / "thin", planes=4, study="thin"),
        "full": painted(folder / "full", "full", 101),
        "broken": painted(folder / "broken", "broken", 30),
        "radiograph": [
            image(folder / "radiograph", quarter, Modality="DX", PhotometricInterpretation="MONOCHROME1", **window)
        ],
        "ecg": [recording(folder / "ecg", group(samples, [channel("I", unit="mV"), channel("II")]))],
        "empty": painted(folder / "empty", "empty", 10),
    }
    pacs = Pacs()
    with pacs.listening() as port:
        home = site(folder / "home", port)
        brightness = "return torch.stack([x.mean(), 1 - x.mean()]).unsqueeze(0)"
        add_model(home, "chest", "classification", RADIOGRAPH, brightness)
        add_model(home, "heart", "regression", ECG, "return x.abs().max().reshape(1, 1)")
        with home.running("serve") as daemon:
            for count, name in enumerate(STUDIES, start=1):
                assert count > len(STUDIES) // 2 + 1 or not pacs.received
                send(files[name], daemon.port())
                finished(home, count)
            wait_until(lambda: len(pacs.of("SR")) == 3, what="the report that nothing was found")
            rows = json.loads(home.cli("results", "--format", "json").stdout)
            explained = [home.cli("explain", str(study)).stdout for study in range(1, 7)]
            log = daemon.log_text()
    return Told(
        pacs=pacs,
        results=dict(zip(STUDIES, home.rows(tables.result), strict=True)),
        rows={
            name: [row for row in reversed(rows) if row["study_id"] == study]
            for study, name in enumerate(STUDIES, start=1)
        },
        explained=dict(zip(STUDIES, explained, strict=True)),
        deliveries=len(home.rows(tables.delivery)),
        log=log,
    )


@pytest.mark.fault(91)
def test_an_input_beyond_its_limits_is_not_evaluable_and_says_why(told: Told) -> None:
    result, (row,) = told.results["thin"], told.rows["thin"]
    reason = "beyond_limits: input image: planes 4; the model takes at least 5"
    assert (result.status, result.reason) == ("not_evaluable", reason)
    assert (row["status"], row["value"], row["present"], row["objects"]) == ("not_evaluable", None, False, 2)
    assert reason in told.explained["thin"]
    assert "Brain: not measured" in told.explained["thin"]
    assert "SR classes 3d" in told.explained["thin"]
    assert "goes nowhere: no destination has 'not_evaluable' among its statuses" in told.explained["thin"]


@pytest.mark.fault(173)
@pytest.mark.parametrize(
    ("study", "reason"),
    [
        ("full", "100.0% of all voxels are segmented; plausible are at most 50.0%"),
        ("broken", "the prediction holds 1152 values that are not finite"),
    ],
)
def test_an_output_beyond_its_limits_is_implausible_and_says_why(told: Told, study: str, reason: str) -> None:
    result, (row,) = told.results[study], told.rows[study]
    assert (result.status, result.reason) == ("implausible", reason)
    # What was drawn is there to look at, and marked.
    assert (row["status"], row["objects"]) == ("implausible", 3)
    assert "goes nowhere" in told.explained[study]
    assert reason in told.explained[study]


def test_nothing_found_is_an_answer_where_the_contract_says_so(told: Told) -> None:
    """Its segmentation is empty, and delivered."""
    (row,) = told.rows["empty"]
    assert (row["status"], row["value"], row["present"], row["objects"]) == ("plausible", 0.0, False, 3)
    (segmentation,), (*_, report) = told.pacs.of("SEG"), told.pacs.of("SR")
    assert numbers(report) == [0.0]
    assert not np.any(segmentation.pixel_array)
    assert (len(told.pacs.received), told.deliveries) == (4, 4)


def test_a_classifier_of_radiographs_says_of_each_class_whether_it_is_there(told: Told) -> None:
    """A quarter of the range in inverse grey is three quarters bright."""
    air, nodule = told.rows["radiograph"]
    assert (air["finding"], air["present"], air["value"]) == ("Pneumothorax", True, pytest.approx(75, abs=0.1))
    assert (nodule["finding"], nodule["present"], nodule["value"]) == ("Nodule", False, pytest.approx(25, abs=0.1))
    assert (air["status"], air["objects"]) == ("plausible", 2)
    assert numbers(told.pacs.of("SR")[0]) == [air["value"], nodule["value"]]


def test_a_regression_on_an_ecg_gives_its_number_in_microvolt(told: Told) -> None:
    (row,) = told.rows["ecg"]
    assert (row["finding"], row["value"], row["unit"], row["objects"]) == ("Largest deflection", 7000.0, "uV", 2)
    assert numbers(told.pacs.of("SR")[1]) == [7000.0]


@pytest.mark.parametrize("study", ["radiograph", "ecg"])
def test_a_result_that_nothing_is_drawn_for_is_a_report(told: Told, study: str) -> None:
    assert "SR classes 3d" in told.explained[study]
    assert "SR classes 3d: sent" in told.explained[study]
    assert "completed" in told.explained[study]
