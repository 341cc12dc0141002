"""What the tests of the web role share."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from pydicom import dcmread
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from meddaemon.ingest.store import as_part10
from tests.dicom_factory import make_series
from tests.ingest.encoded import written
from tests.running import Home
from tests.web.archive import Site, encoded_from, record_objects, serving

# Other tests may be using the machine: how long one example takes says nothing.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


def to_big_endian(path: Path) -> None:
    """Write a file with pixels of two bytes in the retired syntax."""
    data_set = dcmread(path)
    data_set.PixelData = np.frombuffer(data_set.PixelData, "<u2").astype(">u2").tobytes()
    content = as_part10(
        written(data_set, ExplicitVRBigEndian),
        sop_class_uid=str(data_set.SOPClassUID),
        sop_instance_uid=str(data_set.SOPInstanceUID),
        transfer_syntax_uid=str(ExplicitVRBigEndian),
    )
    path.write_bytes(content)


@pytest.fixture(scope="module")
def archive_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two studies of two patients, four transfer syntaxes; SEG and SR of one series, and a SEG that is superseded."""
    folder = tmp_path_factory.mktemp("archive")
    home = Home.make(folder / "home")
    series = {
        "ct": make_series(folder / "in" / "ct", modality="CT", seed="ct", series_number=1),
        "mr": make_series(
            folder / "in" / "mr", planes=2, seed="mr", series_number=2, transfer_syntax=ImplicitVRLittleEndian
        ),
        "rle": make_series(folder / "in" / "rle", planes=2, seed="rle", series_number=4, transfer_syntax=RLELossless),
        "big": make_series(
            folder / "in" / "big",
            planes=2,
            seed="big",
            study="another",
            patient_name="Müller^Änne",
            patient_id="P-2",
            attributes={"StudyDate": "20200131", "StudyTime": "235959.5", "AccessionNumber": "ACC-2"},
        ),
    }
    for path in series["big"]:
        to_big_endian(path)
    files = [path for paths in series.values() for path in paths]
    imported = home.cli("import", folder / "in")
    assert imported.returncode == 0, imported.stderr
    study = str(dcmread(series["ct"][0]).StudyInstanceUID)
    with home.database() as database:
        outdated = encoded_from(series["ct"], configuration="an earlier one")
        made = encoded_from(series["ct"])
        for objects in (outdated, made):
            record_objects(database, home.settings.store.results, study, objects, rule="rule")
        with serving(home, database) as port:
            yield Site(port, home, files, made)
