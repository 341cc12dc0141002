"""The summary of a result as a picture: views with what was found, and a table. It names no patient."""

import math
from bisect import bisect
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from meddaemon import __version__
from meddaemon.domain.codes import ABSENT, UNDETERMINED, Code
from meddaemon.domain.result import Measurement, ResultStatus
from meddaemon.results.identity import RESEARCH_MARK
from meddaemon.results.letters import Font, fonts, line_of, runs, shapes_both_ways, sized
from meddaemon.results.report.content import presence
from meddaemon.results.request import EncodingRequest
from meddaemon.results.scene import Scene
from meddaemon.results.views import View, brightness, views_of

WIDTH, HEIGHT = 1008, 640
"""Of the summary, in pixels: less than 2 MB without compression."""
_SIDE, _GAP, _TOP, _LINE = 328, 6, 62, 19
_WHITE, _GREY, _AMBER, _RED, _BLACK = (255, 255, 255), (170, 170, 170), (255, 196, 0), (255, 96, 96), (0, 0, 0)
_UNITS = {"1": "", "{pixels}": "px"}
_ABSENCE: Mapping[Code | None, str] = {ABSENT: "absent", UNDETERMINED: "not evaluated"}

Colour = tuple[int, int, int]


class Row(NamedTuple):
    """One line of the table: in which colour it is drawn, what it is, and what was measured."""

    colour: Colour | None
    name: str
    numbers: str


def summary(request: EncodingRequest, *, table: bool = True) -> NDArray[np.uint8]:
    """Return the summary [row, column, RGB]; without its table it ends below the views."""
    canvas = Image.new("RGB", (WIDTH, HEIGHT))
    draw = ImageDraw.Draw(canvas)
    _heading(draw, request)
    views = views_of(request, _SIDE)
    low, high = brightness(request, views)
    for number, view in enumerate(views):
        canvas.paste(_panel(view, request.scene, low, high), (_GAP + number * (_SIDE + _GAP), _TOP))
    top = _TOP + (_SIDE + 2 * _GAP if views else _GAP)
    if not views:
        _write(draw, (_GAP, top), "There is no picture of this result.", _GREY)
        top += _LINE + _GAP
    if not table:
        return np.asarray(canvas)[:top]
    _table(draw, rows_of(request), top)
    return np.asarray(canvas)


def rows_of(request: EncodingRequest) -> list[Row]:
    """Return every finding with its measurements, and which of them are not there."""
    analysis = request.analysis
    segments = {segment.number: segment for segment in analysis.segments}
    colours = {mark.segment or mark.name: mark.colour for mark in request.scene.marks}
    rows = []
    for finding in analysis.findings:
        segment = segments.get(finding.segment_number or 0)
        name = segment.label if segment else finding.label or finding.code.meaning
        numbers = "; ".join(map(written, finding.measurements))
        if not finding.present:
            numbers = "; ".join(filter(None, (_ABSENCE.get(presence(finding, request), ""), numbers)))
        rows.append(Row(colours.get(segment.number if segment else finding.code.meaning), name, numbers))
    return rows


def written(measurement: Measurement) -> str:
    """Return a measurement as a person reads it."""
    derived = f" ({measurement.derivation.meaning})" if measurement.derivation else ""
    unit = _UNITS.get(measurement.unit.value, measurement.unit.value)
    value = "not measured" if measurement.value is None else f"{measurement.value:g} {unit}".rstrip()
    return f"{measurement.name.meaning}{derived}: {value}"


def status_of(request: EncodingRequest) -> str:
    """Return what is to be said of a result that may not be believed; "" for one that may."""
    status = request.analysis.status
    if status is ResultStatus.PLAUSIBLE:
        return ""
    return f"{status.value.replace('_', ' ').upper()}: {request.analysis.reason}"


def _heading(draw: ImageDraw.ImageDraw, request: EncodingRequest) -> None:
    contract = request.contract
    _write(draw, (_GAP, 4), contract.title, _WHITE, 20, WIDTH - 320)
    _write(draw, (WIDTH - _GAP, 6), RESEARCH_MARK, _AMBER, 18, anchor="ra")
    made = f"{contract.name} {contract.version}, model {contract.digest[:12]}, meddaemon {__version__}"
    _write(draw, (_GAP, 28), f"{made}. Computed by software, not reviewed by a physician.", _GREY, 13)
    if status := status_of(request):
        _write(draw, (_GAP, 44), status, _RED, 14)


def _panel(view: View, scene: Scene, low: float, high: float) -> Image.Image:
    grey = np.clip((np.nan_to_num(view.grey, nan=low, posinf=high, neginf=low) - low) / (high - low), 0, 1) * 255
    bands = np.repeat(grey[..., None], 3, axis=-1) if view.colour is None else np.nan_to_num(view.colour)
    pixels = np.rint(np.clip(bands, 0, 255)).astype(np.uint8)
    for mark in scene.marks:
        if not mark.is_point:
            pixels[_edge(scene.inside(mark, view.at))] = mark.colour
    panel = Image.fromarray(pixels)
    draw = ImageDraw.Draw(panel)
    for mark, x, y in view.points:
        draw.ellipse((x - 7, y - 7, x + 7, y + 7), outline=mark.colour, width=2)
    _letter(draw, view)
    return panel


def _edge(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the outermost pixels of a mask, two deep so that they are seen."""
    inner = mask
    for _ in range(2):
        framed = np.pad(inner, 1)
        inner = inner & framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]
    return mask & ~inner


def _letter(draw: ImageDraw.ImageDraw, view: View) -> None:
    middle, end = _SIDE // 2, _SIDE - 4
    if view.letters:
        left, right, top, bottom = view.letters
        for text, at, anchor in (
            (left, (4, middle), "lm"),
            (right, (end, middle), "rm"),
            (top, (middle, 4), "ma"),
            (bottom, (middle, end - 16), "md"),
        ):
            _write(draw, at, text, _WHITE, 15, anchor=anchor)
    _write(draw, (4, 4), view.caption, _GREY, 11)
    _write(draw, (middle, end), RESEARCH_MARK, _AMBER, 13, anchor="md")
    if view.millimetre:
        length = next((each for each in (100, 50, 20, 10, 5, 2, 1) if each * view.millimetre <= _SIDE / 3), 0)
        if length:
            draw.line((end - length * view.millimetre, 8, end, 8), fill=_WHITE, width=2)
            _write(draw, (end, 12), f"{length} mm", _WHITE, 11, anchor="ra")


def _table(draw: ImageDraw.ImageDraw, rows: Sequence[Row], top: int) -> None:
    room = (HEIGHT - top - _GAP) // _LINE
    if len(rows) > room:
        left_out = len(rows) - room + 1
        rows = [*rows[: room - 1], Row(None, f"and {left_out} more findings", "see the report")]
    for number, row in enumerate(rows or [Row(None, "Nothing was found", "")]):
        y = top + number * _LINE
        if row.colour:
            draw.rectangle((_GAP, y + 3, _GAP + 10, y + 13), fill=row.colour)
        _write(draw, (_GAP + 18, y), row.name, _WHITE, 14, 300)
        _write(draw, (_GAP + 330, y), row.numbers, _WHITE, 14, WIDTH - 350)


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    colour: Colour,
    size: int = 14,
    width: int = WIDTH - 2 * _GAP,
    anchor: str = "la",
) -> None:
    """Write one line, shortened to `width` pixels, at a place that is its anchor (Pillow's, of the first font)."""
    pieces = _fitting(line_of(text), size, width)
    x, y = at
    x -= {"l": 0.0, "m": 0.5, "r": 1.0}[anchor[0]] * _width(pieces, size)
    ascent, descent = sized(fonts()[0], size).getmetrics()
    y += {"a": ascent, "m": (ascent - descent) / 2, "d": -descent}[anchor[1]]
    for piece, font in pieces:
        drawn = sized(font, size)
        draw.text((x, y), piece, fill=colour, font=drawn, anchor="ls", stroke_width=1, stroke_fill=_BLACK)
        x += drawn.getlength(piece)


def _fitting(line: str, size: int, width: int) -> list[tuple[str, Font]]:
    """Return as much of a line as fits, in pieces."""

    def cut(length: int) -> list[tuple[str, Font]]:
        return runs(f"{line[:length].rstrip()}...", both_ways=shapes_both_ways())

    whole = runs(line, both_ways=shapes_both_ways())
    if _width(whole, size) <= width:
        return whole
    fitting = bisect(range(len(line)), width, key=lambda length: math.ceil(_width(cut(length), size)))
    return cut(fitting - 1) if fitting else []


def _width(pieces: Sequence[tuple[str, Font]], size: int) -> float:
    return sum(sized(font, size).getlength(piece) for piece, font in pieces)
