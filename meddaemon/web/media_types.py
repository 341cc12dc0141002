"""Media types as HTTP headers write them (RFC 9110 sections 8.3 and 12.5.1), and which of ours a client prefers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_TYPE = re.compile(r"\s*([A-Za-z0-9!#$&^_.+*-]+/[A-Za-z0-9!#$&^_.+*-]+)\s*")
# An unquoted value should be a token, which `application/dicom` is not; many senders leave the quotes out.
_PARAMETER = re.compile(r';\s*([A-Za-z0-9!#$&^_.+-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s";,]+))\s*')
_LISTED = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*")+')


@dataclass(frozen=True, kw_only=True)
class MediaType:
    """A media type in lower case, and its parameters by their names in lower case."""

    name: str
    parameters: Mapping[str, str]


def parse_media_type(text: str) -> MediaType | None:
    """Return the media type that is written there; None where it is none, or says something twice."""
    found = _TYPE.match(text)
    if found is None:
        return None
    name, position = found[1].lower(), found.end()
    parameters: dict[str, str] = {}
    while position < len(text):
        found = _PARAMETER.match(text, position)
        if found is None or found[1].lower() in parameters:
            return None
        quoted, bare = found[2], found[3]
        parameters[found[1].lower()] = bare if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        position = found.end()
    return MediaType(name=name, parameters=parameters)


def preferred(accept: str, offered: Sequence[str]) -> str | None:
    """Return the one of the offered media types that an Accept header asks for; None where it wants none of them.

    Everything is welcome to an empty header. Between equals our order decides.
    """
    if not accept.strip():
        return offered[0]
    ranges = [each for text in _LISTED.findall(accept) if (each := parse_media_type(text)) is not None]
    weights = {name: _weight(name, ranges) for name in offered}
    best = max(offered, key=lambda name: weights[name])
    return best if weights[best] > 0 else None


def _weight(name: str, ranges: Sequence[MediaType]) -> float:
    """Return the weight that the most specific range gives to a media type."""
    for pattern in (name, f"{name.partition('/')[0]}/*", "*/*"):
        weights = [_quality(each) for each in ranges if each.name == pattern]
        if weights:
            return max(weights)
    return 0.0


def _quality(media_range: MediaType) -> float:
    written = media_range.parameters.get("q", "1")
    return float(written) if re.fullmatch(r"[01](\.[0-9]{0,3})?", written) else 0.0


def accepted(accept: str) -> list[MediaType]:
    """Return the media ranges of an Accept header that are wanted at all, the most wanted first.

    Everything is welcome to an empty header.
    """
    written = accept.strip() or "*/*"
    ranges = [each for text in _LISTED.findall(written) if (each := parse_media_type(text)) is not None]
    return sorted((each for each in ranges if _quality(each) > 0), key=_quality, reverse=True)
