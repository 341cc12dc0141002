"""What is kept beside results, through the whole daemon: to rows, and files that a researcher opens."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from meddaemon.db import tables
from meddaemon.db.instances import path_of
from meddaemon.domain.states import JobState
from tests.admission import let_in
from tests.other_objects import image
from tests.running import Home, wait_until
from tests.system.site import Pacs, head, make_site, send

nibabel = pytest.importorskip("nibabel")

ASKED = """
keep_probabilities = true

[augmentation]
flips = ["x"]
spread = true
"""
# Brighter is likelier; the further along x, the likelier it believes it is.
BIASED = """
        ramp = torch.linspace(-0.5, 0.5, x.shape[2]).reshape(1, 1, -1, 1, 1)
        return torch.sigmoid((x - 50) / 20 + ramp)
"""
NETWORK = """
import torch

class Toy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 2, 3, padding=1, bias=False)
        with torch.no_grad():
            self.layer.weight.fill_(0)
            self.layer.weight[0, 0, 1, 1] = 1.0
            self.layer.weight[1, 0, 1, 1] = -1.0
        self.pool = torch.nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        return self.pool(torch.relu(self.layer(x))).flatten(1)
"""
CHEST = """
name = "chest"
title = "Chest"
version = "1"
manufacturer = "nobody"
kind = "classification"

[explain]
method = "gradcam"

[[inputs]]
key = "image"
kind = "pictures"
voi = "window"
series = { attribute = "Modality", equals = "DX" }

[[classes]]
name = "bright/spot"
finding = { value = "27925004", scheme = "SCT", meaning = "Nodule" }
group = "g"

[[classes]]
name = "dark"
finding = { value = "36118008", scheme = "SCT", meaning = "Pneumothorax" }
group = "g"
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
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [{"_target_": "Activationsd", "keys": "pred", "softmax": True}],
    },
}
RULE = """
[[rules]]
name = "chest"
models = ["chest"]
destinations = ["pacs"]
"""


def site(folder: Path, port: int) -> Home:
    home = make_site(folder, {"pacs": port})
    models = folder / "models"
    script = models / "toy/scripts/toy.py"
    script.write_text(script.read_text().replace("        return (x > 50).float()\n", BIASED))
    config = models / "toy/configs/inference.json"
    said = json.loads(config.read_text())
    said["postprocessing"]["transforms"][0]["nearest_interp"] = False
    said["postprocessing"]["transforms"].insert(1, {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5})
    config.write_text(json.dumps(said))
    contract = models / "toy/contract.toml"
    text = contract.read_text()
    contract.write_text(text.replace("\n[[inputs]]", ASKED + "\n[[inputs]]", 1))
    let_in(contract)
    chest = models / "chest"
    (chest / "configs").mkdir(parents=True)
    (chest / "models").mkdir()
    (chest / "scripts").mkdir()
    (chest / "scripts/__init__.py").touch()
    (chest / "scripts/toy.py").write_text(NETWORK)
    (chest / "configs/inference.json").write_text(json.dumps(BUNDLE))
    (chest / "configs/metadata.json").write_text(json.dumps({"name": "chest", "version": "1"}))
    torch = pytest.importorskip("torch")
    weight = torch.zeros(2, 1, 3, 3)
    weight[0, 0, 1, 1], weight[1, 0, 1, 1] = 1.0, -1.0
    torch.save({"layer.weight": weight}, chest / "models/model.pt")
    (chest / "contract.toml").write_text(CHEST)
    let_in(chest / "contract.toml")
    home.config.write_text(home.config.read_text() + RULE)
    return home


@dataclass
class Told:
    """What the daemon kept, and what its commands said of it."""

    home: Home
    files: list[Path]
    report: Dataset
    rows: list[dict[str, Any]]
    listed: list[dict[str, Any]]
    pictures: list[dict[str, Any]]
    exported: Path
    explained: str
    checked: str


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    folder = tmp_path_factory.mktemp("artefacts")
    pacs = Pacs()
    pixels = np.full((16, 20), 100, np.uint16)
    pixels[3:6, 12:15] = 4000
    (folder / "mr").mkdir()
    (folder / "dx").mkdir()
    files = head(folder / "mr", study="mr")
    window = {"WindowCenter": "2048", "WindowWidth": "4096", "BitsStored": 12, "HighBit": 11}
    with pacs.listening() as port:
        home = site(folder / "home", port)
        with home.running("serve") as daemon:
            send(files, daemon.port())
            send([image(folder / "dx", pixels, Modality="DX", **window)], daemon.port())

            def done() -> bool:
                jobs = home.rows(tables.job)
                return len(jobs) == 2 and all(row.state == JobState.COMPLETED for row in jobs)

            wait_until(done, what="both jobs to be completed")
            wait_until(lambda: pacs.of("SR"), what="the report")
            exported = folder / "exported"
            rows = json.loads(home.cli("results", "--format", "json").stdout)
            of_toy, other = (next(row["study_id"] for row in rows if row["model"] == name) for name in ("toy", "chest"))
            listed = home.cli("artefacts", str(of_toy), "--format", "json", "--export", str(exported))
            pictures = home.cli("artefacts", str(other), "--format", "json", "--export", str(exported))
            explained = home.cli("explain", str(of_toy)).stdout
            checked = home.cli("store", "check", "--hash").stdout
    return Told(
        home=home,
        files=files,
        report=pacs.of("SR")[0],
        rows=[row for row in rows if row["model"] == "toy"],
        listed=json.loads(listed.stdout),
        pictures=json.loads(pictures.stdout),
        exported=exported,
        explained=explained,
        checked=checked,
    )


def exported(told: Told, row: dict[str, Any]) -> Any:
    (path,) = told.exported.glob(f"result-*-{row['id']}-*.nii.gz")
    return nibabel.load(path)


def test_probabilities_and_their_spread_lie_where_the_images_are(told: Told) -> None:
    probability, spread = told.listed
    assert [(each["kind"], each["of"], each["unit"]) for each in told.listed] == [
        ("probability", "Brain", "1"),
        ("spread", "Brain", "1"),
    ]
    values = exported(told, probability).get_fdata()
    planes = sorted((dcmread(path) for path in told.files), key=lambda each: float(each.ImagePositionPatient[2]))
    voxels = np.stack([each.pixel_array for each in planes]).astype(float)
    assert values.shape == voxels.shape[::-1]
    first = dcmread(told.files[0])
    affine = np.array(probability["affine_lps"])
    if affine[2][0] < 0:
        voxels = voxels[::-1]
    logit = np.clip((voxels - 50) / 20, -60, 60)
    # x of LIA runs along the rows of this axial series, or against them: the mean of both ways is the same.
    ramp = np.linspace(-0.5, 0.5, voxels.shape[2])
    both = np.stack([1 / (1 + np.exp(-(logit + sign * ramp))) for sign in (-1, 1)])
    np.testing.assert_allclose(values.T, both.mean(axis=0), atol=2e-3)
    np.testing.assert_allclose(exported(told, spread).get_fdata().T, both.std(axis=0), atol=2e-3)
    place = exported(told, probability).affine
    np.testing.assert_allclose(place @ [0, 0, 0, 1] * (-1, -1, 1, 1), affine @ [0, 0, 0, 1], atol=1e-3)
    assert first.FrameOfReferenceUID == probability["frame_of_reference_uid"]
    assert (probability["sop_instance_uid"], probability["shape"]) == (None, list(voxels.shape))


def test_the_spread_of_a_volume_is_a_row_and_a_number_of_the_report(told: Told) -> None:
    by_derivation = {row["derivation"]: row for row in told.rows}
    assert by_derivation.keys() == {"", "Standard Deviation"}
    assert {row["measurement"] for row in told.rows} == {"Volume"}
    numbers = {}

    def look(item: Dataset) -> None:
        for each in item.get("ContentSequence", ()):
            if each.ValueType == "NUM":
                derived = [
                    inner.ConceptCodeSequence[0].CodeMeaning
                    for inner in each.get("ContentSequence", ())
                    if inner.ConceptNameCodeSequence[0].CodeValue == "121401"
                ]
                numbers["".join(derived)] = float(each.MeasuredValueSequence[0].NumericValue)
            look(each)

    look(told.report)
    assert numbers == {name: row["value"] for name, row in by_derivation.items()}
    assert "Brain: Volume, Standard Deviation" in told.explained


def test_a_radiograph_has_its_saliency_on_its_own_pixels(told: Told) -> None:
    (row,) = told.pictures
    assert (row["kind"], row["of"], row["shape"], row["affine_lps"]) == ("saliency", "bright/spot", [16, 20], None)
    assert row["sop_instance_uid"]
    assert row["frame_number"] == 1
    found = exported(told, row)
    assert found.shape == (20, 16)
    column, table_row = np.unravel_index(found.get_fdata().argmax(), found.shape)
    assert 3 <= table_row < 6
    assert 12 <= column < 15


def test_the_files_are_named_by_nothing_that_says_who_it_is_and_the_store_knows_them(told: Told) -> None:
    names = sorted(path.name for path in told.exported.iterdir())
    assert names == sorted(
        f"result-{row['result_id']}-{row['id']}-{row['kind']}-{row['of'].replace('/', '-')}.nii.gz"
        for row in (*told.listed, *told.pictures)
    )
    assert "0 problems" in told.checked
    stored = path_of(told.home.settings.store.results, told.listed[0]["sha256"])
    content = stored.read_bytes()
    assert len(content) == told.listed[0]["size"]
    stored.unlink()
    lost = told.home.cli("store", "check")
    assert f"missing         {told.listed[0]['sha256']}" in lost.stdout
    stored.write_bytes(content)
