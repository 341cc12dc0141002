"""A MONAI bundle of a few lines whose network does what the brightest pixel of its input tells it to."""

import json
from pathlib import Path

from meddaemon.config.digest import bundle_digest
from meddaemon.domain.codes import Code
from meddaemon.domain.conditions import ALWAYS
from meddaemon.domain.contract import InputContract, ModelContract, SegmentContract

SOUND, RAISES, CRASHES, HANGS, TALKS, OTHER_GRID, LOOKS_ROUND, NOT_LABELS = range(101, 109)

NETWORK = """
import os, signal, sys, time
import torch

class Toy(torch.nn.Module):
    def forward(self, x):
        order = int(x.max())
        if order == 102:
            raise ValueError("the toy does not like this")
        if order == 103:
            os.kill(os.getpid(), signal.SIGSEGV)
        if order == 104:
            time.sleep(600)
        if order == 105:
            print("chatter " * 100_000)
            print("last words", file=sys.stderr)
            raise RuntimeError("talked enough")
        if order == 106:
            return x[..., 1:]
        if order == 107:
            import resource
            secrets = [name for name in os.environ if "SECRET" in name or name.startswith("MEDDAEMON_")]
            core = resource.getrlimit(resource.RLIMIT_CORE)[0]
            with open("written-here", "w") as file:
                file.write("x")
            raise RuntimeError(f"secrets={secrets} core={core} cwd={os.getcwd()} home={os.environ['HOME']}")
        if order == 108:
            return x * 0.3
        return (x > 50).float()
"""

CONFIG = {
    "imports": ["$import torch", "$from scripts.toy import Toy"],
    "bundle_root": ".",
    "output_dir": "$@bundle_root + '/eval'",
    "device": "$torch.device('cuda')",
    "network": "$Toy().to(@device)",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image", "reader": "ITKReader", "image_only": True},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {"_target_": "Orientationd", "keys": "image", "axcodes": "LIA"},
            {"_target_": "EnsureTyped", "keys": "image", "device": "@device"},
        ],
    },
    "inferer": {"_target_": "SimpleInferer"},
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {
                "_target_": "Invertd",
                "keys": "pred",
                "transform": "@preprocessing",
                "orig_keys": "image",
                "nearest_interp": True,
            },
            {"_target_": "SaveImaged", "keys": "pred", "output_dir": "/nonexistent/never/written"},
        ],
    },
}


def write_toy(folder: Path, network: str = NETWORK) -> ModelContract:
    """Write the bundle below `folder` and return its contract; `network` is the source of its class `Toy`."""
    (folder / "configs").mkdir(parents=True)
    (folder / "scripts").mkdir()
    (folder / "scripts/__init__.py").touch()
    (folder / "scripts/toy.py").write_text(network)
    (folder / "configs/inference.json").write_text(json.dumps(CONFIG))
    (folder / "configs/metadata.json").write_text(json.dumps({"name": "toy", "version": "1"}))
    contract_file = folder / "contract.toml"
    contract_file.write_text("")
    brain = Code(value="12738006", scheme="SCT", meaning="Brain")
    structure = Code(value="91723000", scheme="SCT", meaning="Anatomical Structure")
    return ModelContract(
        name="toy",
        title="Toy",
        version="1",
        manufacturer="nobody",
        bundle=folder,
        contract_file=contract_file,
        digest=bundle_digest(folder, contract_file, ()),
        inputs=(InputContract(key="image", series=ALWAYS),),
        output="pred",
        segments=(SegmentContract(label=1, name="Brain", category=structure, type=brain, colour=(1, 2, 3)),),
    )
