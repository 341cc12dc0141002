"""Settings of an engine are timed and compared, and nothing is changed by that."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dicom_factory import affine_lps

from meddaemon.config.contracts import load_contract
from meddaemon.config.digest import file_digest
from meddaemon.deploy import check, golden, tune
from meddaemon.deploy.golden import Grid
from meddaemon.deploy.tune import Timed
from meddaemon.domain.contract import EngineContract
from meddaemon.domain.errors import BundleRefused
from tests.deploy.bundles import CONTRACT, case_of, write_segmenter

RAMP = Grid(voxels=np.arange(512, dtype=np.float32).reshape(8, 8, 8), affine_lps=affine_lps(orientation="oblique"))
# 257 is 256 in bfloat16.
NETWORK = "(torch.nn.functional.conv3d(x, torch.ones(1, 1, 1, 1, 1)) > 256.5).float()"


@pytest.mark.parametrize("windows", [True, False])
def test_every_setting_is_compared_and_nothing_is_changed(tmp_path: Path, windows: bool) -> None:
    file = write_segmenter(tmp_path / "m", NETWORK, oriented=True)
    if windows:
        configuration = tmp_path / "m/configs/inference.json"
        config = json.loads(configuration.read_text())
        config["inferer"] = {"_target_": "SlidingWindowInferer", "roi_size": [16, 8, 8]}
        configuration.write_text(json.dumps(config))
    golden.write_case(tmp_path / "m/golden/ramp", case_of(RAMP, (RAMP.voxels > 256.5).astype(np.uint8)))
    contract = load_contract(file)
    before = file_digest(file)
    lines: list[Timed] = []
    with check.processes() as models:
        settings = [EngineContract(channels_last=True), tune.SETTINGS[4 if windows else 2], tune.SETTINGS[3]]
        found = tune.tune(contract, models, rounds=1, settings=settings, say=lines.append)
    assert (found, file_digest(file)) == (lines, before)
    by_settings = {each.settings: each for each in found}
    assert by_settings["channels last"].parity == 1.0
    assert by_settings["precision bf16, channels last"].parity == pytest.approx(2 * 254 / (254 + 255))
    assert all((each.seconds or 0) > 0 for each in found if not each.why)
    assert all("sliding window" in each.why for each in found if each.why)
    assert bool([each for each in found if each.why]) is not windows
    # What is proposed is what was timed.
    for each, asked in zip(found, settings, strict=True):
        if each.lines:
            file.write_text(CONTRACT.replace("\n[[inputs]]", f"\n{each.lines}\n\n[[inputs]]"))
            assert load_contract(file).engine == asked


def test_the_fastest_that_is_near_enough_is_proposed() -> None:
    near = Timed(settings="near", seconds=1.0, faster=2.0, parity=0.9995)
    far, slow, broken = replace(near, parity=0.99, faster=5.0), replace(near, faster=0.9), Timed(settings="x", why="y")
    assert tune.best([slow, near, far, broken], 0.999) == near
    assert tune.best([slow, near, far, broken], 0.99) == far
    assert tune.best([slow, broken], 0.9) is None


def test_without_a_case_there_is_nothing_to_time(tmp_path: Path) -> None:
    contract = load_contract(write_segmenter(tmp_path / "m", NETWORK, oriented=True))
    with check.processes() as models, pytest.raises(BundleRefused, match="no golden case"):
        tune.tune(contract, models)
    assert contract.engine == EngineContract()
