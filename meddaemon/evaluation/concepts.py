"""Coded concepts of DICOM objects as text, `scheme:value`, the same for the same thing."""

from collections.abc import Mapping, Sequence

from pydicom import Dataset

# The table by which pydicom compares codes of SNOMED RT with those of SNOMED CT; it has no public name.
from pydicom.sr._snomed_dict import mapping as _snomed

_CURRENT: Mapping[str, str] = _snomed["SRT"]


def concept(sequence: Sequence[Dataset] | None) -> str:
    """Return the code of the first item as `scheme:value`, "" where there is none.

    Codes of SNOMED RT, which DICOM has retired and many objects still have, are given as those of SNOMED CT.
    """
    if not sequence:
        return ""
    item = sequence[0]
    scheme = str(item.get("CodingSchemeDesignator") or "")
    value = str(item.get("CodeValue") or item.get("LongCodeValue") or item.get("URNCodeValue") or "")
    if scheme in {"SRT", "SNM3", "99SDM"} and value in _CURRENT:
        return f"SCT:{_CURRENT[value]}"
    return f"{scheme}:{value}"
