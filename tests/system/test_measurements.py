"""Lesions, values and formulas through the whole daemon: one number in the report, the rows and the command line."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
from pydicom import Dataset

from meddaemon.db import tables
from meddaemon.domain.result import reported
from tests.admission import let_in
from tests.dicom_factory import make_series
from tests.running import wait_until
from tests.system.site import Pacs, make_site, send

ASKED = """
measure = ["volume", "surface", "diameter", "long_axis", "short_axis", "mean", "deviation", "minimum", "maximum"]
lesions = { connectivity = 6 }

[[formulas]]
name = { value = "MEANVOL", scheme = "99TEST", meaning = "Mean volume of lesions" }
unit = { value = "mL", scheme = "UCUM", meaning = "Milliliter" }
formula = 'volume of "Brain" / count of "Brain"'
plausible = { max = 10 }
"""
VOXEL_ML = 2.0 * 1.5 * 1.25 / 1000


def numbers(items: list[Dataset]) -> list[float]:
    """Return every number below the items of a report."""
    found = []
    for item in items:
        if item.ValueType == "NUM":
            found.append(float(item.MeasuredValueSequence[0].NumericValue))
        found += numbers(item.get("ContentSequence", []))
    return found


def test_a_number_is_the_same_wherever_it_is_read(tmp_path: Path) -> None:
    voxels = np.full((6, 16, 12), 10, np.int16)
    voxels[1:3, 4:8, 5:8] = np.arange(101, 125).reshape(2, 4, 3)
    voxels[4, 12, 1:3] = 60, 61
    files = make_series(tmp_path / "scanner", voxels=voxels, modality="CT", rescale=(1.0, 0.0), orientation="oblique")
    pacs = Pacs()
    with pacs.listening() as port:
        home = make_site(tmp_path / "home", {"pacs": port})
        file = home.folder / "models" / "toy" / "contract.toml"
        text = file.read_text().replace('equals = "MR"', 'equals = "CT"').replace('measure = ["volume"]\n', "")
        file.write_text(text + ASKED)
        let_in(file)
        with home.running("serve") as daemon:
            send(files, daemon.port())
            wait_until(lambda: home.rows(tables.delivery) and pacs.of("SR"), what="the SR")
            said = json.loads(home.cli("results", "--format", "json").stdout)
            bright = json.loads(home.cli("results", "mean > 90 HU and long_axis < 1 cm", "--format", "json").stdout)
            many = json.loads(home.cli("results", "count >= 2", "--format", "json").stdout)
    rows = {row.id: row for row in home.rows(tables.measurement)}
    assert {row["id"]: row["value"] for row in said} == {row.id: row.value for row in rows.values()}
    written = Counter(value for report in pacs.of("SR") for value in numbers(report.ContentSequence))
    of_segments = {each.id for each in home.rows(tables.finding) if each.segment_id is not None}
    of_lesions = Counter(row.value for row in rows.values() if row.finding_id in of_segments)
    assert of_lesions <= written <= Counter(row.value for row in rows.values())
    assert len(of_segments) == 2

    by_key = {(row["key"], row["unit"]): row["value"] for row in bright}
    inside = voxels[1:3, 4:8, 5:8]
    assert by_key["volume", "mL"] == reported(24 * VOXEL_ML)
    assert by_key["mean", "[hnsf'U]"] == reported(inside.mean())
    assert by_key["deviation", "[hnsf'U]"] == reported(inside.std(ddof=1))
    assert (by_key["minimum", "[hnsf'U]"], by_key["maximum", "[hnsf'U]"]) == (101, 124)
    assert len(by_key) == 9
    assert [(row["key"], row["value"]) for row in reversed(many)] == [("count", 2), ("volume", reported(26 * VOXEL_ML))]
    (formula,) = (row for row in said if row["key"] == "formula")
    assert (formula["finding"], formula["value"]) == ("Mean volume of lesions", reported(13 * VOXEL_ML))
    (segmentation,) = pacs.of("SEG")
    assert [item.SegmentLabel for item in segmentation.SegmentSequence] == ["Brain 1", "Brain 2"]
