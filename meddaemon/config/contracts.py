"""Model contracts: `contract.toml` beside a bundle, read into `meddaemon.domain.contract.ModelContract`.

Everything is checked at once, down to the codes and the digests of the weights, because a wrong contract means
wrong results that look right.
"""

import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from meddaemon.config import toml_file
from meddaemon.config.conditions import parse_condition
from meddaemon.config.digest import bundle_digest, file_digest, weights_digest
from meddaemon.config.problems import Problems, did_you_mean, frozen, relative_to, tables
from meddaemon.config.toml_file import Keys
from meddaemon.domain.codes import Code
from meddaemon.domain.conditions import ALWAYS
from meddaemon.domain.contract import InputContract, MeasurementKind, ModelContract, PlausibleRange, SegmentContract

CONTRACT_NAME = "contract.toml"
BUILTIN_DIRECTORY = Path(__file__).resolve().parents[1] / "inference" / "builtin"
"""Where the models that this package brings have their folders."""

_EXTRAS = {"deepbet": "brain"}
"""Which extra of ours installs a package that carries weights."""

_SCHEMES = ("SCT", "DCM", "UCUM", "LN", "FMA", "RADLEX", "NCIt", "UMLS", "IBSI", "MDC", "NEU", "I10", "ICDO3")
_RETIRED_SCHEMES = ("SRT", "SNM3", "99SDM")

# PS3.5 6.2: LO holds 64 characters, SH 16; neither holds a backslash or control characters.
_LongString = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\\\x00-\x1f\x7f]*$")]
_ShortString = Annotated[str, Field(min_length=1, max_length=16, pattern=r"^[^\\\s\x00-\x1f\x7f]*$")]
_Name = Annotated[str, Field(max_length=64, pattern=r"^[a-z][a-z0-9_]*$")]
_PathText = Annotated[str, Field(pattern=r"^[^\x00]+$")]
_Byte = Annotated[int, Field(ge=0, le=255)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _Code(_Strict):
    """A coded concept (PS3.3 8.1: Code Value, Coding Scheme Designator, Code Meaning)."""

    value: _ShortString
    scheme: _ShortString
    meaning: _LongString

    @field_validator("scheme")
    @classmethod
    def _known(cls, scheme: str) -> str:
        if scheme in _RETIRED_SCHEMES:
            raise ValueError(f"{scheme!r} is retired from DICOM; use the SCT code of the same concept")
        if scheme not in _SCHEMES and not scheme.startswith("99"):
            raise ValueError(
                f"{scheme!r} is not a known Coding Scheme Designator{did_you_mean(scheme, _SCHEMES)}; "
                "a private one begins with 99"
            )
        return scheme

    def as_code(self) -> Code:
        return Code(value=self.value, scheme=self.scheme, meaning=self.meaning)


class _PlausibleRange(_Strict):
    min: Annotated[float, Field(ge=0)]
    max: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min >= self.max:
            raise ValueError(f"min {self.min:g} is not less than max {self.max:g}")
        return self


class _Input(_Strict):
    key: Annotated[str, Field(min_length=1, max_length=64)]
    series: Any
    prefer: tuple[Any, ...] = ()


class _Segment(_Strict):
    label: Annotated[int, Field(ge=1, le=65535)]
    name: _LongString
    category: _Code
    type: _Code
    finding: _Code | None = None
    laterality: _Code | None = None
    colour: tuple[_Byte, _Byte, _Byte]
    measure: tuple[Annotated[MeasurementKind, Field(strict=False)], ...] = (MeasurementKind.VOLUME,)
    plausible_volume_ml: _PlausibleRange | None = None


class _Contract(_Strict):
    """The keys of `contract.toml`."""

    name: _Name
    title: _LongString
    version: _LongString
    manufacturer: _LongString
    bundle: _PathText = "."
    weights: tuple[_PathText, ...] = ()
    output: Annotated[str, Field(min_length=1)] = "pred"
    time_limit_seconds: Annotated[float, Field(gt=0)] = 900.0
    series_description: Annotated[str, Field(max_length=64, pattern=r"^[^\\\x00-\x1f\x7f]*$")] = ""
    inputs: Annotated[tuple[_Input, ...], Field(min_length=1)]
    segments: Annotated[tuple[_Segment, ...], Field(min_length=1)]


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


def load_contract(file: Path) -> ModelContract:
    """Read one contract file and check it, its codes, its bundle and its weights.

    Raises InvalidConfiguration with every problem as `file:line: key: what is wrong`.
    """
    document = toml_file.read(file)
    problems = Problems(document)
    inputs = tuple(_input(raw, ("inputs", index), problems) for index, raw in tables(document.data.get("inputs")))
    try:
        contract = _Contract.model_validate(frozen(document.data))
    except ValidationError as error:
        problems.add_invalid(error, _Contract)
        raise problems.error from error
    _check_unique("inputs", "key", [each.key for each in contract.inputs], problems)
    _check_unique("segments", "label", [each.label for each in contract.segments], problems)
    _check_unique("segments", "name", [each.name for each in contract.segments], problems)
    for index, segment in enumerate(contract.segments):
        _check_codes(segment, ("segments", index), problems)
    weights = tuple(
        _resolved(entry, file, ("weights", index), problems) for index, entry in enumerate(contract.weights)
    )
    bundle = relative_to(file, Path(contract.bundle))
    if not bundle.is_dir():
        problems.add(("bundle",), f"{bundle} is not a directory")
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
        inputs=inputs,
        output=contract.output,
        segments=tuple(_segment(each) for each in contract.segments),
        time_limit_seconds=contract.time_limit_seconds,
        series_description=contract.series_description,
        weights=weights,
        weights_digest=digests[1],
    )


def _input(raw: Mapping[str, object], keys: Keys, problems: Problems) -> InputContract:
    prefer = raw.get("prefer", ())
    return InputContract(
        key=str(raw.get("key")),
        series=parse_condition(raw["series"], (*keys, "series"), problems) if "series" in raw else ALWAYS,
        prefer=tuple(
            parse_condition(each, (*keys, "prefer", index), problems)
            for index, each in enumerate(prefer if isinstance(prefer, list) else ())
        ),
    )


def _segment(raw: _Segment) -> SegmentContract:
    plausible = raw.plausible_volume_ml
    return SegmentContract(
        label=raw.label,
        name=raw.name,
        category=raw.category.as_code(),
        type=raw.type.as_code(),
        colour=raw.colour,
        laterality=raw.laterality.as_code() if raw.laterality else None,
        finding=raw.finding.as_code() if raw.finding else None,
        measure=raw.measure,
        plausible_volume_ml=PlausibleRange(minimum=plausible.min, maximum=plausible.max) if plausible else None,
    )


def _check_unique(array: str, key: str, values: Sequence[object], problems: Problems) -> None:
    for index, value in enumerate(values):
        if value in values[:index]:
            problems.add((array, index, key), f"{value!r} stands there already in {array}[{values.index(value)}]")


def _check_codes(segment: _Segment, keys: Keys, problems: Problems) -> None:
    """Check the SCT codes of a segment against the context groups that SEG takes them from (PS3.3 C.8.20.4)."""
    for name, code, context_group in (
        ("category", segment.category, 7150),
        ("type", segment.type, 7151),
        ("laterality", segment.laterality, 244),
    ):
        if code is None or code.scheme != "SCT":
            continue
        meanings = _context_group(context_group)
        meaning = meanings.get(code.value)
        if meaning is None:
            named = next((value for value, text in meanings.items() if text.casefold() == code.meaning.casefold()), "")
            hint = f"; {code.meaning!r} is {named}" if named else ""
            problems.add((*keys, name, "value"), f"SCT {code.value} is not in CID {context_group} of PS3.16{hint}")
        elif meaning.casefold() != code.meaning.casefold():
            problems.add(
                (*keys, name, "meaning"), f"SCT {code.value} means {meaning!r} in PS3.16, not {code.meaning!r}"
            )


@cache
def _context_group(number: int) -> Mapping[str, str]:
    """Return code value -> meaning of the SCT codes in a context group of PS3.16, its included groups with it."""
    # Imported where it is needed: the dictionary costs a third of a second and most commands load no contract.
    from pydicom.sr.codedict import codes  # noqa: PLC0415

    group = getattr(codes, f"cid{number}")
    concepts = (getattr(group, keyword) for keyword in group.dir())
    return {code.value: code.meaning for code in concepts if code.scheme_designator == "SCT"}


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
