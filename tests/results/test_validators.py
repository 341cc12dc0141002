"""No validator and no reader there is has anything against what we write, of whatever it is.

They run when MEDDAEMON_VALIDATORS names their `validate.sh`. Plainly, each source has one edition of a result, in turn:
every encoder writes of every source (of one without some attribute, SEG and SR), every edition of a quarter of them.
`-m soak` is the full product, and holds our way of asking against theirs. `docs/validators.md` has the table.
"""

import json
import os
import re
import subprocess
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from dicom_factory import make_series
from reported_samples import CLASSES, SAMPLES, request_of
from result_samples import ball, geometry_of
from shared_files import SHARED
from sources import EVERYTHING, LESS, SOURCES, wanted
from test_real_series import SERIES
from test_seg_forms import BOTH, drawn, probable, smooth
from test_seg_sources import drawn_on, two_instances
from validators import TOOLS, Case, Validators, Verdict, written

from meddaemon.domain.outlet import EDITIONS, Edition, ObjectKind
from meddaemon.results.encoding import EncodingRequest

pytestmark = [pytest.mark.peer, pytest.mark.timeout(3600), pytest.mark.filterwarnings("ignore::UserWarning")]
Make = Callable[[Path], EncodingRequest]


def slices(folder: Path) -> EncodingRequest:
    paths = make_series(folder, planes=6, rows=32, columns=24, modality="CT", orientation="sagittal")
    labels = ball(geometry_of(paths).shape)
    labels[3:] *= 2
    request = drawn(paths, labels, 2, editions=BOTH)
    return probable(request, {1: smooth(labels.shape), 2: 1 - smooth(labels.shape, 9.0)})


def many(folder: Path) -> EncodingRequest:
    paths = make_series(folder, planes=3, rows=32, columns=24, modality="CT", orientation="sagittal")
    labels = (np.arange(3 * 32 * 24) % 301).reshape(3, 32, 24).astype(np.uint16)
    return drawn(paths, labels, 300, editions=BOTH[1:], kinds=frozenset({ObjectKind.SEG}))


def frames(folder: Path) -> EncodingRequest:
    request = drawn_on(two_instances(folder))
    labels = request.analysis.drawn[0].labels
    assert labels is not None
    return probable(request, {2: smooth(labels.shape)})


def real_picture(name: str, _: Path) -> EncodingRequest:
    return request_of([SHARED / "dicom" / name], CLASSES, {"scores": (0.9, 0.1)})


def real_series(name: str, folder: Path) -> EncodingRequest:
    return SERIES[name](SHARED / "dicom", folder, 12)


FORMS: dict[str, Make] = {"slices": slices, "many": many, "frames": frames}
REAL: dict[str, Make] = {
    **{f"real {name}": partial(real_series, name) for name in SERIES},
    **{
        name: partial(real_picture, name)
        for name in ("cxr/RG1_J2KI.dcm", "other/MG_OutOfBoundsOverlay.dcm", "nonimage/waveform_ecg.dcm")
    },
}
CASES: dict[str, Make] = {**SOURCES, **LESS, **FORMS, **SAMPLES, **REAL}


OF_LESS = frozenset({ObjectKind.SEG, ObjectKind.SR})
"""What is written plainly of a source without some attribute: all encoders copy the header with the same function."""


def editions_of(number: int, name: str, whole: bool) -> tuple[Edition, ...] | None:
    """Which editions are written of a source; None for those that it says itself."""
    if name in FORMS:
        return None
    if whole:
        return EDITIONS
    # What overlaps has no label map.
    return (EDITIONS[0 if name.endswith("overlapping") else number % len(EDITIONS)],)


@dataclass(frozen=True, repr=False)
class Looked:
    """What all tools have said, of which results."""

    cases: dict[str, Case]
    said: dict[Path, dict[str, Verdict]]


@pytest.fixture(scope="module", params=["in turn", pytest.param("in every edition", marks=pytest.mark.soak)])
def looked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Looked:
    script = os.environ.get("MEDDAEMON_VALIDATORS")
    if not script:
        pytest.skip("MEDDAEMON_VALIDATORS does not name a validate.sh")
    whole = request.param == "in every edition"
    folder = tmp_path_factory.mktemp("validators")
    cases = {}
    for number, (name, make) in enumerate(CASES.items()):
        if name in REAL and not SHARED.is_dir():
            continue
        asked = make(folder / f"images-{number}")
        if whole and name not in FORMS:
            asked = replace(asked, kinds=EVERYTHING)
        elif name in LESS:
            asked = replace(asked, kinds=OF_LESS)
        place = folder / f"case-{number}"
        cases[name] = written(re.sub(r"\W", "_", name), asked, place, editions_of(number, name, whole))
    tools = Validators(Path(script), folder)
    tools.look_at(list(cases.values()))
    return Looked(cases, tools.said)


def case_of(looked: Looked, name: str) -> Case:
    if name not in looked.cases:
        pytest.skip("not among these")
    return looked.cases[name]


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.shared] * (name in REAL)) for name in CASES])
def test_no_tool_finds_an_error(name: str, looked: Looked) -> None:
    case = case_of(looked, name)
    if name in SOURCES:
        assert wanted(name) <= {each.kind for each in case.objects.values()}
    for file, encoded in case.objects.items():
        said = looked.said[file]
        assert said.keys() == expected(ObjectKind(encoded.kind), encoded.edition)
        wrong = {tool: verdict.error for tool, verdict in said.items() if verdict.error}
        assert not wrong, encoded.name


def expected(kind: ObjectKind, edition: str) -> set[str]:
    """Which tools know objects of a kind."""
    unknown = set()
    if kind not in (ObjectKind.SR, ObjectKind.SEG, ObjectKind.PROBABILITY, ObjectKind.PM):
        unknown.add("dcmqi")
    unknown.add("pixelmed" if kind is ObjectKind.PR else "dcmpschk")
    if kind in (ObjectKind.PM, ObjectKind.RTSTRUCT, ObjectKind.SC, ObjectKind.PDF) or edition == "labelmap":
        unknown.add("pixelmed")
    return set(TOOLS) - unknown


@pytest.mark.parametrize("name", FORMS)
def test_ohif_counts_the_voxels_that_were_drawn(name: str, looked: Looked) -> None:
    case = case_of(looked, name)
    drawing, _ = case.request.analysis.drawn
    counts = sum(np.bincount(drawing.numbers(plane).ravel(), minlength=400) for plane in range(drawing.shape[0]))
    found = 0
    for file in case.objects:
        if there := re.search(r"voxels per segment: (\{.*?\})", looked.said[file]["ohif"].text):
            found += 1
            seen = {int(number): count for number, count in json.loads(there[1]).items()}
            # OHIF holds a segment number in 8 bits, of either form: the 257th shows as the first.
            wanted = Counter[int]()
            for number in np.flatnonzero(counts[1:]).tolist():
                wanted[(number + 1) % 256] += int(counts[number + 1])
            del wanted[0]
            assert seen == wanted
    # The reader cannot decode against frames of several instances.
    assert found == {"slices": 2, "many": 1, "frames": 0}[name]


def test_the_table(looked: Looked) -> None:
    """Printed with `-s`: kind and tool, errors/warnings (known limits of the tool)."""
    counts: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    messages: dict[str, Counter[str]] = {"warning": Counter(), "known": Counter()}
    objects = Counter[str]()
    for case in looked.cases.values():
        for file, encoded in case.objects.items():
            kind = f"{encoded.kind} {encoded.edition}".strip()
            objects[kind] += 1
            for tool, verdict in looked.said[file].items():
                for level in ("error", "warning", "known"):
                    counts[kind][tool][level] += len(getattr(verdict, level))
                for level, found in messages.items():
                    found.update(f"{tool} {encoded.kind}: {generic(line)}" for line in getattr(verdict, level))
    print(f"{len(looked.cases)} sources, {objects.total()} objects")  # noqa: T201
    print("|", " | ".join(["object", "n", *TOOLS]), "|")  # noqa: T201
    for kind, row in counts.items():
        cells = [cell(row[tool]) if tool in row else "-" for tool in TOOLS]
        print("|", " | ".join([kind, str(objects[kind]), *cells]), "|")  # noqa: T201
    for level, found in messages.items():
        print(level, *(f"{count:5} {line}" for line, count in found.most_common()), sep="\n")  # noqa: T201
    assert {kind.partition(" ")[0] for kind in objects} == EVERYTHING
    assert {edition for kind in objects for edition in (kind.partition(" ")[2],)} >= {
        mark for edition in EDITIONS for mark in edition.parts
    }
    assert not sum(row[tool]["error"] for row in counts.values() for tool in row)


@pytest.mark.soak
def test_they_say_the_same_when_their_own_script_asks(tmp_path: Path) -> None:
    script = os.environ.get("MEDDAEMON_VALIDATORS")
    if not script:
        pytest.skip("MEDDAEMON_VALIDATORS does not name a validate.sh")
    case = written("theirs", SOURCES["axial CT"](tmp_path / "images"), tmp_path / "case")
    tools = Validators(Path(script), tmp_path)
    tools.look_at([case])
    command = ["bash", script, "--net", str(case.folder), str(tmp_path / "messages")]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    (names,) = (line.split()[1:] for line in lines if line.startswith("file "))
    rows = {line.split()[0]: re.split(r"\s{2,}", line.strip())[1:] for line in lines if "_of_theirs.dcm" in line}
    for file, encoded in case.objects.items():
        theirs = dict(zip(names, rows[file.name], strict=True))
        for tool in theirs.keys() & tools.said[file].keys() - {"dcentvfy"}:
            verdict = tools.said[file][tool]
            count = Counter({level: len(getattr(verdict, level)) for level in ("error", "warning", "known")})
            # A limit that they do not list, and theirs is a dcmqrscp that takes nothing that is compressed.
            if encoded.kind != ObjectKind.PROBABILITY or tool not in ("ohif", "dcmqrscp"):
                # Theirs gives OHIF the objects as images, too: how many limits it meets is another matter.
                assert theirs[tool].split()[0] == cell(count).split()[0], (encoded.name, tool)


def cell(count: Counter[str]) -> str:
    known = f" ({count['known']})" if count["known"] else ""
    return f"{count['error']}/{count['warning']}{known}"


def generic(line: str) -> str:
    """A message without what differs between objects."""
    return re.sub(r"/\S*/|[\d.]{12,}|of \w+\.dcm", "…", line)[:160]
