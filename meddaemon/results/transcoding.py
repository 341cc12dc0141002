"""Other transfer syntaxes of what is stored, for a destination that does not take it as it is.

Nothing is lost on the way, so the object stays the same and keeps its SOP Instance UID; the stored file is not touched.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless, RLELossless

from meddaemon.domain.outlet import TransferForm
from meddaemon.results.texts import character_sets_of, say, understood

UIDS: Mapping[TransferForm, str] = MappingProxyType(
    {
        TransferForm.RLE: str(RLELossless),
        TransferForm.JPEG_LS: str(JPEGLSLossless),
        TransferForm.EXPLICIT: str(ExplicitVRLittleEndian),
        TransferForm.IMPLICIT: str(ImplicitVRLittleEndian),
    }
)
"""Transfer Syntax UIDs."""
_PLAIN = (str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian))


class NotTranscoded(ValueError):
    """What is stored cannot be decoded."""


def syntaxes_for(stored: str, forms: Sequence[TransferForm] = ()) -> tuple[str, ...]:
    """Return the transfer syntaxes that an object can leave in, the preferred one first.

    `forms` are those that its destination may be given; none: as it is stored, then explicit, then implicit VR.
    """
    possible = tuple(dict.fromkeys((stored, *(_PLAIN if stored in UIDS.values() else ()))))
    return tuple(UIDS[form] for form in forms if UIDS[form] in possible) if forms else possible


@contextmanager
def as_syntax(path: Path, stored: str, wanted: str) -> Iterator[Path]:
    """Yield a Part 10 file of the object in the wanted transfer syntax, which `syntaxes_for` named.

    It is the stored file where nothing is to be done. Raises NotTranscoded, OSError.
    """
    if wanted == stored:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="meddaemon-") as folder:
        other = Path(folder) / "object"
        try:
            # pydicom would write what it reads, and of some character sets it reads something else.
            dataset = understood(dcmread(path))
            if UID(stored).is_compressed:
                dataset.decompress(generate_instance_uid=False)
            dataset.file_meta.TransferSyntaxUID = UID(wanted)
            say(dataset, character_sets_of(dataset))
            dataset.save_as(other, enforce_file_format=True)
        except (InvalidDicomError, AttributeError, NotImplementedError, RuntimeError, ValueError) as failure:
            raise NotTranscoded(f"cannot be decoded: {type(failure).__name__}") from failure
        yield other
