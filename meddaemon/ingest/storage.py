"""What associations send to be stored, as the intake wants it, and its outcomes as statuses."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pynetdicom import AllStoragePresentationContexts

from meddaemon.ingest.c_store import Agreed, StoreRequest
from meddaemon.ingest.intake import Intake
from meddaemon.ingest.receive import Incoming, is_uid, normal
from meddaemon.ingest.statuses import OUT_OF_RESOURCES, SUCCESS
from meddaemon.ingest.store import meta_of
from meddaemon.telemetry import log

if TYPE_CHECKING:
    from meddaemon.ingest.upper_layer import AcceptorAssociation

STORAGE_SOP_CLASSES = frozenset(str(context.abstract_syntax) for context in AllStoragePresentationContexts)
_log = log(__name__)


class StorageProvider:
    """The Storage Service Class as SCP (PS3.4 Annex B); Success says that an object would survive a power loss."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    def begin(self, association: "AcceptorAssociation", request: StoreRequest) -> Incoming | None:
        """Return what an object is collected in; None where its presentation context stores nothing."""
        agreed = association.agreed.get(request.context_id) or _agreed(association, request.context_id)
        if agreed is None:
            return None
        sop_class_uid, sop_instance_uid = normal(request.sop_class_uid), normal(request.sop_instance_uid)
        meta = b""
        if is_uid(sop_class_uid) and is_uid(sop_instance_uid):  # otherwise it will be refused
            meta = meta_of(
                sop_class_uid=sop_class_uid,
                sop_instance_uid=sop_instance_uid,
                transfer_syntax_uid=agreed.transfer_syntax_uid,
            )
        return Incoming(
            content=self._intake.new_content(meta),
            transfer_syntax_uid=agreed.transfer_syntax_uid,
            sop_class_uid=request.sop_class_uid,
            sop_instance_uid=request.sop_instance_uid,
            abstract_syntax_uid=agreed.abstract_syntax_uid,
            calling_ae_title=agreed.calling_ae_title,
            called_ae_title=agreed.called_ae_title,
        )

    def settle(self) -> None:
        """Return when whoever asks about objects finds registered what was acknowledged."""
        self._intake.settle()

    def take(self, group: Sequence[Incoming]) -> Sequence[tuple[int, str]]:
        """Take objects, whose contents are closed then; return status and comment of each."""
        try:
            outcomes = self._intake.take_all(group)
        except Exception as unforeseen:  # noqa: BLE001  one of the few places where errors become outcomes
            _log.error("cannot take an object", kind=type(unforeseen).__name__, exc_info=unforeseen)
            return [(OUT_OF_RESOURCES, "cannot store now")] * len(group)
        return [(SUCCESS, "") if refused is None else (refused.status, refused.reason) for refused in outcomes]


def _agreed(association: "AcceptorAssociation", context_id: int) -> Agreed | None:
    """Return what was agreed on in a presentation context that stores objects, looked up once for all of them."""
    context = association._accepted_cx.get(context_id)
    requested = association.requestor.primitive
    if context is None or requested is None or str(context.abstract_syntax) not in STORAGE_SOP_CLASSES:
        return None
    agreed = Agreed(
        abstract_syntax_uid=str(context.abstract_syntax),
        transfer_syntax_uid=str(context.transfer_syntax[0]),
        calling_ae_title=str(association.requestor.ae_title).strip(),
        called_ae_title=str(requested.called_ae_title).strip(),
    )
    association.agreed[context_id] = agreed
    return agreed
