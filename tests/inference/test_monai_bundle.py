"""Bundles as they are published, on volumes in memory: the right voxels in the right place, or a refusal."""

from pathlib import Path

import numpy as np
import pytest
from dicom_factory import make_series

from meddaemon.domain.errors import ModelFailed
from meddaemon.domain.volume import Volume
from meddaemon.inference.volume import assemble

torch = pytest.importorskip("torch")
bundles = pytest.importorskip("meddaemon.inference.bundles.session")
images = pytest.importorskip("meddaemon.inference.bundles.images")
outputs = pytest.importorskip("meddaemon.inference.bundles.outputs")
MetaTensor = pytest.importorskip("monai.data").MetaTensor


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    return assemble(make_series(tmp_path_factory.mktemp("series"), orientation="oblique"))


@pytest.fixture(scope="module")
def head(shared_dicom: Path) -> Volume:
    return assemble(sorted((shared_dicom / "series/mr_brain_sag_anon").iterdir()))


@pytest.fixture(scope="module")
def reference(head: Volume, shared_dicom: Path) -> np.ndarray:
    """The deepbet mask of `head` that lies beside the series."""
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.as_closest_canonical(nibabel.load(shared_dicom / "ref/sag_anon_deepbet_mask.nii.gz"))
    to_reference = np.linalg.inv(image.affine) @ head.geometry.affine_ras
    indices = np.indices(head.voxels.shape).reshape(3, -1)
    found = np.rint(to_reference[:3, :3] @ indices + to_reference[:3, 3:]).astype(int)
    return np.asarray(image.dataobj)[tuple(found)].reshape(head.voxels.shape) > 0


def grid(volume: Volume) -> object:
    return images.Grid(shape=volume.voxels.shape[::-1], affine=images.image_affine(volume))


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other)))


def test_an_image_has_the_axes_and_the_place_of_its_volume(volume: Volume) -> None:
    image = images.as_image(volume)
    assert image.shape == volume.voxels.shape[::-1]
    assert image.dtype == torch.float32
    for plane, row, column in ((0, 0, 0), (4, 11, 9), (2, 3, 7)):
        assert image[column, row, plane] == volume.voxels[plane, row, column]
        lps = (volume.geometry.affine_lps @ [plane, row, column, 1])[:3]
        ras = (image.affine.numpy() @ [column, row, plane, 1])[:3]
        assert np.allclose(ras, lps * [-1, -1, 1])


def test_labels_come_back_in_the_order_of_the_volume(volume: Volume) -> None:
    labels = (volume.voxels > np.median(volume.voxels)).astype(np.float32)
    prediction = MetaTensor(
        torch.from_numpy(labels.transpose().copy())[None], affine=torch.from_numpy(images.image_affine(volume))
    )
    found = outputs.drawn(prediction, grid(volume)).labels
    assert found.dtype == np.uint8
    assert np.array_equal(found, labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image: image.as_tensor(), "does not know where it lies"),
        (lambda image: image[0, 0], "shape"),
        (lambda image: torch.cat([image, image]), "neither a map of labels nor one channel"),
        (lambda image: image + 0.5, "not labels"),
        (lambda image: image - 1, "not labels"),
        (lambda image: image + 70000, "not labels"),
    ],
)
def test_what_is_not_a_label_map_is_refused(volume: Volume, change: object, message: str) -> None:
    image = MetaTensor(
        torch.zeros((1, *volume.voxels.shape[::-1])), affine=torch.from_numpy(images.image_affine(volume))
    )
    with pytest.raises(ModelFailed, match=message):
        outputs.drawn(change(image), grid(volume))  # type: ignore[operator]


@pytest.mark.shared
def test_a_real_volume_is_what_monai_itself_reads(shared_dicom: Path, head: Volume) -> None:
    transforms = pytest.importorskip("monai.transforms")
    read = transforms.LoadImaged(keys="image", reader="PydicomReader")
    expected = read({"image": str(shared_dicom / "series/mr_brain_sag_anon")})["image"]
    found = images.as_image(head)
    assert torch.equal(found.as_tensor(), expected.as_tensor())
    assert np.allclose(found.affine, expected.affine, rtol=0, atol=1e-6)


def bundle(shared_dicom: Path, name: str) -> Path:
    folder = shared_dicom.parent / "weights/bundles" / name
    if not folder.is_dir():
        pytest.skip("no pretrained bundles beside this checkout")
    return folder


@pytest.mark.shared
def test_a_published_bundle_runs_unmodified(
    shared_dicom: Path, head: Volume, reference: np.ndarray, tmp_path: Path
) -> None:
    # Its postprocessing keeps the largest component, for which MONAI needs scikit-image.
    pytest.importorskip("skimage")
    folder = bundle(shared_dicom, "brain_mask_deepbet_coarse")
    before = sorted(folder.rglob("*"))
    session = bundles.load(folder, output="pred", scratch=tmp_path)
    prediction = session.predict({"image": head})
    assert prediction.labels.shape == head.voxels.shape
    assert dice(prediction.labels > 0, reference) == pytest.approx(0.978, abs=0.003)
    assert sorted(folder.rglob("*")) == before
    assert not list(tmp_path.iterdir())


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "labels", "agreement"),
    [
        ("brain_tissue_meshnet_tiny", 3, 0.84),
        pytest.param("brain_structures_meshnet", 18, 0.85, marks=[pytest.mark.soak, pytest.mark.timeout(1200)]),
    ],
)
def test_a_bundle_that_resamples_comes_back_to_the_source(
    shared_dicom: Path,
    head: Volume,
    reference: np.ndarray,
    tmp_path: Path,
    name: str,
    labels: int,
    agreement: float,
) -> None:
    session = bundles.load(bundle(shared_dicom, name), output="pred", scratch=tmp_path)
    prediction = session.predict({"image": head})
    assert len(np.unique(prediction.labels)) == labels
    assert dice(prediction.labels > 0, reference) > agreement
