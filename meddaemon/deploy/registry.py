"""The models of this installation: taken in, listed, shown, removed.

    MODELS/NAME/bundle/          the bundle as it came, read-only
                contract.toml    what it means; scaffolded, for the operator to complete
                manifest.json    where it came from, and the SHA-256 of each file
                golden/          cases that the operator added (deploy/golden.py)
    STORE/admissions/NAME.json   what its check found here (deploy/check.py)

A folder that was put there by hand, with bundle and contract as its author likes, is a model as well.
"""

import getpass
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from meddaemon.config import toml_file
from meddaemon.config.admission import Record, Sha256, admitted, changes
from meddaemon.config.contracts import BUILTIN_DIRECTORY, CONTRACT_NAME, find_contracts, load_contract, model_names
from meddaemon.config.digest import MANIFEST_NAME, file_digest, record_file
from meddaemon.config.problems import relative_to
from meddaemon.deploy import audit, unpack
from meddaemon.deploy.download import download
from meddaemon.deploy.scaffold import scaffold
from meddaemon.domain.contract import ModelContract
from meddaemon.domain.errors import BundleRefused, InvalidConfiguration, NotFound
from meddaemon.durable import sync

BUNDLE_NAME = "bundle"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


class ManifestFile(Record):
    """One file of a bundle as it came."""

    sha256: Sha256
    size: int


class Manifest(Record):
    """Where a bundle came from. `archive_sha256` is empty for one that came as a folder."""

    format: Literal[1] = 1
    name: str
    source: str
    archive_sha256: str
    files: dict[str, ManifestFile]
    added: str
    by: str


@dataclass(frozen=True, kw_only=True)
class Added:
    """A bundle that was taken in: its contract to complete, and what the audit saw in it."""

    name: str
    contract_file: Path
    sha256: str
    files: int
    findings: tuple[audit.Finding, ...]


@dataclass(frozen=True, kw_only=True)
class ModelRow:
    """One line of the list of models; `state` is `checked`, `forced` or `no work`, `why` the reason."""

    name: str
    version: str
    digest: str
    state: str
    why: str
    contract_file: str


def add(
    source: str, models: Path, *, sha256: str = "", name: str = "", contract: Path | None = None, ca: Path | None = None
) -> Added:
    """Take a bundle in from a folder, a zip archive or an HTTPS URL, the last only with its SHA-256.

    It comes under the name given, else under its own; `contract` is a contract to use instead of a scaffolded one. It
    gets no work before it is checked. Raises BundleRefused, OSError.
    """
    if not models.is_dir():
        raise BundleRefused(f"{models} is not a folder: name one in models.directories")
    if sha256 and not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise BundleRefused("--sha256 is 64 lower case hexadecimal digits")
    # Beside its place, so that it comes there whole, by one rename, or not at all.
    staged = Path(tempfile.mkdtemp(prefix=".adding-", dir=models))
    try:
        bundle = staged / BUNDLE_NAME
        archive_sha256 = _take(source, staged, sha256, ca)
        _check_is_bundle(bundle)
        findings = audit.audit(bundle)
        if hostile := [each for each in findings if each.kind is audit.Kind.HOSTILE]:
            raise BundleRefused("; ".join(each.said for each in hostile[:5]))
        name = name or _name_of(bundle, source)
        if not _NAME.fullmatch(name):
            raise BundleRefused(f"{name!a} is not a name for a model: lower case letters, digits and _; use --name")
        if find_contracts(name, [models]):
            raise BundleRefused(f"there is a model {name!r} already")
        text = contract.read_text() if contract else scaffold(bundle, name, BUNDLE_NAME)
        (staged / CONTRACT_NAME).write_text(text)
        files = _manifest_files(bundle)
        manifest = Manifest(
            name=name, source=source, archive_sha256=archive_sha256, files=files, added=now(), by=operator()
        )
        write_record(staged / MANIFEST_NAME, manifest)
        staged.chmod(0o755)
        try:
            staged.rename(models / name)
        except OSError as error:
            raise BundleRefused(f"{models / name} is there already: remove it first") from error
        sync(models)
    except BaseException:
        _remove(staged)
        raise
    return Added(
        name=name,
        contract_file=models / name / CONTRACT_NAME,
        sha256=archive_sha256,
        files=len(files),
        findings=findings,
    )


def find(name: str, directories: Sequence[Path]) -> Path:
    """Return the contract file of a model. Raises NotFound."""
    files = find_contracts(name, directories)
    if not files:
        raise NotFound(f"no model {name!r}; there are: {', '.join(names(directories)) or 'none'}")
    if len(files) > 1:
        raise NotFound(f"model {name!r} has more than one contract: {', '.join(map(str, files))}")
    return files[0]


def names(directories: Sequence[Path]) -> list[str]:
    """Return the names of all models that are there."""
    return [name for name in model_names(directories) if _NAME.fullmatch(name)]


def listing(directories: Sequence[Path], records: Path) -> list[ModelRow]:
    """Return every model with its state; what is wrong with a contract is told in its row."""
    rows = []
    for name in names(directories):
        try:
            contract = load(name, directories, records)
        except (InvalidConfiguration, NotFound) as error:
            file = next(iter(find_contracts(name, directories)), Path())
            why = str(error).splitlines()[0]
            rows.append(ModelRow(name=name, version="", digest="", state="no work", why=why, contract_file=str(file)))
            continue
        admission = contract.admission
        rows.append(
            ModelRow(
                name=name,
                version=contract.version,
                digest=contract.digest[:12],
                state="no work" if admission.refusal else "forced" if admission.forced else "checked",
                why=admission.refusal or admission.forced,
                contract_file=str(contract.contract_file),
            )
        )
    return rows


def load(name: str, directories: Sequence[Path], records: Path) -> ModelContract:
    """Return the contract of a model with its admission, kept in `records`. Raises NotFound, InvalidConfiguration."""
    contract = load_contract(find(name, directories), records)
    if contract.name != name:
        where = f"{contract.contract_file}:1: name"
        raise InvalidConfiguration([f"{where}: is {contract.name!r}, and the model is named {name!r} by its folder"])
    return admitted(contract)


def bundle_of(name: str, directories: Sequence[Path]) -> Path:
    """Return where the bundle of a model lies, also while its contract is not complete. Raises NotFound."""
    file = find(name, directories)
    document = toml_file.read(file).data
    said = document.get("bundle", ".")
    return relative_to(file, Path(said if isinstance(said, str) else "."))


def read_manifest(contract_file: Path) -> Manifest | None:
    """Return where a model came from, None when it was put there by hand. Raises BundleRefused."""
    file = record_file(contract_file, MANIFEST_NAME)
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise BundleRefused(f"{file} is not a manifest that this version wrote") from error


def require_unchanged(contract_file: Path, bundle: Path) -> None:
    """Refuse a bundle that is not what was added; the changed files are named. Raises BundleRefused, OSError."""
    manifest = read_manifest(contract_file)
    if manifest is None:
        return
    before = {name: each.sha256 for name, each in manifest.files.items()}
    if what := changes(before, {name: each.sha256 for name, each in _manifest_files(bundle).items()}):
        remedy = "put that right, or remove the model and add it anew"
        raise BundleRefused(f"the bundle of {manifest.name!r} changed since it was added: {what}; {remedy}")


def remove(name: str, directories: Sequence[Path], named: frozenset[str], records: Path) -> None:
    """Remove a model that no rule names, and what its check found. Raises NotFound, BundleRefused, OSError."""
    file = find(name, directories)
    if BUILTIN_DIRECTORY in file.parents:
        raise BundleRefused(f"{name!r} is built in and stays")
    if name in named:
        raise BundleRefused(f"a rule or models.enabled names {name!r}: take it out there first")
    (records / f"{name}.json").unlink(missing_ok=True)
    if file.name != CONTRACT_NAME:
        for each in (file, record_file(file, MANIFEST_NAME)):
            each.unlink(missing_ok=True)
        return
    folder = file.parent
    if folder.is_symlink() or folder.parent not in [each.resolve() for each in directories]:
        raise BundleRefused(f"{folder} does not lie in a folder of models")
    gone = Path(tempfile.mkdtemp(prefix=".removing-", dir=folder.parent))
    folder.rename(gone / name)
    _remove(gone)
    sync(folder.parent)


def write_record(file: Path, record: Record) -> None:
    """Write a record in the place of the one before, whole or not at all."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
    try:
        with os.fdopen(descriptor, "w") as opened:
            opened.write(record.model_dump_json(indent=1) + "\n")
            opened.flush()
            os.fsync(descriptor)
            os.fchmod(descriptor, 0o644)
        Path(temporary).replace(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync(file.parent)


def now() -> str:
    """Return this moment as it is recorded."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def operator() -> str:
    """Return who works here, as the system knows them."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def _take(source: str, staged: Path, sha256: str, ca: Path | None) -> str:
    """Put the bundle below `staged`; return the SHA-256 of its archive, which is the one that was asked for."""
    bundle = staged / BUNDLE_NAME
    if "://" in source:
        if not sha256:
            raise BundleRefused("a bundle from the network is only taken with --sha256, from whoever vouches for it")
        archive = staged / "archive.zip"
        found = download(source, archive, ca=ca)
    elif Path(source).is_dir():
        if sha256:
            raise BundleRefused("a folder has no SHA-256 of its own; --sha256 is for archives")
        unpack.copy(Path(source), bundle)
        return ""
    else:
        archive = staged / "archive.zip"
        found = _copied(Path(source), archive)
    # Compared with the very bytes that are unpacked next, which nobody else can change meanwhile.
    if sha256 and found != sha256:
        raise BundleRefused(f"the archive has the SHA-256 {found}, not {sha256}: it is not the one that was meant")
    unpack.unpack(archive, bundle)
    archive.unlink()
    return found


def _copied(source: Path, target: Path) -> str:
    digest = hashlib.sha256()
    with source.open("rb") as file, target.open("xb") as copy:
        while chunk := file.read(2**20):
            digest.update(chunk)
            copy.write(chunk)
    return digest.hexdigest()


def _check_is_bundle(bundle: Path) -> None:
    if not (bundle / "configs").is_dir() and not (bundle / "scripts").is_dir():
        raise BundleRefused("it has no folder `configs`: it is not a MONAI bundle")


def _name_of(bundle: Path, source: str) -> str:
    said = audit.read_metadata(bundle).get("name")
    text = said if isinstance(said, str) and said else re.sub(r"\.zip$", "", source.rstrip("/").rpartition("/")[2])
    text = re.sub(r"[^a-z0-9]+", "_", text.casefold()).strip("_")[:64]
    return text if re.match(r"[a-z]", text) else f"model_{text}"


def _manifest_files(bundle: Path) -> dict[str, ManifestFile]:
    found = sorted(path for path in bundle.rglob("*") if not path.is_dir() and "__pycache__" not in path.parts)
    return {
        path.relative_to(bundle).as_posix(): ManifestFile(sha256=file_digest(path), size=path.stat().st_size)
        for path in found
    }


def _remove(folder: Path) -> None:
    unpack.make_removable(folder)
    shutil.rmtree(folder)
