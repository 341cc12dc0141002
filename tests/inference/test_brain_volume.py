"""The built-in model: voxel for voxel what deepbet's own code gives, and only for T1-weighted heads."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.multival import MultiValue

from meddaemon.config.contracts import BUILTIN_DIRECTORY, load_contract
from meddaemon.domain.conditions import Attributes, Value
from meddaemon.domain.contract import ModelContract
from meddaemon.domain.result import ResultStatus
from meddaemon.domain.volume import Geometry, Volume
from meddaemon.inference.analysis import analyse
from meddaemon.inference.plan import RunPlan
from meddaemon.inference.runtime import ModelProcess
from meddaemon.inference.volume import assemble

CONTRACT = BUILTIN_DIRECTORY / "brain_volume/contract.toml"


@pytest.fixture(scope="module")
def contract() -> ModelContract:
    pytest.importorskip("deepbet")
    return load_contract(CONTRACT)


@pytest.fixture(scope="module")
def model(contract: ModelContract) -> Iterator[ModelProcess]:
    with ModelProcess(contract) as process:
        yield process


def by_deepbet(volume: Volume) -> tuple[np.ndarray, float]:
    """Mask [plane, row, column] and mL by deepbet's own code."""
    deepbet = pytest.importorskip("deepbet")
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(volume.voxels, volume.geometry.affine_ras)
    _, mask, millilitres = deepbet.BrainExtraction(no_gpu=True).run(image)
    return np.asarray(mask.dataobj).astype(np.uint8), float(millilitres)


@pytest.mark.shared
def test_a_real_head_agrees_with_deepbet_voxel_for_voxel(
    shared_dicom: Path, contract: ModelContract, model: ModelProcess
) -> None:
    paths = sorted((shared_dicom / "series/mr_brain_sag_anon").iterdir())
    prediction = model.predict({"image": paths}, time_limit=240)
    mask, millilitres = by_deepbet(assemble(paths))
    assert np.count_nonzero(prediction.labels != mask) == 0
    analysis = analyse(prediction, contract, entropy="run")
    assert analysis.status is ResultStatus.PLAUSIBLE
    # Six digits are kept of a measurement, so that SR, table and JSON say the same.
    assert analysis.findings[0].measurements[0].value == pytest.approx(millilitres, abs=0.005)
    assert analysis.findings[0].measurements[0].value == pytest.approx(1468.57, abs=0.01)


@pytest.mark.shared
def test_a_chest_forced_through_is_marked_implausible(
    shared_dicom: Path, contract: ModelContract, model: ModelProcess
) -> None:
    paths = sorted((shared_dicom / "series/ct_chest_P001").iterdir())
    analysis = analyse(model.predict({"image": paths}, time_limit=240), contract, entropy="run")
    assert analysis.status is ResultStatus.IMPLAUSIBLE
    assert "plausible are 700 to 2300 mL" in analysis.reason


def test_an_average_head_in_any_orientation_agrees_with_deepbet() -> None:
    """Runs both in this process on a synthetic head, laid out in the patient in two ways."""
    pytest.importorskip("deepbet")
    bundles = pytest.importorskip("meddaemon.inference.bundles.session")
    contract = load_contract(CONTRACT)
    session = bundles.load(contract.bundle, output=contract.output, weights=contract.weights, scratch=Path())
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in (60, 72, 66)), indexing="ij")
    radius = np.sqrt((axes[0] / 0.75) ** 2 + (axes[1] / 0.85) ** 2 + ((axes[2] - 0.1) / 0.7) ** 2)
    head = np.select([radius < 0.75, radius < 0.8, radius < 0.9, radius < 1], [500, 60, 20, 700], 0)
    head = (head + 40 * np.sin(9 * axes[0]) * np.cos(7 * axes[1])).clip(0).astype(np.float32)
    canonical = np.diag([3.0, 3.0, 3.0, 1.0])
    for order, flip in (((2, 1, 0), (0,)), ((1, 2, 0), (1, 2))):
        voxels, affine = head.transpose(order), canonical[:, [*order, 3]].copy()
        for axis in flip:
            voxels = np.flip(voxels, axis)
            affine[:3, 3] += affine[:3, axis] * (voxels.shape[axis] - 1)
            affine[:3, axis] *= -1
        planes, rows, columns = voxels.shape
        geometry = Geometry(
            shape=(planes, rows, columns),
            affine_lps=np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine,
            frame_of_reference_uid="1.2",
            sop_instance_uids=("1.3",) * planes,
            frame_numbers=tuple(range(1, planes + 1)),
        )
        volume = Volume(voxels=np.ascontiguousarray(voxels), geometry=geometry, series_instance_uid="1.4")
        mask, _ = by_deepbet(volume)
        assert mask.any()
        assert np.count_nonzero(session.predict({"image": volume}).labels != mask) == 0, (order, flip)
    # The last one again, with as little memory as it takes.
    frugal = RunPlan(window_batch=1, outputs_on_host=True, class_by_class=True)
    found = session.predict({"image": volume}, frugal)
    assert np.array_equal(found.labels, mask)
    assert "memory" in found.provenance


def test_an_empty_image_gives_an_empty_mask_not_an_error() -> None:
    pytest.importorskip("deepbet")
    bundles = pytest.importorskip("meddaemon.inference.bundles.session")
    contract = load_contract(CONTRACT)
    session = bundles.load(contract.bundle, output=contract.output, weights=contract.weights, scratch=Path())
    geometry = Geometry(
        shape=(8, 9, 10),
        affine_lps=np.eye(4),
        frame_of_reference_uid="1.2",
        sop_instance_uids=("1.3",) * 8,
        frame_numbers=tuple(range(1, 9)),
    )
    volume = Volume(voxels=np.zeros((8, 9, 10), np.float32), geometry=geometry, series_instance_uid="1.4")
    assert not session.predict({"image": volume}).labels.any()


# --- which series it takes ------------------------------------------------------------------------------------------


def attributes_of(paths: list[Path], contract: ModelContract) -> Attributes:
    """The distinct values of every attribute that the chooser looks at, as ingest describes a series."""
    keywords = contract.inputs[0].series.keywords()
    found: dict[str, list[Value]] = {keyword: [] for keyword in keywords}
    for path in paths:
        dataset = dcmread(path, stop_before_pixels=True, force=True)
        for keyword in keywords:
            raw = dataset.get(keyword)
            parts = [] if raw is None else list(raw) if isinstance(raw, MultiValue | list) else [raw]
            value = tuple(str(part) for part in parts if str(part))
            if value not in found[keyword]:
                found[keyword].append(value)
    return {keyword: tuple(values) for keyword, values in found.items()}


@pytest.mark.shared
def test_of_all_real_files_only_t1_weighted_heads_are_chosen(shared_dicom: Path, contract: ModelContract) -> None:
    groups: dict[str, list[Path]] = {}
    for path in sorted(shared_dicom.rglob("*")):
        if path.is_file() and path.suffix not in {".json", ".md", ".gz"}:
            relative = path.relative_to(shared_dicom)
            grouped = relative.parts[0] in {"series", "derived"} or len(relative.parts) > 2
            groups.setdefault(str(relative.parent if grouped else relative), []).append(path)
    chosen = [
        name
        for name, paths in groups.items()
        if contract.inputs[0].series.evaluate(attributes_of(paths, contract)).held
    ]
    # The small multi-frame files say that they are 3D T1 heads; what they lack is a geometry, which `assemble` says.
    assert [name for name in chosen if not name.startswith("multiframe/emri_small")] == ["series/mr_brain_sag_anon"]


MPRAGE: Mapping[str, tuple[str, ...]] = {
    "Modality": ("MR",),
    "ImageType": ("ORIGINAL", "PRIMARY", "M", "ND", "NORM"),
    "BodyPartExamined": ("BRAIN",),
    "StudyDescription": ("MR Brain",),
    "SeriesDescription": ("SAG MPRAGE",),
    "MRAcquisitionType": ("3D",),
    "ScanningSequence": ("GR", "IR"),
    "SequenceVariant": ("SK", "SP", "MP"),
    "RepetitionTime": ("2000",),
    "EchoTime": ("2.52",),
    "InversionTime": ("900",),
    "FlipAngle": ("9",),
}
TAKEN: dict[str, dict[str, tuple[str, ...]]] = {
    "as it is": {},
    "body part absent, study named": {"BodyPartExamined": ()},
    "body part absent, series named": {"BodyPartExamined": (), "StudyDescription": ()},
    "description absent, times tell": {"SeriesDescription": ()},
    "times absent, name tells": {"RepetitionTime": (), "EchoTime": (), "InversionTime": (), "FlipAngle": ()},
    "GE BRAVO": {
        "SeriesDescription": ("Ax BRAVO",),
        "ScanningSequence": ("GR",),
        "SequenceVariant": ("SS", "SP", "SK"),
        "RepetitionTime": ("8.2",),
        "EchoTime": ("3.2",),
        "InversionTime": ("450",),
        "FlipAngle": ("12",),
    },
    "Philips T1 TFE": {
        "SeriesDescription": ("T1W_3D_TFE",),
        "ScanningSequence": ("GR",),
        "SequenceVariant": ("MP",),
        "RepetitionTime": ("8.1",),
        "InversionTime": (),
        "FlipAngle": ("8",),
    },
    "hippocampus protocol": {"SeriesDescription": ("t1_mprage_hippocampus",)},
    "German": {"BodyPartExamined": (), "StudyDescription": ("MRT Schädel",), "SeriesDescription": ("t1_mpr_sag",)},
}
NOT_TAKEN: dict[str, dict[str, tuple[str, ...]]] = {
    "CT": {"Modality": ("CT",)},
    "localizer": {"ImageType": ("ORIGINAL", "PRIMARY", "M", "LOCALIZER")},
    "T2": {"SeriesDescription": ("t2_tse_tra",), "ScanningSequence": ("SE",), "EchoTime": ("98",)},
    "T2w": {"SeriesDescription": ("T2w_SPC",), "ScanningSequence": ("SE",), "EchoTime": ("400",)},
    "FLAIR": {"SeriesDescription": ("t2_flair_sag_3D",), "ScanningSequence": ("SE", "IR"), "EchoTime": ("390",)},
    "T1 FLAIR is not a volume": {"SeriesDescription": ("FLAIR T1",)},
    "time of flight": {"SeriesDescription": ("TOF_3D",), "RepetitionTime": ("21",), "InversionTime": ()},
    "susceptibility": {"SeriesDescription": ("SWI_Images",), "EchoTime": ("20",), "InversionTime": ()},
    "diffusion": {"SeriesDescription": ("ep2d_diff",), "ScanningSequence": ("EP",), "EchoTime": ("89",)},
    "ADC map": {"ImageType": ("DERIVED", "PRIMARY", "DIFFUSION", "ADC")},
    "phase image": {"ImageType": ("ORIGINAL", "PRIMARY", "P", "ND")},
    "T1 map": {"SeriesDescription": ("T1 map",)},
    "knee": {"BodyPartExamined": ("KNEE",), "StudyDescription": ("MR Knee",), "SeriesDescription": ("t1_vibe",)},
    "knee, body part absent": {
        "BodyPartExamined": (),
        "StudyDescription": ("MR Knee",),
        "SeriesDescription": ("t1_tse_cor",),
    },
    "liver, body part absent": {
        "BodyPartExamined": (),
        "StudyDescription": ("MR Abdomen",),
        "SeriesDescription": ("t1_vibe_dixon",),
    },
    "cervical spine in a head study": {"SeriesDescription": ("t1 sag c-spine",)},
    "nothing known": {
        "BodyPartExamined": (),
        "StudyDescription": (),
        "SeriesDescription": (),
        "ImageType": ("ORIGINAL", "PRIMARY"),
    },
}


def chosen_with(changes: Mapping[str, tuple[str, ...]], contract: ModelContract) -> bool:
    values = {keyword: (value,) for keyword, value in {**MPRAGE, **changes}.items()}
    return contract.inputs[0].series.evaluate(values).held


@pytest.mark.parametrize("name", TAKEN)
def test_t1_weighted_heads_are_taken(name: str, contract: ModelContract) -> None:
    assert chosen_with(TAKEN[name], contract)


@pytest.mark.parametrize("name", NOT_TAKEN)
def test_anything_else_is_left_alone(name: str, contract: ModelContract) -> None:
    assert not chosen_with(NOT_TAKEN[name], contract)


def test_the_bundle_finds_its_weights_without_us(contract: ModelContract, tmp_path: Path) -> None:
    """It is an ordinary MONAI bundle: its own config resolves to the files that the contract pins."""
    bundle = pytest.importorskip("monai.bundle")
    copy = shutil.copytree(contract.bundle, tmp_path / "bundle")
    parser = bundle.ConfigParser()
    parser.read_config(str(copy / "configs/inference.json"))
    parser.read_meta(str(copy / "configs/metadata.json"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(copy))
        assert [Path(each) for each in parser.get_parsed_content("weights")] == list(contract.weights)
