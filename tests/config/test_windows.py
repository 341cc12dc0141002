"""Windows and deadlines in the settings: read as values, and every mistake told with its line."""

from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from test_settings import MODEL, MODELS

from meddaemon.config.settings import Settings, load
from meddaemon.domain.errors import InvalidConfiguration
from meddaemon.domain.schedule import WhenLate

WINDOWS = """
[[windows]]
name = "nights"
times = ["Mon-Fri 18:00-06:00", "Sat,Sun 00:00-24:00"]
time_zone = "Europe/Berlin"
[[rules]]
name = "first"
models = ["example"]
window = "nights"
deadline_seconds = 3600
when_late = "discard"
"""


def _load(folder: Path, text: str) -> Settings:
    (folder / "models" / "example").mkdir(parents=True)
    (folder / "models" / "example" / "contract.toml").write_text(MODEL)
    (folder / "meddaemon.toml").write_text(MODELS + text)
    return load(folder / "meddaemon.toml", {})


def test_a_window_and_a_deadline_are_read(tmp_path: Path) -> None:
    settings = _load(tmp_path, WINDOWS)
    (window,) = settings.windows
    (rule,) = settings.rules
    assert (rule.window, rule.deadline_seconds, rule.when_late) == ("nights", 3600.0, WhenLate.DISCARD)
    berlin = ZoneInfo("Europe/Berlin")
    assert window.name == "nights"
    # From Friday's night on it is open until the end of the weekend.
    assert window.open_until(datetime(2026, 11, 20, 23, tzinfo=berlin)) == datetime(2026, 11, 23, tzinfo=berlin)
    assert not window.is_open(datetime(2026, 11, 18, 12, tzinfo=berlin))


@pytest.mark.parametrize(
    ("right", "wrong", "problem"),
    [
        ("Mon-Fri 18:00-06:00", "Mo-Fr 18-6", "6: windows[0].times[0]: 'Mo-Fr 18-6' is not of the form"),
        ("Europe/Berlin", "Europe/Atlantis", "7: windows[0].time_zone: 'Europe/Atlantis' is no time zone"),
        ("Europe/Berlin", "Europe", "7: windows[0].time_zone: 'Europe' is no time zone"),
        ("Europe/Berlin", "../../etc/passwd", "7: windows[0].time_zone: '../../etc/passwd' is no time zone"),
        ('window = "nights"', 'window = "night"', "11: rules[0].window: there is no window 'night'; did you mean"),
        ("deadline_seconds = 3600\n", "", "12: rules[0].when_late: nothing is late without deadline_seconds"),
        ("deadline_seconds = 3600", "deadline_seconds = 0", "12: rules[0].deadline_seconds: should be greater than 0"),
        ("[[rules]]", '[[windows]]\nname = "nights"\ntimes = ["01:00-02:00"]\ntime_zone = "UTC"\n[[rules]]',
         "9: windows[1].name: 'nights' is the name of windows[0] already"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line(tmp_path: Path, right: str, wrong: str, problem: str) -> None:
    with pytest.raises(InvalidConfiguration) as raised:
        _load(tmp_path, WINDOWS.replace(right, wrong))
    (told,) = raised.value.problems
    assert told.removeprefix(f"{tmp_path}/meddaemon.toml:").startswith(problem)
