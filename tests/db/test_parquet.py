"""Results as Parquet: the rows that JSON shows, in columns of one type each, however many there are."""

import csv
import io
import json
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from queue_samples import claim, enqueue, received, record, register
from typer.testing import CliRunner

from meddaemon.cli import parquet
from meddaemon.cli.app import app
from meddaemon.cli.output import Format, print_rows
from meddaemon.cli.parquet import pages
from meddaemon.db import jobs
from meddaemon.db.engine import Database
from meddaemon.db.results import ResultRow

arrow = pytest.importorskip("pyarrow")
pytest.importorskip("pyarrow.parquet")
MISSING = "import sys; sys.modules['pyarrow'] = None; from meddaemon.cli import main; main()"


@pytest.fixture
def config(database: Database, database_url: str, tmp_path: Path) -> Path:
    """A home with five results of a study."""
    study = register(database, received("an instance")).study_id
    for number in range(5):
        enqueue(database, study)
        job = claim(database)
        with database.write() as connection:
            record(connection, jobs.complete(connection, job), value=1000.5 + number)
    file = tmp_path / "meddaemon.toml"
    file.write_text(f'[database]\nurl = "{database_url}"\n[store]\ndirectory = "{tmp_path}/store"\n')
    return file


def test_a_file_has_the_rows_that_json_shows(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROWS_OF_A_PAGE", 2)
    run, file = CliRunner(), tmp_path / "results.parquet"
    asked = ["results", "volume > 1001 mL", "--config", str(config)]
    done = run.invoke(app, [*asked, "--format", "parquet", "--to", str(file), "--all"], catch_exceptions=False)
    assert (done.exit_code, done.stdout) == (0, "")
    table = arrow.parquet.read_table(file)
    shown = json.loads(run.invoke(app, [*asked, "--format", "json"]).stdout)
    rows = table.to_pylist()
    assert [row | {"created_at": row["created_at"].isoformat()} for row in rows] == [
        row | {"created_at": datetime.fromisoformat(row["created_at"]).isoformat()} for row in shown
    ]
    assert [row["value"] for row in rows] == [1004.5, 1003.5, 1002.5, 1001.5]
    types = {field.name: str(field.type) for field in table.schema}
    assert types.keys() == set(ResultRow.__dataclass_fields__)
    assert (types["value"], types["id"], types["x"], types["present"]) == ("double", "int64", "double", "bool")
    assert types["created_at"] == "timestamp[us, tz=UTC]"
    assert types["unit"].startswith("dictionary<values=string")
    assert list(tmp_path.glob("*.part")) == []
    none = run.invoke(app, ["results", "volume > 9 L", "--config", str(config), "-f", "parquet", "--to", str(file)])
    assert none.exit_code == 0
    assert arrow.parquet.read_table(file).schema.names == table.schema.names


def test_parquet_goes_to_a_file_and_nothing_else_does(config: Path, tmp_path: Path) -> None:
    for wrong in (["-f", "parquet"], ["--to", str(tmp_path / "x")], ["--all"], ["-f", "json", "--all"]):
        assert CliRunner().invoke(app, ["results", "--config", str(config), *wrong]).exit_code == 2


def test_everything_is_written_page_by_page_and_what_is_left_out_is_said(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "ROWS_OF_A_PAGE", 2)
    asked = ["results", "--config", str(config)]
    some = CliRunner().invoke(app, [*asked, "-f", "json", "--limit", "2"])
    assert [each["value"] for each in json.loads(some.stdout)] == [1004.5, 1003.5]
    before = json.loads(some.stdout)[-1]["id"]
    assert f"there may be more from --before {before} on" in some.stderr
    every = CliRunner().invoke(app, [*asked, "-f", "csv", "--all"])
    rows = list(csv.DictReader(io.StringIO(every.stdout)))
    assert [row["value"] for row in rows] == ["1004.5", "1003.5", "1002.5", "1001.5", "1000.5"]
    lines = CliRunner().invoke(app, [*asked, "-f", "jsonl", "--all"])
    assert [json.loads(line)["id"] for line in lines.stdout.splitlines()] == [int(row["id"]) for row in rows]
    none = CliRunner().invoke(app, [*asked, "volume > 9 L", "-f", "csv"])
    assert none.stdout.strip().split(",") == list(rows[0])
    assert (every.stderr, lines.stderr, none.stderr) == ("", "", "")


@dataclass(frozen=True)
class Said:
    text: str
    number: float | None


def test_no_cell_is_run_by_a_spreadsheet(capsys: pytest.CaptureFixture[str]) -> None:
    said = ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", "\n=1", "＝1", "＋1", "－1", "＠x", "plain", "", 'a,"b']
    print_rows([Said(text, -1.5) for text in said], {}, Format.CSV)
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out, newline="")))
    assert [row["text"] for row in rows] == [*(f"'{text}" for text in said[:11]), *said[11:]]
    assert {row["number"] for row in rows} == {"-1.5"}
    print_rows([Said("=1", None)], {}, Format.JSONL)
    assert json.loads(capsys.readouterr().out) == {"text": "=1", "number": None}


def test_who_gets_nothing_is_told_what_may_be_wrong(config: Path) -> None:
    for wanted, said in (
        ('finding = "Brian"', "no result has the finding 'Brian'; did you mean 'Brain'?"),
        ("segment ~ cerebellum", "no result has the segment 'cerebellum'; there are 'Brain'"),
        ("finding = Brain and volum > 3", "no result has the measurement 'volum'; did you mean 'Volume'?"),
        ("volume > 3 mm", "volume is in mL, and the filter asks for a unit of something else"),
        ("volume > 9 L", ""),
        ('model = "x\'; DROP TABLE study; --"', "no result has the model"),
    ):
        done = CliRunner().invoke(app, ["results", wanted, "--config", str(config), "-f", "jsonl"])
        assert (done.exit_code, done.stdout) == (0, "")
        assert said in done.stderr if said else not done.stderr, wanted


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_without_the_extra_it_says_what_to_install(config: Path, tmp_path: Path) -> None:
    asked = ["results", "-f", "parquet", "--to", str(tmp_path / "x.parquet"), "--config", str(config)]
    done = subprocess.run([sys.executable, "-c", MISSING, *asked], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.strip().endswith("Parquet needs pyarrow: pip install 'meddaemon[parquet]'")
    assert not (tmp_path / "x.parquet").exists()


class Row:
    def __init__(self, number: int) -> None:
        self.id = number


@given(st.integers(0, 60), st.none() | st.integers(0, 70), st.none() | st.integers(1, 70), st.integers(1, 25))
def test_pages_are_the_rows_once_and_in_order(number: int, limit: int | None, before: int | None, size: int) -> None:
    rows = [Row(each) for each in range(number, 0, -1)]

    def ask(*, limit: int, before: int | None) -> list[Row]:
        return [row for row in rows if before is None or row.id < before][:limit]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "ROWS_OF_A_PAGE", size)
        given_rows = [row.id for page in pages(ask, limit, before) for row in page]
    assert given_rows == [row.id for row in rows if before is None or row.id < before][:limit]
