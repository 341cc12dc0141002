import hashlib
import importlib.metadata
from pathlib import Path

import pytest

from meddaemon.config.contracts import find_contracts, load_contract, model_names
from meddaemon.config.digest import bundle_digest, file_digest
from meddaemon.domain.codes import Code
from meddaemon.domain.conditions import Equals
from meddaemon.domain.contract import MeasurementKind, ModelContract, PlausibleRange
from meddaemon.domain.errors import InvalidConfiguration

VALID = """\
name = "brain"
title = "Brain volume"
version = "1.0"
manufacturer = "meddaemon"

[[inputs]]
key = "image"
series = { attribute = "Modality", equals = "MR" }
prefer = [ { attribute = "MRAcquisitionType", equals = "3D" } ]

[[segments]]
label = 1
name = "Brain"
category = { value = "91723000", scheme = "SCT", meaning = "Anatomical Structure" }
type = { value = "12738006", scheme = "SCT", meaning = "Brain" }
finding = { value = "X1", scheme = "99MEDD", meaning = "Of our own" }
laterality = { value = "7771000", scheme = "SCT", meaning = "Left" }
colour = [200, 100, 0]
measure = ["volume"]
plausible_volume_ml = { min = 700, max = 2300 }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "inference.json").write_text("{}")
    (tmp_path / "model.pt").write_bytes(b"weights")
    return tmp_path


def _load(folder: Path, text: str = VALID) -> ModelContract:
    file = folder / "contract.toml"
    file.write_text(text)
    return load_contract(file)


def _problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(InvalidConfiguration) as raised:
        _load(folder, text)
    return [each.removeprefix(f"{folder}/contract.toml:") for each in raised.value.problems]


def test_a_contract_becomes_a_domain_value(folder: Path) -> None:
    contract = _load(folder)
    assert (contract.name, contract.output, contract.time_limit_seconds) == ("brain", "pred", 900.0)
    assert contract.bundle == folder.resolve()
    (chosen,) = contract.inputs
    assert chosen.key == "image"
    assert chosen.series == Equals(attribute="Modality", value="MR")
    assert chosen.prefer == (Equals(attribute="MRAcquisitionType", value="3D"),)
    (segment,) = contract.segments
    assert segment.type == Code(value="12738006", scheme="SCT", meaning="Brain")
    assert segment.colour == (200, 100, 0)
    assert segment.measure == (MeasurementKind.VOLUME,)
    assert segment.plausible_volume_ml == PlausibleRange(minimum=700, maximum=2300)


def test_every_problem_is_reported_at_once_with_its_line(folder: Path) -> None:
    wrong = (
        VALID.replace('title = "Brain volume"', 'titel = "Brain volume"')
        .replace('equals = "MR"', 'equal = "MR"')
        .replace("label = 1", 'label = "1"')
        .replace('scheme = "99MEDD"', 'scheme = "SNOMED"')
        .replace("max = 2300", "max = 600")
    )
    problems = _problems(folder, wrong)
    for line, text in [
        (1, "title: is missing"),
        (2, "titel: unknown key; did you mean 'title'?"),
        (8, "inputs[0].series.equal: unknown key; did you mean 'equals'?"),
        (12, "segments[0].label: should be a valid integer, not '1'"),
        (16, "segments[0].finding.scheme: 'SNOMED' is not a known Coding Scheme Designator"),
        (20, "segments[0].plausible_volume_ml: min 700 is not less than max 600"),
    ]:
        assert any(each.startswith(f"{line}: {text}") for each in problems), (text, problems)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            "12738006",
            "12738007",
            "15: segments[0].type.value: SCT 12738007 is not in CID 7151 of PS3.16; 'Brain' is 12738006",
        ),
        ('"Brain" }', '"Liver" }', "15: segments[0].type.meaning: SCT 12738006 means 'Brain' in PS3.16, not 'Liver'"),
        ("91723000", "12738006", "14: segments[0].category.value: SCT 12738006 is not in CID 7150"),
        ('"7771000"', '"24028007"', "17: segments[0].laterality.meaning: SCT 24028007 means 'Right'"),
        ("12738006", "12738006123456789", "segments[0].type.value: should have at most 16 characters"),
        ('"99MEDD"', '"SRT"', "segments[0].finding.scheme: 'SRT' is retired"),
        ("[200, 100, 0]", "[200, 100, 256]", "segments[0].colour[2]: "),
        ("[200, 100, 0]", "[200, 100]", "segments[0].colour[2]: is missing"),
        ('["volume"]', '["length"]', "segments[0].measure[0]: should be 'volume', 'area', 'surface', "),
        ('"brain"', '"Brain 1"', "1: name: should match pattern"),
        ('"1.0"', '"1\\\\0"', "3: version: should match pattern"),
        ('version = "1.0"', 'version = "1.0"\nbundle = "nowhere"', "4: bundle: "),
        ('version = "1.0"', 'version = "1.0"\nweights = ["absent.pt"]', "4: weights[0]: "),
    ],
)
def test_a_wrong_value_is_explained(folder: Path, old: str, new: str, problem: str) -> None:
    assert any(problem.casefold() in each.casefold() for each in _problems(folder, VALID.replace(old, new)))


def test_labels_names_and_keys_are_unique(folder: Path) -> None:
    segments = VALID[VALID.index("[[segments]]") :]
    inputs = '[[inputs]]\nkey = "image"\nseries = { attribute = "Modality", equals = "CT" }\n'
    problems = _problems(folder, VALID + segments + inputs)
    assert problems == [
        "22: segments[1].label: 1 stands there already in segments[0]",
        "23: segments[1].name: 'Brain' stands there already in segments[0]",
        "32: inputs[1].key: 'image' stands there already in inputs[0]; channels of one key have names of their own",
    ]


def _with_weights(*entries: str) -> str:
    return f"weights = [{', '.join(map(repr, entries))}]\n{VALID}"


def test_weights_beside_the_contract_are_resolved(folder: Path) -> None:
    digest = hashlib.sha256(b"weights").hexdigest()
    contract = _load(folder, _with_weights("model.pt", f"./model.pt#sha256={digest}"))
    assert contract.weights == (folder.resolve() / "model.pt",) * 2
    assert len(contract.weights_digest) == 64


def test_weights_of_another_content_are_refused(folder: Path) -> None:
    (problem,) = _problems(folder, _with_weights(f"model.pt#sha256={'0' * 64}"))
    assert problem.startswith("1: weights[0]: ")
    assert "it is not the file that was meant" in problem


def test_weights_of_an_installed_package_are_found_without_importing_it(folder: Path) -> None:
    package = importlib.metadata.distribution("pydicom")
    (license_file,) = [each for each in package.files or () if each.name == "py.typed"]
    path = Path(str(license_file.locate()))
    entry = f"pypi:pydicom=={package.version}:{license_file.as_posix()}#sha256={file_digest(path)}"
    assert _load(folder, _with_weights(entry)).weights == (path,)


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (f"pypi:no-such-weights==1.0:a.pt#sha256={'0' * 64}", "pip install 'no-such-weights==1.0'"),
        (f"pypi:pydicom==0.0.1:a.pt#sha256={'0' * 64}", "not 0.0.1: pip install 'pydicom==0.0.1'"),
        (
            f"pypi:pydicom=={importlib.metadata.version('pydicom')}:a.pt#sha256={'0' * 64}",
            "has no file a.pt",
        ),
        ("pypi:pydicom==3:a.pt", "must be 'pypi:PACKAGE==VERSION:path/in/package#sha256=HEX'"),
        ("model.pt#sha256=12", "must be 'pypi:PACKAGE==VERSION:path/in/package#sha256=HEX'"),
    ],
)
def test_weights_that_are_not_there_say_what_to_do(folder: Path, entry: str, problem: str) -> None:
    (found,) = _problems(folder, _with_weights(entry))
    assert problem in found


def test_the_digest_names_bundle_contract_and_weights(folder: Path) -> None:
    text = _with_weights("model.pt")
    first = _load(folder, text).digest
    assert _load(folder, text).digest == first
    digests = {first, _load(folder, text + "# more\n").digest}
    _load(folder, text)
    (folder / "model.pt").write_bytes(b"other")
    digests.add(_load(folder, text).digest)
    (folder / "configs" / "inference.json").rename(folder / "configs" / "renamed.json")
    digests.add(_load(folder, text).digest)
    assert len(digests) == 4
    (folder / "configs" / "__pycache__").mkdir()
    (folder / "configs" / "__pycache__" / "x.pyc").write_bytes(b"cache")
    assert _load(folder, text).digest in digests


def test_the_digest_does_not_depend_on_the_place(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    first = _load(folder).digest
    copy = tmp_path_factory.mktemp("elsewhere") / "deployed"
    folder.rename(copy)
    assert load_contract(copy / "contract.toml").digest == first


def test_a_linked_directory_would_escape_the_digest(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (folder / "scripts").symlink_to(tmp_path_factory.mktemp("outside"))
    with pytest.raises(ValueError, match="is a link to a directory"):
        bundle_digest(folder, folder / "model.pt", ())
    (problem,) = _problems(folder, VALID)
    assert "is a link to a directory" in problem


def test_contracts_are_found_by_name(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "contract.toml").write_text("")
    (tmp_path / "two.toml").write_text("")
    assert find_contracts("one", [tmp_path]) == [(tmp_path / "one" / "contract.toml").resolve()]
    assert find_contracts("two", [tmp_path, tmp_path]) == [(tmp_path / "two.toml").resolve()]
    assert find_contracts("../one", [tmp_path]) == []
    assert {"one", "two"} <= set(model_names([tmp_path]))
