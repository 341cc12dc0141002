"""What the Standard asks of an object of its class, attribute by attribute (PS3.3 Annexes A and C).

After highdicom's tables of the Standard. Whether a condition of type 1C or 2C holds they do not say, nor do we ask it.
"""

from collections.abc import Iterator, Mapping
from functools import cache

from highdicom._standard_utils import get_iod_module_map, get_module_attribute_map, get_sop_class_iod_map
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset

from meddaemon.domain.result import EncodedObject
from meddaemon.results.gate.exam import VERBATIM, Exam

_VALUE, _PRESENT, _OPTIONAL = "1", "2", "3"
_MANDATORY = "M"
_ALIKE = "PerFrameFunctionalGroupsSequence"
"""Thousands of items that are made alike: the first is asked, and each is read by the checks of frames."""
_GROUPS = ((_ALIKE,), ("SharedFunctionalGroupsSequence",))
"""Each functional group is in one of these, some are in neither: which, the checks of frames know."""
_TREE, _CONTENT = "sr-document-content", "ContentSequence"
"""What a content item must have depends on its value type: `gate.tree` knows."""

_Path = tuple[str, ...]


def attributes(_: Exam, encoded: EncodedObject, dataset: Dataset) -> Iterator[str]:
    """Check that what must be there is, at every level, and that nothing is there that the IOD does not have."""
    yield from _examine(dataset, (), _types(encoded.sop_class_uid))


def _examine(dataset: Dataset, path: _Path, types: Mapping[_Path, Mapping[str, str]]) -> Iterator[str]:
    where = "".join(f"{each}." for each in path)
    known = types.get(path, {})
    for keyword, kind in known.items():
        if kind != _OPTIONAL and keyword not in dataset:
            yield f"{where}{keyword} is absent"
        elif kind == _VALUE and dataset[keyword].is_empty:
            yield f"{where}{keyword} has no value"
    for element in dataset:
        keyword = keyword_for_tag(element.tag)
        # The source may have what was retired since, or belongs to a newer edition of the Standard.
        copied = not path and keyword in VERBATIM
        if keyword not in known and not copied:
            yield f"{where}{keyword or element.tag} is no attribute of its IOD"
        elif element.VR == "SQ" and not copied:
            below = (_CONTENT,) if keyword == _CONTENT else (*path, keyword)
            for item in element.value[: 1 if keyword == _ALIKE else None]:
                yield from _examine(item, below, types)


@cache
def _types(sop_class_uid: str) -> Mapping[_Path, Mapping[str, str]]:
    """Return the types of the attributes of an IOD by the sequences that they lie in: the strictest that a module says.

    1 must have a value, 2 be there; 3 is whatever else may be there.
    """
    found: dict[_Path, dict[str, str]] = {}
    for module in get_iod_module_map()[get_sop_class_iod_map()[sop_class_uid]]:
        for attribute in get_module_attribute_map().get(module["key"], ()):
            path, keyword, kind = tuple(attribute["path"]), attribute["keyword"], attribute["type"]
            depends = module["key"] == _TREE or path in _GROUPS or not (path or module["usage"] == _MANDATORY)
            level = found.setdefault(path, {})
            asked = kind if kind in (_VALUE, _PRESENT) and not depends else _OPTIONAL
            level[keyword] = min(asked, level.get(keyword, _OPTIONAL))
    found.get((_CONTENT,), {})[_CONTENT] = _OPTIONAL
    return found
