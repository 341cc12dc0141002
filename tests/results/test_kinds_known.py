"""A kind of result object is known to everybody who must know it: what README says of adding one."""

from pathlib import Path

import pytest

from meddaemon.config.destinations import DestinationSettings
from meddaemon.domain.outlet import ObjectKind
from meddaemon.results import gate
from meddaemon.results.encoding import ENCODERS
from meddaemon.roles import probing

SETTINGS = (Path(__file__).resolve().parents[2] / "config" / "meddaemon.toml").read_text().replace("\n#", "")


@pytest.mark.parametrize("kind", ObjectKind)
def test_each_kind_is_written_examined_asked_for_and_explained(kind: ObjectKind) -> None:
    assert [each.kind for each in ENCODERS].count(kind) == 1
    assert gate._CHECKS[kind]
    assert probing._wanted(DestinationSettings(name="pacs", objects=(kind,)))
    assert f'"{kind}" (' in SETTINGS
