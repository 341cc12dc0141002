"""Studies with results that the pipeline itself has published, without any model: what it said is made up."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.uid import Comprehensive3DSRStorage, SegmentationStorage
from queue_samples import claim, enqueue
from result_samples import geometry_of
from sqlalchemy import select

from meddaemon.config.settings import Settings
from meddaemon.db import tables
from meddaemon.db.engine import Database
from meddaemon.db.instances import path_of
from meddaemon.domain.contract import ModelContract
from meddaemon.domain.result import Box, Prediction
from meddaemon.domain.uids import derived_uid
from meddaemon.durable import Staging
from meddaemon.inference.pictures import read
from meddaemon.inference.warm import WarmModels
from meddaemon.ingest.part10 import read_part10
from meddaemon.pipeline import InferredJob, JobStages, PreparedJob
from meddaemon.roles.process import receiver_of, store_of
from tests.dicom_factory import make_series
from tests.inference.toy_bundle import write_toy
from tests.other_objects import image
from tests.running import Home
from tests.system.site import CONTRACT

MODELS = """
[models]
directories = ["models"]
enabled = ["toy", "chest", "nodules", "films"]

[worker]
sandbox = "off"
"""
CHEST = """
name = "chest"
title = "chest"
version = "1"
manufacturer = "nobody"
kind = "classification"
bundle = "."
output = "pred"

[[inputs]]
key = "image"
kind = "pictures"
series = { attribute = "Modality", equals = "DX" }

[[classes]]
name = "nodule"
finding = { value = "27925004", scheme = "SCT", meaning = "Nodule" }
group = "lung"

[[classes]]
name = "pneumonia"
finding = { value = "233604007", scheme = "SCT", meaning = "Pneumonia" }
group = "lung"

[[classes]]
name = "clear"
finding = { value = "17621005", scheme = "SCT", meaning = "Normal" }
group = "lung"

[[classes]]
name = "air"
finding = { value = "36118008", scheme = "SCT", meaning = "Pneumothorax" }
threshold = 0.5
"""
NODULES = """
name = "nodules"
title = "nodules"
version = "1"
manufacturer = "nobody"
kind = "detection"
bundle = "."
output = "pred"

[[inputs]]
key = "image"
series = { attribute = "Modality", equals = "CT" }

[[objects]]
label = 1
name = "nodule"
finding = { value = "27925004", scheme = "SCT", meaning = "Nodule" }
threshold = 0.1
"""
FILMS = """
name = "films"
title = "films"
version = "1"
manufacturer = "nobody"
bundle = "."
output = "pred"

[[inputs]]
key = "image"
kind = "pictures"
series = { attribute = "Modality", equals = "DX" }

[[segments]]
label = 1
name = "Lung"
category = { value = "91723000", scheme = "SCT", meaning = "Anatomical Structure" }
type = { value = "39607008", scheme = "SCT", meaning = "Lung" }
colour = [230, 159, 0]
measure = ["area"]

[output_limits]
may_be_empty = true
"""
SHAPE = (6, 12, 8)
SPACING = (2.0, 1.5, 1.25)


@dataclass
class Hospital:
    """A home with a database and a store, and models of which nobody asks anything."""

    home: Home
    database: Database
    stages: JobStages
    settings: Settings
    files: dict[str, list[Path]] = field(default_factory=dict)

    def contract(self, model: str) -> ModelContract:
        return self.settings.contracts[model]

    def study(self, name: str, *, orientation: str = "oblique") -> str:
        """Import a series of a study and return its Series Instance UID."""
        files = make_series(
            self.home.folder / "scanner" / name,
            planes=SHAPE[0],
            rows=SHAPE[1],
            columns=SHAPE[2],
            spacing=SPACING,
            orientation=orientation,
            seed=name,
            study=name,
            attributes={"FrameOfReferenceUID": derived_uid("frame", name)},
        )
        self._take(name, files)
        return str(dcmread(files[0], stop_before_pixels=True).SeriesInstanceUID)

    def uid(self, name: str) -> str:
        """Return the Study Instance UID of a study."""
        return str(dcmread(self.files[name][0], stop_before_pixels=True).StudyInstanceUID)

    def draw(self, name: str, labels: NDArray[np.uint8], **more: Any) -> int:
        """Publish that the toy drew labels on a study; return the number of its result."""
        geometry = geometry_of(self.files[name])
        prediction = Prediction(series_instance_uid=self._series(name), labels=labels, geometry=geometry)
        return self._publish("toy", self._study_id(self.uid(name)), prediction, self._stored(name), **more)

    def give_up(self, name: str, why: str) -> int:
        """Publish that a study was beyond what the toy was made for."""
        prediction = Prediction(series_instance_uid=self._series(name), beyond=why)
        return self._publish("toy", self._study_id(self.uid(name)), prediction, self._stored(name))

    def detect(self, name: str, boxes: Sequence[Box]) -> int:
        """Publish that the detector found boxes in a study."""
        geometry = geometry_of(self.files[name])
        prediction = Prediction(series_instance_uid=self._series(name), boxes=tuple(boxes), geometry=geometry)
        return self._publish("nodules", self._study_id(self.uid(name)), prediction, self._stored(name))

    def pictures(self, study: str, count: int = 1, **more: Any) -> list[tuple[str, int]]:
        """Import a study of radiographs and return the UID and frame of each."""
        folder = self.home.folder / "scanner" / study
        folder.mkdir(parents=True)
        names = [f"{study.removeprefix('1.2.')}.{number}" for number in range(1, count + 1)]
        said = {
            "StudyInstanceUID": study,
            "SeriesInstanceUID": f"{study}.1",
            "Modality": "DX",
            "PatientName": "Doe^Jane",
            **more,
        }
        pixels = np.zeros((64, 48), dtype=np.uint16)
        files = [
            image(folder, pixels, name=name, InstanceNumber=number, **said) for number, name in enumerate(names, 1)
        ]
        self._take(study, files)
        return [(f"1.2.3.{name}", 1) for name in names]

    def draw_on_pictures(self, study: str, labels: NDArray[np.uint8]) -> int:
        """Publish that the segmenter drew labels [image, row, column] on the images of a study."""
        grid = read(self.files[study]).grid
        prediction = Prediction(series_instance_uid=f"{study}.1", labels=labels, pictures=grid)
        return self._publish("films", self._study_id(study), prediction, self._stored(study))

    def detect_on_pictures(self, study: str, boxes: Sequence[Box]) -> int:
        """Publish that the detector found boxes on the radiographs of a study."""
        prediction = Prediction(series_instance_uid=f"{study}.1", boxes=tuple(boxes))
        return self._publish("nodules", self._study_id(study), prediction, self._stored(study))

    def classify(self, study: str, scores: tuple[float, ...], images: int = 1) -> list[tuple[str, int]]:
        """Publish what the classifier said of a study of radiographs, of each where there are several."""
        sources = self.pictures(study, images)
        each = tuple(sources) if images > 1 else ()
        prediction = Prediction(series_instance_uid=f"{study}.1", scores=scores, sources=each)
        self._publish("chest", self._study_id(study), prediction, self._stored(study))
        return sources

    def results(self, model: str) -> list[Any]:
        """Return the rows of the results of a model."""
        return [row for row in self.home.rows(tables.result) if row.model == model]

    def segmentation(self, result_id: int) -> Path:
        """Return the stored Segmentation of a result."""
        rows = [row for row in self.home.rows(tables.result_object) if row.result_id == result_id]
        seg = next(row for row in rows if row.sop_class_uid == SegmentationStorage)
        return path_of(self.settings.store.results, seg.sha256)

    def report(self, result_id: int) -> Path:
        """Return the stored report of a result."""
        rows = [row for row in self.home.rows(tables.result_object) if row.result_id == result_id]
        sr = next(row for row in rows if row.sop_class_uid == Comprehensive3DSRStorage)
        return path_of(self.settings.store.results, sr.sha256)

    def _take(self, name: str, files: list[Path]) -> None:
        store = store_of(self.settings, self.database)
        receiver = receiver_of(self.settings, self.database, store)
        for path in files:
            receiver.take(read_part10(path, calling_ae_title="IMPORT"))
        store.close()
        self.files[name] = files

    def _publish(self, model: str, study_id: int, prediction: Prediction, inputs: list[Path], **job: Any) -> int:
        contract = self.contract(model)
        job_id = enqueue(self.database, study_id, model=model, model_digest=contract.digest, **job)
        prepared = PreparedJob(contract=contract, inputs={"image": inputs}, ready=prediction)
        claimed = claim(self.database)
        assert claimed.id == job_id
        self.stages.publish(claimed, InferredJob(prepared=prepared, prediction=prediction))
        return int(next(row.id for row in self.home.rows(tables.result) if row.job_id == job_id))

    def _series(self, name: str) -> str:
        return str(dcmread(self.files[name][0], stop_before_pixels=True).SeriesInstanceUID)

    def _study_id(self, uid: str) -> int:
        with self.database.read() as connection:
            found = connection.execute(select(tables.study.c.id).where(tables.study.c.study_instance_uid == uid))
            return int(found.scalar_one())

    def _stored(self, name: str) -> list[Path]:
        """Return the files of a study as the store has them."""
        instances = self.settings.store.instances
        uids = [dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in self.files[name]]
        rows = {row.sop_instance_uid: row.sha256 for row in self.home.instances()}
        return [path_of(instances, rows[uid]) for uid in uids]


def found(folder: Path, scratch: WarmModels) -> Hospital:
    """Make a hospital in a folder."""
    write_toy(folder / "models" / "toy")
    limits = "plausible_volume_ml = { min = 0.001, max = 1000 }\n"
    empty = "\n[output_limits]\nmay_be_empty = true\n"
    toy = CONTRACT.format(time_limit=60).replace(limits, "") + empty
    (folder / "models" / "toy" / "contract.toml").write_text(toy)
    for name, text in (("chest", CHEST), ("nodules", NODULES), ("films", FILMS)):
        shutil.copytree(folder / "models" / "toy", folder / "models" / name)
        (folder / "models" / name / "contract.toml").write_text(text)
    home = Home.make(folder, MODELS)
    settings = home.settings
    database = Database(settings.database.url)
    staging = Staging(settings.store.results / "incoming")
    return Hospital(home, database, JobStages(database, settings, scratch, staging), settings)
