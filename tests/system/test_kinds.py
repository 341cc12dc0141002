"""Limits of inputs and outputs through the whole daemon: marked results, with the reason, and nothing delivered."""

import json
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset

from meddaemon.db import tables
from meddaemon.domain.states import JobState
from tests.admission import let_in
from tests.dicom_factory import make_series
from tests.running import Home, wait_until
from tests.system.site import Pacs, head, make_site, send

LIMITS = """
[output_limits]
may_be_empty = true
maximum_foreground = 0.5
"""


def site(folder: Path, port: int) -> Home:
    """A home whose model takes at least five planes and may find nothing."""
    home = make_site(folder, {"pacs": port})
    contract = folder / "models" / "toy" / "contract.toml"
    text = contract.read_text().replace("plausible_volume_ml = { min = 0.001, max = 1000 }\n", LIMITS)
    contract.write_text(text.replace('key = "image"\n', 'key = "image"\nlimits = { planes = { min = 5 } }\n'))
    let_in(contract)
    return home


def painted(folder: Path, study: str, value: int) -> list[Path]:
    """A series of one value everywhere; the toy draws what is brighter than 50."""
    return make_series(folder, voxels=np.full((6, 16, 12), value, np.int16), seed=study, study=study)


def finished(home: Home, count: int) -> list[object]:
    def done() -> bool:
        jobs = home.rows(tables.job)
        return len(jobs) == count and all(row.state == JobState.COMPLETED for row in jobs)

    wait_until(done, what=f"{count} jobs to be completed")
    return list(home.rows(tables.result))


def numbers(report: Dataset) -> list[float]:
    """Return every number of a report."""

    def inside(items: list[Dataset]) -> list[float]:
        return [
            value
            for item in items
            for value in (
                *([float(item.MeasuredValueSequence[0].NumericValue)] if item.ValueType == "NUM" else []),
                *inside(item.get("ContentSequence", [])),
            )
        ]

    return inside(report.ContentSequence)


@pytest.mark.fault(91, 173)
def test_limits_mark_a_result_and_nothing_of_it_is_delivered(tmp_path: Path) -> None:
    pacs = Pacs()
    with pacs.listening() as port:
        home = site(tmp_path / "home", port)
        with home.running("serve") as daemon:
            send(head(tmp_path / "thin", planes=4, study="thin"), daemon.port())
            finished(home, 1)
            send(painted(tmp_path / "full", "full", 101), daemon.port())
            finished(home, 2)
            assert not pacs.received
            send(painted(tmp_path / "empty", "empty", 10), daemon.port())
            finished(home, 3)
            wait_until(lambda: pacs.of("SR"), what="the report that nothing was found")
            explained = [home.cli("explain", str(study)).stdout for study in (1, 2)]
            rows = json.loads(home.cli("results", "--format", "json").stdout)
    statuses = [(row.status, row.reason) for row in home.rows(tables.result)]
    assert statuses == [
        ("not_evaluable", "beyond_limits: input image: planes 4; the model takes at least 5"),
        ("implausible", "100.0% of all voxels are segmented; plausible are at most 50.0%"),
        ("plausible", ""),
    ]
    assert "planes 4; the model takes at least 5" in explained[0]
    assert "Brain: not measured" in explained[0]
    assert "100.0% of all voxels are segmented" in explained[1]
    thin, full, empty = rows[::-1]
    assert (thin["value"], thin["present"], thin["objects"]) == (None, False, 0)
    assert (full["present"], full["objects"]) == (True, 0)
    assert (empty["value"], empty["present"], empty["objects"]) == (0.0, False, 2)
    # Nothing found is an answer: it is reported, and its segmentation is empty.
    (segmentation,), (report,) = pacs.of("SEG"), pacs.of("SR")
    assert numbers(report) == [0.0]
    assert not np.any(segmentation.pixel_array)
