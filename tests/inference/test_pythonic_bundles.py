"""Bundles whose inference is a class of Python instead of a configuration."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_factory import above_50, make_volume, phantom, rotation

from meddaemon.deploy.audit import audit
from meddaemon.domain.errors import ModelFailed
from meddaemon.inference.bundles.kinds import obstacles
from meddaemon.inference.bundles.pythonic import find_workflow
from meddaemon.inference.bundles.reading import read_bundle

torch = pytest.importorskip("torch")
session = pytest.importorskip("meddaemon.inference.bundles.session")
terms = pytest.importorskip("meddaemon.inference.bundles.terms")

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("own_code_of_one_bundle")]

WORKFLOW = """
import torch
from monai.bundle import PythonicWorkflow
from monai.data import Dataset
from monai.engines import SupervisedEvaluator
from monai.inferers import SlidingWindowInferer
from monai.transforms import (
    Activationsd, AsDiscreted, Compose, EnsureChannelFirstd, Invertd, LoadImaged, Orientationd, SaveImaged,
)


class InferenceWorkflow(PythonicWorkflow):
    def __init__(self, workflow_type="inference", config_file=None, properties_path=None, meta_file=None):
        super().__init__(
            workflow_type=workflow_type, config_file=config_file, properties_path=properties_path, meta_file=meta_file
        )

    def initialize(self):
        super().initialize()
        self.net = torch.nn.Conv3d(1, 2, 1).to(self.device)
        LOADS

    def run(self):
        self.evaluator.run()

    def finalize(self):
        pass

    def get_network_def(self):
        return self.net

    def get_inferer(self):
        return SlidingWindowInferer(roi_size=(8, 8, 8), overlap=0.25)

    def get_preprocessing(self):
        return Compose([
            LoadImaged(keys="image"), EnsureChannelFirstd(keys="image"), Orientationd(keys="image", axcodes="RAS")
        ])

    def get_postprocessing(self):
        return Compose([
            Activationsd(keys="pred", softmax=True),
            Invertd(keys="pred", transform=self.preprocessing, orig_keys="image", nearest_interp=False),
            AsDiscreted(keys="pred", argmax=True),
            SaveImaged(keys="pred", output_dir="/nonexistent/never/written"),
        ])

    def get_dataset(self):
        raise AssertionError("there is no dataset")

    def get_evaluator(self):
        return SupervisedEvaluator(device=self.device, val_data_loader=self.dataset, network=self.network_def)
"""
BY_ITSELF = "self.net.load_state_dict(torch.load(self.bundle_root + '/models/other.pt', weights_only=True))"


def write(folder: Path, workflow: str = WORKFLOW, *, weights: str = "", more: dict[str, str] | None = None) -> Path:
    """Write a bundle without any configuration but its metadata; `weights` is the name of their file."""
    for name in ("configs", "models", "scripts"):
        (folder / name).mkdir(parents=True)
    (folder / "configs/metadata.json").write_text(json.dumps({"name": "pythonic", "version": "1"}))
    for name, text in {"__init__": "", "inference": workflow, **(more or {})}.items():
        (folder / f"scripts/{name}.py").write_text(text)
    if weights:
        torch.save(above_50().state_dict(), folder / "models" / weights)
    return folder


def load(bundle: Path) -> Any:
    return session.load(bundle, scratch=bundle.parent, terms=terms.Terms(segments=(1,)))


@pytest.mark.parametrize(("loads", "weights"), [("pass", "model.pt"), (BY_ITSELF, "other.pt")])
def test_a_workflow_in_python_runs_like_any_bundle(tmp_path: Path, loads: str, weights: str) -> None:
    """In an oblique volume, on its own grid, with the loader and the saver that it makes itself replaced."""
    volume = make_volume(phantom().voxels, turn=rotation(3))
    loaded = load(write(tmp_path / "b", WORKFLOW.replace("LOADS", loads), weights=weights))
    for _ in range(2):
        prediction = loaded.predict({"image": volume})
        assert np.array_equal(prediction.labels, volume.voxels > 50)
    assert loaded.provenance["configuration"] == "scripts/inference.py"
    assert loaded.provenance["weights_from"] in {"models/model.pt", "other.pt"}
    assert list(tmp_path.iterdir()) == [tmp_path / "b"]


def test_a_workflow_that_loads_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFailed, match="2 of 2 parameters would be random"):
        load(write(tmp_path / "b", WORKFLOW.replace("LOADS", "pass")))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("SupervisedEvaluator", "OwnEvaluator", "does more than run its parts: OwnEvaluator"),
        ("network=self.network_def)", "prepare_batch=str)", "does more than run its parts: prepare_batch"),
        ("LoadImaged", "MyOwn", "takes no image"),
    ],
)
def test_what_a_workflow_does_beside_its_parts_is_named_before_it_runs(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    bundle = write(tmp_path / "b", WORKFLOW.replace(old, new))
    (found,) = obstacles(read_bundle(bundle))
    assert said in found
    assert any(said in each.said for each in audit(bundle)), "which `models add` tells"


def test_the_one_of_several_workflows_that_infers_is_taken(tmp_path: Path) -> None:
    training = {"train": "from monai import bundle\nclass Training(bundle.PythonicWorkflow):\n    pass\n"}
    bundle = write(tmp_path / "b", more=training)
    assert find_workflow(bundle) == ("scripts.inference.InferenceWorkflow", "scripts/inference.py")
    (bundle / "scripts/more.py").write_text("class Inference2(PythonicWorkflow): pass\n")
    with pytest.raises(ModelFailed, match=r"several workflows: scripts\.inference\.InferenceWorkflow, "):
        read_bundle(bundle)


def test_a_configuration_goes_before_a_workflow_and_without_either_there_is_no_bundle(tmp_path: Path) -> None:
    bundle = write(tmp_path / "b")
    (bundle / "configs/inference.json").write_text('{"network": 1}')
    assert read_bundle(bundle).config == {"network": 1}
    (bundle / "configs/inference.json").unlink()
    (bundle / "scripts/inference.py").write_text("def broken(:\n")
    with pytest.raises(ModelFailed, match="and no workflow in its code"):
        read_bundle(bundle)
