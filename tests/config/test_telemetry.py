import json
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meddaemon import telemetry

SECRET = "DOE^JANE"


def _said(code: str) -> list[str]:
    """Run code in a process of its own, as the daemon's are, and return the lines of its standard error."""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert done.stdout == ""
    return done.stderr.splitlines()


def _json(code: str) -> dict[str, object]:
    (line,) = _said(f"from meddaemon import telemetry; telemetry.configure('info', 'json')\n{code}")
    event: dict[str, object] = json.loads(line)
    return event


HOSTILE = "AE\r\n2026 level=error forged\x1b[2J\x00\u2028\u202e\x85\ud800" + "x" * 10_000


@pytest.mark.parametrize("format_", ["json", "text"])
def test_a_hostile_value_is_one_bounded_printable_line(format_: str) -> None:
    code = (
        f"from meddaemon import telemetry; telemetry.configure('info', {format_!r})\n"
        f"hostile = {HOSTILE!r}\n"
        "telemetry.log('a').info(hostile, title=hostile, many={hostile: [hostile]}, **{hostile[:20]: 1})"
    )
    (line,) = _said(code)
    assert line.isprintable()
    assert len(line) < 6 * telemetry.MAXIMUM_LENGTH
    assert "\\r" in line
    assert "\\x1b" in line


@given(st.text(max_size=2000))
def test_escaped_text_is_printable_and_bounded(text: str) -> None:
    shown = telemetry.escaped(text)
    assert shown.isprintable()
    assert len(shown) <= telemetry.MAXIMUM_LENGTH
    if text.isprintable() and len(text) <= telemetry.MAXIMUM_LENGTH:
        assert shown == text


def test_an_event_has_time_level_logger_and_its_values() -> None:
    event = _json("telemetry.log('meddaemon.x').info('stored', size=3, ok=True, ratio=float('nan'), raw=b'abc')")
    assert str(event.pop("time")).endswith("Z")
    assert event == {
        "level": "info", "logger": "meddaemon.x", "event": "stored",
        "size": 3, "ok": True, "ratio": "nan", "raw": "(3 bytes)",
    }  # fmt: skip


def test_what_is_below_the_level_is_not_written() -> None:
    assert (
        _said("from meddaemon import telemetry; telemetry.configure('warning', 'text'); telemetry.log('a').info('x')")
        == []
    )


def test_a_logger_made_before_configure_follows_it_and_standard_output_stays_clean() -> None:
    lines = _said(
        "from meddaemon import telemetry; log = telemetry.log('a'); log.info('before')\n"
        "telemetry.configure('error', 'json'); log.info('never'); log.error('after')"
    )
    assert len(lines) == 2
    assert lines[0].endswith("info    before logger=a")
    assert json.loads(lines[1])["event"] == "after"


def test_a_warning_of_pydicom_does_not_leak_the_value_that_it_quotes() -> None:
    lines = _said(
        "from meddaemon import telemetry; telemetry.configure('info', 'json')\n"
        "import pydicom; from pydicom import config\n"
        "config.settings.reading_validation_mode = config.WARN\n"
        "config.settings.writing_validation_mode = config.WARN\n"
        f"dataset = pydicom.Dataset(); dataset.PatientBirthDate = {SECRET!r}"
    )
    # pydicom says it twice: to its logger and as a warning.
    events = [json.loads(line) for line in lines]
    assert {event["event"] for event in events} <= {"message of a library", "warning of a library"}
    assert "UserWarning" in {event.get("category") for event in events}
    assert all(re.search(r"\w:\d+$", event["place"]) for event in events)
    assert SECRET not in "".join(lines)


@pytest.mark.parametrize("library", ["pydicom", "pynetdicom.dimse", "highdicom.base", "some.other"])
def test_a_library_says_where_but_not_what(library: str) -> None:
    event = _json(f"import logging; logging.getLogger({library!r}).error('bad value %s', {SECRET!r})")
    assert (event["logger"], event["level"], event["place"]) == (library, "error", "<string>:2")
    assert SECRET not in json.dumps(event)


def test_why_there_is_no_association_is_said_by_whoever_wanted_it_alone() -> None:
    for logger in ("pynetdicom.acse", "pynetdicom.transport"):
        set_up = "from meddaemon import telemetry; telemetry.configure('info', 'json')"
        assert _said(f"{set_up}\nimport logging; logging.getLogger({logger!r}).error('refused')") == []


def test_pydicom_at_its_most_talkative_stays_quiet() -> None:
    code = (
        "from meddaemon import telemetry\nimport pydicom, pynetdicom\n"
        "pynetdicom.debug_logger(); pydicom.config.debug()\n"
        "telemetry.configure('debug', 'json')\n"
        f"import logging; logging.getLogger('pydicom').debug({SECRET!r})\n"
        f"logging.getLogger('pynetdicom').info({SECRET!r})"
    )
    assert _said(code) == []


def test_a_library_without_data_sets_keeps_its_text() -> None:
    assert (
        _json("import logging; logging.getLogger('alembic.x').warning('head is %s', 'abc')")["event"] == "head is abc"
    )


def test_a_foreign_exception_is_logged_by_kind_and_place_only() -> None:
    event = _json(
        f"def inner():\n    secret = {SECRET!r}\n    raise ValueError('bad ' + secret)\n"
        "try:\n    inner()\nexcept ValueError:\n    telemetry.log('a').exception('failed')"
    )
    assert event["exception"] == "ValueError"
    assert event["frames"] == ["<string>:4 inner", "<string>:6 <module>"]
    assert SECRET not in json.dumps(event)


def test_an_error_of_ours_keeps_its_message() -> None:
    event = _json(
        "from meddaemon.domain.errors import ModelFailed\n"
        f"try:\n    try:\n        raise KeyError({SECRET!r})\n    except KeyError as error:\n"
        "        raise ModelFailed('out of time') from error\n"
        "except ModelFailed:\n    telemetry.log('a').exception('failed')"
    )
    assert event["exception"] == "ModelFailed: out of time <- KeyError"


@pytest.mark.parametrize(
    "code",
    [
        f"raise ValueError({SECRET!r})",
        f"import threading\ndef run(): raise ValueError({SECRET!r})\n"
        "thread = threading.Thread(target=run); thread.start(); thread.join()",
    ],
)
def test_an_uncaught_exception_is_one_line_without_its_message(code: str) -> None:
    event = _json(code)
    assert str(event["event"]).startswith("uncaught exception")
    assert event["exception"] == "ValueError"
    assert SECRET not in json.dumps(event)
