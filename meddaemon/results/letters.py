"""Which font draws a text, on pictures and on paper; what none draws is shown by its number.

Latin texts are drawn in Bitstream Vera, which comes with reportlab: they look the same everywhere. For others there are
the fonts of three packages of Debian, 4 MB, which together have every script of the character sets of DICOM:
fonts-dejavu-core, fonts-droid-fallback (Chinese, Japanese, Korean) and fonts-tlwg-loma-ttf (Thai).
"""

import unicodedata
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

from PIL import ImageFont, features

_SHARE = Path("/usr/share")
_OTHERS = (
    ("DejaVuSans", _SHARE / "fonts/truetype/dejavu/DejaVuSans.ttf"),
    ("DroidSansFallback", _SHARE / "fonts-droid-fallback/truetype/DroidSansFallback.ttf"),
    ("Loma", _SHARE / "fonts/truetype/tlwg/Loma.ttf"),
)
_UNSEEN = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})
"""Categories of characters that have no shape, or change that of others."""
_TO_THE_LEFT = frozenset({"R", "AL", "AN"})


@dataclass(frozen=True)
class Font:
    """A TrueType font file and the name that it goes by in a PDF."""

    name: str
    path: Path

    @property
    def characters(self) -> Container[int]:
        """The code points that it has."""
        return _characters(self.path)


@cache
def fonts() -> tuple[Font, ...]:
    """Return the fonts of this machine, the one first that is always there."""
    reportlab = find_spec("reportlab")
    if reportlab is None or reportlab.origin is None:
        raise ModuleNotFoundError("reportlab is not installed")
    vera = Font("Vera", Path(reportlab.origin).parent / "fonts" / "Vera.ttf")
    return (vera, *(Font(name, path) for name, path in _OTHERS if path.is_file()))


def line_of(text: str) -> str:
    """Return a text on one line, its accents composed."""
    return unicodedata.normalize("NFC", " ".join(text.split()))


def runs(line: str, *, both_ways: bool) -> list[tuple[str, Font]]:
    """Return a line in pieces that a font can draw, as few as can be; what none has becomes its number.

    `both_ways` tells whether who draws them can write from right to left: otherwise what is written that way counts as
    what no font has.
    """
    shown = "".join(_shown(character, both_ways) for character in line)
    for font in fonts():
        if all(ord(character) in font.characters for character in shown):
            return [(shown, font)]
    return [("".join(each for each, _ in pieces), font) for font, pieces in groupby(_each(shown), lambda each: each[1])]


def shapes_both_ways() -> bool:
    """Return whether Pillow joins letters and orders them from right to left: it needs libfribidi for it."""
    return bool(features.check("raqm") and features.check("fribidi"))


@cache
def sized(font: Font, size: int) -> ImageFont.FreeTypeFont:
    """Return a font for pictures."""
    return ImageFont.truetype(font.path, size)


def _shown(character: str, both_ways: bool) -> str:
    seen = unicodedata.category(character) not in _UNSEEN
    drawn = both_ways or unicodedata.bidirectional(character) not in _TO_THE_LEFT
    if seen and drawn and any(ord(character) in font.characters for font in fonts()):
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _each(shown: str) -> Iterator[tuple[str, Font]]:
    """Yield each character with its font: that of the one before it where that has it, too."""
    current: Sequence[Font] = ()
    for character in shown:
        found = next(font for font in (*current, *fonts()) if ord(character) in font.characters)
        current = (found,)
        yield character, found


@cache
def _characters(path: Path) -> Container[int]:
    # It reads what is in a font, and takes a third of a second to be there.
    from reportlab.pdfbase.ttfonts import TTFontFace  # noqa: PLC0415

    characters: Container[int] = frozenset(TTFontFace(str(path)).charToGlyph)
    return characters
