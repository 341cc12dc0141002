"""How a network is carried out where its contract asks for another way than the bundle's."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_contract import toy_contract

torch = pytest.importorskip("torch")

from monai.inferers import SimpleInferer, SlidingWindowInferer  # noqa: E402
from monai.networks.nets import UNet  # noqa: E402

from meddaemon.domain.contract import Engine, EngineContract, Precision, WindowSize  # noqa: E402
from meddaemon.domain.errors import ModelFailed  # noqa: E402
from meddaemon.inference.bundles import engine  # noqa: E402
from meddaemon.inference.bundles.terms import Terms  # noqa: E402

CPU = torch.device("cpu")
needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="no OpenVINO here")


def network() -> Any:
    torch.manual_seed(5)
    made = UNet(spatial_dims=3, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,), norm="batch")
    return made.eval()


def carried(asked: EngineContract, given: Any, inferer: Any = None, folder: Path = Path()) -> engine.Carried:
    return engine.carried(asked, given, inferer or SimpleInferer(), device=CPU, scratch=folder, own_evaluator=False)


@pytest.mark.parametrize(
    ("asked", "largest"),
    [
        (EngineContract(channels_last=True), 1e-5),
        (EngineContract(engine=Engine.TORCHSCRIPT), 1e-5),
        (EngineContract(engine=Engine.TORCHSCRIPT, precision=Precision.BF16), 0.1),
        (EngineContract(precision=Precision.BF16, channels_last=True), 0.1),
        (EngineContract(precision=Precision.AMP), 0.1),
        pytest.param(EngineContract(engine=Engine.OPENVINO), 1e-4, marks=needs_openvino),
        pytest.param(EngineContract(engine=Engine.OPENVINO, precision=Precision.BF16), 0.1, marks=needs_openvino),
    ],
)
def test_a_network_says_nearly_the_same_in_every_engine(asked: EngineContract, largest: float) -> None:
    given = network()
    names = [name for name, _ in given.named_modules()]
    images = [torch.rand(2, 1, 16, 8, 12), torch.rand(1, 1, 8, 8, 8)]
    with torch.no_grad():
        wanted = [given(each) for each in images]
        ours = carried(asked, given)
        for image, as_shipped in zip(images, wanted, strict=True):
            for _ in range(2):
                found = ours.network(image)
                assert found.dtype == torch.float32
                assert float((found - as_shipped).abs().max()) <= largest
        assert all(part in ours.said for part in (*asked.changes, "CPU with ", "parity of 0.999"))
        # Explanations look for layers by name, and must see the network that can be differentiated.
        assert ours.network is given
        assert [name for name, _ in ours.network.named_modules()] == names
        with engine.as_shipped(ours.network) as shipped:
            assert torch.equal(shipped(images[0].contiguous()), wanted[0]) or asked.channels_last
        assert float((ours.network(images[0]) - wanted[0]).abs().max()) <= largest


def test_half_of_the_digits_is_seen_in_the_result() -> None:
    """Otherwise nothing was changed, and the gate would compare a bundle with itself."""
    given, image = network(), torch.rand(1, 1, 8, 8, 8)
    with torch.no_grad():
        wanted = given(image)
        assert not torch.equal(carried(EngineContract(precision=Precision.BF16), given).network(image), wanted)


def test_a_torchscript_network_is_wrapped() -> None:
    given, image = torch.jit.trace(network(), torch.rand(1, 1, 8, 8, 8)), torch.rand(1, 1, 8, 8, 8)
    with torch.no_grad():
        wanted = given(image)
        ours = carried(EngineContract(precision=Precision.BF16), given)
        assert 0 < float((ours.network(image) - wanted).abs().max()) < 0.1
        with engine.as_shipped(ours.network) as shipped:
            assert torch.equal(shipped(image), wanted)


def test_as_shipped_nothing_is_touched() -> None:
    given, inferer = network(), SlidingWindowInferer(roi_size=(8, 8, 8))
    ours = carried(EngineContract(parity=0.5), given, inferer)
    assert (ours.network, ours.inferer, ours.said) == (given, inferer, "")
    assert "forward" not in vars(given)
    assert engine.fitted_to(inferer, (4, 4, 4)) is inferer


@pytest.mark.parametrize(
    ("window", "extent", "fits"),
    [
        ((96, 96, 96), (256, 100, 64), (96, 96, 64)),
        ((96, 96, 96), (96, 33, 1), (96, 64, 32)),
        ((48, 40, 36), (40, 33, 13), (48, 40, 16)),
        ((7, 7, 7), (5, 7, 9), (5, 7, 7)),
        (64, (20, 80, 80), (32, 64, 64)),
        ((64, -1, None), (20, 20, 20), (32, -1, None)),
    ],
)
def test_a_window_is_fitted_in_steps_that_its_own_size_has(window: Any, extent: Any, fits: Any) -> None:
    inferer = SlidingWindowInferer(roi_size=window, mode="gaussian", cache_roi_weight_map=False)
    ours = carried(EngineContract(window=WindowSize.FITTED), network(), inferer).inferer
    assert ours is inferer
    assert isinstance(ours, SlidingWindowInferer)
    assert engine.fitted_to(ours, extent).roi_size == fits
    assert type(engine.fitted_to(ours, extent)) is SlidingWindowInferer
    assert ours.roi_size == window


def test_overlap_and_batch_are_those_of_the_contract() -> None:
    inferer = SlidingWindowInferer(roi_size=(8, 8, 8), overlap=0.5, sw_batch_size=4)
    ours = carried(EngineContract(overlap=0.25, window_batch=2), network(), inferer)
    assert (ours.inferer.overlap, ours.inferer.sw_batch_size) == (0.25, 2)
    assert "overlap 0.25, window batch 2" in ours.said


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (EngineContract(overlap=0.25), "overlap 0.25: the bundle has no sliding window, but a SimpleInferer"),
        (EngineContract(window=WindowSize.FITTED), "no sliding window"),
    ],
)
def test_what_the_bundle_has_no_place_for_is_refused(asked: EngineContract, said: str) -> None:
    with pytest.raises(ModelFailed, match=said):
        carried(asked, network())


def test_tensorrt_needs_a_bundle_that_ships_it_and_a_gpu(tmp_path: Path) -> None:
    asked = EngineContract(engine=Engine.TENSORRT)
    (tmp_path / "configs").mkdir()
    with pytest.raises(ModelFailed, match=r"ships none of configs/inference_trt.json"):
        engine.with_configs(asked, (), tmp_path, on_gpu=True)
    (tmp_path / "configs/inference_trt.json").write_text("{}")
    with pytest.raises(ModelFailed, match="there is no GPU"):
        engine.with_configs(asked, (), tmp_path, on_gpu=False)
    assert engine.with_configs(asked, ("a.json",), tmp_path, on_gpu=True) == ("a.json", "inference_trt.json")
    assert engine.with_configs(EngineContract(), ("a.json",), tmp_path, on_gpu=False) == ("a.json",)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(ModelFailed, match=r"pip install 'meddaemon\[openvino\]'"):
        carried(EngineContract(engine=Engine.OPENVINO), network())


@needs_openvino
def test_openvino_tells_nobody_that_it_is_used() -> None:
    carried(EngineContract(engine=Engine.OPENVINO), network())
    assert __import__("sys").modules["openvino_telemetry"] is None


def test_openvino_takes_networks_of_one_tensor_only() -> None:
    pytest.importorskip("openvino")
    ours = carried(EngineContract(engine=Engine.OPENVINO), network())
    with pytest.raises(ModelFailed, match="networks of one input, this one has 2"):
        ours.network(torch.rand(1, 1, 8, 8, 8), torch.rand(1))


def test_the_engine_reaches_the_child_as_it_was_written() -> None:
    asked = EngineContract(
        engine=Engine.OPENVINO,
        precision=Precision.BF16,
        channels_last=True,
        window=WindowSize.FITTED,
        overlap=0.25,
        window_batch=3,
        parity=0.9,
    )
    terms = Terms.of(toy_contract(engine=asked))
    assert Terms.from_message(terms.message()).engine == asked
    assert len(asked.changes) == 6
    assert EngineContract().changes == ()


def test_a_fitted_window_gives_what_padding_would_where_the_network_looks_no_further() -> None:
    """A network of single voxels: the windows that it is cut into change nothing."""
    given = torch.nn.Conv3d(1, 1, 1)
    inferer = SlidingWindowInferer(roi_size=(32, 32, 64), overlap=0.25)
    image = torch.from_numpy(np.random.default_rng(3).random((1, 1, 40, 64, 10), np.float32))
    with torch.no_grad():
        wanted = inferer(image, given)
        seen: list[tuple[int, ...]] = []
        watched = carried(EngineContract(window=WindowSize.FITTED), given, inferer).inferer
        found = watched(image, lambda window: (seen.append(tuple(window.shape[2:])), given(window))[1])
    assert set(seen) == {(32, 32, 32)}
    assert torch.allclose(wanted, found, atol=1e-6)
