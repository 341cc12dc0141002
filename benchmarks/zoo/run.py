"""Runs one bundle of the zoo in this process: `python -m benchmarks.zoo.run ZOO NAME SCRATCH`. Prints JSON."""

import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import TopologySearch

from benchmarks.zoo.cases import CASES, Case
from meddaemon.domain.errors import MeddaemonError
from meddaemon.domain.result import Prediction
from meddaemon.inference.bundles.edges import replace_edges
from meddaemon.inference.bundles.kinds import obstacles
from meddaemon.inference.bundles.reading import read_bundle
from meddaemon.inference.bundles.session import Session, load
from meddaemon.inference.bundles.shims import apply_shims
from meddaemon.inference.bundles.weights import Checkpoint, Witness

SEED = 20261121


def main() -> int:
    zoo, name, scratch = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    warnings.simplefilter("ignore")
    row: dict[str, Any] = {"name": name}
    try:
        _run(zoo / name, scratch, row)
    except Exception as error:  # noqa: BLE001 - whatever a bundle raises is its row of the table
        first: BaseException = error
        while first.__cause__ is not None and not isinstance(first, MeddaemonError):
            first = first.__cause__
        row["error"] = f"{type(first).__name__}: {first}".replace("\n", " ")[:300]
    row["peak_mb"] = round(_peak_mb())
    sys.stdout.write(f"\n{json.dumps(row)}\n")
    return 0


def _run(source: Path, scratch: Path, row: dict[str, Any]) -> None:
    bundle = scratch / "bundle"
    shutil.copytree(source, bundle)
    own = scratch / "scratch"
    own.mkdir()
    for entry in bundle.iterdir():
        (own / entry.name).symlink_to(entry)
    os.chdir(own)
    case = CASES.get(source.name)
    if case is None:
        row["error"] = "; ".join(obstacles(read_bundle(bundle))) or "no case"
        return
    terms = case.terms
    if case.changes:
        (bundle / "configs/zoo.json").write_text(json.dumps(case.changes))
        terms = replace(terms, configs=("zoo.json",))
    _make_weights(bundle, own, terms.configs)
    started = time.perf_counter()
    session = load(bundle, scratch=own, terms=terms, device="cpu")
    row["load"] = time.perf_counter() - started
    row["mode"] = session.provenance["mode"]
    row["shims"] = session.provenance.get("shims", "")
    inputs = case.inputs()
    channels: list[int] = []
    hooks = [
        each.register_forward_hook(lambda _module, _inputs, output: channels.append(_channels(output)))
        for each in [session.network]
        if isinstance(each, torch.nn.Module)
    ]
    session.predict(inputs)
    for hook in hooks:
        hook.remove()
    started = time.perf_counter()
    prediction = session.predict(inputs)
    row["warm"] = time.perf_counter() - started
    row["result"] = _said(prediction)
    row["grid"] = _grid(prediction, inputs)
    if case.oracle:
        row["oracle"] = _oracle(session, case, inputs, channels[0])


def _make_weights(bundle: Path, scratch: Path, configs: tuple[str, ...]) -> None:
    """Write seeded random weights where the bundle expects its own, which are not in the repository of the zoo."""
    sys.path.insert(0, str(bundle))
    (bundle / "models").mkdir(exist_ok=True)
    for text in (bundle / "configs").glob("inference.*"):
        if "search_code_18590" in text.read_text():
            torch.manual_seed(SEED)
            found = TopologySearch(channel_mul=0.5, num_blocks=12, num_depths=4, use_downsample=True, device="cpu")
            node, code_a, code_c, _ = found.decode()
            state = {"node_a": node, "arch_code_a": code_a, "arch_code_c": code_c}
            torch.save(state, bundle / "models/search_code_18590.pt")
    reading = read_bundle(bundle, configs)
    if problems := obstacles(reading):
        raise MeddaemonError("; ".join(problems))
    apply_shims(reading)
    edges = replace_edges(reading.config, bundle=bundle, scratch=scratch, device="cpu")
    parser = ConfigParser(reading.config)
    torch.manual_seed(SEED)
    with Witness().watching():
        for at in edges.checkpoints:
            # Switched off where its file is not there yet.
            parser[at].pop("_disabled_", None)
        for at in edges.checkpoints:
            checkpoint = parser.get_parsed_content(at)
            if isinstance(checkpoint, Checkpoint):
                checkpoint.path.parent.mkdir(exist_ok=True)
                torch.save({key: each.state_dict() for key, each in checkpoint.targets.items()}, checkpoint.path)


class Oracle(torch.nn.Module):
    """A network that sees the bodies: class 1 of every voxel that is brighter than half way."""

    def __init__(self, channels: int, threshold: float, *, everywhere: bool) -> None:
        super().__init__()
        self.channels = channels
        self.everywhere = everywhere
        self.threshold = threshold

    def forward(self, image: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        inside = ((image[:, :1] > self.threshold).float() * 2 - 1) * 10
        if self.channels == 1 or self.everywhere:
            return inside.repeat(1, self.channels, *[1] * (image.ndim - 2))
        outside = -inside
        rest = torch.full_like(inside, -20).expand(-1, self.channels - 2, *[-1] * (image.ndim - 2))
        return torch.cat([outside, inside, rest], dim=1)


def _oracle(session: Session, case: Case, inputs: Mapping[str, Any], channels: int) -> float:
    prepared = session.prepare(inputs)
    data = prepared.items[0].data
    image = data["image"] if isinstance(data, Mapping) else data
    values = image[0]
    network = Oracle(channels, float(values.min() + values.max()) / 2, everywhere=case.sigmoid)
    prediction = replace(session, network=network).infer(prepared)
    assert case.truth is not None
    truth = case.truth()
    drawn = prediction.labels if prediction.labels is not None else np.any(prediction.masks, axis=0)
    found = np.asarray(drawn).reshape(truth.shape) > 0
    return float(2 * np.count_nonzero(found & truth) / (np.count_nonzero(found) + np.count_nonzero(truth)))


def _channels(output: Any) -> int:
    return int(output.shape[1]) if isinstance(output, torch.Tensor) else 0


def _said(prediction: Prediction) -> str:
    if prediction.labels is not None:
        return f"{len(np.unique(prediction.labels)) - 1} labels"
    if prediction.masks is not None:
        return f"{len(prediction.masks)} masks"
    if prediction.scores:
        return f"{len(prediction.scores)} scores"
    return f"{len(prediction.landmarks)} points" if prediction.landmarks else f"{len(prediction.boxes)} boxes"


def _grid(prediction: Prediction, inputs: Mapping[str, Any]) -> str:
    first = next(iter(inputs.values()))
    expected = first.voxels.shape if hasattr(first, "voxels") else first.frames.shape[:3]
    drawn = prediction.labels if prediction.labels is not None else prediction.masks
    if drawn is None:
        return "–"
    return "exact" if drawn.shape[-len(expected) :] == tuple(expected) else f"{drawn.shape}"


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    sys.exit(main())
