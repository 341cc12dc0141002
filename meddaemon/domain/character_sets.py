"""Text in the character sets of DICOM, code extensions included (PS3.5 section 6.1).

pydicom 3.0.2 has readers and writers of its own, which know less: after a code extension they do not go back to the
first set at a delimiter, which makes another name of `Люк^Jürgen`, and of ISO 2022 IR 58 and ISO_IR 203 they read
nothing but noise.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

UTF_8 = "ISO_IR 192"
_ALONE: Mapping[str, str] = MappingProxyType({UTF_8: "utf-8", "GB18030": "gb18030", "GBK": "gbk"})
_ESCAPE = 0x1B
_EXTENDED = "ISO 2022 IR "
_MISSPELT = re.compile(r"^ISO[ _-]?(2022)?[ _-]?IR[ _-]?(\d{1,3})$")


@dataclass(frozen=True, kw_only=True)
class _Repertoire:
    """Characters that one escape sequence makes available, as codes from 21H (G0) or from A1H (G1)."""

    escape: bytes
    codec: str
    high: bool = False
    width: int = 1
    prefix: bytes = b""
    """What stands before each character where the codec of Python has several sets."""

    def decoded(self, code: bytes) -> str:
        """Return the character of a code. Raises UnicodeDecodeError."""
        if self.width == 2:
            code = bytes(byte | 0x80 for byte in code)
        return (self.prefix + code).decode(self.codec)

    def encoded(self, character: str) -> bytes:
        """Return the code of a character; b"" where it has none."""
        code = character.encode(self.codec, "ignore")
        if not code.startswith(self.prefix) or len(code) != len(self.prefix) + self.width:
            return b""
        code = code[len(self.prefix) :]
        if not min(code) > (0xA0 if self.high or self.width == 2 else 0x20):
            return b""
        return code if self.high or self.width == 1 else bytes(byte & 0x7F for byte in code)


_ASCII = _Repertoire(escape=b"\x1b(B", codec="ascii")
# The backslash and the tilde of JIS X 0201 are shown as others, and mean the same.
_ROMAJI = _Repertoire(escape=b"\x1b(J", codec="ascii")
_HIGH = {
    "100": _Repertoire(escape=b"\x1b-A", codec="iso8859_1", high=True),
    "101": _Repertoire(escape=b"\x1b-B", codec="iso8859_2", high=True),
    "109": _Repertoire(escape=b"\x1b-C", codec="iso8859_3", high=True),
    "110": _Repertoire(escape=b"\x1b-D", codec="iso8859_4", high=True),
    "144": _Repertoire(escape=b"\x1b-L", codec="iso8859_5", high=True),
    "127": _Repertoire(escape=b"\x1b-G", codec="iso8859_6", high=True),
    "126": _Repertoire(escape=b"\x1b-F", codec="iso8859_7", high=True),
    "138": _Repertoire(escape=b"\x1b-H", codec="iso8859_8", high=True),
    "148": _Repertoire(escape=b"\x1b-M", codec="iso8859_9", high=True),
    "203": _Repertoire(escape=b"\x1b-b", codec="iso8859_15", high=True),
    "166": _Repertoire(escape=b"\x1b-T", codec="iso8859_11", high=True),
    "13": _Repertoire(escape=b"\x1b)I", codec="shift_jis", high=True),
}
_EXTENSIONS = {
    "87": _Repertoire(escape=b"\x1b$B", codec="euc_jp", width=2),
    "159": _Repertoire(escape=b"\x1b$(D", codec="euc_jp", width=2, prefix=b"\x8f"),
    "149": _Repertoire(escape=b"\x1b$)C", codec="euc_kr", high=True, width=2),
    "58": _Repertoire(escape=b"\x1b$)A", codec="gb2312", high=True, width=2),
}
_BY_ESCAPE = {each.escape: each for each in (_ASCII, _ROMAJI, *_HIGH.values(), *_EXTENSIONS.values())}


@dataclass(frozen=True)
class CharacterSets:
    """The values of Specific Character Set (0008,0005); none, or an empty one, is ASCII."""

    terms: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\\".join(self.terms) or "ISO_IR 6"

    @property
    def is_known(self) -> bool:
        """Whether text can be read and written in them: they are defined, and may stand together."""
        if len(self.terms) <= 1 and self._first in _ALONE:
            return True
        first, *others = self.terms or ("",)
        if not others:
            return first in ("", "ISO_IR 6") or (first.startswith("ISO_IR ") and first[7:] in _HIGH)
        return first in ("", *self._extended("6", *_HIGH)) and {*others} <= {*self._extended(*_HIGH, *_EXTENSIONS)}

    @property
    def are_extended(self) -> bool:
        """Whether there may be escape sequences in text."""
        return any(each.startswith(_EXTENDED) for each in self.terms)

    def decode(self, content: bytes, delimiters: str = "") -> str:
        """Return the text of a value, at whose delimiters the first set is active again, as at the end of a line.

        Raises UnicodeDecodeError.
        """
        if self._first in _ALONE or (_ESCAPE not in content and self._codec != "shift_jis"):
            return content.decode(self._codec or "ascii")
        return "".join(self._characters(content, delimiters.encode("ascii")))

    def read(self, content: bytes, delimiters: str = "") -> str:
        """Return what there is to read in a value, with a mark where there is nothing."""
        try:
            return self.decode(content, delimiters)
        except UnicodeDecodeError:
            return content.decode(self._codec or "latin-1", "replace")

    def encode(self, text: str, delimiters: str = "") -> bytes:
        """Return a value that reads as `text`. Raises UnicodeEncodeError where the sets lack one of its characters."""
        if self._first in _ALONE:
            return text.encode(_ALONE[self._first])
        low, high = first = self._initial
        content = bytearray()
        for at, character in enumerate(text):
            if (character < " " and character != "\x1b") or character in delimiters:
                content += self._closed(low, high)
                low, high = first
                content += character.encode("ascii")
                continue
            known = [each for each in (low, high, *self._repertoires) if each is not None]
            code, found = next(((code, each) for each in known if (code := each.encoded(character))), (b"", low))
            if character == " " and low.width == 1:
                code = b" "
            if not code:
                raise UnicodeEncodeError("-".join(self.terms) or "ascii", text, at, at + 1, "has no code")
            if found not in (low, high):
                content += found.escape
                low, high = (low, found) if found.high else (found, high)
            content += code
        return bytes(content + self._closed(low, high))

    @property
    def _first(self) -> str:
        return self.terms[0] if self.terms else ""

    @property
    def _codec(self) -> str:
        """Python's name of the first set, "" of ASCII and of what nobody knows."""
        high = self._initial[1]
        return _ALONE.get(self._first) or (high.codec if high else "")

    @property
    def _initial(self) -> tuple[_Repertoire, _Repertoire | None]:
        """What codes mean at the beginning: the low ones, and the high ones."""
        number = self._first.rpartition(" ")[2]
        return _ROMAJI if number == "13" else _ASCII, _HIGH.get(number)

    @property
    def _repertoires(self) -> Iterator[_Repertoire]:
        """Yield what an escape sequence may make available."""
        if self.are_extended:
            yield self._initial[0]
            for term in self.terms:
                number = term.removeprefix(_EXTENDED)
                if number in _HIGH or number in _EXTENSIONS:
                    yield _HIGH.get(number) or _EXTENSIONS[number]

    def _characters(self, content: bytes, delimiters: bytes) -> Iterator[str]:
        low, high = first = self._initial
        at = 0
        while at < len(content):
            byte = content[at]
            if byte == _ESCAPE:
                length = 4 if content[at + 1 : at + 3] in (b"$(", b"$)") else 3
                found = _BY_ESCAPE.get(content[at : at + length])
                if found is None:
                    raise UnicodeDecodeError("ISO 2022", content, at, at + length, "is no escape sequence of DICOM")
                low, high = (low, found) if found.high else (found, high)
                at += length
                continue
            if byte <= 0x20 or (low.width == 1 and byte in delimiters):
                yield chr(byte)
                if byte != 0x20:
                    low, high = first
                at += 1
                continue
            current = low if byte < 0x80 else high
            if current is None:
                raise UnicodeDecodeError("ISO 2022", content, at, at + 1, "means nothing in these character sets")
            yield current.decoded(content[at : at + current.width])
            at += current.width

    def _closed(self, low: _Repertoire, high: _Repertoire | None) -> bytes:
        """Return what makes the first set active again."""
        first_low, first_high = self._initial
        closed = first_low.escape if low != first_low else b""
        return closed + (first_high.escape if first_high is not None and high != first_high else b"")

    @staticmethod
    def _extended(*numbers: str) -> Iterable[str]:
        return (f"{_EXTENDED}{number}" for number in numbers)


def character_sets(value: str | Sequence[str] | None) -> CharacterSets:
    """Return the character sets that Specific Character Set names."""
    terms = (value,) if isinstance(value, str) else tuple(value or ())
    # Some are written with other signs between their parts.
    right = tuple(_MISSPELT.sub(_spelt, str(term or "").strip()) for term in terms)
    return CharacterSets(() if right == ("",) else right)


def _spelt(term: re.Match[str]) -> str:
    return f"{_EXTENDED if term[1] else 'ISO_IR '}{term[2]}"
