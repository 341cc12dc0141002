"""A whole small hospital for tests: a daemon with a toy model, and PACS that keep what they get."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from meddaemon.domain.errors import RefusedInstance
from meddaemon.ingest.receive import Incoming
from meddaemon.ingest.scp import Listener, ListenerSettings
from meddaemon.ingest.store import as_part10
from meddaemon.results.dimse import RemoteEntity, store
from meddaemon.results.transport import Outgoing, Verdict
from tests.admission import let_in
from tests.dicom_factory import make_series
from tests.inference.toy_bundle import write_toy
from tests.running import Home

CONTRACT = """
name = "toy"
title = "Toy"
version = "1"
manufacturer = "nobody"
bundle = "."
output = "pred"
time_limit_seconds = {time_limit}
series_description = "AI toy"

[[inputs]]
key = "image"
series = {{ attribute = "Modality", equals = "MR" }}
geometry = {{ mixed = "largest" }}

[[segments]]
label = 1
name = "Brain"
category = {{ value = "91723000", scheme = "SCT", meaning = "Anatomical Structure" }}
type = {{ value = "12738006", scheme = "SCT", meaning = "Brain" }}
colour = [230, 159, 0]
measure = ["volume"]
plausible_volume_ml = {{ min = 0.001, max = 1000 }}
"""

SITE = """
[worker]
sandbox = "preferred"
lease_seconds = {lease}
maximum_attempts = {attempts}
heartbeat_seconds = 1
backoff_seconds = 0.5
poll_seconds = 0.1

[delivery]
lease_seconds = {lease}
backoff_seconds = 0.5
maximum_backoff_seconds = 1
poll_seconds = 0.2
connection_timeout_seconds = 2

[models]
directories = ["models"]

[[rules]]
name = "toy"
models = ["toy"]
destinations = {destinations}
"""

DESTINATION = """
[[destinations]]
name = "{name}"
ae_title = "PACS"
host = "127.0.0.1"
port = {port}
"""


def make_site(
    folder: Path, pacs: dict[str, int], *, lease: float = 6.0, time_limit: float = 120.0, attempts: int = 3
) -> Home:
    """Return a home with the toy model, one rule for every MR, and these PACS (name -> port)."""
    write_toy(folder / "models" / "toy")
    (folder / "models" / "toy" / "contract.toml").write_text(CONTRACT.format(time_limit=time_limit))
    let_in(folder / "models" / "toy" / "contract.toml")
    destinations = "".join(DESTINATION.format(name=name, port=port) for name, port in pacs.items())
    extra = SITE.format(lease=lease, attempts=attempts, destinations=list(pacs)).replace("'", '"') + destinations
    return Home.make(folder, extra, quiet_seconds=0.5)


class Pacs:
    """Keeps every object in memory, in order of arrival; answers with `status` instead while that is set."""

    def __init__(self) -> None:
        self.received: list[Dataset] = []
        self.status: int | None = None

    def take(self, incoming: Incoming) -> None:
        if self.status is not None:
            raise RefusedInstance(self.status, "as the test wants it")
        content = as_part10(
            incoming.data,
            sop_class_uid=incoming.sop_class_uid,
            sop_instance_uid=incoming.sop_instance_uid,
            transfer_syntax_uid=incoming.transfer_syntax_uid,
        )
        self.received.append(dcmread(BytesIO(content)))

    def of(self, modality: str) -> list[Dataset]:
        return [dataset for dataset in list(self.received) if dataset.Modality == modality]

    @contextmanager
    def listening(self, port: int = 0) -> Iterator[int]:
        settings = ListenerSettings(
            ae_title="PACS",
            host="127.0.0.1",
            port=port,
            maximum_associations=8,
            maximum_pdu_bytes=131_072,
            idle_timeout_seconds=30,
            association_timeout_seconds=10,
            message_timeout_seconds=30,
        )
        with Listener(settings, self.take) as listener:
            yield listener.address[1]


def head(folder: Path, *, seed: str = "1", planes: int = 6, order: int = 101, **other: object) -> list[Path]:
    """Write an MR series with a bright cuboid of 2 x 4 x 3 voxels (the toy's object); `order` is the toy's command."""
    voxels: NDArray[np.int16] = np.full((planes, 16, 12), 10, dtype=np.int16)
    voxels[1:3, 4:8, 5:8] = 100
    voxels[1, 4, 5] = order
    return make_series(folder, voxels=voxels, seed=seed, **other)  # type: ignore[arg-type]


def outgoing_of(files: list[Path]) -> list[Outgoing]:
    """Return files as they are to be sent."""
    outgoing = []
    for path in files:
        meta = dcmread(path, stop_before_pixels=True).file_meta
        outgoing.append(
            Outgoing(
                path=path,
                sop_class_uid=meta.MediaStorageSOPClassUID,
                sop_instance_uid=meta.MediaStorageSOPInstanceUID,
                transfer_syntax_uid=meta.TransferSyntaxUID,
            )
        )
    return outgoing


def send(files: list[Path], port: int) -> None:
    """Send files to the daemon; every one must be taken."""
    remote = RemoteEntity(ae_title="MEDDAEMON", host="127.0.0.1", port=port, calling_ae_title="SCANNER")
    for answer in store(remote, outgoing_of(files)):
        assert answer.verdict is Verdict.TAKEN, answer.reason
