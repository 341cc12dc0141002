"""A bundle runs with its own weights, wherever it keeps them, or not at all."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_factory import EVALUATOR, LOADER, above_50, config, phantom, saved, write_bundle

from meddaemon.domain.errors import ModelFailed

torch = pytest.importorskip("torch")
session = pytest.importorskip("meddaemon.inference.bundles.session")

pytestmark = pytest.mark.usefixtures("own_code_of_one_bundle")


def plain(models: Path) -> None:
    torch.save(above_50().state_dict(), models / "model.pt")


def scripted(models: Path) -> None:
    torch.jit.save(torch.jit.script(above_50()), models / "model.ts")


def scripted_as_checkpoint(models: Path) -> None:
    torch.jit.save(torch.jit.script(above_50()), models / "model.pt")


def with_numpy(models: Path) -> None:
    torch.save({"model": above_50().state_dict(), "score": np.float64(0.9), "split": np.arange(3)}, models / "model.pt")


OWN = """
import torch

class Net(torch.nn.Conv3d):
    def __init__(self, path):
        super().__init__(1, 2, 1)
        self.load_state_dict(torch.load(path)["model"])
"""
IN_ITS_OWN_CODE = {"_target_": "scripts.net.Net", "path": "$@bundle_root + '/models/model.pt'"}
IN_EVALUATOR = {**EVALUATOR, "val_handlers": [LOADER]}
BY_TEXT = "$@network.load_state_dict(torch.load(@bundle_root + '/models/model.pt')['model'])"

WAYS: dict[str, tuple[dict[str, Any], Callable[[Path], None]]] = {
    "checkpointloader": (
        config(checkpointloader=LOADER, initialize=["$@checkpointloader(@evaluator) if True else None"]),
        saved,
    ),
    "named otherwise": (config(restore=LOADER, initialize=["$@restore(@evaluator)"]), saved),
    "handlers": (config(handlers=[{"_target_": "StatsHandler"}, LOADER]), saved),
    "val_handlers": (config(val_handlers=[LOADER]), saved),
    "in the evaluator": (config(evaluator=IN_EVALUATOR), saved),
    "in the list that is run": (config(run=[LOADER, "$@evaluator.run()"]), saved),
    "unless the file is missing": (
        config(handlers=[{**LOADER, "_disabled_": "$not os.path.exists(@bundle_root + '/models/model.pt')"}]),
        saved,
    ),
    "other key": (config(handlers=[{**LOADER, "load_dict": {"net": "@network"}}]), plain),
    "strict as text": (config(handlers=[{**LOADER, "strict": "True", "map_location": "cuda:0"}]), saved),
    "convention": (config(), saved),
    "convention, bare": (config(), plain),
    "convention, TorchScript": (config(), scripted),
    "TorchScript for a loader": (config(checkpointloader=LOADER), scripted_as_checkpoint),
    "TorchScript by expression": (config(network_def="$torch.jit.load(@bundle_root + '/models/model.ts')"), scripted),
    "TorchScript and no network": (config(network=None, network_def=None), scripted),
    "TorchScript over a leftover loader": (
        config(network_def="$torch.jit.load(@bundle_root + '/models/model.ts')", checkpointloader=LOADER),
        scripted,
    ),
    "initialize by text": (config(initialize=["$import json", BY_TEXT]), saved),
    "in its own code": (config(network_def=IN_ITS_OWN_CODE), saved),
    "NumPy beside them": (config(checkpointloader=LOADER), with_numpy),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_weights_of_the_bundle_are_what_runs(way: str, tmp_path: Path) -> None:
    content, weights = WAYS[way]
    volume = phantom()
    folder = write_bundle(tmp_path / "b", content, weights=weights, scripts={"net": OWN})
    loaded = session.load(folder, scratch=tmp_path)
    assert np.array_equal(loaded.predict({"image": volume}).labels, volume.voxels > 50)


@pytest.mark.parametrize("way", WAYS)
def test_without_its_file_no_bundle_runs(way: str, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b", WAYS[way][0], scripts={"net": OWN})
    with pytest.raises((ModelFailed, RuntimeError)) as caught:
        session.load(folder, scratch=tmp_path)
    said = str(caught.value) + str(caught.value.__cause__)
    assert "model.pt" in said or "model.ts" in said or "TorchScript" in said


def test_the_provenance_says_where_weights_came_from(tmp_path: Path) -> None:
    content, weights = WAYS["handlers"]
    loaded = session.load(write_bundle(tmp_path / "b", content, weights=weights), scratch=tmp_path)
    assert loaded.provenance["weights_from"] == "model.pt by handlers::1"
    assert "shims" not in loaded.provenance
    content, weights = WAYS["TorchScript by expression"]
    loaded = session.load(write_bundle(tmp_path / "script", content, weights=weights), scratch=tmp_path)
    assert loaded.provenance["weights_from"] == "model.ts"
    content, weights = WAYS["NumPy beside them"]
    loaded = session.load(write_bundle(tmp_path / "c", content, weights=weights), scratch=tmp_path)
    assert loaded.provenance["shims"] == "numpy_in_checkpoint"


def two_networks(**changes: Any) -> dict[str, Any]:
    """A bundle whose inferer has a network of its own, as ensembles and two-stage bundles have."""
    second = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 1, "kernel_size": 1}
    return config(first_stage=second, inferer={"_target_": "scripts.net.Staged", "stage": "@first_stage"}, **changes)


STAGED = """
class Staged:
    def __init__(self, stage):
        self.stage = stage
    def __call__(self, image, network):
        return network(image)
"""


def half(models: Path) -> None:
    state = above_50().state_dict()
    del state["bias"]
    torch.save({"model": state}, models / "model.pt")


def of_another_network(models: Path) -> None:
    torch.save({"model": torch.nn.Conv3d(1, 3, 1).state_dict()}, models / "model.pt")


def pickled_code(models: Path) -> None:
    torch.save({"model": above_50()}, models / "model.pt")


def damaged(models: Path) -> None:
    saved(models)
    (models / "model.pt").write_bytes((models / "model.pt").read_bytes()[:600])


@pytest.mark.parametrize(
    ("content", "weights", "message"),
    [
        (config(), None, r"2 of 2 parameters would be random.*weight, bias.*models/model.pt"),
        (config(handlers=[{**LOADER, "_disabled_": True}]), None, "would be random.*handlers::0"),
        (config(handlers=[{**LOADER, "strict": False}]), half, "1 of 2 parameters would be random.*bias"),
        (config(handlers=[{**LOADER, "strict_shape": False}]), of_another_network, "2 of 2 parameters would be random"),
        (config(checkpointloader=LOADER), of_another_network, "model.pt do not fit the network.*size mismatch"),
        (config(checkpointloader=LOADER), half, "do not fit the network.*Missing key"),
        (config(checkpointloader=LOADER), pickled_code, "cannot be read as weights"),
        (config(checkpointloader=LOADER), damaged, "cannot be read as weights"),
        (config(initialize=["$@network.load_state_dict(@network.state_dict())"]), None, "would be random"),
        (two_networks(checkpointloader=LOADER), saved, "2 of 4 parameters would be random"),
    ],
    ids=["none", "off", "partial", "other shapes", "other network", "lacking", "code", "damaged", "own", "second"],
)
def test_a_network_with_random_parameters_is_refused(
    content: dict[str, Any], weights: Callable[[Path], None] | None, message: str, tmp_path: Path
) -> None:
    folder = write_bundle(tmp_path / "b", content, weights=weights, scripts={"net": STAGED})
    with pytest.raises(ModelFailed, match=message):
        session.load(folder, scratch=tmp_path)


def test_weights_of_the_contract_replace_those_of_a_checkpoint_loader(tmp_path: Path) -> None:
    path = "$@bundle_root + '/models/model.pt'"
    content = config(ckpt=path, handlers=[{**LOADER, "load_path": "@ckpt", "_disabled_": "$not os.path.exists(@ckpt)"}])
    folder = write_bundle(tmp_path / "b", content)
    (tmp_path / "elsewhere").mkdir()
    saved(tmp_path / "elsewhere")
    given = tmp_path / "elsewhere/model.pt"
    volume = phantom()
    loaded = session.load(folder, scratch=tmp_path, weights=[given])
    assert np.array_equal(loaded.predict({"image": volume}).labels, volume.voxels > 50)
    with pytest.raises(ModelFailed, match="names 2 files of weights"):
        session.load(folder, scratch=tmp_path, weights=[given, tmp_path / "elsewhere/other.pt"])
    with pytest.raises(ModelFailed, match=r"no entry 'weights'.*0 checkpoint loaders"):
        session.load(write_bundle(tmp_path / "c", config()), scratch=tmp_path, weights=[given])


def test_left_over_layers_of_what_a_network_was_built_from_are_not_missed(tmp_path: Path) -> None:
    """A detector takes the first layers of a whole classifier; nothing runs through the rest of that."""
    inner = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
    rest = {"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 4}
    content = config(
        backbone="$torch.nn.Sequential(@first, @rest)",
        first=inner,
        rest=rest,
        network_def="$@backbone[0]",
        checkpointloader=LOADER,
    )
    volume = phantom()
    with pytest.raises(ModelFailed, match=r"2 of 4 parameters would be random.*weight, bias"):
        session.load(write_bundle(tmp_path / "b", content, weights=saved), scratch=tmp_path)
    del content["rest"]
    content["backbone"] = "$torch.nn.Sequential(@first, torch.nn.Linear(3, 4))"
    loaded = session.load(write_bundle(tmp_path / "c", content, weights=saved), scratch=tmp_path)
    assert np.array_equal(loaded.predict({"image": volume}).labels, volume.voxels > 50)


def test_batch_statistics_count_as_weights(tmp_path: Path) -> None:
    network = torch.nn.BatchNorm3d(1)
    state = {name: value for name, value in network.state_dict().items() if "running" not in name}
    folder = write_bundle(
        tmp_path / "b",
        config(
            network_def={"_target_": "torch.nn.BatchNorm3d", "num_features": 1},
            handlers=[{**LOADER, "strict": False}],
        ),
        weights=lambda models: torch.save({"model": state}, models / "model.pt"),
    )
    with pytest.raises(ModelFailed, match=r"2 of 4 parameters would be random.*running_mean, running_var"):
        session.load(folder, scratch=tmp_path)


def test_what_watched_the_loading_is_gone_afterwards(tmp_path: Path) -> None:
    before = copy.copy((torch.load, torch.jit.load, torch.nn.Module.load_state_dict))
    session.load(write_bundle(tmp_path / "b", config(), weights=saved), scratch=tmp_path)
    with pytest.raises(ModelFailed):
        session.load(write_bundle(tmp_path / "c", config()), scratch=tmp_path)
    assert before == (torch.load, torch.jit.load, torch.nn.Module.load_state_dict)
