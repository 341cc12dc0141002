import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meddaemon.config import toml_file
from meddaemon.domain.errors import InvalidConfiguration


def _read(tmp_path: Path, text: str) -> toml_file.TomlFile:
    path = tmp_path / "file.toml"
    path.write_bytes(text.encode())
    return toml_file.read(path)


DOCUMENT = '''\
# a comment with [brackets] = "and quotes
top = 1
"quoted key".sub = 2
text = """
[not.a.table]
key = "x" \\""" \\
still text"""
literal = \'\'\'
it's 'one' text''\'\'\'

[table] # comment
a = [
  1, # one
  [2, 3],

  { x = 4, y.z = [
    5,
  ] }, "a # b",
]

[[rules]]
name = "first"
[rules.study]
all = [
  { attribute = "Modality", equals = "MR" },
  { any = [
      { attribute = "A" },
      { attribute = "B" },
  ] },
]

[[rules]]
name = 'second'
study.not.attribute = 2020-01-01 00:00:00
[[rules.deep]]
k = 1
[[rules.deep]]
k = 2
[rules.deep.er]
k = 3
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ((), 1),
        (("top",), 2),
        (("quoted key", "sub"), 3),
        (("text",), 4),
        (("literal",), 8),
        (("table",), 11),
        (("table", "a"), 12),
        (("table", "a", 0), 13),
        (("table", "a", 1, 1), 14),
        (("table", "a", 2), 16),
        (("table", "a", 2, "y", "z", 0), 17),
        (("table", "a", 3), 18),
        (("rules",), 21),
        (("rules", 0), 21),
        (("rules", 0, "study", "all", 0, "equals"), 25),
        (("rules", 0, "study", "all", 1, "any", 1, "attribute"), 28),
        (("rules", 1), 32),
        (("rules", 1, "study", "not", "attribute"), 34),
        (("rules", 1, "deep", 0, "k"), 36),
        (("rules", 1, "deep", 1, "k"), 38),
        (("rules", 1, "deep", 1, "er", "k"), 40),
        (("rules", 1, "deep", 1, "er", "missing"), 39),
        (("rules", 1, "destinations", 4), 32),
        (("nowhere", "at", "all"), 1),
    ],
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_every_value_has_its_line(tmp_path: Path, path: toml_file.Keys, line: int, line_end: str) -> None:
    read = _read(tmp_path, DOCUMENT.replace("\n", line_end))
    assert read.line_of(path) == line


def test_the_data_are_what_tomllib_reads(tmp_path: Path) -> None:
    assert _read(tmp_path, DOCUMENT).data == tomllib.loads(DOCUMENT)


def test_what_is_not_toml_is_reported_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration, match=r"file\.toml:3: not valid TOML: "):
        _read(tmp_path, "a = 1\nb = 2\nc = = 3\n")


def test_what_is_not_utf8_is_reported_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.toml"
    path.write_bytes(b'a = 1\nb = "\xe9"\n')
    with pytest.raises(InvalidConfiguration, match=r"latin\.toml:2: is not UTF-8 text"):
        toml_file.read(path)


def test_a_missing_file_is_reported_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration, match=r"absent\.toml:1: cannot be read: No such file"):
        toml_file.read(tmp_path / "absent.toml")


def test_nesting_without_end_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration, match="nested too deeply"):
        _read(tmp_path, "a = " + "[" * 100_000 + "]" * 100_000)


# Any value as TOML text, in which every number marks the line on which it stands: the scanner is right when each
# number in the data is found on the line that it names.
_KEYS = st.sampled_from(["a", "b-c", "'d.e'", '"f \\" g"', '"#"', "7", "true"])
_NOISE = st.sampled_from(
    ["'it]'", '"x # } \\" ,"', "'''a\n\n]'''", '"""q"" \\""" \n}"""', "1979-05-27T07:32:00Z", "-1.5e3"]
)
_BREAK = st.sampled_from(["", " ", "\n", " # ], } = [\n", "\n\n"])


@st.composite
def _arrays(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    elements = draw(st.lists(st.tuples(_BREAK, values, _BREAK), max_size=3))
    return "[" + ",".join(before + value + after for before, value, after in elements) + "]"


@st.composite
def _inline_tables(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    pairs = draw(st.dictionaries(_KEYS, values, max_size=3))
    return "{" + ", ".join(f"{key} = {value}" for key, value in pairs.items()) + "}"


_VALUES = st.recursive(
    st.one_of(st.just("@"), _NOISE),
    lambda inner: st.one_of(_arrays(inner), _inline_tables(inner)),
    max_leaves=12,
)


@st.composite
def _documents(draw: st.DrawFn) -> str:
    tables = draw(st.lists(st.tuples(st.booleans(), st.dictionaries(_KEYS, _VALUES, max_size=3)), max_size=4))
    text = ""
    for number, (repeated, pairs) in enumerate(tables):
        text += "[[many]]\n" if repeated else f"[t{number}.'x y']\n"
        text += "".join(f"{key}\t= {value}{draw(st.sampled_from(['', ' # x = [']))}\n" for key, value in pairs.items())
    return text


def _numbers(value: object, path: toml_file.Keys = ()) -> list[tuple[toml_file.Keys, int]]:
    if isinstance(value, dict):
        return [found for key, each in value.items() for found in _numbers(each, (*path, key))]
    if isinstance(value, list):
        return [found for index, each in enumerate(value) for found in _numbers(each, (*path, index))]
    return [(path, value)] if isinstance(value, int) else []


@given(_documents())
def test_a_number_that_names_its_line_is_found_there(tmp_path_factory: pytest.TempPathFactory, document: str) -> None:
    numbered = "\n".join(line.replace("@", str(number)) for number, line in enumerate(document.split("\n"), start=1))
    read = _read(tmp_path_factory.getbasetemp(), numbered)
    for path, number in _numbers(read.data):
        assert read.line_of(path) == number
