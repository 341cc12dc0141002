"""Models are run on their golden cases by the processes that run them on patients, and let in or not."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dicom_factory import make_series
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.uid import RLELossless

from meddaemon.config.admission import admitted
from meddaemon.deploy import check, golden
from meddaemon.deploy.golden import TURNS
from meddaemon.domain.contract import ModelContract
from meddaemon.domain.errors import BundleRefused
from meddaemon.inference.warm import WarmModels
from tests.admission import loaded
from tests.deploy.bundles import CLASSIFIER, CONTRACT, OVERLAPPING, case_of, head, model, results_of, write_segmenter
from tests.other_objects import image


@pytest.fixture(scope="module")
def models() -> Iterator[WarmModels]:
    with check.processes() as processes:
        yield processes


@pytest.mark.fault(174)
def test_a_model_that_draws_the_same_in_every_way_is_let_in(tmp_path: Path, models: WarmModels) -> None:
    contract = model(tmp_path / "m", "y", oriented=True)
    assert "never checked" in admitted(contract).admission.refusal
    after = check.check(contract, models)
    found, variants = results_of(contract)
    assert (after.admission.refusal, after.admission.forced) == ("", "")
    assert variants == dict.fromkeys(["as given", check.AGAIN, *(turn.name for turn in TURNS)], True)
    assert {each.value for each in found.cases} == {1.0}
    assert (found.digest, found.provenance["bundle_digest"]) == (contract.digest, contract.digest)


HALF = "y * (torch.arange(y.shape[2]) * 2 < y.shape[2])[None, None, :, None, None]"
"""Draws only in the first half of the first axis, whichever that is."""


def half(*, first: bool) -> NDArray[np.uint8]:
    """What is bright in one half of the columns."""
    labels = (head().voxels > 50).astype(np.uint8)
    labels[:, :, slice(3, None) if first else slice(3)] = 0
    return labels


def test_a_model_whose_mask_moves_when_the_patient_is_stored_otherwise_is_not_let_in(
    tmp_path: Path, models: WarmModels
) -> None:
    contract = model(tmp_path / "m", HALF, oriented=False, labels=half(first=True))
    after = check.check(contract, models)
    _, variants = results_of(contract)
    assert variants["as given"]
    assert not all(variants.values())
    assert "its check failed (case head, " in after.admission.refusal
    assert "Dice".casefold() in after.admission.refusal


def test_the_same_network_is_let_in_once_the_bundle_orients_its_input(tmp_path: Path, models: WarmModels) -> None:
    contract = model(tmp_path / "m", HALF, oriented=True, labels=half(first=False))
    after = check.check(contract, models)
    assert after.admission.refusal == "", results_of(contract)


CHANCE = "y * (torch.rand(y.shape, generator=(lambda g: (g.seed(), g)[1])(torch.Generator())) > 0.3)"
"""By a seed of its own: the generator of torch is seeded for it before each run."""


@pytest.mark.fault(174)
def test_a_model_that_answers_by_chance_is_not_let_in(tmp_path: Path, models: WarmModels) -> None:
    contract = model(tmp_path / "m", CHANCE, oriented=True)
    after = check.check(contract, models)
    _, variants = results_of(contract)
    assert not variants[check.AGAIN]
    assert after.admission.refusal


LOADS = "y * torch.load(__file__.replace('scripts/toy.py', 'models/model.pt'))"


@pytest.mark.fault(170)
def test_weights_that_call_the_system_do_not_when_they_are_loaded_and_their_model_is_not_let_in(
    tmp_path: Path, models: WarmModels
) -> None:
    """A folder that was put there by hand: nobody looked at it before."""
    witness = tmp_path / "witness"
    contract = model(tmp_path / "m", LOADS, oriented=True)
    (tmp_path / "m/models").mkdir()
    (tmp_path / "m/models/model.pt").write_bytes(b"cos\nsystem\n(S'touch " + bytes(witness) + b"'\ntR.")
    after = check.check(loaded(contract.contract_file), models)
    assert not witness.exists()
    found, variants = results_of(contract)
    assert not any(variants.values())
    assert "weights_only" in found.cases[0].failure.casefold() or "unpickl" in found.cases[0].failure.casefold()
    assert after.admission.refusal


def test_a_wrong_expectation_and_a_case_for_other_inputs_keep_a_model_out(tmp_path: Path, models: WarmModels) -> None:
    wrong = (head().voxels > 50).astype(np.uint8)
    wrong[1, 2] = 0
    contract = model(tmp_path / "m", "y", oriented=True, labels=wrong)
    other = tmp_path / "m/golden/other"
    golden.write_case(other, case_of(head()))
    (other / "case.toml").write_text((other / "case.toml").read_text().replace('"image"', '"scan"'))
    contract = loaded(contract.contract_file)
    lines: list[str] = []
    admission = check.check(contract, models, say=lines.append, force="seen by a person").admission
    assert any("dice 0.9" in line and "at least 0.99 is wanted" in line for line in lines)
    assert "case other, read: the case has other inputs than the model: image" in lines
    assert (admission.refusal, admission.forced) == ("", "seen by a person")
    found, _ = results_of(contract)
    assert (found.green, found.forced) == (False, "seen by a person")


def test_frozen_cases_name_no_patient(tmp_path: Path, models: WarmModels) -> None:
    contract = loaded(write_segmenter(tmp_path / "m", "y", oriented=True))
    series = make_series(
        tmp_path / "s", patient_name="Doe^Jane", patient_id="P-1", voxels=head().voxels.astype(np.int16)
    )
    folder = check.freeze(contract, models, "first", {"image": series}, "MR")
    study = str(dcmread(series[0]).StudyInstanceUID).encode()
    kept = b"".join(path.read_bytes() for path in folder.iterdir())
    assert not [each for each in (b"Doe", b"P-1", study) if each in kept]
    assert sorted(path.name for path in folder.iterdir()) == ["case.toml", "input0.npz", "labels.npz"]
    with pytest.raises(BundleRefused, match="there already"):
        check.freeze(contract, models, "first", {"image": series}, "MR")


def test_a_case_of_files_is_read_as_those_of_patients_are_and_turned_as_well(
    tmp_path: Path, models: WarmModels
) -> None:
    contract = loaded(write_segmenter(tmp_path / "m", "y", oriented=True))
    case = tmp_path / "m/golden/files"
    make_series(
        case / "dicom", voxels=head().voxels.astype(np.int16), orientation="oblique", transfer_syntax=RLELossless
    )
    np.savez(case / "labels.npz", labels=head().voxels > 50, affine_lps=head().affine_lps)
    (case / "case.toml").write_text('[[inputs]]\nkey = "image"\nfiles = "dicom"\n\n[expected]\nlabels = "labels.npz"\n')
    contract = loaded(contract.contract_file)
    assert check.check(contract, models).admission.refusal == ""
    assert len(results_of(contract)[1]) == 2 + len(TURNS)


BRIGHT_PART = "y.flatten(1).mean(1, keepdim=True)"
FIRST_HALF = "y[:, :, : (y.shape[2] + 1) // 2].flatten(1).mean(1, keepdim=True)"


def scored(folder: Path, behaviour: str, *expected: float) -> ModelContract:
    contract = loaded(write_segmenter(folder, behaviour, oriented=False, contract=CLASSIFIER))
    case = replace(case_of(head()), labels=None, affine_lps=None, scores=expected)
    golden.write_case(folder / "golden/head", case)
    return loaded(contract.contract_file)


@pytest.mark.parametrize(
    ("behaviour", "expected", "ok"),
    [
        (BRIGHT_PART, (40 / 240,), True),
        (BRIGHT_PART, (0.5,), False),
        (BRIGHT_PART, (40 / 240, 0.0), False),
        (BRIGHT_PART + " * float('nan')", (40 / 240,), False),
    ],
)
def test_scores_must_be_those_of_the_case(
    tmp_path: Path, models: WarmModels, behaviour: str, expected: tuple[float, ...], ok: bool
) -> None:
    contract = scored(tmp_path / "m", behaviour, *expected)
    assert (check.check(contract, models).admission.refusal == "") is ok, results_of(contract)


def test_a_model_whose_numbers_drift_when_the_patient_is_stored_otherwise_is_not_let_in(
    tmp_path: Path, models: WarmModels
) -> None:
    bright = head().voxels > 50
    given = {bright[:, :, :3].mean(), bright[:, :, 3:].mean(), bright[:3].mean()}
    outcomes = []
    for number, expected in enumerate(given):
        contract = scored(tmp_path / str(number), FIRST_HALF, float(expected))
        check.check(contract, models)
        outcomes.append(results_of(contract)[1])
    assert any(each["as given"] for each in outcomes), "one of them is what the network sees first"
    assert not any(all(each.values()) for each in outcomes)


def test_masks_that_overlap_are_compared_one_by_one(tmp_path: Path, models: WarmModels) -> None:
    both = "torch.cat([y, torch.ones_like(y)], 1)"
    contract = loaded(write_segmenter(tmp_path / "m", both, oriented=True, contract=OVERLAPPING))
    bright = (head().voxels > 50).astype(np.uint8)
    for name, masks in {"right": [bright, bright * 0 + 1], "wrong": [bright, bright]}.items():
        golden.write_case(tmp_path / "m/golden" / name, case_of(head(), np.array(masks)))
    contract = loaded(contract.contract_file)
    check.check(contract, models)
    found, _ = results_of(contract)
    outcomes = {(each.case, each.ok) for each in found.cases if each.variant != check.AGAIN}
    assert outcomes == {("right", True), ("wrong", False)}, found.cases
    series = make_series(tmp_path / "s", voxels=head().voxels.astype(np.int16))
    frozen = golden.read_case(check.freeze(contract, models, "frozen", {"image": series}, "MR"))
    assert frozen.labels is not None
    assert frozen.labels.shape == (2, *head().voxels.shape)


def test_segments_on_pictures_are_compared_picture_by_picture(tmp_path: Path, models: WarmModels) -> None:
    """In the order of their numbers, whatever their files are called."""
    pictures = CONTRACT.replace('key = "image"', 'key = "image"\nkind = "pictures"').replace('"MR"', '"DX"')
    contract = loaded(write_segmenter(tmp_path / "m", "y", oriented=False, contract=pictures))
    drawn = np.zeros((2, 6, 9), np.uint8)
    drawn[0, 1:4, 2:8], drawn[1, 5, 0:3] = 1, 1
    for name, labels in {"right": drawn, "wrong": drawn[::-1], "fewer": drawn[:1]}.items():
        case = tmp_path / "m/golden" / name
        (case / "dicom").mkdir(parents=True)
        for number, frame in enumerate(drawn, start=1):
            image(case / "dicom", (frame * 90).astype(np.uint16), name=str(number), Modality="DX")
        (case / "dicom/1.dcm").rename(case / "dicom/z.dcm")
        np.savez(case / "labels.npz", labels=labels)
        inputs = '[[inputs]]\nkey = "image"\nfiles = "dicom"\n'
        (case / "case.toml").write_text(f'{inputs}\n[expected]\nlabels = "labels.npz"\n')
    contract = loaded(contract.contract_file)
    check.check(contract, models)
    found, _ = results_of(contract)
    assert {(each.case, each.ok) for each in found.cases if each.variant == "as given"} == {
        ("right", True),
        ("wrong", False),
        ("fewer", False),
    }
