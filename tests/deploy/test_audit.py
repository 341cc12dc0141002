"""What the audit sees in a bundle, and that it runs nothing of it."""

import json
import os
import pickle
import zipfile
from collections import OrderedDict
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from meddaemon.config.contracts import BUILTIN_DIRECTORY
from meddaemon.deploy.audit import Kind, audit
from tests.inference.toy_bundle import CONFIG


def bundle(folder: Path, config: object, **scripts: str) -> Path:
    (folder / "configs").mkdir(parents=True)
    loader = {"_target_": "LoadImaged", "keys": "image"}
    prepared = {"preprocessing": {"_target_": "Compose", "transforms": [loader]}}
    text = json.dumps({**prepared, **config}) if isinstance(config, dict) else str(config)
    (folder / "configs/inference.json").write_text(text)
    (folder / "models").mkdir()
    for name, code in scripts.items():
        (folder / "scripts").mkdir(exist_ok=True)
        (folder / "scripts/__init__.py").touch()
        (folder / f"scripts/{name}.py").write_text(code)
    return folder


def found(folder: Path) -> list[tuple[str, str]]:
    return [(each.kind.value, each.said) for each in audit(folder)]


DECLARATIVE = {
    "imports": ["$import torch", "$import numpy as np", "$from monai.networks.nets import UNet"],
    "bundle_root": ".",
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "network_def": {"_target_": "UNet", "spatial_dims": 3, "channels": [4, 8]},
    "network": "$@network_def.to(@device)",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": "$@first + [monai.transforms.EnsureTyped()]",
    },
    "first": [{"_target_": "monai.transforms.LoadImaged", "keys": "image"}],
    "scale": {"_target_": "torch.nn.Softmax", "dim": "$len(@first) if @scale_it else int(np.prod([1, 2]))"},
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [96, 96, 96], "overlap": "$max(0.5, 0.25)"},
    "names": "$[str(x).zfill(3) for x in range(3)] + list(map(lambda y: y.name, @first))",
    "handlers": [{"_target_": "CheckpointLoader", "load_path": "$@bundle_root + '/models/model.pt'"}],
    "evaluator": {"_target_": "SupervisedEvaluator", "val_handlers": "@handlers", "decollate": "$torch.nn.Identity()"},
    "macro": "%train.json::network_def",
}


def test_a_bundle_that_only_declares_has_nothing_to_tell(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "a", DECLARATIVE)
    (folder / "configs/metadata.json").write_text(json.dumps({"name": "$not evaluated"}))
    (folder / "models/model.pt").write_bytes(torch_file(pickle.dumps(OrderedDict(weight=1.0))))
    assert found(folder) == []
    assert found(bundle(tmp_path / "b", CONFIG, toy="import torch\nimport math\nfrom . import other\n")) == []


def test_the_model_that_we_bring_reaches_only_for_the_package_that_has_its_weights() -> None:
    said = found(BUILTIN_DIRECTORY / "brain_volume")
    assert [text for _, text in said] == ["scripts/weights.py:3: imports importlib.metadata"]


@pytest.mark.fault(171)
@pytest.mark.parametrize(
    ("expression", "what"),
    [
        ("$import os", "imports os"),
        ("$from os import system as plus", "imports os.system"),
        ("$__import__('os').system('id')", "uses __import__"),
        ("$eval('__imp' + 'ort__(\"os\")')", "uses eval"),
        ("$exec(open('x').read())", "uses exec"),
        ("$getattr(torch, 'o' + 's')", "uses getattr"),
        ("$torch.os.system('id')", "torch.os.system"),
        ("$np.core.sys.modules", "np.core.sys.modules"),
        ("$().__class__.__bases__[0].__subclasses__()", "uses __subclasses__"),
        ("$torch.__dict__['os']", "uses __dict__"),
        ("$vars(torch)['os']", "uses vars"),
        ("$type('x', (), {})", "uses type"),
        ("$subprocess.run(['id'])", "uses subprocess"),
        ("$[f for f in (lambda: open)()]", "uses open"),
        ("$torch.hub.load('a/b', 'c')", "torch.hub.load"),
        ("$torch.load('x.pt', weights_only=False)", "torch.load"),
        ("$np.load('x.npy', allow_pickle=True)", "np.load"),
        ("$numpy.ctypeslib.load_library('x', '.')", "numpy.ctypeslib.load_library"),
        ("$monai.bundle.download('x')", "monai.bundle.download"),
        ("$monai.utils.optional_import('os')", "monai.utils.optional_import"),
        ("$monai.utils.misc.run_cmd(['id'])", "monai.utils.misc.run_cmd"),
        ("$torch.multiprocessing.spawn", "torch.multiprocessing.spawn"),
        ("$torch._C._abort()", "torch._C._abort"),
        ("$torch.ops.load_library('x.so')", "torch.ops.load_library"),
        ("$builtins.eval('1')", "uses builtins"),
    ],
)
def test_an_expression_that_leaves_is_told_and_not_run(tmp_path: Path, expression: str, what: str) -> None:
    said = found(bundle(tmp_path / "a", {"run": [expression]}))
    assert any(kind == "leaves" and what in text for kind, text in said), said
    assert all(text.startswith("configs/inference.json:run::0: ") for _, text in said)


def test_the_use_of_an_import_is_told_wherever_it_is(tmp_path: Path) -> None:
    config = {"imports": ["$import os as tidy", "$from shutil import rmtree"], "a": {"b": "$tidy.path.join('a')"}}
    said = [text for _, text in found(bundle(tmp_path / "a", {**config, "c": "$rmtree('/')"}))]
    assert "configs/inference.json:a::b: uses os.path.join, in \"$tidy.path.join('a')\"" in said
    assert "configs/inference.json:c: uses shutil.rmtree, in \"$rmtree('/')\"" in said


@pytest.mark.fault(171)
@pytest.mark.parametrize(
    ("target", "what"),
    [
        ("os.system", "os.system"),
        ("subprocess.check_output", "subprocess.check_output"),
        ("builtins.eval", "builtins.eval"),
        ("torch.os.system", "torch.os.system"),
        ("torch.utils.cpp_extension.load", "torch.utils.cpp_extension.load"),
        ("monai.bundle.run", "monai.bundle.run"),
        ("$__import__('os').system", "uses __import__"),
    ],
)
def test_a_target_that_leaves_is_told_and_not_called(tmp_path: Path, target: str, what: str) -> None:
    said = found(bundle(tmp_path / "a", {"x": {"y": {"_target_": target, "command": "touch /tmp/never"}}}))
    assert [kind for kind, text in said if what in text] == ["leaves"], said


def test_nothing_is_run_or_imported_while_it_is_looked_at(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    touch = f"open({str(witness)!r}, 'w')"
    config = {"imports": ["$import scripts.evil"], "initialize": [f"${touch}"], "run": f"$__import__('os') or {touch}"}
    folder = bundle(tmp_path / "a", config, evil=touch, __init__=touch)

    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {witness}",)

    (folder / "models/model.pt").write_bytes(pickle.dumps(Payload()))
    said = found(folder)
    assert not witness.exists()
    assert ("hostile", "models/model.pt: the pickle calls posix.system, which no weights need") in said
    assert any("uses open" in text and text.startswith("scripts/evil.py:1") for _, text in said)


@pytest.mark.parametrize(
    ("code", "line", "what"),
    [
        ("import torch\nimport socket\n", 2, "imports socket"),
        ("from urllib import request\n", 1, "imports urllib.request"),
        ("x = 1\n\nexec('1')\n", 3, "uses exec"),
        ("import torch\ntorch.os.getcwd()\n", 2, "torch.os.getcwd"),
        ("import numpy as n\nn.load('x', allow_pickle=True)\n", 2, "numpy.load"),
        ("def f(x):\n    return x.__globals__\n", 2, "uses __globals__"),
        ("from torch import hub\n", 1, "torch.hub"),
        ("from monai.bundle import download as x\n", 1, "monai.bundle.download"),
        ("import monai.bundle as b\nb.load('x')\n", 2, "monai.bundle.load"),
    ],
)
def test_a_script_that_leaves_is_told_with_its_line(tmp_path: Path, code: str, line: int, what: str) -> None:
    said = found(bundle(tmp_path / "a", {}, own=code))
    assert any(text.startswith(f"scripts/own.py:{line}: ") and what in text for _, text in said), said


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "a", "{ not json", broken="def (:\n")
    (folder / "configs/deep.json").write_text("[" * 5000 + "]" * 5000)
    (folder / "configs/other.json").write_text(json.dumps({"a": "$this is no expression"}))
    said = found(folder)
    assert sorted(kind for kind, _ in said) == ["cannot run", *["unreadable"] * 4], said


def test_what_cannot_run_is_told_by_name(tmp_path: Path) -> None:
    config = {
        "imports": ["$import no_such_package_here"],
        "network": {"_target_": "another_package.Net"},
    }
    folder = bundle(tmp_path / "a", config)
    cannot = [text.partition(": ")[2] for kind, text in found(folder) if kind == Kind.CANNOT_RUN]
    assert sorted(cannot) == [
        "the bundle needs the package another_package",
        "the bundle needs the package no_such_package_here",
    ]
    slides = bundle(tmp_path / "c", {"reader": {"_target_": "monai.data.WSIReader"}})
    assert [text for kind, text in found(slides) if kind == "cannot run"] == [
        "configs: the bundle works on whole-slide images, which are no DICOM series here"
    ]
    without = bundle(tmp_path / "b", {"preprocessing": {"_target_": "Compose"}})
    assert [text for _, text in found(without)] == [
        "configs: the bundle takes no image: there is no LoadImage in its configuration"
    ]


# --- pickles --------------------------------------------------------------------------------------------------------


def torch_file(pickled: bytes) -> bytes:
    """A file as torch writes it since 1.6: a zip with a pickle in it."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        opened.writestr("archive/data.pkl", pickled)
        opened.writestr("archive/data/0", b"\x00" * 64)
    return buffer.getvalue()


def by_stack(module: bytes, name: bytes) -> bytes:
    """Protocol 4 by hand: module and name as texts on the stack, called without arguments."""
    return b"\x80\x04\x8c" + bytes([len(module)]) + module + b"\x8c" + bytes([len(name)]) + name + b"\x93)R."


HIDDEN = {
    "by its name": b"cos\nsystem\n(S'id'\ntR.",
    "by the stack": by_stack(b"os", b"system"),
    "behind what is dropped": b"\x80\x04\x8c\x02os\x8c\x06system\x8c\x0bcollections\x8c\x0bOrderedDict00\x93)R.",
    "out of the memo": b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94000h\x00h\x01\x93)R.".replace(b"000", b"00"),
    "in a second pickle": b"\x80\x02K\x01.cos\nsystem\n(S'id'\ntR.",
    "by an instance": b"(S'id'\nios\nsystem\n.",
    "by an extension": b"\x82\x01.",
    "as getattr": b"cbuiltins\ngetattr\n.",
    "as a tool of MONAI": b"cmonai.utils.misc\nrun_cmd\n(S'id'\ntR.",
}


@pytest.mark.fault(169)
@pytest.mark.parametrize("name", HIDDEN)
def test_a_pickle_that_calls_for_more_than_weights_is_hostile(tmp_path: Path, name: str) -> None:
    raw, packed = bundle(tmp_path / "a", {}), bundle(tmp_path / "b", {})
    (raw / "models/model.pkl").write_bytes(HIDDEN[name])
    assert [kind for kind, _ in found(raw)] == ["hostile"], name
    if name != "in a second pickle":
        (packed / "models/model.pt").write_bytes(torch_file(HIDDEN[name]))
        assert [kind for kind, _ in found(packed)] == ["hostile"], name


@pytest.mark.fault(169)
def test_arrays_of_pickled_objects_are_hostile(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "a", {})
    np.save(folder / "models/points.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(folder / "models/points.npz", x=np.array([{"a": 1}], dtype=object))
    np.savez(folder / "models/sound.npz", x=np.zeros(3))
    assert [each.file for each in audit(folder)] == ["models/points.npy", "models/points.npz"]


def test_weights_as_torch_writes_them_are_plain(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    folder = bundle(tmp_path / "a", {})
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.BatchNorm3d(2))
    torch.save(network.state_dict(), folder / "models/model.pt")
    torch.save({"model": network.state_dict(), "epoch": 3, "best": np.float64(0.5)}, folder / "models/full.pt")
    torch.save(network.state_dict(), folder / "models/old.pt", _use_new_zipfile_serialization=False)
    torch.save(network, folder / "models/module.pt")
    torch.jit.save(torch.jit.trace(network, torch.zeros(1, 1, 4, 4, 4)), folder / "models/model.ts")
    assert found(folder) == []


@pytest.mark.shared
def test_real_bundles_are_as_they_were_found_to_be(shared_dicom: Path) -> None:
    """They look for their DICOM files with glob and os, and for nothing else."""
    folders = sorted((shared_dicom.parent / "weights/bundles").iterdir())
    assert folders
    for folder in folders:
        leaving = {text.partition(": ")[2].partition(",")[0] for _, text in found(folder)}
        assert leaving == {"imports glob", "imports os"}, folder.name
