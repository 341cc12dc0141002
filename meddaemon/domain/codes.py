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
PRESENT = Code(value="52101004", scheme="SCT", meaning="Present")
ABSENT = Code(value="272519000", scheme="SCT", meaning="Absent")
UNDETERMINED = Code(value="373068000", scheme="SCT", meaning="Undetermined")
"""Whether something is there (PS3.16 CID 240)."""
CERTAINTY_OF_FINDING = Code(value="111012", scheme="DCM", meaning="Certainty of Finding")
PERCENT = Code(value="%", scheme="UCUM", meaning="Percent")
UNITY = Code(value="1", scheme="UCUM", meaning="no units")
SURFACE = Code(value="C0JK", scheme="IBSI", meaning="Surface Area of Mesh")
DIAMETER = Code(value="L0JK", scheme="IBSI", meaning="Maximum 3D Diameter of a Mesh")
LONG_AXIS = Code(value="103339001", scheme="SCT", meaning="Long axis")
SHORT_AXIS = Code(value="103340004", scheme="SCT", meaning="Short axis")
MILLIMETRE = Code(value="mm", scheme="UCUM", meaning="mm")
ATTENUATION = Code(value="112031", scheme="DCM", meaning="Attenuation Coefficient")
HOUNSFIELD_UNIT = Code(value="[hnsf'U]", scheme="UCUM", meaning="Hounsfield unit")
UPTAKE = Code(value="126401", scheme="DCM", meaning="SUVbw")
UPTAKE_UNIT = Code(value="g/ml{SUVbw}", scheme="UCUM", meaning="Standardized Uptake Value body weight")
MR_SIGNAL = Code(value="110852", scheme="DCM", meaning="MR signal intensity")
VOXEL_VALUE = Code(value="VOXEL_VALUE", scheme="99MEDDAEMON", meaning="Voxel value")
"""What an image holds that does not say what it holds: no context group of PS3.16 has a concept for it."""
LESION_COUNT = Code(value="246206008", scheme="SCT", meaning="Number of lesions")
MEAN = Code(value="373098007", scheme="SCT", meaning="Mean")
MINIMUM = Code(value="255605001", scheme="SCT", meaning="Minimum")
MAXIMUM = Code(value="56851009", scheme="SCT", meaning="Maximum")
TOTAL = Code(value="255619001", scheme="SCT", meaning="Total")
STANDARD_DEVIATION = Code(value="386136009", scheme="SCT", meaning="Standard Deviation")
