"""Data sets in the DICOM JSON Model (PS3.18 Annex F).

Written from the bytes of a file, or from the attributes that the index keeps. A value that is not what its VR says is
given as the text that it is: nothing that was stored cannot be shown.
"""

import base64
import math
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from pydicom.datadict import dictionary_VR, tag_for_keyword

from meddaemon.domain.character_sets import CharacterSets, character_sets
from meddaemon.web.elements import PIXEL_DATA, Element, in_little_endian

MEDIA_TYPE = "application/dicom+json"
LONGEST_INLINE_BYTES = 1024
"""Of binary data; what is longer is named by a URI."""
LONGEST_VALUE_BYTES = 2**16
"""Of everything else."""
_SPECIFIC_CHARACTER_SET = 0x00080005
_TRAILING_PADDING = 0xFFFCFFFC
_FLOAT_PIXEL_DATA = frozenset({PIXEL_DATA, 0x7FE00008, 0x7FE00009})
_BULK = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
_ENCODED, _ENCODED_SINGLE = frozenset({"LO", "PN", "SH", "UC"}), frozenset({"LT", "ST", "UT"})
_NUMBERS = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "UV": "Q", "SV": "q", "FL": "f", "FD": "d", "AT": "HH"}
_INTEGER = re.compile(r"[+-]?[0-9]{1,15}")
_DECIMAL = re.compile(r"[+-]?([0-9]{1,32}(\.[0-9]{0,32})?|\.[0-9]{1,32})([eE][+-]?[0-9]{1,3})?")
_EXACT = 2**53
"""Beyond it numbers of JSON are not exact everywhere: they are written as text."""
_UTF8 = "ISO_IR 192"

Json = dict[str, object]
UriOf = Callable[[str], str]
"""The URI of bulk data by its place: tag, or tag/item/tag, items counted from 0."""


def tag_name(tag: int) -> str:
    """Return a tag as the model writes it, in eight hexadecimal digits."""
    return f"{tag:08X}"


def data_set(elements: Sequence[Element], uri_of: UriOf) -> Json:
    """Return a data set in the model, its long values by URI."""
    return _data_set(elements, uri_of, "", CharacterSets())


def described(header: Mapping[str, Sequence[str]], keywords: Sequence[str]) -> Json:
    """Return those attributes of `header` (keyword -> components as text) in the model, empty ones without a value."""
    return {tag_name(_tag(keyword)): attribute(keyword, header.get(keyword, ())) for keyword in keywords}


def attribute(keyword: str, components: Sequence[str | int]) -> Json:
    """Return one attribute in the model; components that are empty are null."""
    vr = dictionary_VR(keyword)
    vr = "US" if vr == "US or SS" else vr
    values = [_component(vr, each) if isinstance(each, str) else each for each in components]
    return {"vr": vr, "Value": values} if values else {"vr": vr}


def _tag(keyword: str) -> int:
    tag = tag_for_keyword(keyword)
    assert tag is not None  # noqa: S101  for the type checker: they are all ours
    return tag


def _data_set(elements: Sequence[Element], uri_of: UriOf, place: str, sets: CharacterSets) -> Json:
    written: Json = {}
    for element in elements:
        if element.tag & 0xFFFF == 0 or element.tag == _TRAILING_PADDING:
            continue
        if element.tag == _SPECIFIC_CHARACTER_SET:
            sets = _sets(bytes(element.value[:256]))
            written[tag_name(element.tag)] = {"vr": "CS", "Value": [_UTF8]}
            continue
        written[tag_name(element.tag)] = _element(element, uri_of, place + tag_name(element.tag), sets)
    return dict(sorted(written.items()))


def _element(element: Element, uri_of: UriOf, place: str, sets: CharacterSets) -> Json:
    vr, size = element.vr, len(element.value)
    known = vr if vr in _VALUES or vr in _BULK or vr == "SQ" else "UN"
    if element.items is not None:
        items = [_data_set(item, uri_of, f"{place}/{n}/", sets) for n, item in enumerate(element.items)]
        return {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}
    if element.fragments is not None or (element.tag in _FLOAT_PIXEL_DATA and size):
        return {"vr": known, "BulkDataURI": uri_of(place)}
    if not size:
        return {"vr": known}
    if size > (LONGEST_INLINE_BYTES if known in _BULK else LONGEST_VALUE_BYTES):
        return {"vr": known, "BulkDataURI": uri_of(place)}
    if known in _BULK:
        return {"vr": known, "InlineBinary": base64.b64encode(in_little_endian(element)).decode()}
    values = _VALUES[known](known, element, sets)
    return {"vr": known, "Value": values} if any(each is not None for each in values) else {"vr": known}


def _numbers(vr: str, element: Element, sets: CharacterSets) -> list[object]:
    form = struct.Struct(("<" if element.little else ">") + _NUMBERS[vr])
    whole = len(element.value) - len(element.value) % form.size
    found = form.iter_unpack(element.value[:whole])
    if vr == "AT":
        return [f"{group:04X}{number:04X}" for group, number in found]
    return [_number(number) for (number,) in found]


def _number(number: float) -> object:
    if not math.isfinite(number):
        return None
    return str(number) if isinstance(number, int) and abs(number) > _EXACT else number


def _texts(vr: str, element: Element, sets: CharacterSets) -> list[object]:
    value = bytes(element.value)
    text = sets.read(value, "\\^=" if vr == "PN" else "\\") if vr in _ENCODED else value.decode("latin-1")
    return [_component(vr, each) for each in text.split("\\")]


def _single_text(vr: str, element: Element, sets: CharacterSets) -> list[object]:
    value = bytes(element.value)
    text = sets.read(value) if vr in _ENCODED_SINGLE else value.decode("latin-1")
    return [_printable(text.rstrip(" \0")) or None]


_VALUES: Mapping[str, Callable[[str, Element, CharacterSets], list[object]]] = {
    **dict.fromkeys(_NUMBERS, _numbers),
    **dict.fromkeys(("AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI", "LO", "PN", "SH", "UC"), _texts),
    **dict.fromkeys(("LT", "ST", "UT", "UR"), _single_text),
}


def _component(vr: str, text: str) -> object:
    """Return one value of a VR that is written as text; None for an empty one."""
    text = _printable(text.rstrip(" \0") if vr in {"LO", "SH", "UC", "PN"} else text.strip(" \0"))
    if not text:
        return None
    if vr == "PN":
        groups = dict(zip(("Alphabetic", "Ideographic", "Phonetic"), text.split("="), strict=False))
        return {name: group for name, group in groups.items() if group} or None
    if vr == "DS" and _DECIMAL.fullmatch(text):
        number = float(text)
        return number if math.isfinite(number) else text
    if (vr == "IS" or vr in _NUMBERS) and _INTEGER.fullmatch(text):
        return int(text)
    return text


def _printable(text: str) -> str:
    """Return text such that every reader of JSON takes it: no half of a surrogate pair."""
    return text.encode("utf-8", "replace").decode()


@lru_cache(maxsize=256)
def _sets(value: bytes) -> CharacterSets:
    return character_sets([each.strip(" \0") for each in value.decode("latin-1").split("\\")])
