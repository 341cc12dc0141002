"""The statuses with which a C-STORE request is answered."""

SUCCESS = 0x0000
INVALID_SOP_INSTANCE = 0x0117
"""PS3.7 C.5.9: Invalid SOP Instance."""
SOP_CLASS_NOT_SUPPORTED = 0x0122
"""PS3.7 C.5.22: Refused: SOP Class Not Supported."""
OUT_OF_RESOURCES = 0xA700
"""PS3.4 B.2.3: Refused: Out of Resources."""
DOES_NOT_MATCH_SOP_CLASS = 0xA900
"""PS3.4 B.2.3: Error: Data Set does not match SOP Class."""
CANNOT_UNDERSTAND = 0xC000
"""PS3.4 B.2.3: Error: Cannot Understand."""
