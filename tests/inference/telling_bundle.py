"""A toy bundle that tells what it does in a file, and waits for another one: its brightest voxel says what is to be."""

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from meddaemon.config.digest import bundle_digest
from meddaemon.domain.contract import ModelContract
from meddaemon.domain.result import Prediction
from meddaemon.inference.loading import Prepared
from meddaemon.inference.warm import WarmModels
from tests.dicom_factory import make_series
from tests.inference.toy_bundle import CONFIG, write_toy
from tests.queue_samples import wait_until

SOUND, WAITS, RAISES_BEFORE, CRASHES_BEFORE = range(101, 105)

SCRIPT = """
import os, signal, time
import torch
from monai.transforms import MapTransform

FOLDER = {folder!r}

def tell(said):
    with open(f"{{FOLDER}}/told", "a") as file:
        file.write(said + chr(10))

class Before(MapTransform):
    # What happens to an image before the network; its brightest voxel says what.
    def __call__(self, data):
        order = int(data["image"].max())
        open(f"before-{{order}}", "w").close()
        tell(f"preprocess {{order}}")
        if order == 103:
            raise ValueError("the toy does not like this")
        if order == 104:
            os.kill(os.getpid(), signal.SIGSEGV)
        return data

class Toy(torch.nn.Module):
    def forward(self, x):
        order = int(x.max())
        if not os.path.exists(f"before-{{order}}"):
            raise RuntimeError("what it wrote before is gone")
        open(f"during-{{order}}", "w").close()
        tell(f"infer {{order}}")
        while order == 102 and not os.path.exists(f"{{FOLDER}}/go"):
            time.sleep(0.01)
        tell(f"inferred {{order}}")
        return (x > 50).float()
"""


class Site:
    """A toy bundle that tells what it does, and warm models that may preprocess beside it."""

    def __init__(self, folder: Path, models: WarmModels) -> None:
        self.folder = folder
        self.models = models
        self.contract = self._bundle()

    @property
    def told(self) -> list[str]:
        file = self.folder / "told"
        return file.read_text().split("\n")[:-1] if file.exists() else []

    def inputs(self, order: int) -> dict[str, list[Path]]:
        voxels = np.zeros((3, 8, 8), np.int16)
        voxels[1, 2:5, 3:6] = 60
        voxels[1, 2, 3] = order
        return {"image": make_series(self.folder / f"series-{order}", voxels=voxels, seed=str(order))}

    def prepare(self, order: int) -> Prepared:
        return self.models.prepare(self.contract, self.inputs(order))

    def predict(self, prepared: Prepared) -> Prediction:
        with prepared:
            prediction = self.models.predict(self.contract, prepared)
        assert prediction.labels is not None
        assert prediction.labels.sum() == 9
        return prediction

    def go(self) -> None:
        (self.folder / "go").touch()

    def written(self) -> set[str]:
        """Return what lies in the scratch folders of this model that it wrote itself."""
        warm = self.models._processes[self.contract.digest]._warm
        assert warm
        return {path.name for path in warm._files()} - {path.name for path in warm._kept}

    @property
    def pid(self) -> int:
        pid = self.models._processes[self.contract.digest].pid
        assert pid
        return pid

    @contextmanager
    def running(self, *, beside: int) -> Iterator[tuple[Future[Prediction], Prepared]]:
        """Have one study inferred, which waits, and another one preprocessed beside it."""
        with ThreadPoolExecutor(1) as pool:
            waiting = self.prepare(WAITS)
            run = pool.submit(self.predict, waiting)
            wait_until(lambda: f"infer {WAITS}" in self.told, what="the first to be inferred")
            prepared = self.prepare(beside)
            wait_until(lambda: f"preprocess {beside}" in self.told, what="the second to be preprocessed")
            try:
                yield run, prepared
            finally:
                self.go()

    def _bundle(self) -> ModelContract:
        contract = write_toy(self.folder / "toy", SCRIPT.format(folder=str(self.folder)))
        content = json.loads(json.dumps(CONFIG))
        content["imports"].append("$from scripts.toy import Before")
        content["preprocessing"]["transforms"].append({"_target_": "$Before", "keys": "image"})
        (self.folder / "toy/configs/inference.json").write_text(json.dumps(content))
        return replace(contract, digest=bundle_digest(contract.bundle, contract.contract_file, ()))
