"""Bundles in every way that they are written, what old ones need, and what cannot run, said by name."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_factory import (
    ARGMAX,
    CHANNEL,
    EVALUATOR,
    INVERT,
    LOAD,
    LOADER,
    RAS,
    SAVE,
    SOFTMAX,
    config,
    make_volume,
    phantom,
    rotation,
    saved,
    steps,
    write_bundle,
)

from meddaemon.domain.errors import ModelFailed
from meddaemon.inference.bundles.kinds import obstacles
from meddaemon.inference.bundles.reading import Metadata, read_bundle
from meddaemon.inference.bundles.shims import apply_shims

torch = pytest.importorskip("torch")
session = pytest.importorskip("meddaemon.inference.bundles.session")
Terms = pytest.importorskip("meddaemon.inference.bundles.terms").Terms

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("own_code_of_one_bundle")]


def runs(folder: Path, scratch: Path, **agreed: Any) -> Any:
    """Load the bundle, and check that it finds the bodies of the phantom."""
    volume = phantom(rotation(9))
    loaded = session.load(folder, scratch=scratch, terms=Terms(segments=(1,), **agreed))
    assert np.array_equal(loaded.predict({"image": volume}).labels, volume.voxels > 50)
    return loaded


LISTS = {
    "first": [LOAD, CHANNEL],
    "second": [RAS],
    "preprocessing": {"_target_": "Compose", "transforms": "$@first + @second"},
}
TWO_LOADERS = [
    {**LOAD, "_disabled_": "@raw"},
    {**LOAD, "_disabled_": "$not @raw", "reader": "itkreader", "affine_lps_to_ras": True},
    CHANNEL,
    {"_target_": "Lambdad", "keys": "image", "func": "$lambda x: x / 0", "_disabled_": "$not @raw"},
]

WRITTEN: dict[str, dict[str, Any]] = {
    "imports": config(checkpointloader=LOADER),
    "import": config(**{"imports": None, "import": ["$import os"], "checkpointloader": LOADER}),
    "no root": config(bundle_root=None, checkpointloader=LOADER),
    "a root elsewhere": config(bundle_root="/models/tiny", checkpointloader=LOADER),
    "lists put together": config(checkpointloader=LOADER, **LISTS),
    "two loaders, one switched off": config(checkpointloader=LOADER, raw=False, preprocessing=steps(*TWO_LOADERS)),
    "transforms in the dataset alone": config(
        checkpointloader=LOADER,
        preprocessing=None,
        dataset={"_target_": "CacheDataset", "data": "$1 / 0", "transform": steps(LOAD, CHANNEL, RAS)},
        postprocessing=steps(SOFTMAX, ARGMAX, SAVE),
    ),
    "a reader that is not installed": config(
        checkpointloader=LOADER, preprocessing=steps({**LOAD, "reader": "ITKReader"}, CHANNEL)
    ),
    "meta data beside the image": config(
        checkpointloader=LOADER,
        preprocessing=steps(
            {**LOAD, "image_only": False},
            CHANNEL,
            {"_target_": "CopyItemsd", "keys": "image_meta_dict", "names": "kept_meta"},
        ),
    ),
    "a label that is not there": config(
        checkpointloader=LOADER,
        preprocessing=steps({**LOAD, "keys": ["image", "label"]}, CHANNEL),
        postprocessing=steps(SOFTMAX, INVERT, ARGMAX, SAVE, {**SAVE, "keys": "label"}),
    ),
    "a CUDA device by name": config(
        checkpointloader={**LOADER, "map_location": "cuda:0"},
        postprocessing=steps(SOFTMAX, {**INVERT, "device": "cuda"}, ARGMAX),
        network="$@network_def.to(torch.device('cuda'))",
        preprocessing=steps(
            LOAD, CHANNEL, {"_target_": "ToDeviced", "keys": "image", "device": "$torch.device('cuda:0')"}
        ),
    ),
    "metrics and savers": config(
        checkpointloader=LOADER,
        evaluator={**EVALUATOR, "_requires_": "@device", "key_val_metric": {"mean": {"_target_": "ignite.no.Metric"}}},
        handlers=[{"_target_": "no.such.PredictionSaver"}, {"_target_": "SegmentationSaver"}],
    ),
    "a run of any name": config(checkpointloader=LOADER, run=None, evaluating=["$1 / 0", "$@evaluator.run()"]),
    "a side effect at the start": config(
        checkpointloader=LOADER,
        initialize=["$monai.utils.set_determinism(seed=123)", "$import json", "$setattr(torch, 'tiny_was_here', 1)"],
    ),
    "a loader in an expression": config(
        checkpointloader=LOADER,
        preprocessing=steps("$monai.transforms.LoadImaged(['image'], 'ITKReader', ensure_channel_first=True)", RAS),
    ),
    "a loader in its own code": config(
        checkpointloader=LOADER, preprocessing={"_target_": "scripts.net.preprocessing", "key": "image"}
    ),
    "no postprocessing": config(checkpointloader=LOADER, postprocessing=None),
    "a network_def only": config(
        network=None, checkpointloader={**LOADER, "load_dict": {"model": "@network_def"}}, evaluator=None
    ),
}


OWN_CODE = """
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged

def preprocessing(key):
    return Compose([LoadImaged(keys=key, reader="ITKReader"), EnsureChannelFirstd(keys=key)])
"""


@pytest.mark.parametrize("way", WRITTEN)
def test_a_bundle_runs_however_it_is_written(way: str, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b", WRITTEN[way], weights=saved, scripts={"net": OWN_CODE})
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    runs(folder, tmp_path / "scratch")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    if way == "a side effect at the start":
        assert vars(torch).pop("tiny_was_here") == 1


def test_yaml_is_read_as_json_is(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    folder = write_bundle(tmp_path / "b", config(checkpointloader=LOADER), weights=saved)
    (folder / "configs/inference.json").unlink()
    (folder / "configs/inference.yaml").write_text(yaml.safe_dump(config(checkpointloader=LOADER)))
    assert runs(folder, tmp_path).provenance["configuration"] == "inference.yaml"
    (folder / "configs/inference.yaml").write_text("a: !!python/object/apply:os.getcwd []")
    with pytest.raises(ModelFailed, match=r"inference\.yaml cannot be read"):
        read_bundle(folder)


def test_further_files_are_merged_as_monai_merges_them(tmp_path: Path) -> None:
    reads = pytest.importorskip("monai.bundle").ConfigParser.load_config_files
    folder = write_bundle(tmp_path / "b", config(handlers=[LOADER], list=[1], settings={"a": {"b": 1}}), weights=saved)
    over = {
        "imports": ["$import os"],
        "handlers#0#_disabled_": True,
        "+list": [2],
        "+settings": {"c": 3},
        "settings::a::b": 2,
        "network_def": "$torch.jit.load(@bundle_root + '/models/model.ts')",
        "evaluator#amp": False,
    }
    (folder / "configs/inference_trt.json").write_text(json.dumps(over))
    found = read_bundle(folder, ["inference_trt.json"])
    assert found.config == reads([str(folder / f"configs/{name}") for name in ("inference.json", "inference_trt.json")])
    from bundle_factory import above_50  # noqa: PLC0415

    torch.jit.save(torch.jit.script(above_50()), folder / "models/model.ts")
    loaded = runs(folder, tmp_path, configs=("inference_trt.json",))
    assert loaded.provenance["configuration"] == "inference.json + inference_trt.json"


def test_files_that_lie_beside_the_configuration_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundles open `./configs/...`, for which the child's folder has links to what is in the bundle."""
    content = config(checkpointloader=LOADER, setting="$__import__('json').load(open('./configs/extra.json'))['axes']")
    content["preprocessing"]["transforms"][2] = {**RAS, "axcodes": "@setting"}
    folder = write_bundle(tmp_path / "b", content, weights=saved)
    (folder / "configs/extra.json").write_text('{"axes": "SPL"}')
    (tmp_path / "scratch").mkdir()
    for entry in folder.iterdir():
        (tmp_path / "scratch" / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path / "scratch")
    runs(folder, Path.cwd())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "configs/inference.json").unlink(), r"none of inference\.json, inference\.yaml"),
        (lambda folder: (folder / "configs/inference.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "configs/inference.json").write_text("[" * 100_000), "cannot be read"),
        (lambda folder: (folder / "configs/inference.json").write_text("[]"), "not a mapping"),
        (lambda folder: (folder / "configs/inference.json").write_text('{"a": 1, "a": 2}'), "'a' stands twice"),
        (lambda folder: (folder / "configs/inference.json").write_text(" " * (2**24 + 1)), "more than"),
        (lambda folder: (folder / "configs/metadata.json").write_text('{"version": []}'), r"metadata\.json: version"),
        (lambda folder: shutil.move(folder / "configs/inference.json", folder / "configs/inference.txt"), "none of"),
    ],
)
def test_what_is_no_configuration_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b", config())
    change(folder)
    with pytest.raises(ModelFailed, match=message):
        read_bundle(folder)


def test_no_file_outside_the_bundle_is_merged(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b", config())
    (tmp_path / "outside.json").write_text("{}")
    with pytest.raises(ModelFailed, match="outside the bundle"):
        read_bundle(folder, ["../../outside.json"])
    with pytest.raises(ModelFailed, match=r"has no configs/inference_trt\.json"):
        read_bundle(folder, ["inference_trt.json"])
    (folder / "configs/more.json").write_text('{"no#such#place": 1}')
    with pytest.raises(ModelFailed, match="'no#such#place' names nothing"):
        read_bundle(folder, ["more.json"])


# --- what cannot run ------------------------------------------------------------------------------------------------

WHOLE_SLIDE = {**LOAD, "reader": {"_target_": "monai.data.WSIReader", "backend": "cucim"}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (config(preprocessing=steps(CHANNEL)), "takes no image"),
        (config(preprocessing=None, dataset=None, training=steps(LOAD)), "takes no image"),
        (config(preprocessing=steps(WHOLE_SLIDE, CHANNEL)), "whole-slide images"),
        (
            config(imports=["$import cellpose_of_nobody", "$from os import path"]),
            "needs the package cellpose_of_nobody",
        ),
        (config(network_def={"_target_": "segment_nothing.Net"}), "needs the package segment_nothing"),
        (config(initialize=["$import scripts", "$import no_such_tracker"]), "needs the package no_such_tracker"),
    ],
)
def test_what_cannot_run_here_says_why(content: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b", content, weights=saved, scripts={"net": ""})
    assert [reason for reason in obstacles(read_bundle(folder)) if message in reason]
    with pytest.raises(ModelFailed, match=message):
        session.load(folder, scratch=tmp_path)


def test_nothing_is_held_against_what_runs(tmp_path: Path) -> None:
    for way, content in WRITTEN.items():
        if "no.such" not in json.dumps(content):
            assert obstacles(read_bundle(write_bundle(tmp_path / way, content, scripts={"net": OWN_CODE}))) == [], way


# --- shims ----------------------------------------------------------------------------------------------------------


def test_old_bundles_get_what_they_were_made_with(tmp_path: Path) -> None:
    swin = {"_target_": "SwinUNETR", "img_size": 96, "in_channels": 1, "out_channels": 2}
    crop = {"_target_": "CropForegroundd", "keys": "image", "source_key": "image"}
    old = {"_target_": "AsChannelFirstd", "keys": "image"}
    no_channel = {"_target_": "AddChanneld", "keys": "image"}
    content = config(
        network_def={**swin, "pretrained": True},
        preprocessing=steps(LOAD, old, no_channel, crop, {**crop, "allow_smaller": False}),
        postprocessing=steps(ARGMAX, INVERT),
        product="$np.product([2, 3])",
    )
    reading = read_bundle(write_bundle(tmp_path / "old", content, metadata={"monai_version": "1.3.0"}))
    assert set(apply_shims(reading)) == {
        "swin_unetr_img_size",
        "ensure_channel_first",
        "crop_may_be_smaller",
        "no_pretrained_download",
        "labels_inverted_by_nearest",
        "numpy_names",
    }
    assert "img_size" not in reading.config["network_def"]
    assert reading.config["network_def"]["pretrained"] is False
    _, first, second, crops, told = reading.config["preprocessing"]["transforms"]
    assert (first["_target_"], first["channel_dim"]) == ("EnsureChannelFirstd", -1)
    assert (second["_target_"], second["channel_dim"]) == ("EnsureChannelFirstd", "no_channel")
    assert crops["allow_smaller"] is True
    assert told["allow_smaller"] is False
    assert np.product([2, 3]) == 6  # type: ignore[attr-defined]
    del np.product  # type: ignore[attr-defined]
    new = write_bundle(tmp_path / "new", config(preprocessing=steps(LOAD, crop)), metadata={"monai_version": "1.5.1"})
    assert apply_shims(read_bundle(new)) == ()


def test_versions_are_compared_by_number() -> None:
    assert Metadata(monai_version="1.4.0").made_before(1, 5)
    assert Metadata(monai_version="1.10.0").made_before(1, 5) is False
    assert Metadata(monai_version="0.9").made_before(1, 5)
    assert not Metadata(monai_version="").made_before(1, 5)
    assert not Metadata(monai_version="nightly").made_before(1, 5)


# --- networks -------------------------------------------------------------------------------------------------------

NETWORKS: dict[str, dict[str, Any]] = {
    "SwinUNETR": {
        "_target_": "SwinUNETR",
        "img_size": [32, 32, 32],
        "in_channels": 1,
        "out_channels": 2,
        "feature_size": 12,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 1, 1, 1],
        "norm_name": "batch",
    },
    "UNETR": {
        "_target_": "UNETR",
        "in_channels": 1,
        "out_channels": 2,
        "img_size": [32, 32, 32],
        "feature_size": 4,
        "hidden_size": 24,
        "mlp_dim": 24,
        "num_heads": 2,
    },
    "UNet": {
        "_target_": "UNet",
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 2,
        "channels": [4, 8],
        "strides": [2],
    },
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_every_family_compute_what_their_state_says(name: str, tmp_path: Path) -> None:
    pytest.importorskip("einops")
    parser = pytest.importorskip("monai.bundle").ConfigParser
    definition = {key: value for key, value in NETWORKS[name].items() if name != "SwinUNETR" or key != "img_size"}
    torch.manual_seed(7)
    network = parser({"network": definition}).get_parsed_content("network").eval()
    content = config(
        network_def=NETWORKS[name],
        checkpointloader=LOADER,
        preprocessing=steps(LOAD, CHANNEL),
        postprocessing=None,
        inferer={"_target_": "SlidingWindowInferer", "roi_size": [32, 32, 32], "overlap": 0},
    )
    folder = write_bundle(
        tmp_path / "b",
        content,
        weights=lambda models: torch.save({"model": network.state_dict()}, models / "model.pt"),
    )
    voxels = np.random.default_rng(1).normal(size=(32, 32, 32))
    loaded = session.load(folder, scratch=tmp_path, terms=Terms(segments=(1,)))
    with torch.no_grad():
        expected = network(torch.from_numpy(voxels.transpose().copy()).float()[None, None])[0].argmax(0).numpy()
    assert np.array_equal(loaded.predict({"image": make_volume(voxels)}).labels, expected.transpose())
    assert ("shims" in loaded.provenance) == (name == "SwinUNETR")


def test_a_bundle_is_judged_without_torch(tmp_path: Path) -> None:
    """`models add` and the worker ask what a bundle is; only the model's process may load torch for it."""
    folder = write_bundle(tmp_path / "b", config(checkpointloader=LOADER))
    asked = f"""
import sys
from pathlib import Path
from meddaemon.inference.bundles.kinds import obstacles
from meddaemon.inference.bundles.reading import read_bundle
from meddaemon.inference.bundles.terms import Terms
print(obstacles(read_bundle(Path({str(folder)!r}))), "torch" in sys.modules, "monai" in sys.modules)
"""
    said = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout.strip() == "[] False False"
