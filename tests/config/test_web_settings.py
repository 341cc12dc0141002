from pathlib import Path

import pytest

from meddaemon.config.settings import Settings, load
from meddaemon.domain.errors import InvalidConfiguration

DIGEST = "0123456789abcdef" * 4
TOKENS = f'tokens = {{ GATE1 = "{DIGEST}" }}\n'


def _load(folder: Path, text: str, environ: dict[str, str] | None = None) -> Settings:
    file = folder / "meddaemon.toml"
    file.write_text(f"[web]\n{text}")
    return load(file, environ or {})


def _problem(folder: Path, text: str, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(InvalidConfiguration) as raised:
        _load(folder, text, environ)
    (problem,) = raised.value.problems
    return problem.removeprefix(f"{folder}/meddaemon.toml:")


def test_by_default_it_is_off_and_for_this_machine_alone(tmp_path: Path) -> None:
    web = _load(tmp_path, "").web
    assert (web.enabled, web.host, dict(web.tokens), web.certificate) == (False, "127.0.0.1", {}, "")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_this_machines_own_users_need_no_token(tmp_path: Path, host: str) -> None:
    assert _load(tmp_path, f'enabled = true\nhost = "{host}"\n').warnings == ()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "localhost.example.org", "127.0.0.1.nip.io"])
def test_nobody_else_is_let_in_without_a_token(tmp_path: Path, host: str) -> None:
    problem = _problem(tmp_path, f'host = "{host}"\n')
    assert problem == f"2: web.host: {host} is open to others: without tokens they could all store; set web.tokens"
    assert _load(tmp_path, f'host = "{host}"\n{TOKENS}').web.tokens == {"GATE1": DIGEST}


def test_to_read_is_another_right_than_to_store(tmp_path: Path) -> None:
    assert _load(tmp_path, TOKENS).web.readers == {}
    web = _load(tmp_path, f'readers = {{ VIEWER = "{DIGEST}" }}\norigins = ["https://viewer.example.org:8443"]\n').web
    assert (web.readers, web.tokens) == ({"VIEWER": DIGEST}, {})
    assert web.origins == ("https://viewer.example.org:8443",)
    # Readers are no senders: an address that is open to others needs those all the same.
    assert "set web.tokens" in _problem(tmp_path, f'host = "0.0.0.0"\nreaders = {{ VIEWER = "{DIGEST}" }}\n')


def test_clear_text_is_warned_about(tmp_path: Path) -> None:
    (warning,) = _load(tmp_path, f'enabled = true\nhost = "0.0.0.0"\n{TOKENS}').warnings
    assert warning.startswith(f"{tmp_path}/meddaemon.toml:3: web.host: tokens and patient data travel in clear text")
    (tmp_path / "tls.pem").write_text("")
    web = _load(tmp_path, f'enabled = true\nhost = "0.0.0.0"\ncertificate = "tls.pem"\n{TOKENS}')
    assert (web.web.certificate, web.warnings) == (f"{tmp_path}/tls.pem", ())


def test_tokens_from_the_environment(tmp_path: Path) -> None:
    environ = {"MEDDAEMON_WEB__TOKENS": f'{{ GATE2 = "{DIGEST}" }}'}
    assert _load(tmp_path, TOKENS, environ).web.tokens == {"GATE2": DIGEST}


def test_a_token_in_the_place_of_its_digest_is_refused_and_not_shown(tmp_path: Path) -> None:
    for key in ("tokens", "readers"):
        problem = _problem(tmp_path, f'{key} = {{ GATE1 = "the token itself" }}\n')
        assert problem.startswith(f"2: web.{key}.GATE1: must be the SHA-256 of the token, 64 digits 0-9a-f")
        assert "the token itself" not in problem
    assert _problem(tmp_path, f'tokens = {{ SEVENTEEN_LETTERS = "{DIGEST}" }}\n').startswith("2: web.tokens")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('certificate = "absent.pem"\n', "2: web.certificate: {folder}/absent.pem is not a file"),
        ('private_key = "meddaemon.toml"\n', "2: web.private_key: there is no certificate that it belongs to"),
        (
            'origins = ["*"]\n',
            "2: web.origins[0]: '*' is no origin such as \"https://viewer.example.org\"",
        ),
        (
            'public_url = "pacs.example.org"\n',
            "2: web.public_url: 'pacs.example.org' is no URL such as \"https://pacs.example.org/dicom-web\"",
        ),
        ("maximum_uploads = 0\n", "2: web.maximum_uploads: should be greater than or equal to 1, not 0"),
    ],
)
def test_what_is_wrong_is_explained(tmp_path: Path, text: str, problem: str) -> None:
    assert _problem(tmp_path, text) == problem.format(folder=tmp_path)
