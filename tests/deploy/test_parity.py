"""The parity gate: what a contract has carried out otherwise than the bundle as shipped must come out like it."""

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dicom_factory import affine_lps

from meddaemon.config.admission import BESIDE, CaseResult, admitted
from meddaemon.deploy import check, golden
from meddaemon.deploy.golden import Grid
from meddaemon.domain.contract import EngineContract, ModelContract
from meddaemon.domain.errors import InvalidConfiguration
from meddaemon.inference import sandbox
from meddaemon.inference.warm import WarmModels
from tests.admission import loaded
from tests.deploy.bundles import CLASSIFIER, CONTRACT, case_of, results_of, write_segmenter

BEYOND = 500.5
RAMP = Grid(voxels=np.arange(1000, dtype=np.float32).reshape(10, 10, 10), affine_lps=affine_lps(orientation="oblique"))
"""Every whole number once: 501 is 500 in bfloat16, and no other is on the other side of the threshold there."""
SEGMENTS = f"(torch.nn.functional.conv3d(x, torch.ones(1, 1, 1, 1, 1)) > {BEYOND}).float()"
SCORES = f"({SEGMENTS}).flatten(1).mean(1, keepdim=True)"


@pytest.fixture(scope="module")
def models() -> Iterator[WarmModels]:
    with check.processes() as processes:
        yield processes


def model(folder: Path, engine: str, *, contract: str = CONTRACT, behaviour: str = SEGMENTS) -> ModelContract:
    """A model with these lines of `[engine]`, and a golden case of the ramp."""
    file = write_segmenter(folder, behaviour, oriented=True, contract=contract)
    file.write_text(
        file.read_text().replace("\n[[inputs]]", f"\n[engine]\n{engine}\n[[inputs]]") if engine else contract
    )
    case = case_of(RAMP, (RAMP.voxels > BEYOND).astype(np.uint8))
    if contract is CLASSIFIER:
        case = replace(case, labels=None, affine_lps=None, scores=(0.499,))
    golden.write_case(folder / "golden/ramp", case)
    return loaded(file)


def beside(contract: ModelContract) -> list[CaseResult]:
    return [each for each in results_of(contract)[0].cases if each.variant == BESIDE]


@pytest.mark.parametrize(("parity", "let_in"), [(0.99, True), (1.0, False)])
def test_a_model_of_half_the_digits_is_let_in_as_far_as_its_contract_goes(
    tmp_path: Path, models: WarmModels, parity: float, let_in: bool
) -> None:
    contract = model(tmp_path / "m", f'precision = "bf16"\nparity = {parity}')
    refusal = check.check(contract, models).admission.refusal
    (found,) = beside(contract)
    assert found.value == pytest.approx(2 * 498 / (499 + 498))
    assert (found.limit, found.ok) == (parity, let_in)
    assert (refusal == "") is let_in
    assert let_in or f"case ramp, {BESIDE}: dice 0.99900, at least 1 is wanted" in refusal
    record = results_of(contract)[0]
    assert record.engine == "precision bf16"
    assert record.host
    assert record.provenance["engine"].startswith("precision bf16, CPU with ")


@pytest.mark.parametrize(("parity", "let_in"), [(0.99, True), (0.9999, False)])
def test_scores_are_compared_by_their_difference(
    tmp_path: Path, models: WarmModels, parity: float, let_in: bool
) -> None:
    engine = f'precision = "amp"\nparity = {parity}'
    contract = model(tmp_path / "m", engine, contract=CLASSIFIER, behaviour=SCORES)
    assert (check.check(contract, models).admission.refusal == "") is let_in
    (found,) = beside(contract)
    assert (found.measure, found.limit) == ("difference", pytest.approx(1 - parity))
    assert 0 < (found.value or 0) < 0.01


def test_a_model_as_shipped_runs_no_more_than_it_did(tmp_path: Path, models: WarmModels) -> None:
    contract = model(tmp_path / "m", "")
    assert check.check(contract, models).admission.refusal == ""
    record = results_of(contract)[0]
    assert (record.engine, record.host, beside(contract)) == ("", "", [])
    assert "engine" not in record.provenance


def test_a_model_without_a_case_is_not_let_in_with_an_engine_that_nobody_compared(
    tmp_path: Path, models: WarmModels
) -> None:
    contract = model(tmp_path / "m", "channels_last = true")
    for path in sorted((tmp_path / "m/golden").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    contract = loaded(contract.contract_file)
    admission = check.check(contract, models).admission
    assert "its engine (channels last) was compared with the bundle as shipped on no golden case" in admission.refusal
    admission = check.check(contract, models, force="a person compared it").admission
    assert (admission.refusal, admission.forced) == ("", "a person compared it")
    # What another version wrote of a model with such an engine is not enough, either.
    model(tmp_path / "other", "channels_last = true")
    contract = loaded(tmp_path / "other/contract.toml")
    check.check(contract, models)
    record, _ = results_of(contract)
    kept = record.model_copy(update={"cases": tuple(each for each in record.cases if each.variant != BESIDE)})
    assert contract.record is not None
    contract.record.write_text(kept.model_dump_json())
    assert kept.green
    assert "compared" in admitted(contract).admission.refusal


def test_windows_of_the_contract_are_recorded(tmp_path: Path, models: WarmModels) -> None:
    engine = 'channels_last = true\nwindow = "fitted"\noverlap = 0.25\nwindow_batch = 2'
    model(tmp_path / "m", engine)
    file = tmp_path / "m/configs/inference.json"
    config = json.loads(file.read_text())
    config["inferer"] = {"_target_": "SlidingWindowInferer", "roi_size": [16, 8, 8], "overlap": 0.5}
    file.write_text(json.dumps(config))
    contract = loaded(tmp_path / "m/contract.toml")
    assert check.check(contract, models).admission.refusal == "", results_of(contract)
    said = "channels last, window fitted, overlap 0.25, window batch 2"
    assert results_of(contract)[0].provenance["engine"].startswith(said)
    assert [each.value for each in beside(contract)] == [1.0]


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="no OpenVINO here")
def test_openvino_runs_where_models_do(tmp_path: Path, models: WarmModels) -> None:
    contract = model(tmp_path / "m", 'engine = "openvino"')
    assert check.check(contract, models).admission.refusal == "", results_of(contract)
    assert "OpenVINO 20" in results_of(contract)[0].provenance["engine"]
    assert [each.value for each in beside(contract)] == [1.0]


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ('engine = "tensorrt"', "engine tensorrt: the bundle ships none of configs/inference_trt.json"),
        ('engine = "compile"', "engine compile: torch.compile failed"),
        ("overlap = 0.25", "overlap 0.25: the bundle has no sliding window, but a SimpleInferer"),
    ],
)
def test_an_engine_that_cannot_be_is_refused_with_its_reason(
    tmp_path: Path, models: WarmModels, engine: str, said: str
) -> None:
    if "compile" in engine and sandbox.missing():
        pytest.skip("nothing keeps a model from running a compiler here")
    contract = model(tmp_path / "m", engine)
    assert said in check.check(contract, models).admission.refusal


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ('precision = "fp16"', "engine.precision"),
        ('engine = "onnx"', "engine.engine"),
        ("overlap = 1.0", "engine.overlap"),
        ("window_batch = 0", "engine.window_batch"),
        ("parity = 1.5", "engine.parity"),
        ("faster = true", "engine.faster"),
    ],
)
def test_what_an_engine_cannot_be_is_named_by_its_line(tmp_path: Path, engine: str, said: str) -> None:
    with pytest.raises(InvalidConfiguration, match=rf"contract\.toml:\d+: {said}"):
        model(tmp_path / "m", engine)


def test_without_a_table_nothing_is_changed(tmp_path: Path) -> None:
    assert model(tmp_path / "m", "").engine == EngineContract()
