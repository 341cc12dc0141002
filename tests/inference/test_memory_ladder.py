"""A run that finds too little memory goes down the ladder, in real processes, and ends in its result or a refusal."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dicom_factory import make_series
from toy_bundle import CONFIG, write_toy

from meddaemon.config.digest import bundle_digest
from meddaemon.domain.codes import Code
from meddaemon.domain.contract import ModelContract, SegmentContract
from meddaemon.domain.errors import OutOfMemory
from meddaemon.inference.runtime import Limits, ModelProcess
from meddaemon.inference.warm import WarmModels

CLASSES, SIDE = 200, 64
COPY = CLASSES * SIDE**3 * 4
"""All classes of the whole volume: as it is, a run of the bundle makes three of it and more."""
BUDGET = 2 * COPY - 100 * 2**20
FITS, NEVER = 1, 2

NETWORK = f"""
import torch

class Toy(torch.nn.Module):
    # The class of a voxel is its value.
    def forward(self, x):
        if x.max() == 1000:
            torch.ones(2**31, dtype=torch.uint8)
        levels = torch.arange({CLASSES}, dtype=x.dtype).reshape(1, -1, 1, 1, 1)
        return -((x - levels) ** 2)
"""

INVERT = {
    "_target_": "Invertd",
    "keys": "pred",
    "transform": "@preprocessing",
    "orig_keys": "image",
    "nearest_interp": False,
}
POSTPROCESSING = [
    {"_target_": "Activationsd", "keys": "pred", "softmax": True},
    INVERT,
    {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
]


def _bundle(folder: Path) -> ModelContract:
    contract = write_toy(folder, f"{NETWORK}# {folder.name}")
    content = {
        **CONFIG,
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [32, 32, 32], "sw_batch_size": 4},
        "postprocessing": {"_target_": "Compose", "transforms": POSTPROCESSING},
    }
    (folder / "configs/inference.json").write_text(json.dumps(content))
    return replace(contract, digest=bundle_digest(folder, contract.contract_file, ()))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> ModelContract:
    return _bundle(tmp_path_factory.mktemp("toys") / "toy")


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[list[Path], np.ndarray]]:
    folder = tmp_path_factory.mktemp("series")

    def make(order: int) -> tuple[list[Path], np.ndarray]:
        voxels = np.random.default_rng(order).integers(0, CLASSES, (SIDE, SIDE, SIDE)).astype(np.int16)
        if order == NEVER:
            voxels[0, 0, 0] = 1000
        return make_series(folder / str(order), voxels=voxels), voxels

    return make


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmModels]:
    with WarmModels(tmp_path_factory.mktemp("scratch"), Limits(memory_bytes=BUDGET)) as models:
        yield models


def of_all_classes(contract: ModelContract) -> ModelContract:
    """The same model, of which the contract says how many classes there are."""
    code = Code(value="91723000", scheme="SCT", meaning="Anatomical Structure")
    segments = tuple(
        SegmentContract(label=label, name=str(label), category=code, type=code, colour=(1, 2, 3))
        for label in range(1, CLASSES)
    )
    return replace(contract, segments=segments)


@pytest.mark.fault(130)
def test_many_classes_walk_down_to_the_result_that_they_have_with_all_memory(
    models: WarmModels,
    toy: ModelContract,
    series: Callable[[int], tuple[list[Path], np.ndarray]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    paths, voxels = series(FITS)
    with ModelProcess(toy, server=models._server, loader=models._loader) as unlimited:
        wanted = unlimited.predict({"image": paths}, time_limit=300)
    assert np.array_equal(wanted.labels, voxels)
    capfd.readouterr()
    # The contract names one segment, so that nobody expects a hundred classes.
    found = models.predict(toy, {"image": paths})
    told = capfd.readouterr().err
    assert np.array_equal(found.labels, wanted.labels)
    assert found.provenance["plan"] == "class by class"
    assert re.search(r"out of memory: trying again.*as the bundle says.*class by class", told), told
    # What was learnt of it is known for the next study, which begins there.
    again = models.predict(toy, {"image": paths})
    told = capfd.readouterr().err
    assert np.array_equal(again.labels, wanted.labels)
    assert again.provenance["plan"] == "class by class"
    assert "start" not in again.seconds, "the same process: nothing failed"
    assert "trying again" not in told


def test_an_estimate_chooses_the_plan_before_anything_fails(
    models: WarmModels,
    series: Callable[[int], tuple[list[Path], np.ndarray]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    paths, voxels = series(FITS)
    found = models.predict(of_all_classes(_bundle(tmp_path / "other")), {"image": paths})
    told = capfd.readouterr().err
    assert np.array_equal(found.labels, voxels)
    assert found.provenance["plan"].endswith("class by class")
    assert "would take too much" in told
    assert "trying again" not in told


@pytest.mark.fault(130)
def test_what_never_fits_is_refused_with_all_that_was_tried_and_the_next_study_is_served(
    models: WarmModels, toy: ModelContract, series: Callable[[int], tuple[list[Path], np.ndarray]]
) -> None:
    with pytest.raises(OutOfMemory) as refused:
        models.predict(toy, {"image": series(NEVER)[0]})
    text = str(refused.value)
    assert refused.value.where == "host"
    assert re.search(r"class by class \(host: \d+ MiB expected, \d+ MiB there\)", text), text
    assert re.search(r"windows 1 at a time, class by class \(host: ", text), text
    assert "2147483648 bytes" in text
    # What never fits says nothing of others: the next one begins where it would have begun.
    paths, voxels = series(FITS)
    found = models.predict(toy, {"image": paths})
    assert np.array_equal(found.labels, voxels)
    assert found.provenance["plan"] == "class by class"
