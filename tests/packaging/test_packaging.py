import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

from meddaemon.config.settings import load

REPOSITORY = Path(__file__).resolve().parents[2]
UNIT = REPOSITORY / "config" / "meddaemon.service"
DOCKERFILE = REPOSITORY / "Dockerfile"
COMPOSE = REPOSITORY / "docker-compose.yml"


def test_the_systemd_unit_verifies_without_a_word() -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd on this machine")
    done = subprocess.run(["systemd-analyze", "verify", UNIT], check=True, capture_output=True, text=True, timeout=60)
    # It exits with 0 on warnings.
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.fault(130)
def test_a_model_without_memory_does_not_stop_the_service() -> None:
    """By default systemd stops a service when the kernel has killed any of its processes (systemd.service(5))."""
    assert "\nOOMPolicy=continue\n" in UNIT.read_text()


def test_the_unit_lets_the_sandbox_be_made() -> None:
    allowed = {name for line in re.findall(r"(?m)^SystemCallFilter=(.+)$", UNIT.read_text()) for name in line.split()}
    assert {"landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"} <= allowed


def test_the_compose_file_is_valid() -> None:
    validate = [Path(sys.executable).with_name("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", COMPOSE]
    done = subprocess.run(validate, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def _of_unit() -> dict[str, str]:
    return dict(re.findall(r"(?m)^Environment=(\w+)=(.+)$", UNIT.read_text()))


def _of_dockerfile() -> dict[str, str]:
    return dict(re.findall(r"\b(MEDDAEMON_\w+)=(\S+)", DOCKERFILE.read_text()))


def _of_compose() -> dict[str, str]:
    environment = YAML(typ="safe").load(COMPOSE)["services"]["meddaemon"]["environment"]
    return {name: re.sub(r"\$\{[^}]*\}", "secret", value) for name, value in environment.items()}


@pytest.mark.parametrize("environment", [_of_unit(), _of_dockerfile(), _of_dockerfile() | _of_compose()])
def test_the_variables_of_a_deployment_are_settings(environment: dict[str, str]) -> None:
    assert environment.pop("MEDDAEMON_CONFIG") == "/etc/meddaemon/meddaemon.toml"
    settings = load(REPOSITORY / "config" / "meddaemon.toml", environment)
    assert settings.store.directory == Path("/var/lib/meddaemon")


def test_the_container_runs_as_nobody_special_on_files_that_exist() -> None:
    lines = DOCKERFILE.read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users == ["10001"]
    assert not any(line.startswith("COPY") for line in lines[lines.index("USER 10001") :])
    for line in lines:
        for source in line.split()[1:-1] if line.startswith("COPY ") else ():
            assert (REPOSITORY / source).exists(), line
    allowed = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert allowed == {each.split("/")[0] for line in lines if line.startswith("COPY ") for each in line.split()[1:-1]}


def test_an_image_has_what_settings_ask_for() -> None:
    """Nothing can be installed in a container whose files are read-only."""
    (extras,) = re.findall(r"(?m)^ARG EXTRAS=(\S+)$", DOCKERFILE.read_text())
    known = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras.split(",")) <= known.keys()
    config = (REPOSITORY / "config" / "meddaemon.toml").read_text()
    assert set(re.findall(r"meddaemon\[(\w+)\]", config)) <= set(extras.split(","))
    assert '".[$EXTRAS]"' in DOCKERFILE.read_text()
    built = YAML(typ="safe").load(COMPOSE)["services"]["meddaemon"]["build"]
    assert built["args"] == {"EXTRAS": f"${{MEDDAEMON_EXTRAS:-{extras}}}"}


def test_the_license_is_the_whole_apache_license() -> None:
    text = (REPOSITORY / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "9. Accepting Warranty or Additional Liability." in text
    assert "APPENDIX: How to apply the Apache License to your work." in text


def _pins() -> dict[str, str]:
    lines = (REPOSITORY / "config" / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def _required() -> list[Requirement]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(each) for requirements in lists for each in requirements if not each.startswith("meddaemon[")]


@pytest.mark.parametrize("requirement", _required(), ids=lambda requirement: requirement.name)
def test_every_dependency_is_pinned_within_its_range(requirement: Requirement) -> None:
    pin = _pins()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pin), f"{pin} is not in {requirement}"


def _closure() -> set[str]:
    """Return every package that the dependencies pull in here, by what the installed ones say of themselves."""
    found: set[str] = set()
    waiting = [(each, frozenset(each.extras)) for each in _required()]
    while waiting:
        requirement, extras = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found and not extras:
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(name)
        for text in distribution.requires or ():
            each = Requirement(text)
            if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in (*extras, "")):
                waiting.append((each, frozenset(each.extras)))
    return found


def test_what_the_dependencies_pull_in_is_pinned_too() -> None:
    # The CUDA build of torch brings packages of its own, which are pinned by torch itself.
    cuda = {name for name in _closure() if name.startswith(("nvidia-", "triton", "cuda-"))}
    assert _closure() - cuda - _pins().keys() == set()


@pytest.mark.parametrize("script", ["scripts/check", ".ci/run"])
def test_scripts_are_executable_and_parse(script: str) -> None:
    path = REPOSITORY / script
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", path], check=True, timeout=30)
    assert "set -euo pipefail" in path.read_text()


def test_no_two_test_files_have_one_name() -> None:
    """Pytest keeps modules by their names: of two, one would not run."""
    names = Counter(path.name for path in (REPOSITORY / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
