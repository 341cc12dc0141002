import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from meddaemon.config import settings as settings_module
from meddaemon.config.settings import Document, Settings, load
from meddaemon.domain.conditions import ALWAYS, Equals
from meddaemon.domain.errors import InvalidConfiguration
from meddaemon.domain.rules import Rule
from meddaemon.domain.series import SeriesKind

REPOSITORY = Path(__file__).resolve().parents[2]
SHIPPED = REPOSITORY / "config" / "meddaemon.toml"

MODEL = """\
name = "example"
title = "Example"
version = "1"
manufacturer = "Nobody"
[[inputs]]
key = "image"
series = { attribute = "Modality", equals = "CT" }
[[segments]]
label = 1
name = "Brain"
category = { value = "91723000", scheme = "SCT", meaning = "Anatomical Structure" }
type = { value = "12738006", scheme = "SCT", meaning = "Brain" }
colour = [1, 2, 3]
"""

PEER = """
[[peers]]
ae_title = "CT1"
host = "localhost"
port = 104
"""

DESTINATION = """
[[destinations]]
name = "pacs"
ae_title = "PACS"
host = "pacs.example.org"
port = 104
"""

RULE = """
[[rules]]
name = "first"
models = ["example"]
destinations = ["pacs"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "models" / "example"
    model.mkdir(parents=True)
    (model / "contract.toml").write_text(MODEL)
    return tmp_path


def _load(folder: Path, text: str, environ: Mapping[str, str] | None = None) -> Settings:
    file = folder / "meddaemon.toml"
    file.write_text(text)
    return load(file, environ or {})


def _problems(folder: Path, text: str, environ: Mapping[str, str] | None = None) -> list[str]:
    with pytest.raises(InvalidConfiguration) as raised:
        _load(folder, text, environ)
    return [each.removeprefix(f"{folder}/meddaemon.toml:") for each in raised.value.problems]


MODELS = '[models]\ndirectories = ["models"]\n'


# --- what is read ------------------------------------------------------------------------------------------------


def test_without_a_file_the_defaults_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load(None, {})
    assert settings.store.directory == tmp_path / "meddaemon-data"
    assert settings.database.url == f"sqlite:///{tmp_path}/meddaemon-data/meddaemon.sqlite"
    assert (settings.listener.host, settings.listener.port) == ("127.0.0.1", 11112)
    assert (settings.rules, settings.contracts, settings.file, settings.warnings) == ((), {}, None, ())


def test_a_rule_becomes_a_domain_value_and_its_model_is_loaded(folder: Path) -> None:
    text = (
        MODELS
        + DESTINATION
        + RULE
        + """
study = { attribute = "StudyDescription", equals = "HEAD" }
admit = ["localizer"]
quiet_seconds = 0
priority = 0
fallback = true

[[rules]]
name = "off"
enabled = false
models = ["no such model"]
"""
    )
    settings = _load(folder, text)
    assert settings.rules == (
        Rule(
            name="first",
            models=("example",),
            destinations=("pacs",),
            study=Equals(attribute="StudyDescription", value="HEAD"),
            series=ALWAYS,
            admit=frozenset({SeriesKind.LOCALIZER}),
            quiet_seconds=0.0,
            priority=0,
            fallback=True,
        ),
    )
    assert list(settings.contracts) == ["example"]
    assert settings.destination("pacs").objects == ("SEG", "SR")


def test_a_model_that_nobody_names_is_not_looked_at(folder: Path) -> None:
    (folder / "models" / "broken.toml").write_text("not TOML")
    assert _load(folder, MODELS).contracts == {}


def test_an_enabled_model_is_loaded_without_a_rule(folder: Path) -> None:
    assert list(_load(folder, MODELS + 'enabled = ["example"]').contracts) == ["example"]


def test_relative_paths_start_at_the_folder_of_the_file(folder: Path) -> None:
    settings = _load(folder, '[store]\ndirectory = "a"\n[database]\nurl = "sqlite:///b.sqlite?x=1"\n' + MODELS)
    assert settings.store.directory == folder / "a"
    assert settings.database.url == f"sqlite:///{folder}/b.sqlite?x=1"
    assert settings.models.directories == (folder / "models",)


def test_the_variable_names_the_file_and_the_argument_goes_over_it(folder: Path) -> None:
    one, two = folder / "one.toml", folder / "two.toml"
    one.write_text("[listener]\nport = 1\n")
    two.write_text("[listener]\nport = 2\n")
    assert load(None, {"MEDDAEMON_CONFIG": str(one)}).listener.port == 1
    assert load(two, {"MEDDAEMON_CONFIG": str(one)}).listener.port == 2


# --- the environment ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "seen", "value"),
    [
        ("LISTENER__PORT", "0", lambda it: it.listener.port, 0),
        ("LISTENER__AE_TITLE", "12", lambda it: it.listener.ae_title, "12"),
        ("LISTENER__ACCEPT", "listed", lambda it: it.listener.accept, "listed"),
        ("LISTENER__LABELS", '{R = "research"}', lambda it: it.listener.labels, {"R": "research"}),
        ("LISTENER__TRANSPORTS", '["plain"]', lambda it: it.listener.transports, ("plain",)),
        ("TLS__CLIENT_CERTIFICATES", "optional", lambda it: it.tls.client_certificates, "optional"),
        ("COMPLETENESS__QUIET_SECONDS", "1.5", lambda it: it.completeness.quiet_seconds, 1.5),
        ("LOGGING__LEVEL", "debug", lambda it: it.logging.level, "debug"),
        ("LOGGING__LEVEL", "", lambda it: it.logging.level, "warning"),
        ("DATABASE__URL", "postgresql://u:p@h/n", lambda it: it.database.url, "postgresql://u:p@h/n"),
        ("MODELS__ENABLED", '["example"]', lambda it: tuple(it.contracts), ("example",)),
        ("DESTINATIONS", '[{name = "x", ae_title = "X", host = "h", port = 1}]', lambda it: it.destinations[0].port, 1),
    ],
)
def test_a_variable_goes_over_the_file(
    folder: Path, name: str, text: str, seen: Callable[[Settings], object], value: object
) -> None:
    written = MODELS + '[listener]\nport = 9\nae_title = "FILE"\n[logging]\nlevel = "warning"\n'
    assert seen(_load(folder, written, {f"MEDDAEMON_{name}": text})) == value


def test_a_relative_path_in_a_variable_starts_at_the_working_directory(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    assert _load(folder, "", {"MEDDAEMON_STORE__DIRECTORY": "data"}).store.directory == elsewhere / "data"


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("MEDDAEMON_LISTENER__PORT", "high", "MEDDAEMON_LISTENER__PORT: should be a valid integer, not 'high'"),
        (
            "MEDDAEMON_LISTENER__PORT",
            "70000",
            "MEDDAEMON_LISTENER__PORT: should be less than or equal to 65535, not 70000",
        ),
        (
            "MEDDAEMON_LISTENER__PROT",
            "1",
            "MEDDAEMON_LISTENER__PROT: unknown setting; did you mean 'MEDDAEMON_LISTENER__PORT'?",
        ),
        ("MEDDAEMON_LISTENER_PORT", "1", "MEDDAEMON_LISTENER_PORT: unknown; did you mean 'MEDDAEMON_LISTENER__PORT'?"),
        ("MEDDAEMON_LISTENER__PORT__X", "1", "MEDDAEMON_LISTENER__PORT__X: unknown setting"),
        ("MEDDAEMON_MODELS__ENABLED", '["exampel"]', "there is no model 'exampel'; did you mean 'example'?"),
        ("MEDDAEMON_WORKER__LEASE_SECONDS", "30", "MEDDAEMON_WORKER__LEASE_SECONDS: heartbeat_seconds (15) must be"),
    ],
)
def test_a_problem_of_a_variable_names_the_variable(folder: Path, name: str, text: str, problem: str) -> None:
    (found,) = _problems(folder, MODELS, {name: text})
    assert found.startswith(name)
    assert problem in found


def test_a_variable_does_not_hide_that_its_section_is_misshapen(folder: Path) -> None:
    (problem,) = _problems(folder, "listener = 3", {"MEDDAEMON_LISTENER__PORT": "1"})
    assert problem.startswith("1: listener: should be a table")


def test_variables_that_are_not_settings_are_left_alone(folder: Path) -> None:
    _load(folder, "", {"MEDDAEMON_SHARED": "/x", "MEDDAEMON_VALIDATORS": "/y", "PATH": "/bin"})


# --- what is wrong -----------------------------------------------------------------------------------------------


def test_every_problem_is_reported_at_once_with_its_line(folder: Path) -> None:
    contract = folder / "models" / "example" / "contract.toml"
    contract.write_text(MODEL.replace("[1, 2, 3]", "[1, 2, 999]"))
    text = """\
[listener]
prot = 104
port = "11112"
[worker]
lease_seconds = 30
heartbeat_seconds = 11
maximum_attempts = -1
[models]
directories = ["models", "nowhere"]
[[rules]]
name = "a"
study = { attribute = "Modalty", equals = "MR" }
[[rules]]
name = "a"
models = ["example", "exampel", "brain_volum"]
destinations = [
  "pasc",
]
[sotre]
directory = "x"
"""
    text += DESTINATION.replace('"pacs.example.org"', '"localhost"').replace('"PACS"', '""')
    assert _problems(folder, text) == [
        "2: listener.prot: unknown key; did you mean 'port'?",
        "3: listener.port: should be a valid integer, not '11112'",
        "6: worker.heartbeat_seconds: heartbeat_seconds (11) must be at most a third of lease_seconds (30)",
        "7: worker.maximum_attempts: should be greater than or equal to 1, not -1",
        f"9: models.directories[1]: {folder}/nowhere is not a directory",
        "10: rules[0].models: is missing",
        "12: rules[0].study.attribute: 'Modalty' is neither a DICOM keyword nor computed; did you mean 'Modality'?",
        "14: rules[1].name: 'a' is the name of rules[0] already",
        "15: rules[1].models[1]: there is no model 'exampel'; did you mean 'example'?",
        "15: rules[1].models[2]: there is no model 'brain_volum'; did you mean 'brain_volume'?",
        "17: rules[1].destinations[0]: there is no destination 'pasc'; did you mean 'pacs'?",
        "19: sotre: unknown key; did you mean 'store'?",
        "24: destinations[0].ae_title: is missing: a destination of kind dicom needs it",
        f"{contract}:13: segments[0].colour[2]: should be less than or equal to 255, not 999",
    ]


def test_a_destination_that_is_this_daemon_itself_is_refused(folder: Path) -> None:
    (problem,) = _problems(folder, DESTINATION.replace("pacs.example.org", "localhost").replace("104", "11112"))
    assert problem == "6: destinations[0].port: localhost:11112 is this daemon's own listener"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[store]\njournal_bytes = 1_000_000", "2: store.journal_bytes: 0 (no journal) or at least 67_108_864"),
        (
            "[listener]\nport = 0\nprocesses = 2",
            "3: listener.processes: several processes need one port to share: set listener.port",
        ),
        ('[listener]\nae_title = "SEVENTEEN LETTERS"', "2: listener.ae_title: 'SEVENTEEN LETTERS' is not an AE title"),
        ('[listener]\nae_title = "a\\\\b"', "2: listener.ae_title: 'a\\\\b' is not an AE title"),
        ('[delivery]\nae_title = " A"', "2: delivery.ae_title: ' A' is not an AE title"),
        (
            "[listener]\nmaximum_associations = 0",
            "2: listener.maximum_associations: should be greater than or equal to 1",
        ),
        ("[listener]\nidle_timeout_seconds = nan", "2: listener.idle_timeout_seconds: should be a finite number"),
        ("[completeness]\nquiet_seconds = true", "2: completeness.quiet_seconds: should be a valid number, not true"),
        ('[database]\nurl = "mysql://root:secret@h/n"', "2: database.url: must begin with sqlite:///"),
        ('[database]\nurl = "sqlite://"', "2: database.url: must name a file"),
        ('[database]\nurl = "sqlite:///:memory:"', "2: database.url: must name a file"),
        ("[database]\nurl = 12345", "2: database.url: should be a valid string"),
        (
            "[worker]\nheartbeat_seconds = 21",
            "2: worker.heartbeat_seconds: heartbeat_seconds (21) must be at most a third",
        ),
        ("[worker]\nlease_seconds = 44", "2: worker.lease_seconds: heartbeat_seconds (15) must be at most a third"),
        (
            "[delivery]\nmaximum_backoff_seconds = 1",
            "2: delivery.maximum_backoff_seconds: backoff_seconds (10) must be",
        ),
        ("listener = 3", "1: listener: should be a table, not 3"),
        ("rules = 3", "1: rules: should be an array, in brackets, not 3"),
        ('[rules]\nname = "a"', "1: rules: is an array of tables: write [[rules]]"),
        ('[listener]\ntransports = "tls"', "2: listener.transports: should be an array, in brackets, not 'tls'"),
        ("rules = [3]", "1: rules[0]: should be a table, not 3"),
        ('[[rules]]\nname = "a"\nmodels = []', "3: rules[0].models: should have at least one element, not []"),
        (
            '[[rules]]\nname = "a"\nmodels = ["m"]\npriority = 10',
            "4: rules[0].priority: should be less than or equal to 9",
        ),
        (
            '[[rules]]\nname = "a"\nmodels = ["m"]\nadmit = ["scout"]',
            "4: rules[0].admit[0]: should be 'image', 'localizer'",
        ),
        (
            '[[destinations]]\nname = "a"\nobjects = ["PNG"]',
            "3: destinations[0].objects[0]: should be 'SEG', 'PROBABILITY', 'PM', 'SR'",
        ),
        (DESTINATION.lstrip() + DESTINATION, "8: destinations[1].name: 'pacs' is the name of destinations[0] already"),
        (PEER.lstrip() + PEER, "7: peers[1].ae_title: 'CT1' is the ae_title of peers[0] already"),
        ('[store]\ndirectory = "a\\u0000b"', "2: store.directory: is not a path: "),
        ('[store]\ndirectory = "~no-such-user/x"', "2: store.directory: is not a path: "),
        ("a = = 1", "1: not valid TOML: Invalid value (at line 1, column 5)"),
    ],
)
def test_a_wrong_setting_is_explained(folder: Path, text: str, problem: str) -> None:
    problems = _problems(folder, text)
    assert any(each.startswith(problem) for each in problems), problems
    assert "secret" not in "".join(problems)
    assert "12345" not in "".join(problems)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfiguration, match=r"absent\.toml:1: cannot be read: No such file or directory"):
        load(tmp_path / "absent.toml", {})


def test_a_store_that_is_a_file_is_refused(folder: Path) -> None:
    (folder / "taken").write_text("")
    (problem,) = _problems(folder, '[store]\ndirectory = "taken"')
    assert problem == f"2: store.directory: {folder}/taken is not a directory"


def test_a_contract_of_another_name_or_in_two_places_is_refused(folder: Path) -> None:
    (folder / "models" / "renamed.toml").write_text(MODEL)
    (folder / "models" / "example.toml").write_text(MODEL)
    problems = _problems(folder, MODELS + 'enabled = ["renamed", "example"]')
    assert problems[0].endswith("renamed.toml is of a model named 'example'")
    assert "model 'example' has more than one contract" in problems[1]


@pytest.mark.parametrize(("mode", "warned"), [(0o644, True), (0o640, False)])
def test_a_password_that_everybody_may_read_is_warned_about(folder: Path, mode: int, *, warned: bool) -> None:
    file = folder / "meddaemon.toml"
    file.write_text('[database]\nurl = "postgresql://u:secret@h/n"\n')
    file.chmod(mode)
    settings = load(file, {})
    assert [each.split(": ")[0] for each in settings.warnings] == [f"{file}:2"] * warned
    assert "secret" not in str(settings.warnings)
    assert "secret" not in repr(settings)
    assert load(file, {"MEDDAEMON_DATABASE__URL": "postgresql://u:secret@h/n"}).warnings == ()


# --- the file that we ship ---------------------------------------------------------------------------------------


ARRAYS = {
    "destinations": settings_module.DestinationSettings,
    "peers": settings_module.PeerSettings,
    "windows": settings_module.WindowSettings,
    "rules": settings_module.RuleSettings,
}


def _keys(model: type[BaseModel]) -> set[str]:
    found = set()
    for name, field in model.model_fields.items():
        inner = ARRAYS.get(name, field.annotation)
        assert isinstance(inner, type)
        assert issubclass(inner, BaseModel)
        found |= {f"{name}.{key}" for key in inner.model_fields}
    return found


def _uncommented() -> dict[str, Any]:
    return tomllib.loads(re.sub(r"(?m)^#(?=[a-z\[])", "", SHIPPED.read_text()))


def test_the_shipped_file_loads() -> None:
    settings = load(SHIPPED, {})
    assert settings.store.directory == REPOSITORY / "meddaemon-data"
    assert (settings.rules, settings.warnings) == ((), ())


def test_the_shipped_file_explains_every_setting_and_no_other() -> None:
    shown = {
        f"{section}.{key}"
        for section, table in _uncommented().items()
        for key in (table[0] if isinstance(table, list) else table)
    }
    assert shown == _keys(Document)


def test_each_setting_in_the_shipped_file_has_a_comment_of_its_own() -> None:
    lines = SHIPPED.read_text().splitlines()
    for before, line in pairwise(lines):
        if re.match(r"#?[a-z_]+ = ", line) and not re.match(r"#(host|port) =", line):
            assert before.startswith("# "), line


def test_a_commented_setting_shows_its_default() -> None:
    active = tomllib.loads(SHIPPED.read_text())
    for section, table in _uncommented().items():
        default = getattr(Document(), section)
        for key in table if isinstance(table, dict) else ():
            if key not in active[section]:
                value = getattr(default, key)
                assert table[key] == (list(value) if isinstance(value, tuple) else value), f"{section}.{key}"


def test_the_example_rule_and_destination_work(tmp_path: Path) -> None:
    pytest.importorskip("deepbet", reason="the weights of the built-in model are an extra")
    (tmp_path / "models").mkdir()
    settings = _load(tmp_path, re.sub(r"(?m)^#(?=[a-z\[])", "", SHIPPED.read_text()))
    assert [each.name for each in settings.rules] == ["brain volume"]
    assert list(settings.contracts) == ["brain_volume"]


def test_every_setting_is_read_by_somebody() -> None:
    sources = [path for path in (REPOSITORY / "meddaemon").rglob("*.py") if path.parent.name != "config"]
    code = "\n".join(path.read_text() for path in sources)
    # Those below are read here, on the way from the file to rules, contracts and the database URL.
    here = {"rules.enabled", "rules.required_series", "models.directories", "models.enabled", "destinations.kind"}
    here |= {"windows.times", "windows.time_zone", "destinations.custody_fallback", "destinations.announce_to"}
    assert {each for each in _keys(Document) if not re.search(rf"\.{each.split('.')[1]}\b", code)} <= here


def test_loading_settings_and_contracts_pulls_in_nothing_heavy(folder: Path) -> None:
    (folder / "meddaemon.toml").write_text(MODELS + DESTINATION + RULE)
    code = (
        "import sys; from pathlib import Path; from meddaemon.config.settings import load\n"
        f"assert load(Path({str(folder / 'meddaemon.toml')!r}), {{}}).rules\n"
        "print([name for name in ('torch', 'monai', 'sqlalchemy', 'pynetdicom', 'highdicom') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]"
