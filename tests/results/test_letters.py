"""Texts on pictures and on paper: every script is drawn or shown by its numbers, and nothing is lost."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pypdfium2
import pytest
from dicom_factory import make_series
from PIL import Image, ImageDraw, ImageFont
from result_samples import contract, request_for

from meddaemon.results.drawing import summary
from meddaemon.results.letters import fonts, line_of, runs, shapes_both_ways, sized
from meddaemon.results.page import paper
from meddaemon.results.request import EncodingRequest

LATIN = "Größe × 5 µm, façade"
SCRIPTS = [
    ("DejaVuSans", "Опухоль мозга", False),
    ("DejaVuSans", "Όγκος εγκεφάλου", False),
    ("DejaVuSans", "Łódź, ağrı, œdème", False),
    ("DejaVuSans", "ورم الدماغ left", True),
    ("DejaVuSans", "מוח שמאל 12", True),
    ("DroidSansFallback", "脳腫瘍やまだ", False),
    ("DroidSansFallback", "뇌종양 홍길동", False),
    ("DroidSansFallback", "脑肿瘤 腦腫瘤", False),
    ("Loma", "เนื้องอกในสมอง", False),
]


def titled(folder: Path, title: str) -> EncodingRequest:
    return request_for(make_series(folder, planes=3), contract=contract(title=title))


def needs(font: str) -> None:
    if font not in {each.name for each in fonts()}:
        pytest.skip(f"{font} is not installed")


def text_of(content: bytes) -> str:
    with pypdfium2.PdfDocument(content) as document:
        return "".join(page.get_textpage().get_text_range() for page in document)


def test_latin_is_drawn_with_what_is_everywhere() -> None:
    assert runs(LATIN, both_ways=True) == [(LATIN, fonts()[0])]
    assert fonts()[0].path.is_file()


@pytest.mark.parametrize("text", ["🧠", "\u202eevil", "a\x07b", "\ue000", "\ud800", "ڀ" * 3])
def test_what_no_font_draws_is_shown_by_its_number(text: str) -> None:
    (shown,) = {"".join(piece for piece, _ in runs(text, both_ways=False))}
    numbers = [f"\\u{ord(each):04x}" if ord(each) < 0x10000 else f"\\U{ord(each):08x}" for each in text]
    expected = "".join(
        each if each.isascii() and each.isprintable() else number for each, number in zip(text, numbers, strict=True)
    )
    assert shown == expected


@pytest.mark.parametrize(("font", "text", "to_the_left"), SCRIPTS)
def test_every_script_has_a_font(font: str, text: str, to_the_left: bool) -> None:
    needs(font)
    assert [(piece, each.name) for piece, each in runs(text, both_ways=True)] == [(text, font)]
    shown = "".join(piece for piece, _ in runs(text, both_ways=False))
    assert (shown == text) is not to_the_left
    assert not to_the_left or shown.startswith("\\u")


def test_a_line_of_several_scripts_keeps_every_character_in_its_order() -> None:
    text = "MR brain 脳 Мозг ไทย 뇌 張"
    for font in {each[0] for each in SCRIPTS}:
        needs(font)
    pieces = runs(text, both_ways=True)
    assert "".join(piece for piece, _ in pieces) == text
    assert all(ord(each) in font.characters for piece, font in pieces for each in piece)


@pytest.mark.parametrize(("font", "text", "to_the_left"), [SCRIPTS[number] for number in (0, 4, 5, 8)])
def test_a_paper_can_be_searched_and_embeds_its_fonts(font: str, text: str, to_the_left: bool, tmp_path: Path) -> None:
    needs(font)
    content = paper(titled(tmp_path, text))
    assert (text in text_of(content)) is not to_the_left
    assert not to_the_left or "\\u0" in text_of(content)
    assert content.count(b"/FontFile2") >= 2
    assert b"/Helvetica" not in content
    assert paper(titled(tmp_path, text)) == content


def heading(request: EncodingRequest) -> np.ndarray:
    """The place of the title on a summary."""
    return summary(request)[4:28, :600]


def test_a_picture_shows_each_letter_as_its_font_has_it(tmp_path: Path) -> None:
    """An accent that a font lacks was a box, and any script but Latin a row of question marks."""
    request = titled(tmp_path, "ä")
    drawn = [heading(replace(request, contract=contract(title=each))) for each in ("ä", "ö", "a", "?", "\ue000")]
    different = {each.tobytes() for each in drawn}
    assert len(different) == len(drawn)


def test_a_picture_is_not_mirrored(tmp_path: Path) -> None:
    """What is written to the left stands on the picture as if its letters were written to the right, last one first."""
    needs("DejaVuSans")
    if not shapes_both_ways():
        pytest.skip("libfribidi is not installed")
    found = heading(titled(tmp_path, "מוח"))
    simple = ImageFont.truetype(fonts()[1].path, 20, layout_engine=ImageFont.Layout.BASIC)
    pictures = []
    for letters in ("חומ", "מוח"):
        picture = Image.new("RGB", (found.shape[1], found.shape[0]))
        at = 6, sized(fonts()[0], 20).getmetrics()[0]
        ImageDraw.Draw(picture).text(at, letters, (255, 255, 255), simple, "ls", stroke_width=1, stroke_fill=(0, 0, 0))
        pictures.append(np.abs(np.asarray(picture, float) - found).mean())
    assert pictures[0] < 0.7 * pictures[1]


def test_a_text_is_one_line_and_its_accents_are_composed() -> None:
    assert line_of(" a\r\n e\u0301\t b ") == "a é b"
