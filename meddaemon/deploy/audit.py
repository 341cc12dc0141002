"""Looking at a bundle without running any of it: what in it is code, and where that code reaches.

Nothing is evaluated and nothing of the bundle is imported: configurations are read as data, expressions and scripts
only parsed, pickles only disassembled. What is found is for a person to judge, since a bundle is code and may well
need what it asks for; only what serves no bundle, a pickle that calls into the system, is refused outright.
"""

import ast
import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from meddaemon.deploy import pickles
from meddaemon.domain.errors import ModelFailed
from meddaemon.inference.bundles.kinds import obstacles
from meddaemon.inference.bundles.reading import read_bundle

MAXIMUM_TEXT_BYTES = 16 * 2**20
_MAXIMUM_DEPTH = 200


class Kind(StrEnum):
    """What a finding means."""

    LEAVES = "leaves"
    """Reaches beyond MONAI, torch, NumPy and the bundle itself."""
    HOSTILE = "hostile"
    """Nothing that a bundle needs: it is refused."""
    CANNOT_RUN = "cannot run"
    """Asks for what is not here, or works on what never comes here."""
    UNREADABLE = "unreadable"
    """Could not be looked at, so nothing is known of it."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a person should know: which file, where in it (a line or a path of keys), and what."""

    kind: Kind
    file: str
    where: str
    what: str

    @property
    def said(self) -> str:
        """The finding in one line."""
        return f"{self.file}{f':{self.where}' if self.where else ''}: {self.what}"


HOME = frozenset({"monai", "torch", "numpy", "np", "ignite"})
"""Packages in which a bundle may do as it likes, but for what `_REACHES_OUT` names."""

_QUIET = HOME | {
    *("__future__", "abc", "bisect", "collections", "contextlib", "copy", "dataclasses", "enum", "functools"),
    *("heapq", "itertools", "logging", "math", "numbers", "operator", "random", "re", "statistics", "string"),
    *("textwrap", "time", "typing", "typing_extensions", "warnings", "einops", "scipy", "skimage"),
}
"""Modules that scripts may import without it being told: they compute, and reach nothing."""

_BUILTINS = frozenset(
    {
        *("abs", "all", "any", "bool", "dict", "divmod", "enumerate", "filter", "float", "frozenset", "int", "iter"),
        *("isinstance", "len", "list", "map", "max", "min", "next", "pow", "print", "range", "reversed", "round"),
        *("set", "slice", "sorted", "str", "sum", "tuple", "zip", "complex", "callable", "hash", "repr", "format"),
    }
)
"""Builtins that compute, which an expression may use."""

_BUILTIN_TOOLS = frozenset(
    {"__import__", "breakpoint", "compile", "eval", "exec", "getattr", "globals", "input", "locals", "open", "setattr"}
    | {"delattr", "vars", "memoryview"}
)
"""Builtins that run code, open files or reach what has no name, in expressions and scripts alike."""

# What in the packages of HOME reads files, loads code, starts processes or asks the network.
_REACHES_OUT = re.compile(
    r"""^(?:
      torch\.(?:hub|ops\.load_library|classes|package|distributed|multiprocessing|save|utils\.cpp_extension
        |utils\.model_zoo|utils\.file_baton|serialization|load|from_file|compiler|_\w+)
    | (?:numpy|np)\.(?:load|loadtxt|genfromtxt|fromfile|memmap|save\w*|f2py|ctypeslib|distutils|testing|lib\.format
        |fromregex|DataSource|lib\.npyio)
    | monai\.(?:bundle|auto3dseg|fl|apps\.(?:utils|auto3dseg|nnunet|mmars|download\w*|datasets|tcia\w*|vista3d\.)
        |utils\.(?:module|optional_import|run_cmd|load_submodules|misc\.run_cmd|jupyter_utils|nvtx)|config\.deviceconfig)
    )(?:\.|$)""",
    re.VERBOSE,
)

# Names that are those of modules of the standard library and of harmless things in HOME as well.
_AMBIGUOUS = frozenset(
    {"abc", "array", "calendar", "cmath", "code", "copy", "dis", "enum", "math", "numbers", "operator", "profile"}
    | {"random", "re", "select", "signal", "statistics", "string", "sched", "test", "time", "token", "trace", "types"}
    | {"typing", "warnings", "functools", "itertools", "collections", "logging", "struct", "queue", "platform"}
)
_SYSTEM = frozenset(sys.stdlib_module_names) - _AMBIGUOUS

_REFERENCE = re.compile(r"@(?:\w*)(?:(?:::|#)\w*)*")


def audit(bundle: Path) -> tuple[Finding, ...]:
    """Return everything in a bundle that a person should know before it runs."""
    own = _own_modules(bundle)
    findings: list[Finding] = []
    for path in sorted(each for each in bundle.rglob("*") if each.is_file() and "__pycache__" not in each.parts):
        name = path.relative_to(bundle).as_posix()
        if path.suffix == ".py":
            findings += _script(path, name, own)
        elif path.suffix in {".json", ".yaml", ".yml"} and name.startswith("configs/"):
            findings += _configuration(path, name, own)
        else:
            findings += [
                Finding(kind=Kind.HOSTILE if each.hostile else Kind.UNREADABLE, file=name, where="", what=each.what)
                for each in pickles.scan(path)
            ]
    findings += _obstacles(bundle)
    return tuple(dict.fromkeys(findings))


def read_metadata(bundle: Path) -> dict[str, Any]:
    """Return what `configs/metadata.json` says; nothing when it cannot be read."""
    try:
        found = _read(bundle / "configs/metadata.json")
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _read(path: Path) -> object:
    """Return a configuration as plain data. Raises OSError, ValueError, RecursionError."""
    if path.stat().st_size > MAXIMUM_TEXT_BYTES:
        raise ValueError(f"has more than {MAXIMUM_TEXT_BYTES} bytes")
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return json.loads(text)
    if importlib.util.find_spec("yaml") is None:
        raise ValueError("PyYAML is not installed, which reads it")
    yaml: Any = importlib.import_module("yaml")
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


# --- configurations -------------------------------------------------------------------------------------------------


def _configuration(path: Path, name: str, own: frozenset[str]) -> Iterator[Finding]:
    try:
        content = _read(path)
        found = list(_strings(content, ()))
    except (OSError, ValueError, RecursionError) as error:
        yield Finding(kind=Kind.UNREADABLE, file=name, where="", what=f"cannot be read: {error or 'nested too deeply'}")
        return
    if name == "configs/metadata.json":
        return
    aliases: dict[str, str] = {}
    for _, text in found:
        if text.startswith("$"):
            aliases |= _imported(text)
    for keys, text in found:
        where = "::".join(keys)
        if text.startswith("$"):
            yield from _expression(text, name, where, own, aliases)
        elif keys[-1:] == ("_target_",):
            yield from _target(text, name, where, own)
        elif text.startswith("%") and "/" in text:
            yield Finding(kind=Kind.LEAVES, file=name, where=where, what=f"takes in the file {text[1:]!a}")


def _strings(value: object, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield every text with the keys that lead to it; the keys are texts as well."""
    if len(keys) > _MAXIMUM_DEPTH:
        raise ValueError("nested too deeply")
    if isinstance(value, str):
        yield keys, value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _strings(each, (*keys, str(key)))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _strings(each, (*keys, str(index)))


def _target(text: str, name: str, where: str, own: frozenset[str]) -> Iterator[Finding]:
    if "." not in text:
        # A component of MONAI, found by its short name.
        return
    for kind, what in _chain(text.split("."), own):
        yield Finding(kind=kind, file=name, where=where, what=what)


def _expression(text: str, name: str, where: str, own: frozenset[str], aliases: Mapping[str, str]) -> Iterator[Finding]:
    try:
        tree = _parsed(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        yield Finding(kind=Kind.UNREADABLE, file=name, where=where, what=f"is no expression: {text[:80]!a}")
        return
    shown = text if len(text) <= 80 else f"{text[:80]}…"
    known = _bound(tree) | set(aliases) | _BUILTINS | _BUILTIN_TOOLS | HOME | own
    found = [(kind, what) for kind, what, _ in _Code(own, aliases, every_use=True).visit(tree)]
    unknown = (node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id not in known)
    found += [(Kind.LEAVES, f"uses {each}") for each in unknown if not each.startswith(_PLACEHOLDER)]
    for kind, what in dict.fromkeys(found):
        yield Finding(kind=kind, file=name, where=where, what=f"{what}, in {shown!a}")


_PLACEHOLDER = "_reference_"


def _parsed(text: str) -> ast.AST:
    """Parse an expression as MONAI would evaluate it: references are names, and a line may import."""
    code = _REFERENCE.sub(_PLACEHOLDER, text.removeprefix("$")).strip()
    return ast.parse(code, mode="exec")


def _imported(text: str) -> dict[str, str]:
    """Return the names that an `$import` of a configuration gives to its other expressions, and what they mean."""
    try:
        tree = _parsed(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    return _aliases(tree)


# --- scripts --------------------------------------------------------------------------------------------------------


def _script(path: Path, name: str, own: frozenset[str]) -> Iterator[Finding]:
    try:
        if path.stat().st_size > MAXIMUM_TEXT_BYTES:
            raise ValueError("is too large")
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        yield Finding(kind=Kind.UNREADABLE, file=name, where="", what=f"is not Python: {error}")
        return
    for kind, what, line in _Code(own, {}, every_use=False).visit(tree):
        yield Finding(kind=kind, file=name, where=str(line), what=what)


class _Code:
    """Looks for what leaves: imports, chains of attributes, tools of the language, private doors.

    `aliases` are names that were imported elsewhere; with `every_use` each use of an import that leaves is told.
    """

    def __init__(self, own: frozenset[str], aliases: Mapping[str, str], *, every_use: bool) -> None:
        self._own = own
        self._aliases = dict(aliases)
        self._every_use = every_use

    def visit(self, tree: ast.AST) -> Iterator[tuple[Kind, str, int]]:
        """Yield what leaves, with its line."""
        self._aliases |= _aliases(tree)
        nodes = list(ast.walk(tree))
        # Of a.b.c only the whole, not a.b as well.
        within = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
        for node in nodes:
            for kind, what in self._look_at(node, whole=id(node) not in within):
                yield kind, what, getattr(node, "lineno", 1)

    def _look_at(self, node: ast.AST, *, whole: bool) -> Iterator[tuple[Kind, str]]:
        if isinstance(node, ast.Import):
            for each in node.names:
                yield from _import(each.name, self._own)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            for each in node.names:
                yield from _import(f"{node.module}.{each.name}", self._own)
        elif isinstance(node, ast.Attribute):
            if node.attr.startswith("__") and node.attr not in _HARMLESS_DUNDERS:
                yield Kind.LEAVES, f"uses {node.attr}"
            if whole:
                yield from self._name(_dotted(node))
        elif isinstance(node, ast.Name):
            if node.id in _BUILTIN_TOOLS or node.id.startswith("__"):
                yield Kind.LEAVES, f"uses {node.id}"
            elif whole:
                yield from self._name([node.id])

    def _name(self, parts: list[str]) -> Iterator[tuple[Kind, str]]:
        if not parts:
            return
        meant = [*self._aliases.get(parts[0], parts[0]).split("."), *parts[1:]]
        if meant[0] in HOME:
            yield from _chain(meant, self._own)
        elif self._every_use and parts[0] in self._aliases and meant[0] not in _QUIET | self._own:
            yield Kind.LEAVES, f"uses {'.'.join(meant)}"


def _aliases(tree: ast.AST) -> dict[str, str]:
    """Return the names that imports give, and what they mean."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                root = each.name.partition(".")[0]
                found[each.asname or root] = each.name if each.asname else root
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
    return found


_HARMLESS_DUNDERS = frozenset(
    {"__init__", "__call__", "__len__", "__getitem__", "__setitem__", "__iter__", "__next__", "__enter__", "__exit__"}
    | {"__name__", "__doc__", "__version__", "__post_init__", "__repr__", "__str__", "__eq__", "__hash__"}
)


def _import(module: str, own: frozenset[str]) -> Iterator[tuple[Kind, str]]:
    root = module.partition(".")[0]
    if root in own:
        return
    if root not in _QUIET:
        yield Kind.LEAVES, f"imports {module}{'' if _is_there(root) else ', which is not installed'}"
    elif root in HOME:
        yield from _chain(module.split("."), own)


def _chain(parts: list[str], own: frozenset[str]) -> Iterator[tuple[Kind, str]]:
    """Yield why a dotted name leaves, if it does."""
    name = ".".join(parts)
    root = parts[0]
    if root in own:
        return
    if root not in HOME:
        yield Kind.LEAVES, name if _is_there(root) else f"{name}, which is not installed"
    elif _REACHES_OUT.match(name):
        yield Kind.LEAVES, name
    elif _SYSTEM.intersection(parts[1:]):
        # torch.os.system: every module hands on what it imports.
        yield Kind.LEAVES, name


def _dotted(node: ast.expr) -> list[str]:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.insert(0, node.attr)
        node = node.value
    return [node.id, *parts] if isinstance(node, ast.Name) else []


def _bound(tree: ast.AST) -> frozenset[str]:
    """Return the names that an expression itself gives values to."""
    names = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    stored = (node for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    return frozenset(names | {node.id for node in stored} | set(_aliases(tree)))


# --- the bundle as a whole ------------------------------------------------------------------------------------------


def _own_modules(bundle: Path) -> frozenset[str]:
    """Return the names of modules that the bundle brings; none may hide one of Python's or of ours."""
    found = {each.name for each in bundle.iterdir() if each.is_dir() and any(each.glob("*.py"))}
    found |= {each.stem for each in bundle.glob("*.py")}
    return frozenset(name for name in found if name not in HOME and name not in sys.stdlib_module_names)


def _is_there(root: str) -> bool:
    """Return whether a package can be imported, without importing it."""
    if root in sys.stdlib_module_names or root == "np":
        return True
    try:
        return importlib.util.find_spec(root) is not None
    except (ImportError, ValueError):
        return False


def _obstacles(bundle: Path) -> Iterator[Finding]:
    """Yield what the runner knows against a bundle before it is loaded."""
    try:
        found = obstacles(read_bundle(bundle))
    except ModelFailed as error:
        found = [str(error)]
    for what in found:
        yield Finding(kind=Kind.CANNOT_RUN, file="configs", where="", what=what)
