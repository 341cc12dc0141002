"""Model contracts: `contract.toml` beside a bundle, read into `meddaemon.domain.contract.ModelContract`.

Everything is checked at once, down to the codes and the digests of the weights, because a wrong contract means
wrong results that look right.
"""

import importlib.metadata
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from meddaemon.config import toml_file
from meddaemon.config.contract_engine import EngineTable
from meddaemon.config.contract_explain import ExplainTables
from meddaemon.config.contract_inputs import InputTable, check_inputs, parse_conditions
from meddaemon.config.contract_outputs import OutputTables, check_combine, check_formulas, check_measures
from meddaemon.config.contract_terms import LongString, Strict
from meddaemon.config.digest import CHECK_NAME, bundle_digest, file_digest, record_file, weights_digest
from meddaemon.config.problems import Problems, frozen, relative_to, tables
from meddaemon.config.toml_file import Keys
from meddaemon.domain.contract import BoxFrame, Combine, ModelContract

CONTRACT_NAME = "contract.toml"
BUILTIN_DIRECTORY = Path(__file__).resolve().parents[1] / "inference" / "builtin"
"""Where the models that this package brings have their folders."""

_EXTRAS = {"deepbet": "brain"}
"""Which extra of ours installs a package that carries weights."""

_Name = Annotated[str, Field(max_length=64, pattern=r"^[a-z][a-z0-9_]*$")]
_ConfigName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\.(json|ya?ml)$")]
_PathText = Annotated[str, Field(pattern=r"^[^\x00]+$")]


class _Contract(OutputTables, ExplainTables, Strict):
    """The keys of `contract.toml`."""

    name: _Name
    title: LongString
    version: LongString
    manufacturer: LongString
    bundle: _PathText = "."
    weights: tuple[_PathText, ...] = ()
    output: Annotated[str, Field(min_length=1)] = "pred"
    time_limit_seconds: Annotated[float, Field(gt=0)] = 900.0
    series_description: Annotated[str, Field(max_length=64, pattern=r"^[^\\\x00-\x1f\x7f]*$")] = ""
    frame: Annotated[BoxFrame, Field(strict=False)] = BoxFrame.RAS
    configs: tuple[_ConfigName, ...] = ()
    memory_bytes: Annotated[int, Field(gt=0)] | None = None
    cpu_fallback: bool = True
    engine: EngineTable = EngineTable()
    inputs: Annotated[tuple[InputTable, ...], Field(min_length=1)]


def find_contracts(name: str, directories: Sequence[Path]) -> list[Path]:
    """Return every contract file that a model name stands for: `NAME/contract.toml` or `NAME.toml` in a directory.

    The directory of the built-in models is searched last. More than one answer is for the caller to refuse.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        return []
    candidates = [
        path
        for directory in (*directories, BUILTIN_DIRECTORY)
        for path in (directory / name / CONTRACT_NAME, directory / f"{name}.toml")
    ]
    return list(dict.fromkeys(path.resolve() for path in candidates if path.is_file()))


def model_names(directories: Sequence[Path]) -> list[str]:
    """Return the names of all models that have a contract in one of the directories or are built in."""
    folders = [each for each in (*directories, BUILTIN_DIRECTORY) if each.is_dir()]
    nested = {path.parent.name for folder in folders for path in folder.glob(f"*/{CONTRACT_NAME}")}
    return sorted(nested | {path.stem for folder in folders for path in folder.glob("*.toml")})


def load_contract(file: Path, records: Path | None = None) -> ModelContract:
    """Read one contract file and check it, its codes, its bundle and its weights.

    `records` is the folder in which this installation keeps what checks of models found; a built-in model has been
    checked by who made the package, and its record lies beside its contract.

    Raises InvalidConfiguration with every problem as `file:line: key: what is wrong`.
    """
    document = toml_file.read(file)
    problems = Problems(document)
    conditions = [
        parse_conditions(raw, ("inputs", index), problems) for index, raw in tables(document.data.get("inputs"))
    ]
    try:
        contract = _Contract.model_validate(frozen(document.data))
    except ValidationError as error:
        problems.add_invalid(error, _Contract)
        raise problems.error from error
    check_inputs(contract.inputs, contract.kind, problems)
    contract.check(problems)
    first = contract.inputs[0].kind
    check_combine(contract.combine, contract, first, problems)
    check_measures(contract.segments, first, problems)
    check_formulas(contract, first, problems)
    answers = [*(each.name for each in contract.classes), *(each.name.meaning for each in contract.scores)]
    segments = [(each.label, each.name) for each in contract.segments]
    contract.check_explanation(contract.kind, contract.inputs, answers, [name for _, name in segments], problems)
    if "frame" in contract.model_fields_set and not contract.objects:
        problems.add(("frame",), "is that of boxes and landmarks: this model has no [[objects]]")
    weights = tuple(
        _resolved(entry, file, ("weights", index), problems) for index, entry in enumerate(contract.weights)
    )
    bundle = relative_to(file, Path(contract.bundle))
    if not bundle.is_dir():
        problems.add(("bundle",), f"{bundle} is not a directory")
    for index, each in enumerate(contract.configs):
        if bundle.is_dir() and not (bundle / "configs" / each).is_file():
            problems.add(("configs", index), f"{bundle / 'configs'} has no file {each!r}")
    problems.raise_if_any()
    try:
        digests = bundle_digest(bundle, file, weights), weights_digest(weights)
    except (OSError, ValueError) as error:
        problems.add(("bundle",), str(error))
        raise problems.error from error
    return ModelContract(
        name=contract.name,
        title=contract.title,
        version=contract.version,
        manufacturer=contract.manufacturer,
        bundle=bundle,
        contract_file=file.resolve(),
        digest=digests[0],
        inputs=tuple(each.as_contract(*asked) for each, asked in zip(contract.inputs, conditions, strict=True)),
        output=contract.output,
        kind=contract.kind,
        segments=tuple(each.as_contract(first) for each in contract.segments),
        classes=tuple(each.as_contract() for each in contract.classes),
        scores=tuple(each.as_contract() for each in contract.scores),
        objects=tuple(each.as_contract() for each in contract.objects),
        formulas=tuple(each.as_contract() for each in contract.formulas),
        combine=contract.combine or Combine.REFUSE,
        frame=contract.frame,
        output_limits=contract.output_limits.as_contract(),
        explanation=contract.explanation,
        kept_probabilities=contract.kept(segments),
        augmentation=contract.augmented,
        configs=contract.configs,
        memory_bytes=contract.memory_bytes,
        cpu_fallback=contract.cpu_fallback,
        engine=contract.engine.as_contract(),
        time_limit_seconds=contract.time_limit_seconds,
        series_description=contract.series_description,
        weights=weights,
        weights_digest=digests[1],
        record=_record(contract.name, file.resolve(), records),
    )


def _record(name: str, file: Path, records: Path | None) -> Path | None:
    if BUILTIN_DIRECTORY in file.parents:
        return record_file(file, CHECK_NAME)
    return records / f"{name}.json" if records else None


_PYPI = re.compile(
    r"pypi:(?P<package>[A-Za-z0-9._-]+)==(?P<version>[^:]+):(?P<path>[^#]+)#sha256=(?P<sha256>[0-9a-f]{64})"
)
_RELATIVE = re.compile(r"(?P<path>[^#]+)(#sha256=(?P<sha256>[0-9a-f]{64}))?")


def _resolved(entry: str, file: Path, keys: Keys, problems: Problems) -> Path:
    """Return the file that a weights entry names; what is wrong with it is added to `problems`."""
    if entry.startswith("pypi:"):
        found = _PYPI.fullmatch(entry)
        path = _in_package(found, keys, problems) if found else None
    else:
        found = _RELATIVE.fullmatch(entry)
        path = relative_to(file, Path(found["path"])) if found else None
    if found is None:
        problems.add(
            keys,
            "must be 'pypi:PACKAGE==VERSION:path/in/package#sha256=HEX' or a path with or without '#sha256=HEX' "
            "(64 lower case hexadecimal digits)",
        )
    elif path is not None:
        _check_content(path, found["sha256"], keys, problems)
    return path or file


def _in_package(entry: re.Match[str], keys: Keys, problems: Problems) -> Path | None:
    """Return where an installed package has the file; the package itself is not imported."""
    package, version, path = entry["package"], entry["version"], entry["path"]
    extra = _EXTRAS.get(package)
    install = f"pip install 'meddaemon[{extra}]'" if extra else f"pip install '{package}=={version}'"
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        problems.add(keys, f"the package {package} {version} is not installed: {install}")
        return None
    if distribution.version != version:
        problems.add(keys, f"the package {package} is {distribution.version}, not {version}: {install}")
        return None
    located = [each.locate() for each in distribution.files or () if each.as_posix() == path]
    if not located:
        problems.add(keys, f"the package {package} {version} has no file {path}")
        return None
    return Path(str(located[0]))


def _check_content(path: Path, sha256: str | None, keys: Keys, problems: Problems) -> None:
    try:
        digest = file_digest(path)
    except OSError as error:
        problems.add(keys, f"{path} cannot be read: {error.strerror}")
        return
    if sha256 is not None and digest != sha256:
        problems.add(keys, f"{path} has the SHA-256 {digest}, not {sha256}: it is not the file that was meant")
