import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from encoded import written
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from running import Home, environment, run_cli

FAILED, USAGE = 1, 2


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home with two hundred objects in as many studies, and what was refused."""
    home = Home.make(tmp_path_factory.mktemp("cli"))
    folder = home.folder / "files"
    folder.mkdir()
    for number in range(200):
        data_set = Dataset()
        data_set.SOPClassUID = CTImageStorage
        data_set.SOPInstanceUID = f"2.25.3{number}"
        data_set.StudyInstanceUID = f"2.25.1{number}"
        data_set.SeriesInstanceUID = f"2.25.2{number}"
        data_set.StudyDescription = "\x1b[31mRed\nLine" if number == 7 else "Thorax"
        (folder / f"{number:03d}").write_bytes(written(data_set, ExplicitVRLittleEndian))
    (folder / "notes.txt").write_text("not DICOM")
    done = home.cli("import", folder)
    assert done.returncode == FAILED
    assert done.stdout == "200 taken, 0 known already, 1 refused\n"
    assert "notes.txt: not a DICOM file" in done.stderr
    again = home.cli("import", folder / "000", folder / "001")
    assert (again.returncode, again.stdout) == (0, "0 taken, 2 known already, 0 refused\n")
    return home


@pytest.mark.parametrize(
    "command", [["studies", "--limit", "1000"], ["studies", "--format", "json"], ["studies", "-f", "csv"]]
)
def test_a_reader_that_has_enough_is_no_error_to_talk_about(home: Home, command: list[str]) -> None:
    asked = [sys.executable, "-m", "meddaemon", *command, "--config", str(home.config)]
    process = subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    assert process.stdout is not None
    process.stdout.close()
    _, said = process.communicate(timeout=60)
    assert process.returncode == FAILED
    assert said == b""


def test_an_unknown_study_is_a_failure_with_a_line(home: Home) -> None:
    told = home.cli("explain", "1.2.3.4")
    assert told.returncode == FAILED
    assert told.stdout == ""
    assert told.stderr == (
        "meddaemon: no study, series, instance or accession number '1.2.3.4'; see `meddaemon studies`\n"
    )


@pytest.mark.parametrize("wanted", ["2.25.17", "2.25.27", "2.25.37"])
def test_a_study_is_found_by_the_uid_of_anything_in_it(home: Home, wanted: str) -> None:
    told = home.cli("explain", wanted)
    assert told.returncode == 0
    assert "2.25.17" in told.stdout


def test_an_address_that_is_taken_is_named(home: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        asked = [sys.executable, "-m", "meddaemon", "listen", "--config", str(home.config)]
        here = {**environment(), "MEDDAEMON_LISTENER__PORT": str(port)}
        told = subprocess.run(asked, env=here, capture_output=True, text=True, timeout=60, check=False)
    assert told.returncode == FAILED
    assert told.stderr.endswith(f"meddaemon: Address already in use: 127.0.0.1:{port}\n")


def test_what_came_from_a_file_cannot_write_to_the_terminal(home: Home) -> None:
    for arguments in (["studies", "--limit", "1000"], ["explain", "2.25.17"]):
        told = home.cli(*arguments)
        assert "\x1b" not in told.stdout
        assert "\nLine" not in told.stdout


@pytest.mark.parametrize(
    "arguments", [["explain"], ["explain", "1", "--refused"], ["no-such-command"], ["studies", "--limit", "0"]]
)
def test_wrong_usage_is_told_and_is_2(home: Home, arguments: list[str]) -> None:
    assert home.cli(*arguments).returncode == USAGE


@pytest.mark.parametrize(
    "to", ["PACS", "PACS@host", "PACS@:104", "@host:104", "PACS@host:0", "PACS@host:65536", "P@h:x"]
)
def test_a_wrong_address_is_2_and_nothing_is_sent(home: Home, to: str) -> None:
    told = run_cli("send", home.folder / "files" / "000", "--to", to)
    assert told.returncode == USAGE
    assert "AE@host:port" in told.stderr


def test_sending_to_nobody_is_a_failure_that_names_the_file(home: Home) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers there
        file = home.folder / "files" / "000"
        told = run_cli("send", file, "--to", f"PACS@127.0.0.1:{taken.getsockname()[1]}")
    assert told.returncode == FAILED
    assert str(file) in told.stderr
    assert "0 sent, 1 refused, 0 not sendable" in told.stdout
    assert "Traceback" not in told.stderr


@pytest.mark.parametrize("command", ["listen", "serve", "deliver", "work", "studies", "import ."])
def test_a_settings_file_that_is_not_there_is_2(tmp_path: Path, command: str) -> None:
    told = run_cli(*command.split(), "--config", tmp_path / "nowhere.toml")
    assert told.returncode == USAGE
    assert "nowhere.toml" in told.stderr
    assert "Traceback" not in told.stderr


def test_a_folder_that_cannot_be_written_is_a_failure_with_a_line(home: Home, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    told = home.cli(
        "import", home.folder / "files" / "000", environ={"MEDDAEMON_STORE__DIRECTORY": os.fspath(blocked / "store")}
    )
    assert told.returncode == FAILED
    assert "Traceback" not in told.stderr
