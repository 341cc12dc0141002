"""Models that find something somewhere, through the whole daemon: DICOM in, rows and `results` that say where."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.admission import let_in
from tests.dicom_factory import affine_lps, make_series
from tests.other_objects import image
from tests.running import Home
from tests.system.site import make_site, send
from tests.system.test_kinds import HEAD, RULE, add_model, finished

torch = pytest.importorskip("torch")

# --- a detector as lung_nodule_ct_detection of the model zoo is written ----------------------------------------------

SCRIPTS = {
    "network.py": """
import torch

class Finder(torch.nn.Module):
    '''What a RetinaNet gives: a score and no correction for one anchor round every second voxel.'''

    spatial_dims, num_classes, num_anchors, size_divisible = 3, 1, 1, (2, 2, 2)
    cls_key, box_reg_key = "classification", "box_regression"

    def __init__(self):
        super().__init__()
        self.filled = torch.nn.Conv3d(1, 1, 5, stride=2, padding=2)

    def forward(self, x):
        logits = self.filled(x)
        return {self.cls_key: [logits], self.box_reg_key: [torch.zeros_like(logits).repeat(1, 6, 1, 1, 1)]}
""",
    "inferer.py": """
from monai.inferers import Inferer

class RetinaNetInferer(Inferer):
    def __init__(self, detector):
        super().__init__()
        self.detector = detector

    def __call__(self, inputs, network, *args, **kwargs):
        self.detector.network = network
        self.detector.training = network.training
        return self.detector(inputs, use_inferer=False)
""",
    "evaluator.py": """
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents

class DetectionEvaluator(SupervisedEvaluator):
    def _register_decollate(self):
        pass

    def _iteration(self, engine, batch):
        images = [each["image"].to(engine.state.device) for each in batch]
        found = engine.inferer(images, engine.network)
        engine.state.output = [{"image": image, "pred": each} for image, each in zip(images, found)]
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output
""",
}
DETECTION = {
    "imports": ["$import glob", "$import scripts"],
    "bundle_root": ".",
    "output_dir": "$@bundle_root + '/eval'",
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "anchor_generator": {
        "_target_": "monai.apps.detection.utils.anchor_utils.AnchorGeneratorWithAnchorShape",
        "feature_map_scales": [1],
        "base_anchor_shapes": [[8, 8, 8]],
    },
    "network_def": {"_target_": "scripts.network.Finder"},
    "network": "$@network_def.to(@device)",
    "detector": {
        "_target_": "RetinaNetDetector",
        "network": "@network",
        "anchor_generator": "@anchor_generator",
        "spatial_dims": 3,
        "num_classes": 1,
        "size_divisible": [2, 2, 2],
    },
    "detector_ops": [
        "$@detector.set_target_keys(box_key='box', label_key='label')",
        "$@detector.set_box_selector_parameters(score_thresh=0.02, nms_thresh=0.01, detections_per_img=20)",
    ],
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image", "reader": "itkreader", "affine_lps_to_ras": True},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
            {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 1.5, 1.5]},
            {
                "_target_": "ScaleIntensityRanged",
                "keys": "image",
                "a_min": -1000,
                "a_max": 0,
                "b_min": 0,
                "b_max": 1,
                "clip": True,
            },
            {"_target_": "EnsureTyped", "keys": "image"},
        ],
    },
    "dataset": {"_target_": "Dataset", "data": "$glob.glob('/datasets/*')", "transform": "@preprocessing"},
    "dataloader": {
        "_target_": "DataLoader",
        "dataset": "@dataset",
        "batch_size": 1,
        "num_workers": 4,
        "collate_fn": "$monai.data.utils.no_collation",
    },
    "inferer": {"_target_": "scripts.inferer.RetinaNetInferer", "detector": "@detector"},
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "ClipBoxToImaged", "box_keys": "box", "label_keys": "label", "box_ref_image_keys": "image"},
            {
                "_target_": "AffineBoxToWorldCoordinated",
                "box_keys": "box",
                "box_ref_image_keys": "image",
                "affine_lps_to_ras": True,
            },
            {"_target_": "ConvertBoxModed", "box_keys": "box", "src_mode": "xyzxyz", "dst_mode": "cccwhd"},
            {"_target_": "DeleteItemsd", "keys": ["image"]},
        ],
    },
    "evaluator": {
        "_target_": "scripts.evaluator.DetectionEvaluator",
        "_requires_": "@detector_ops",
        "device": "@device",
        "val_data_loader": "@dataloader",
        "network": "@network",
        "inferer": "@inferer",
        "amp": False,
    },
    "checkpointloader": {
        "_target_": "CheckpointLoader",
        "load_path": "$@bundle_root + '/models/model.pt'",
        "load_dict": {"model": "@network"},
    },
    "initialize": ["$@checkpointloader(@evaluator)"],
    "run": ["$@evaluator.run()"],
}
NODULE = """
[[objects]]
label = {label}
name = "Nodule"
finding = {{ value = "27925004", scheme = "SCT", meaning = "Nodule" }}
threshold = 0.5
"""
VOLUME = """
[[inputs]]
key = "image"
series = { attribute = "Modality", equals = "CT" }
"""
PICTURE = """
[[inputs]]
key = "image"
kind = "pictures"
series = {{ attribute = "Modality", equals = "{modality}" }}
"""


def add_detector(home: Home) -> None:
    """Deploy the bundle; its weights are what makes a filled anchor sure, and nothing else."""
    folder = home.folder / "models" / "nodules"
    for name in ("configs", "scripts", "models"):
        (folder / name).mkdir(parents=True)
    (folder / "scripts/__init__.py").write_text("from . import evaluator, inferer, network\n")
    for name, text in SCRIPTS.items():
        (folder / "scripts" / name).write_text(text)
    (folder / "configs/inference.json").write_text(json.dumps(DETECTION))
    (folder / "configs/metadata.json").write_text(json.dumps({"name": "nodules", "version": "1"}))
    state = {"filled.weight": torch.full((1, 1, 5, 5, 5), 20 / 125), "filled.bias": torch.tensor([-10.0])}
    torch.save({"model": state}, folder / "models/model.pt")
    contract = HEAD.format(name="nodules", kind="detection") + VOLUME + NODULE.format(label=0)
    (folder / "contract.toml").write_text(contract)
    let_in(folder / "contract.toml")
    home.config.write_text(home.config.read_text() + RULE.format(name="nodules"))


CENTRE = (9.0, 20.0, 14.0)
"""Where the ball lies, in voxels of the source: plane, row, column."""
SPACING = (2.0, 1.2, 1.2)


def with_a_ball() -> NDArray[np.int16]:
    """Air, and a ball of 5 mm radius; the anchors are 12 mm."""
    at = np.stack(np.meshgrid(*map(np.arange, (20, 36, 32)), indexing="ij"), axis=-1)
    away = np.linalg.norm((at - CENTRE) * SPACING, axis=-1)
    return np.where(away <= 5, 0, -1000).astype(np.int16)


# --- and finders on pictures ----------------------------------------------------------------------------------------

BOX = (
    "at = torch.nonzero(x[0, 0] > 500).float(); "
    "return [{'box': torch.cat([at.amin(0) - 0.5, at.amax(0) + 0.5])[None], 'label': torch.ones(1),"
    " 'score': torch.tensor([0.875])}]"
)
POINT = "return torch.stack(torch.unravel_index(x[0, 0].argmax(), x.shape[2:])).float()[None, None]"
BRIGHTEST = "return x.max().reshape(1, 1) / 1000"
VIEW = """
[[classes]]
name = "mass"
finding = { value = "27925004", scheme = "SCT", meaning = "Nodule" }
threshold = 0.5
"""
CYST = """
[[segments]]
label = 1
name = "Cyst"
category = { value = "49755003", scheme = "SCT", meaning = "Morphologically Abnormal Structure" }
type = { value = "52988006", scheme = "SCT", meaning = "Lesion" }
colour = [1, 2, 3]
"""
VIEWS = (200, 900, 400, 300)
"""The brightest of each of four views."""


def radiograph(folder: Path, study: str, modality: str, *brightest: int, **attributes: Any) -> list[Path]:
    """A study of pictures that are dark but for 3 x 5 pixels of their brightness."""
    files = []
    folder.mkdir()
    for number, value in enumerate(brightest, start=1):
        pixels = np.full((20, 30), 10, np.uint16)
        pixels[4:7, 11:16] = value
        pixels[5, 13] += 1
        uids = {"StudyInstanceUID": f"1.2.8.{study}", "SeriesInstanceUID": f"1.2.8.{study}.1"}
        files.append(image(folder, pixels, name=f"{study}{number}", Modality=modality, **uids, **attributes))
    return files


@dataclass
class Told:
    """What the rows and the commands say of each study."""

    rows: dict[str, list[dict[str, Any]]]
    table: str
    explained: dict[str, str]


STUDIES = ("ball", "box", "point", "views", "unsaid", "drawn")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Send six studies to one daemon, each for a model of its own."""
    folder = tmp_path_factory.mktemp("finders")
    ball = {"voxels": with_a_ball(), "modality": "CT", "orientation": "oblique", "spacing": SPACING, "rescale": (1, 0)}
    files = {
        "ball": make_series(folder / "ball", study="ball", seed="ball", **ball),
        "box": radiograph(folder / "box", "1", "DX", 900),
        "point": radiograph(folder / "point", "2", "CR", 900),
        "views": radiograph(folder / "views", "3", "MG", *VIEWS),
        "unsaid": radiograph(folder / "unsaid", "4", "XA", *VIEWS),
        "drawn": radiograph(folder / "drawn", "5", "US", 900, 100, PixelSpacing=["0.5", "0.2"]),
    }
    home = make_site(folder / "home", {"pacs": 1})
    add_detector(home)
    add_model(
        home, "chest", "detection", 'frame = "voxel"\n' + PICTURE.format(modality="DX") + NODULE.format(label=1), BOX
    )
    add_model(
        home, "tip", "landmarks", 'frame = "voxel"\n' + PICTURE.format(modality="CR") + NODULE.format(label=1), POINT
    )
    add_model(home, "breast", "classification", 'combine = "each"\n' + PICTURE.format(modality="MG") + VIEW, BRIGHTEST)
    add_model(home, "vessel", "classification", PICTURE.format(modality="XA") + VIEW, BRIGHTEST)
    add_model(home, "cyst", "segmentation", PICTURE.format(modality="US") + CYST, "return (x > 500).float()")
    with home.running("serve") as daemon:
        for name in STUDIES:
            send(files[name], daemon.port())
        finished(home, len(STUDIES))
        rows = json.loads(home.cli("results", "--format", "json").stdout)
        table = home.cli("results").stdout
        explained = [home.cli("explain", str(study)).stdout for study in range(1, len(STUDIES) + 1)]
    return Told(
        rows={
            name: [row for row in reversed(rows) if row["study_id"] == study]
            for study, name in enumerate(STUDIES, start=1)
        },
        table=table,
        explained=dict(zip(STUDIES, explained, strict=True)),
    )


def test_a_detector_finds_the_ball_where_it_lies_in_the_patient(told: Told) -> None:
    """Anchors of 12 mm stand 3 mm apart: so near, and not nearer, can their middle be."""
    (row,) = told.rows["ball"]
    assert (row["finding"], row["status"], row["present"]) == ("Nodule", "plausible", True)
    assert 50 < row["value"] <= 100
    centre = (affine_lps(orientation="oblique", spacing=SPACING) @ (*CENTRE, 1))[:3]
    found = np.array([row["x"], row["y"], row["z"]])
    assert np.linalg.norm(found - centre) < 3.5
    assert f"{found[0]:.1f} {found[1]:.1f} {found[2]:.1f} mm LPS" in told.table
    assert "mm LPS" in told.explained["ball"]
    assert row["low_plane"] < CENTRE[0] < row["high_plane"]
    assert row["frame_number"] == 1
    assert row["sop_instance_uid"]


def test_a_box_on_a_radiograph_names_its_image_and_its_pixels(told: Told) -> None:
    (row,) = told.rows["box"]
    assert (row["value"], row["sop_instance_uid"], row["frame_number"]) == (87.5, "1.2.3.11", 1)
    edges = [row[f"{end}_{axis}"] for end in ("low", "high") for axis in ("plane", "row", "column")]
    assert edges == [None, 3.5, 10.5, None, 6.5, 15.5]
    assert (row["x"], row["objects"]) == (None, 2)
    assert "row 5.0 column 13.0" in told.explained["box"]


def test_a_landmark_on_a_radiograph_is_the_pixel_that_it_is(told: Told) -> None:
    (row,) = told.rows["point"]
    assert (row["low_row"], row["low_column"], row["high_row"], row["high_column"]) == (5, 13, 5, 13)
    assert row["sop_instance_uid"] == "1.2.3.21"
    assert "row 5.0 column 13.0" in told.table


def test_each_view_has_a_finding_of_its_own_that_names_it(told: Told) -> None:
    rows = told.rows["views"]
    found = {row["sop_instance_uid"]: (row["value"], row["present"]) for row in rows}
    assert found == {
        f"1.2.3.3{number}": (pytest.approx((value + 1) / 10), value > 500)
        for number, value in enumerate(VIEWS, start=1)
    }
    assert "image 1.2.3.32 frame 1" in told.table
    assert "not present, image 1.2.3.31 frame 1" in told.explained["views"]


def test_scores_of_several_pictures_without_a_word_in_the_contract_are_not_evaluable(told: Told) -> None:
    (row,) = told.rows["unsaid"]
    assert (row["status"], row["value"]) == ("not_evaluable", None)
    assert "image has 4 images, and the contract has no 'combine'" in told.explained["unsaid"]


def test_a_segment_on_pictures_has_an_area_on_each_and_a_segmentation(told: Told) -> None:
    found = {row["sop_instance_uid"]: row for row in told.rows["drawn"]}
    assert {uid: (row["value"], row["unit"], row["present"]) for uid, row in found.items()} == {
        "1.2.3.51": (pytest.approx(15 * 0.5 * 0.2), "mm2", True),
        "1.2.3.52": (0, "mm2", False),
    }
    assert {(row["segment"], row["status"], row["objects"]) for row in told.rows["drawn"]} == {("Cyst", "plausible", 5)}
    assert all(name in told.explained["drawn"] for name in ("SEG binary 2.25.", "SR areas binary/3d", "SR classes 3d"))
