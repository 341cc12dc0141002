import ast
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from meddaemon import bootstrap

REPOSITORY = Path(__file__).resolve().parents[2]

# A stand-in for what pip would have installed, so that the test sees the hand-over without an installation.
FAKE_COMMAND = '#!/bin/sh\necho "ran $0 $*"; echo "first on PATH: $(command -v python)"\n'


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what bootstrap needs, with an environment in which everything is installed already."""
    root = tmp_path / "check out"
    for name in ("pyproject.toml", "config/constraints.txt", "meddaemon/__init__.py", "meddaemon/bootstrap.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, root / name)
    for name in (".venv/bin/python", ".venv/bin/meddaemon", "scripts/check"):
        _script(root / name, FAKE_COMMAND)
    return root


def _script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def _run(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "meddaemon.bootstrap", *arguments],
        cwd=checkout,
        env={"PATH": os.environ["PATH"]},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


def _stamp(checkout: Path, extra: str) -> None:
    """Have bootstrap install: the fake python succeeds at whatever `-m pip` it is asked for."""
    done = _run(checkout, extra)
    assert done.returncode == 0, done.stderr
    assert f"Installing meddaemon[{extra}]" in done.stdout
    assert f"-c {checkout}/config/constraints.txt -e {checkout}[{extra}]" in done.stdout


def test_the_first_run_installs_and_hands_over(checkout: Path) -> None:
    done = _run(checkout, "test", "-k", "x y")
    assert "PyTorch" in done.stdout or shutil.which("nvidia-smi")
    assert f"ran {checkout}/scripts/check -k x y" in done.stdout
    assert f"first on PATH: {checkout}/.venv/bin/python" in done.stdout


@pytest.mark.parametrize(("before", "command"), [("demo", "demo"), ("test", "test"), ("test", "demo")])
def test_a_second_run_hands_over_at_once(checkout: Path, before: str, command: str) -> None:
    _stamp(checkout, before)
    done = _run(checkout, command, "--fast")
    assert "Installing" not in done.stdout
    target = "scripts/check --fast" if command == "test" else ".venv/bin/meddaemon demo --fast"
    assert done.stdout.startswith(f"ran {checkout}/{target}")


@pytest.mark.parametrize("name", ["pyproject.toml", "config/constraints.txt"])
def test_changed_dependencies_are_installed_again(checkout: Path, name: str) -> None:
    _stamp(checkout, "test")
    with (checkout / name).open("a") as file:
        file.write("# changed\n")
    assert "Installing" in _run(checkout, "test").stdout


def test_the_tests_need_more_than_the_demo(checkout: Path) -> None:
    _stamp(checkout, "demo")
    assert "Installing meddaemon[test]" in _run(checkout, "test").stdout


def test_a_failed_installation_is_not_remembered(checkout: Path) -> None:
    _script(checkout / ".venv/bin/python", "#!/bin/sh\nexit 7\n")
    for _ in range(2):
        done = _run(checkout, "demo")
        assert done.returncode == 7
        assert "Installing meddaemon[demo]" in done.stdout
        assert "pip could not install" in done.stdout


@pytest.mark.parametrize("arguments", [(), ("tset",), ("--help",)])
def test_usage(checkout: Path, arguments: tuple[str, ...]) -> None:
    done = _run(checkout, *arguments)
    assert done.returncode == 2
    assert done.stdout.startswith("usage: python3 -m meddaemon.bootstrap demo|test")


def test_an_old_python_is_told_what_is_needed() -> None:
    assert bootstrap.obstacle_to((3, 11), has_ensurepip=True) is None
    assert str(bootstrap.obstacle_to((3, 10), has_ensurepip=True)).startswith(
        "meddaemon needs Python 3.11 or later; this is 3.10"
    )


def test_a_python_without_venv_is_told_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bootstrap, "ENVIRONMENT", tmp_path)
    assert "apt-get install python3-venv" in str(bootstrap.obstacle_to((3, 11), has_ensurepip=False))


@pytest.mark.parametrize("name", ["__init__.py", "bootstrap.py"])
def test_an_older_python_can_read_it_and_finds_everything_in_the_standard_library(name: str) -> None:
    tree = ast.parse((REPOSITORY / "meddaemon" / name).read_text(), feature_version=(3, 7))
    imported = {
        module.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for module in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names])
    }
    assert imported <= sys.stdlib_module_names
