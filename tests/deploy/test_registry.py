"""Bundles become models of this installation whole or not at all, from where they were meant to come, and stay so."""

import hashlib
import http.server
import json
import os
import ssl
import threading
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest
from typer.testing import CliRunner

from meddaemon.cli.app import app
from meddaemon.config.contracts import load_contract
from meddaemon.config.digest import bundle_digest
from meddaemon.deploy import registry
from meddaemon.deploy.download import download
from meddaemon.domain.errors import BundleRefused, InvalidConfiguration, NotFound
from tests.certificates import Authority
from tests.deploy.bundles import FILES, METADATA, complete, write_bundle, zip_of
from tests.running import run_cli


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def test_a_zip_becomes_a_model_with_every_file_and_its_digest(tmp_path: Path, models: Path) -> None:
    archive = zip_of(write_bundle(tmp_path / "b"), tmp_path / "spleen.zip")
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    added = registry.add(str(archive), models, sha256=sha256)
    assert (added.name, added.sha256, added.files) == ("spleen_segmentation", sha256, len(FILES))
    folder = models / "spleen_segmentation"
    assert sorted(path.name for path in folder.iterdir()) == ["bundle", "contract.toml", "manifest.json"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["archive_sha256"] == sha256
    assert {name: each["sha256"] for name, each in manifest["files"].items()} == {
        name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()
    }
    assert {name: (folder / "bundle" / name).read_bytes() for name in FILES} == FILES
    assert sorted(models.iterdir()) == [folder], "nothing is left of the way there"


def test_a_folder_becomes_the_same_model(tmp_path: Path, models: Path) -> None:
    source = write_bundle(tmp_path / "b")
    added = registry.add(str(source), models, name="other")
    assert (added.name, added.sha256) == ("other", "")
    registry.require_unchanged(added.contract_file, added.contract_file.parent / "bundle")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"sha256": "0" * 64}, "has the SHA-256 .*, not 0000"),
        ({"sha256": "ABC"}, "64 lower case"),
        ({"name": "../evil"}, "is not a name for a model"),
        ({"name": "brain_volume"}, "there is a model 'brain_volume' already"),
    ],
)
def test_what_is_refused_leaves_nothing(tmp_path: Path, models: Path, arguments: dict[str, str], why: str) -> None:
    archive = zip_of(write_bundle(tmp_path / "b"), tmp_path / "spleen.zip")
    with pytest.raises(BundleRefused, match=why):
        registry.add(str(archive), models, **arguments)
    assert list(models.iterdir()) == []


def test_a_model_is_added_once(tmp_path: Path, models: Path) -> None:
    source = str(write_bundle(tmp_path / "b"))
    registry.add(source, models)
    with pytest.raises(BundleRefused, match="already"):
        registry.add(source, models)


@pytest.mark.fault(169)
def test_a_bundle_whose_weights_call_the_system_is_refused_and_they_are_never_loaded(
    tmp_path: Path, models: Path
) -> None:
    source = write_bundle(
        tmp_path / "b", {"models/model.pt": b"cos\nsystem\n(S'touch " + bytes(tmp_path) + b"/x'\ntR."}
    )
    with pytest.raises(BundleRefused, match=r"models/model\.pt: the pickle calls os\.system"):
        registry.add(str(source), models)
    assert list(models.iterdir()) == []
    assert not (tmp_path / "x").exists()


def test_what_is_no_bundle_is_refused(tmp_path: Path, models: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/me.jpg").touch()
    with pytest.raises(BundleRefused, match="not a MONAI bundle"):
        registry.add(str(tmp_path / "photos"), models)
    assert list(models.iterdir()) == []


@pytest.mark.fault(172)
def test_a_bundle_that_changed_since_it_was_added_is_refused_and_what_changed_is_named(
    tmp_path: Path, models: Path
) -> None:
    added = registry.add(str(write_bundle(tmp_path / "b")), models)
    bundle = added.contract_file.parent / "bundle"
    for folder in (bundle, bundle / "models", bundle / "configs"):
        folder.chmod(0o755)
    (bundle / "models/model.pt").chmod(0o644)
    (bundle / "models/model.pt").write_bytes(b"other weights")
    (bundle / "configs/evil.json").write_text("{}")
    (bundle / "LICENSE").unlink()
    with pytest.raises(BundleRefused) as refused:
        registry.require_unchanged(added.contract_file, bundle)
    assert str(refused.value).endswith(
        "changed since it was added: LICENSE is gone, configs/evil.json is new, models/model.pt is different; "
        "put that right, or remove the model and add it anew"
    )


def test_a_scaffolded_contract_says_by_line_what_a_person_must_choose_and_loads_once_it_is(
    tmp_path: Path, models: Path
) -> None:
    added = registry.add(str(write_bundle(tmp_path / "b")), models)
    text = added.contract_file.read_text()
    raw = tomllib.loads(text)
    assert [each["name"] for each in raw["segments"]] == ["Spleen", "Left tumour"], "the background is no segment"
    assert [each["label"] for each in raw["segments"]] == [1, 2]
    assert raw["inputs"] == [{"key": "image", "series": {"attribute": "Modality", "equals": "MR"}}]
    assert "which they cannot be" in text, "MR in Hounsfield units"
    assert 'choose a code of CID 7151, perhaps 78961009 "Spleen"' in text
    with pytest.raises(InvalidConfiguration) as invalid:
        load_contract(added.contract_file)
    lines = text.splitlines()
    for index in (0, 1):
        line = [number for number, each in enumerate(lines, 1) if each.startswith("type = ")][index]
        wanted = f"{added.contract_file}:{line}: segments[{index}].type.value: "
        assert any(each.startswith(wanted) for each in invalid.value.problems), (wanted, invalid.value.problems)
    added.contract_file.write_text(complete(text))
    contract = load_contract(added.contract_file)
    assert (contract.name, contract.bundle) == ("spleen_segmentation", added.contract_file.parent / "bundle")
    assert [each.type.value for each in contract.segments] == ["78961009", "78961009"]


@pytest.mark.parametrize(
    ("task", "described", "section"),
    [
        ("classification", {"type": "probabilities", "channel_def": {"0": "A", "1": "B"}}, "classes"),
        ("detection of nodules", {"channel_def": {"0": "Nodule"}}, "objects"),
        ("bone age regression", {}, "scores"),
    ],
)
def test_other_kinds_of_model_are_scaffolded_too(
    tmp_path: Path, models: Path, task: str, described: dict[str, object], section: str
) -> None:
    metadata = {**METADATA, "task": task, "network_data_format": {"outputs": {"pred": described}}}
    source = write_bundle(tmp_path / "b", {"configs/metadata.json": json.dumps(metadata).encode()})
    raw = tomllib.loads(registry.add(str(source), models).contract_file.read_text())
    assert raw[section]
    assert raw["inputs"]


def test_hostile_metadata_cannot_write_into_the_contract(tmp_path: Path, models: Path) -> None:
    evil = 'x"\nbundle = "/etc"\n#\\'
    metadata = {
        "name": evil,
        "version": evil,
        "authors": [evil],
        "task": evil,
        "network_data_format": {
            "inputs": {evil: {"modality": evil, "num_channels": 10**400, "channel_def": {"0": evil}}},
            "outputs": {evil: {"channel_def": {"1": evil, "x": 3, "99999999": 1}, "type": 5}},
        },
    }
    source = write_bundle(tmp_path / "b", {"configs/metadata.json": json.dumps(metadata).encode()})
    raw = tomllib.loads(registry.add(str(source), models, name="evil").contract_file.read_text())
    assert raw["bundle"] == "bundle"
    assert set(raw) == {"name", "title", "version", "manufacturer", "bundle", "output", "inputs", "segments"}


def test_a_model_is_removed_unless_something_needs_it(tmp_path: Path, models: Path) -> None:
    registry.add(str(write_bundle(tmp_path / "b")), models)
    with pytest.raises(BundleRefused, match="is built in"):
        registry.remove("brain_volume", [models], frozenset(), tmp_path)
    with pytest.raises(BundleRefused, match="names 'spleen_segmentation'"):
        registry.remove("spleen_segmentation", [models], frozenset({"spleen_segmentation"}), tmp_path)
    with pytest.raises(NotFound):
        registry.remove("nothing", [models], frozenset(), tmp_path)
    registry.remove("spleen_segmentation", [models], frozenset(), tmp_path)
    assert list(models.iterdir()) == []


def test_the_records_beside_a_contract_are_not_part_of_the_model_and_others_of_that_name_are(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b")
    contract = bundle / "contract.toml"
    contract.write_text("x")
    before = bundle_digest(bundle, contract, ())
    for name in ("check.json", "manifest.json"):
        (bundle / name).write_text("{}")
    assert bundle_digest(bundle, contract, ()) == before
    (bundle / "configs/check.json").write_text("{}")
    assert bundle_digest(bundle, contract, ()) != before


def test_what_is_no_file_cannot_be_digested(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b")
    os.mkfifo(bundle / "pipe")
    with pytest.raises(ValueError, match="pipe is not a file"):
        bundle_digest(bundle, bundle / "LICENSE", ())


# --- from the network -----------------------------------------------------------------------------------------------


class _Shop(http.server.BaseHTTPRequestHandler):
    archive: ClassVar[bytes] = b""
    elsewhere: ClassVar[str] = ""

    def do_GET(self) -> None:
        if self.path == "/bundle.zip":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.archive)
        elif self.path in {"/moved", "/away", "/plain", "/round"}:
            self.send_response(302)
            place = {"/moved": "/bundle.zip", "/away": self.elsewhere, "/plain": "http://127.0.0.1/x"}
            self.send_header("Location", place.get(self.path, self.path))
            self.end_headers()
        else:
            self.send_error(404)

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def shop(folder: Path) -> Iterator[tuple[str, Path]]:
    """Serve by HTTPS on a port of the system's choice; give its URL, and the CA that vouches for it."""
    authority = Authority.make(folder)
    identity = authority.issue("localhost")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Shop)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.certificate, identity.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"https://localhost:{server.server_port}", authority.file
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_an_archive_comes_from_the_network_only_with_its_digest_and_from_its_host(tmp_path: Path, models: Path) -> None:
    archive = zip_of(write_bundle(tmp_path / "b"), tmp_path / "spleen.zip")
    _Shop.archive, _Shop.elsewhere = archive.read_bytes(), "https://elsewhere.example/bundle.zip"
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    with shop(tmp_path / "ca") as (url, ca):
        with pytest.raises(BundleRefused, match="only taken with --sha256"):
            registry.add(f"{url}/bundle.zip", models, ca=ca)
        for path, sha, trusted, why in [
            ("/bundle.zip", "0" * 64, ca, "not the one that was meant"),
            ("/bundle.zip", sha256, None, "did not give the archive"),
            ("/nothing", sha256, ca, "answers 404"),
            ("/away", sha256, ca, "sends us on to elsewhere.example"),
            ("/plain", sha256, ca, "is not of the form https"),
            ("/round", sha256, ca, "round in circles"),
        ]:
            with pytest.raises(BundleRefused, match=why):
                registry.add(f"{url}{path}", models, sha256=sha, ca=trusted)
        with pytest.raises(BundleRefused, match="sends more than 100 bytes"):
            download(f"{url}/bundle.zip", tmp_path / "large", ca=ca, maximum_bytes=100)
        assert list(models.iterdir()) == []
        assert registry.add(f"{url}/moved", models, sha256=sha256, ca=ca).sha256 == sha256
    for wrong in ("http://localhost/x.zip", "https://user:secret@localhost/x", "ftp://x/y", "https://[::1/x"):
        with pytest.raises(BundleRefused, match=r"https|not a URL"):
            download(wrong, tmp_path / "x")


# --- the command line -----------------------------------------------------------------------------------------------


def said(config: Path, *arguments: str | Path) -> tuple[int, str]:
    """What a command prints, and its exit code."""
    done = CliRunner().invoke(app, ["models", *map(str, arguments), "--config", str(config)], catch_exceptions=False)
    return done.exit_code, done.output


def test_the_commands_tell_and_do_what_they_say(tmp_path: Path, models: Path) -> None:
    config = tmp_path / "meddaemon.toml"
    # A rule that names a model which cannot be loaded yet keeps nobody from working on it.
    config.write_text('[models]\ndirectories = ["models"]\n[[rules]]\nname = "r"\nmodels = ["spleen_segmentation"]\n')
    archive = zip_of(write_bundle(tmp_path / "b", {"scripts/phone.py": b"import socket\n"}), tmp_path / "spleen.zip")
    code, text = said(config, "add", archive)
    assert code == 0, text
    assert "leaves: scripts/phone.py:1: imports socket" in text
    assert "complete " in text
    assert "leaves: scripts/phone.py:1: imports socket" in said(config, "audit", "spleen_segmentation")[1]
    with pytest.raises(InvalidConfiguration, match=r"segments\[0\]\.type\.value"):
        said(config, "show", "spleen_segmentation")
    states = {each["name"]: each["state"] for each in json.loads(said(config, "list", "--format", "json")[1])}
    assert states["spleen_segmentation"] == "no work"
    contract = models / "spleen_segmentation/contract.toml"
    contract.write_text(complete(contract.read_text()))
    code, text = said(config, "check", "spleen_segmentation")
    assert (code, "it has no golden case" in text) == (1, True)
    code, text = said(config, "check", "spleen_segmentation", "--force", "seen by Dr N")
    assert (code, "admitted by force: seen by Dr N" in text) == (0, True)
    assert "admitted by force: seen by Dr N" in said(config, "show", "spleen_segmentation")[1]
    assert "seen by Dr N" in said(config, "list")[1]
    with pytest.raises(BundleRefused, match="a rule or"):
        said(config, "remove", "spleen_segmentation")
    config.write_text('[models]\ndirectories = ["models"]\n')
    assert said(config, "remove", "spleen_segmentation") == (0, "removed spleen_segmentation\n")
    assert list(models.iterdir()) == []


def test_a_hostile_zip_stays_a_zip(tmp_path: Path, models: Path) -> None:
    config = tmp_path / "meddaemon.toml"
    config.write_text('[models]\ndirectories = ["models"]\n')
    archive = tmp_path / "evil.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("configs/inference.json", "{}")
        opened.writestr("../../evil.txt", "evil")
    refused = run_cli("models", "add", archive, "--config", config)
    assert (refused.returncode, refused.stderr) == (1, "meddaemon: '../../evil.txt' leads out of its folder\n")
    assert list(models.iterdir()) == []
    assert not (tmp_path / "evil.txt").exists()
