"""Everything in shared/dicom in one go: every file ends in a state that is accounted for, by every way in."""

import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import FileDataset
from running import Home, run_cli, wait_until

from meddaemon.cli.explain import explain
from meddaemon.db import tables
from meddaemon.domain.states import StudyState

pytestmark = [pytest.mark.shared, pytest.mark.filterwarnings("ignore")]
BRAIN = '\n[[rules]]\nname = "brain"\nmodels = ["brain_volume"]\n'
NO_OBJECT = {
    "README.md",
    "broken/empty_charset_LEI.dcm",
    "broken/meta_missing_tsyntax.dcm",
    "broken/no_meta.dcm",
    "other/MR_dwi_siemens_0.dcm.gz",
    "ref/ct_chest_P001_slice_labels.json",
    "ref/sag_anon_deepbet_mask.nii.gz",
    "ref/totalseg_example_seg_dicom.nii.gz",
}
REFUSED = {"broken/MR_truncated.dcm", "broken/UN_sequence.dcm", "broken/rtplan_truncated.dcm"} | {
    "compressed/HTJ2KLossless_08_RGB.dcm",  # no Study Instance UID, and so all of the abdomen
}
T1_OF_A_HEAD = ("series/mr_brain_sag_anon/", "multiframe/emri_small")


@dataclass(frozen=True)
class Sent:
    """What came of it: the folder, the daemon's home, what the sender said and what the roles logged."""

    folder: Path
    home: Home
    said: str
    returncode: int
    logs: str

    def missing(self) -> set[str]:
        """Return the files, below the folder, that the sender said it could not send or import."""
        told = re.findall(rf"^(?:not sent|refused) +{re.escape(str(self.folder))}/(.*?): ", self.said, re.MULTILINE)
        return set(told)


@pytest.fixture(scope="module", params=["send", "import", "dcmsend"])
def sent(request: pytest.FixtureRequest, shared_dicom: Path, tmp_path_factory: pytest.TempPathFactory) -> Sent:
    if importlib.util.find_spec("deepbet") is None:
        pytest.skip("the weights of the brain model are not installed")
    if request.param == "dcmsend" and shutil.which("dcmsend") is None:
        pytest.skip("dcmsend is not installed")
    home = Home.make(tmp_path_factory.mktemp(request.param), BRAIN, quiet_seconds=3, hold_unidentified=False)
    with home.running("listen") as listener, home.running("deliver") as deliver:
        port = listener.port()
        if request.param == "send":
            done = run_cli("send", shared_dicom, "--to", f"MEDDAEMON@127.0.0.1:{port}", timeout=250)
        elif request.param == "import":
            done = home.cli("import", shared_dicom, timeout=250)
        else:
            options = ["-v", "--no-uid-checks", "--no-halt", "--scan-directories", "--recurse", "--decompress-never"]
            asked = ["dcmsend", *options, "-aec", "MEDDAEMON", "127.0.0.1", str(port), str(shared_dicom)]
            done = subprocess.run(asked, capture_output=True, text=True, timeout=250, check=False)
        wait_until(lambda: _all_complete(home), what="every study to be complete", every=0.2)
    return Sent(
        shared_dicom, home, done.stdout + done.stderr, done.returncode, listener.log_text() + deliver.log_text()
    )


def _all_complete(home: Home) -> bool:
    studies = home.rows(tables.study)
    return bool(studies) and all(row.state == StudyState.COMPLETE for row in studies)


@pytest.fixture(scope="module")
def files(shared_dicom: Path) -> dict[str, FileDataset]:
    """Every file that names an object, by its path below the folder, read by pydicom without its pixels."""
    paths = (path for path in sorted(shared_dicom.rglob("*")) if path.is_file())
    named = {str(path.relative_to(shared_dicom)): path for path in paths}
    return {
        name: pydicom.dcmread(path, force=True, stop_before_pixels=True)
        for name, path in named.items()
        if name not in NO_OBJECT
    }


def uid_of(data_set: FileDataset, *, readable: bool = True) -> str:
    """Return the UID that an object goes by: its data set's, or its file meta group's when that cannot be read."""
    in_data_set = data_set.get("SOPInstanceUID") if readable else None
    return str(in_data_set or data_set.file_meta.MediaStorageSOPInstanceUID)


def test_every_file_is_registered_or_refused_and_explained(sent: Sent, files: dict[str, FileDataset]) -> None:
    registered = {row.sop_instance_uid for row in sent.home.instances()}
    refused = {row.sop_instance_uid for row in sent.home.refusals()}
    by_dcmtk = "Status Summary" in sent.said
    if not by_dcmtk:
        assert sent.missing() >= NO_OBJECT
    with sent.home.database() as database, database.read() as connection:
        for name, data_set in files.items():
            uid = uid_of(data_set, readable="truncated" not in name)
            must_be_refused = name in REFUSED or not data_set.get("StudyInstanceUID")
            if by_dcmtk and uid not in registered | refused:
                continue  # DCMTK goes by the file meta group, and says which files it did not send
            if by_dcmtk and "truncated" in name:
                continue  # DCMTK fills up what is missing, and nobody can tell any more
            assert uid in (refused if must_be_refused else registered), name
            told = "\n".join(explain(connection, uid))
            assert (uid if must_be_refused else str(data_set.SeriesInstanceUID)) in told, name


def test_what_dcmtk_did_not_send_it_said(sent: Sent) -> None:
    if (summary := re.search(r"Number of SOP instances  : (\d+)", sent.said)) is None:
        pytest.skip("not sent by DCMTK")
    said_sent = sum(int(count) for count in re.findall(r"with status \w+ *: (\d+)", sent.said))
    left = int(re.search(r"NOT sent to the peer +: (\d+)", sent.said).group(1))  # type: ignore[union-attr]
    assert said_sent + left == int(summary.group(1))
    # The truncated file, filled up by DCMTK, is identical to another one and stored once.
    assert len(sent.home.instances()) + len(sent.home.refusals()) in {said_sent, said_sent - 1}


def test_the_sender_tells_what_was_not_taken(sent: Sent) -> None:
    if "Status Summary" in sent.said:
        pytest.skip("DCMTK has words of its own")
    assert sent.returncode == 1
    assert "Traceback" not in sent.said
    assert re.search(r"(441 sent, 24 refused, 8 not sendable|\d+ taken, \d+ known already, 32 refused)", sent.said)


def test_every_object_is_kept_bit_for_bit(sent: Sent, files: dict[str, FileDataset]) -> None:
    stored = sent.home.files()
    if "Status Summary" in sent.said:
        pytest.skip("DCMTK encodes anew what it sends")
    digests: dict[str, set[str]] = {}
    for row in sent.home.instances():
        digests.setdefault(row.sop_instance_uid, set()).add(row.sha256)
    assert sum(map(len, digests.values())) > 430
    refused = {row.sop_instance_uid for row in sent.home.refusals()}
    for name, data_set in files.items():
        if (uid := uid_of(data_set)) not in refused and name not in REFUSED:
            # Whatever stands before it, the end of the file is the data set.
            content = (sent.folder / name).read_bytes()
            tail = content[-min(len(content) // 2, 100_000) :]
            assert any(stored[sha256].read_bytes().endswith(tail) for sha256 in digests[uid]), name


def test_only_t1_series_of_a_head_get_a_job(sent: Sent, files: dict[str, FileDataset]) -> None:
    expected = {str(files[name].StudyInstanceUID) for name in files if name.startswith(T1_OF_A_HEAD)}
    uids = {row.id: row.study_instance_uid for row in sent.home.rows(tables.study)}
    assert {uids[row.study_id] for row in sent.home.rows(tables.job)} == expected
    decided = {row.study_id for row in sent.home.rows(tables.decision)}
    assert decided == set(uids)


def test_the_command_line_explains_one_of_each(sent: Sent, files: dict[str, FileDataset]) -> None:
    for name, words in (
        ("nonimage/liver_SEG.dcm", "non_image series reach a model only when the rule admits them"),
        ("compressed/CT1_JPLL.dcm", "Modality equals 'MR'; saw CT"),
        ("broken/MR_truncated.dcm", "status C000H: malformed data set"),
        ("series/ct_phantom_tilt_m18_5/I10", "Modality equals 'MR'; saw CT"),
    ):
        if name.startswith("broken/") and "Status Summary" in sent.said:
            continue
        told = sent.home.cli("explain", uid_of(files[name]))
        assert told.returncode == 0, name
        assert words in told.stdout, name


def test_logs_name_no_patient_and_hold_no_control_characters(sent: Sent, files: dict[str, FileDataset]) -> None:
    identities = set()
    for data_set in files.values():
        for keyword in ("PatientName", "PatientID"):
            value = str(data_set.get(keyword, ""))
            identities |= {part for part in (value, *re.split(r"[\^=\\]", value)) if len(part) >= 4}
    assert len(identities) > 20
    assert sent.logs
    found = [each for each in identities if re.search(rf"(?<![\w.]){re.escape(each)}(?![\w.])", sent.logs)]
    assert found == []
    assert [line for line in sent.logs.splitlines() if not line.isprintable()] == []
