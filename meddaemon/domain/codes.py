"""Coded concepts, as DICOM writes them (PS3.3 section 8, Code Sequence Macro)."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Code:
    """One coded concept.

    `value` is at most 16 characters long (VR SH), `scheme` is a Coding Scheme Designator
    (SCT, DCM, UCUM, or a private one that begins with 99) and `meaning` is the English meaning.
    """

    value: str
    scheme: str
    meaning: str

    def __str__(self) -> str:
        return f"({self.value}, {self.scheme}, {self.meaning})"


VOLUME = Code(value="118565006", scheme="SCT", meaning="Volume")
MILLILITRE = Code(value="mL", scheme="UCUM", meaning="Milliliter")
CUBIC_MILLIMETRE = Code(value="mm3", scheme="UCUM", meaning="Cubic Millimeter")
AREA = Code(value="42798000", scheme="SCT", meaning="Area")
SQUARE_MILLIMETRE = Code(value="mm2", scheme="UCUM", meaning="square millimeter")
PIXELS = Code(value="{pixels}", scheme="UCUM", meaning="pixels")
CERTAINTY_OF_FINDING = Code(value="111012", scheme="DCM", meaning="Certainty of Finding")
PERCENT = Code(value="%", scheme="UCUM", meaning="Percent")
UNITY = Code(value="1", scheme="UCUM", meaning="no units")
STANDARD_DEVIATION = Code(value="386136009", scheme="SCT", meaning="Standard Deviation")
