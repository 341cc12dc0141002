"""Text of data sets as bytes: read by the rules of the Standard, and written in the character set of a source."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from pydicom import config
from pydicom.charset import convert_encodings
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.valuerep import VR, PersonName

from meddaemon.domain.character_sets import UTF_8, CharacterSets, character_sets

_DELIMITERS: Mapping[str, str] = MappingProxyType(
    {VR.LO: "\\", VR.SH: "\\", VR.UC: "\\", VR.PN: "\\^=", VR.ST: "", VR.LT: "", VR.UT: ""}
)
"""Of VRs with text in the character sets: what ends a value or a part of it (PS3.5 section 6.1.2.5.3)."""
_FRAMES = frozenset({0x52009229, 0x52009230})
"""Sequences of thousands of items, of which nobody needs a text."""


def character_sets_of(dataset: Dataset) -> CharacterSets:
    """Return the character sets that a data set names."""
    return character_sets(dataset.get("SpecificCharacterSet"))


def understood(dataset: Dataset, outer: CharacterSets | None = None) -> Dataset:
    """Decode the text of a data set that was read, in place, wherever pydicom might get it wrong, and return it.

    `outer` are the character sets of the data set around an item. What cannot be decoded is left to pydicom, which
    shows that it was not.
    """
    sets = character_sets_of(dataset) if outer is None or "SpecificCharacterSet" in dataset else outer
    if sets.terms == (UTF_8,):
        return dataset
    for tag in list(dataset.keys()):
        raw: Any = dataset.get_item(tag)
        vr = _vr_of(tag, raw)
        if vr == VR.SQ and tag not in _FRAMES:
            items = dataset[tag].value
            for item in items if isinstance(items, Sequence) else ():
                understood(item, sets)
        elif vr in _DELIMITERS and isinstance(raw, RawDataElement) and raw.value and not _is_plain(raw.value):
            try:
                text = sets.decode(raw.value.rstrip(b"\0 "), _DELIMITERS[vr])
            except UnicodeDecodeError:
                continue
            values = [each.rstrip("\0 ") for each in (text.split("\\") if _DELIMITERS[vr] else [text])]
            value = values if len(values) > 1 else values[0]
            dataset[tag] = DataElement(tag, vr, value, validation_mode=config.IGNORE)
    return dataset


def say(dataset: Dataset, sets: CharacterSets) -> bool:
    """Have all text of a data set be written in these character sets; return False where they cannot say it.

    It then is as it was.
    """
    try:
        changed = list(_encoded(dataset, sets))
    except UnicodeEncodeError:
        return False
    for holder, element in changed:
        holder[element.tag] = element
    dataset.SpecificCharacterSet = list(sets.terms)
    if not sets.terms:
        del dataset.SpecificCharacterSet
    return True


def _encoded(dataset: Dataset, sets: CharacterSets) -> Iterator[tuple[Dataset, DataElement]]:
    """Yield the elements whose text is not ASCII, as bytes, and what holds them."""
    encodings = tuple(convert_encodings(list(sets.terms)))
    for element in dataset:
        if element.VR == VR.SQ and element.tag not in _FRAMES:
            for item in element.value:
                yield from _encoded(item, sets)
        elif element.VR in _DELIMITERS and not element.is_empty:
            many = isinstance(element.value, MultiValue | list | tuple)
            texts = [str(each) for each in (element.value if many else [element.value])]
            if all(map(str.isascii, texts)):
                continue
            values: list[object] = [sets.encode(each, _DELIMITERS[element.VR]) for each in texts]
            if element.VR == VR.PN:
                values = [
                    PersonName(text, encodings, value)  # type: ignore[arg-type]
                    for text, value in zip(texts, values, strict=True)
                ]
            value = values if many else values[0]
            yield dataset, DataElement(element.tag, element.VR, value, validation_mode=config.IGNORE)


def _vr_of(tag: BaseTag, element: DataElement | RawDataElement) -> str:
    if element.VR not in (None, VR.UN):
        return str(element.VR)
    return dictionary_VR(tag) if dictionary_has_tag(tag) else VR.UN


def _is_plain(content: bytes) -> bool:
    return content.isascii() and b"\x1b" not in content
