"""A sending modality that says exactly what a test wants: bytes and UIDs go out as they are given, right or wrong."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, _config
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.presentation import build_context

from meddaemon.results.dimse import make_pausable, release

# An answer repeats our UID, right or wrong.
_config.VALIDATORS["UI"] = lambda uid: (True, "")

MISSING = -1
"""Instead of a status: no answer came, the association is gone."""


class Scanner:
    """One association to a listener."""

    def __init__(self, association: Association) -> None:
        self.association = association
        self._message_id = 0

    def echo(self) -> int:
        """Return the status of a C-ECHO."""
        return int(self.association.send_c_echo().get("Status", MISSING))

    def store(
        self,
        data: bytes,
        sop_instance_uid: str,
        *,
        sop_class_uid: str = CTImageStorage,
        transfer_syntax_uid: str = ExplicitVRLittleEndian,
        named_class: str | None = None,
    ) -> int:
        """Send a data set as it is and return the status; `named_class` is said in the command instead."""
        context = next(
            each
            for each in self.association.accepted_contexts
            if each.abstract_syntax == sop_class_uid and each.transfer_syntax[0] == transfer_syntax_uid
        )
        self._message_id = self._message_id % 65535 + 1
        request = C_STORE()
        request.MessageID = self._message_id
        # The setters check what we want to be wrong.
        request._affected_sop_class_uid = named_class or sop_class_uid
        request._affected_sop_instance_uid = sop_instance_uid
        request.Priority = 2
        request.DataSet = io.BytesIO(data)
        self.association._reactor_checkpoint.clear()
        try:
            self.association.dimse.send_msg(request, context.context_id)
            _, answer = self.association.dimse.get_msg(block=True)
        finally:
            self.association._reactor_checkpoint.set()
        return MISSING if answer is None else int(answer.Status)


@contextmanager
def scanner(
    port: int,
    contexts: Sequence[tuple[str, str]] = ((CTImageStorage, ExplicitVRLittleEndian),),
    *,
    called: str = "MEDDAEMON",
    calling: str = "SCANNER",
) -> Iterator[Scanner]:
    """Open an association that proposes each (SOP class, transfer syntax) by itself, and C-ECHO."""
    entity = AE(ae_title=calling)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 60
    proposed = [build_context("1.2.840.10008.1.1"), *(build_context(each, [syntax]) for each, syntax in contexts)]
    association = entity.associate("127.0.0.1", port, contexts=proposed, ae_title=called, max_pdu=0x20000)
    assert association.is_established
    make_pausable(association)
    try:
        yield Scanner(association)
    finally:
        release(association)
