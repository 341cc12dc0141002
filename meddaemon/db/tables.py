"""The schema. Every change here needs a migration under `alembic/versions`; a test compares the two."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
    true,
)
from sqlalchemy.types import TypeDecorator, TypeEngine

from meddaemon.db.clock import Utc
from meddaemon.domain.errors import IdentityTaken
from meddaemon.domain.schedule import WhenLate
from meddaemon.domain.states import DeliveryState, JobState, StudyState

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class Plain(TypeDecorator[str]):
    """Text that came from outside, made such that both databases take it: no NUL, no half of a surrogate pair.

    Without a length it is as long as it needs to be.
    """

    impl: TypeEngine[str] | type[TypeEngine[str]] = String
    cache_ok = True

    def __init__(self, length: int | None = None) -> None:
        super().__init__()
        self.length = length
        self.impl = Text() if length is None else String(length)

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Replace what cannot be stored."""
        return None if value is None else value.replace("\0", "\ufffd").encode(errors="replace").decode()


_Id = BigInteger().with_variant(Integer, "sqlite")
_Uid = String(64)
_AeTitle = Plain(16)


def _id() -> Column[int]:
    return Column("id", _Id, primary_key=True, autoincrement=True)


def _references(column: str, *, nullable: bool = False, index: bool = False) -> Column[int]:
    name = column.split(".", maxsplit=1)[0] + "_id"
    return Column(name, _Id, ForeignKey(column, ondelete="CASCADE"), nullable=nullable, index=index)


study = Table(
    "study",
    metadata,
    _id(),
    Column("study_instance_uid", _Uid, nullable=False, unique=True),
    Column("state", String(16), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("first_received_at", Utc, nullable=False),
    Column("last_received_at", Utc, nullable=False),
    # When rules are to be evaluated next; null when all have been, in this generation.
    Column("due_at", Utc, index=True),
    # When it was last looked at, and what each rule that was not asked then waits for.
    Column("looked_at", Utc),
    Column("waiting", JSON),
    Column("patient_id", Plain(64), nullable=False),
    Column("accession_number", Plain(64), nullable=False, index=True),
    Column("study_date", Plain(8), nullable=False),
    Column("study_description", Plain(64), nullable=False),
)

# Conditions of partial indexes. A query must say them word for word, or the whole history is read each time.
study_held = text(f"state = '{StudyState.HELD}'")
Index("ix_study_held", study.c.id, sqlite_where=study_held, postgresql_where=study_held)

series = Table(
    "series",
    metadata,
    _id(),
    _references("study.id"),
    Column("series_instance_uid", _Uid, nullable=False, index=True),
    Column("modality", Plain(16), nullable=False),
    Column("series_description", Plain(64), nullable=False),
    UniqueConstraint("study_id", "series_instance_uid"),
)

contradiction = Table(
    "contradiction",
    metadata,
    _id(),
    _references("study.id"),
    # The keyword of what differs, the series that it differs in (empty: the study), and a digest of the values.
    Column("kind", String(64), nullable=False),
    Column("subject", _Uid, nullable=False),
    Column("value", String(64), nullable=False),
    Column("reason", Plain(), nullable=False),
    Column("at", Utc, nullable=False),
    # When an operator let the study go on in spite of it.
    Column("released_at", Utc),
    UniqueConstraint("study_id", "kind", "subject", "value"),
)

instance = Table(
    "instance",
    metadata,
    _id(),
    _references("series.id", index=True),
    Column("sop_instance_uid", _Uid, nullable=False),
    Column("sop_class_uid", _Uid, nullable=False),
    Column("transfer_syntax_uid", _Uid, nullable=False),
    Column("sha256", String(64), nullable=False, unique=True),
    Column("size", BigInteger, nullable=False),
    Column("header", JSON, nullable=False),
    Column("calling_ae_title", _AeTitle, nullable=False),
    Column("called_ae_title", _AeTitle, nullable=False),
    Column("received_at", Utc, nullable=False),
    # Another object with this SOP Instance UID and other content was here first; both are kept, this one is not used.
    Column("conflict", Boolean, nullable=False, server_default=false()),
    # The object is one of our own results that came back: it is kept and does not reopen the study.
    Column("own_result", Boolean, nullable=False, server_default=false()),
    Column("missing", Boolean, nullable=False, server_default=false()),
    Index(None, "sop_instance_uid"),
)
instance_conflict, instance_missing = text("conflict"), text("missing")
Index("ix_instance_conflict", instance.c.series_id, sqlite_where=instance_conflict, postgresql_where=instance_conflict)
Index("ix_instance_missing", instance.c.id, sqlite_where=instance_missing, postgresql_where=instance_missing)

refusal = Table(
    "refusal",
    metadata,
    _id(),
    Column("at", Utc, nullable=False),
    Column("sop_instance_uid", _Uid, nullable=False, index=True),
    Column("study_instance_uid", _Uid, nullable=False, index=True),
    Column("sha256", String(64), nullable=False),
    Column("status", Integer, nullable=False),
    Column("reason", Plain(), nullable=False),
    Column("calling_ae_title", _AeTitle, nullable=False),
    Column("called_ae_title", _AeTitle, nullable=False),
)

refusal_alarm = text(f"substr(reason, 1, {len(IdentityTaken.ALARM)}) = '{IdentityTaken.ALARM}'")
Index("ix_refusal_alarm", refusal.c.id, sqlite_where=refusal_alarm, postgresql_where=refusal_alarm)

decision = Table(
    "decision",
    metadata,
    _id(),
    _references("study.id", index=True),
    Column("generation", Integer, nullable=False),
    Column("rule", String(100), nullable=False),
    Column("matched", Boolean, nullable=False),
    Column("reason", Plain(), nullable=False),
    Column("detail", JSON, nullable=False),
    Column("at", Utc, nullable=False),
    UniqueConstraint("study_id", "generation", "rule"),
)

job = Table(
    "job",
    metadata,
    _id(),
    # Digest of study, model, configuration and inputs: asking for the same work twice gives one job.
    Column("key", String(64), nullable=False, unique=True),
    _references("study.id", index=True),
    # The latest generation that asked for it, and the rule that asked for it first.
    Column("generation", Integer, nullable=False),
    Column("rule", String(100), nullable=False),
    Column("model", String(100), nullable=False),
    Column("model_digest", String(64), nullable=False),
    Column("inputs", JSON, nullable=False),
    # The job with a result whose place this one takes, in a later generation.
    Column("replaces", _Id, ForeignKey("job.id", ondelete="SET NULL"), index=True),
    # Why the result must not be taken for truth whatever it says; empty for what a rule asked for.
    Column("caveat", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    # The gate that must be open for it to begin, beside the queue's own; empty: no other.
    Column("gate", String(64), nullable=False),
    # Of those that wait, the earliest turn goes first; it came so many seconds after the job was queued.
    Column("turn_at", Utc, nullable=False),
    Column("patience", Double, nullable=False),
    # When it should have begun, and how many seconds after it was queued that is; late it may be of no use.
    Column("deadline_at", Utc),
    Column("deadline_seconds", Double),
    Column("when_late", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("maximum_attempts", Integer, nullable=False),
    Column("available_at", Utc, nullable=False),
    # Fencing token: grows with every claim; whoever writes for a job must carry the token of the current claim.
    Column("fence", Integer, nullable=False),
    Column("lease_expires_at", Utc),
    Column("worker", Plain(100), nullable=False),
    Column("reason", Plain(), nullable=False),
    Column("created_at", Utc, nullable=False),
    Column("finished_at", Utc),
    # How often it was tried to tell of its failure in a result; null where there is nothing to tell. The lease is that
    # of whoever tries it, or says when it is tried again.
    Column("document_tries", Integer),
)
job_undocumented = text("document_tries IS NOT NULL")
Index("ix_job_undocumented", job.c.id, sqlite_where=job_undocumented, postgresql_where=job_undocumented)
job_waiting = text(f"state IN ('{JobState.AVAILABLE}', '{JobState.RETRYABLE}')")
job_executing = text(f"state IN ('{JobState.EXECUTING}', '{JobState.PREPARED}')")
# Gate by gate, so that what waits for its window costs those that may begin nothing.
Index("ix_job_waiting", job.c.gate, job.c.turn_at, job.c.id, sqlite_where=job_waiting, postgresql_where=job_waiting)
Index("ix_job_executing", job.c.lease_expires_at, sqlite_where=job_executing, postgresql_where=job_executing)

job_finished = text(f"state IN ('{JobState.COMPLETED}', '{JobState.DISCARDED}', '{JobState.CANCELLED}')")
Index("ix_job_finished", job.c.state, job.c.id, sqlite_where=job_finished, postgresql_where=job_finished)

job_missable = text(f"{job_waiting} AND deadline_at IS NOT NULL AND when_late = '{WhenLate.DISCARD}'")
Index("ix_job_missable", job.c.deadline_at, sqlite_where=job_missable, postgresql_where=job_missable)

# Gates that jobs pass to begin: the queue's own, whose name is empty, and one for each window. One that has no row is
# shut, and one that nobody keeps open shuts by itself.
gate = Table(
    "gate",
    metadata,
    _id(),
    Column("name", String(64), nullable=False, unique=True),
    Column("open_until", Utc, nullable=False, index=True),
    # Why an operator shut it.
    Column("reason", Plain(), nullable=False),
    Column("changed_at", Utc, nullable=False),
)

request = Table(
    "request",
    metadata,
    _id(),
    _references("study.id"),
    Column("rule", String(100), nullable=False),
    Column("model", String(100), nullable=False),
    _references("job.id", index=True),
    Column("generation", Integer, nullable=False),
    Column("destinations", JSON, nullable=False),
    UniqueConstraint("study_id", "rule", "model"),
)

job_event = Table(
    "job_event",
    metadata,
    _id(),
    _references("job.id", index=True),
    Column("at", Utc, nullable=False),
    Column("event", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("worker", Plain(100), nullable=False),
    Column("detail", Plain(), nullable=False),
)

result = Table(
    "result",
    metadata,
    _id(),
    _references("job.id"),
    # When the job failed that it tells of, as `job.finished_at` was then; null for what a completed job has found.
    Column("failed_at", Utc),
    _references("study.id", index=True),
    Column("model", String(100), nullable=False, index=True),
    Column("model_version", String(64), nullable=False),
    Column("model_digest", String(64), nullable=False),
    Column("series_instance_uid", _Uid, nullable=False),
    Column("status", String(16), nullable=False),
    Column("reason", Plain(), nullable=False),
    Column("provenance", JSON, nullable=False),
    Column("seconds", JSON, nullable=False),
    Column("created_at", Utc, nullable=False, index=True),
    UniqueConstraint("job_id", "failed_at"),
)
result_found = text("failed_at IS NULL")
Index("ix_result_found", result.c.job_id, unique=True, sqlite_where=result_found, postgresql_where=result_found)

segment = Table(
    "segment",
    metadata,
    _id(),
    _references("result.id"),
    Column("number", Integer, nullable=False),
    Column("label", String(64), nullable=False),
    Column("category_value", String(16), nullable=False),
    Column("category_scheme", String(16), nullable=False),
    Column("category_meaning", String(64), nullable=False),
    Column("type_value", String(16), nullable=False),
    Column("type_scheme", String(16), nullable=False),
    Column("type_meaning", String(64), nullable=False),
    # Which side it is of (PS3.16 CID 244); empty without one.
    Column("laterality_value", String(16), nullable=False, server_default=""),
    Column("laterality_meaning", String(64), nullable=False, server_default=""),
    Column("voxel_count", BigInteger, nullable=False),
    Column("tracking_uid", _Uid, nullable=False),
    UniqueConstraint("result_id", "number"),
)

finding = Table(
    "finding",
    metadata,
    _id(),
    _references("result.id", index=True),
    _references("segment.id", nullable=True),
    Column("code_value", String(16), nullable=False, index=True),
    Column("code_scheme", String(16), nullable=False),
    Column("code_meaning", String(64), nullable=False),
    # False for what was looked for and not found, or could not be looked for.
    Column("present", Boolean, nullable=False, server_default=true()),
    # Of what the contract calls a segment on which nothing is drawn as such: all its lesions together, for one.
    Column("label", String(64)),
    Column("laterality_value", String(16), nullable=False, server_default=""),
    Column("laterality_meaning", String(64), nullable=False, server_default=""),
    # As reports have it (PS3.16 TID 1501, Tracking Unique Identifier).
    Column("tracking_uid", _Uid, nullable=False),
)

measurement = Table(
    "measurement",
    metadata,
    _id(),
    _references("finding.id", index=True),
    Column("code_value", String(16), nullable=False),
    Column("code_scheme", String(16), nullable=False),
    Column("code_meaning", String(64), nullable=False),
    # Null for what was to be measured and could not be.
    Column("value", Double),
    Column("unit_value", String(16), nullable=False),
    Column("unit_meaning", String(64), nullable=False),
    # What the number is of several, their standard deviation for one (PS3.16 CID 7464); empty for the number itself.
    Column("derivation_value", String(16), nullable=False, server_default=""),
    Column("derivation_meaning", String(64), nullable=False, server_default=""),
    # What filters and formulas call it (`domain.result.Measurement.key`).
    Column("key", String(32), nullable=False, server_default=""),
    Index(None, "code_value", "value"),
)

# Where a finding lies that is a box or a landmark: on its image in pixels, edges for a box, and in the patient.
location = Table(
    "location",
    metadata,
    _id(),
    Column("finding_id", _Id, ForeignKey("finding.id", ondelete="CASCADE"), nullable=False, unique=True),
    Column("sop_instance_uid", _Uid, nullable=False),
    Column("frame_number", Integer, nullable=False),
    Column("frame_of_reference_uid", _Uid, nullable=False),
    # Without a plane on a picture, which is no plane of anything; without any where it is the image as a whole.
    Column("low_plane", Double),
    Column("low_row", Double),
    Column("low_column", Double),
    Column("high_plane", Double),
    Column("high_row", Double),
    Column("high_column", Double),
    # The centre in LPS mm, where there is a patient coordinate system.
    Column("x", Double),
    Column("y", Double),
    Column("z", Double),
)

result_object = Table(
    "result_object",
    metadata,
    _id(),
    _references("result.id", index=True),
    Column("kind", String(16), nullable=False),
    # Which of several of a kind it is, and which editions it belongs to (domain.outlet.Edition.parts).
    Column("part", String(16), nullable=False),
    Column("edition", String(16), nullable=False),
    Column("sop_class_uid", _Uid, nullable=False),
    Column("sop_instance_uid", _Uid, nullable=False, index=True),
    Column("series_instance_uid", _Uid, nullable=False),
    Column("transfer_syntax_uid", _Uid, nullable=False),
    Column("sha256", String(64), nullable=False, index=True),
    Column("size", BigInteger, nullable=False),
    # What describes it, as of an instance, so that no search opens a file.
    Column("header", JSON, nullable=False, server_default="{}"),
    UniqueConstraint("result_id", "kind", "part", "edition"),
)

# What is kept beside a result, saliency maps and probabilities: a file of the results folder, named by its digest.
artefact = Table(
    "artefact",
    metadata,
    _id(),
    _references("result.id", index=True),
    Column("kind", String(16), nullable=False),
    # The class or the segment, as the contract calls it.
    Column("of", Plain(64), nullable=False),
    Column("unit_value", String(16), nullable=False),
    # Lengths of [plane, row, column], or of [row, column] on a picture.
    Column("shape", JSON, nullable=False),
    # 4 x 4, from (plane, row, column, 1) to LPS mm; null on a picture, which is named instead.
    Column("affine_lps", JSON(none_as_null=True)),
    Column("frame_of_reference_uid", _Uid, nullable=False),
    Column("sop_instance_uid", _Uid),
    Column("frame_number", Integer),
    Column("sha256", String(64), nullable=False, index=True),
    Column("size", BigInteger, nullable=False),
)

delivery = Table(
    "delivery",
    metadata,
    _id(),
    _references("result_object.id"),
    Column("destination", String(100), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("available_at", Utc, nullable=False),
    Column("fence", Integer, nullable=False),
    Column("lease_expires_at", Utc),
    # The last DIMSE status, null as long as none was received.
    Column("status", Integer),
    Column("reason", Plain(), nullable=False),
    # Whether anybody who asks for the job sends its result there; what is not wanted any more stays where it is.
    Column("wanted", Boolean, nullable=False, server_default=true()),
    Column("created_at", Utc, nullable=False),
    Column("sent_at", Utc),
    # Custody of what was sent: when the destination said that it has it, and when that was enough.
    Column("committed_at", Utc),
    Column("verified_at", Utc),
    Column("done_at", Utc),
    # When it is to be asked (again), how often commitment was asked for and a query did not find it since it was sent
    # last, how often it was lost, and why it is not confirmed.
    Column("custody_at", Utc, nullable=False, server_default=text("0")),
    Column("custody_asked", Integer, nullable=False, server_default=text("0")),
    Column("custody_missed", Integer, nullable=False, server_default=text("0")),
    Column("losses", Integer, nullable=False, server_default=text("0")),
    # How often it failed by itself, while others were taken, and when last.
    Column("faults", Integer, nullable=False, server_default=text("0")),
    Column("faulted_at", Utc),
    Column("custody_reason", Plain(), nullable=False, server_default=""),
    # AE title that most of the study came from when it was claimed first: later images change neither who gets it back
    # nor who is asked for it. Null as long as it was not.
    Column("sender", _AeTitle),
    # Whether who wants to be told that it is done will be (`notice`).
    Column("noticed", Boolean, nullable=False, server_default=false()),
    UniqueConstraint("result_object_id", "destination"),
)
delivery_unsent = text(f"state IN ('{DeliveryState.PENDING}', '{DeliveryState.RETRYABLE}', '{DeliveryState.SENDING}')")
Index(
    "ix_delivery_unsent",
    delivery.c.destination,
    delivery.c.priority,
    delivery.c.id,
    sqlite_where=delivery_unsent,
    postgresql_where=delivery_unsent,
)

delivery_sending = text(f"state = '{DeliveryState.SENDING}'")
Index(
    "ix_delivery_sending",
    delivery.c.lease_expires_at,
    sqlite_where=delivery_sending,
    postgresql_where=delivery_sending,
)
delivery_held = text(f"state = '{DeliveryState.HELD}'")
Index("ix_delivery_held", delivery.c.destination, sqlite_where=delivery_held, postgresql_where=delivery_held)
delivery_sent = text("sent_at IS NOT NULL")
Index(
    "ix_delivery_sent",
    delivery.c.destination,
    delivery.c.sent_at,
    sqlite_where=delivery_sent,
    postgresql_where=delivery_sent,
)
delivery_unconfirmed = text(f"state = '{DeliveryState.SENT}' AND done_at IS NULL")
Index(
    "ix_delivery_unconfirmed",
    delivery.c.destination,
    delivery.c.custody_at,
    sqlite_where=delivery_unconfirmed,
    postgresql_where=delivery_unconfirmed,
)

# Our requests for storage commitment, kept before they are sent; `commitment` holds those of others to us.
custody = Table(
    "custody",
    metadata,
    _id(),
    Column("transaction_uid", _Uid, nullable=False, unique=True),
    Column("destination", String(100), nullable=False),
    # AE titles that may report.
    Column("reported_by", JSON, nullable=False),
    # How often an object may be lost before a person must look: whoever takes the report need not know the settings.
    Column("maximum_losses", Integer, nullable=False),
    Column("asked_at", Utc, nullable=False),
    # When the destination took the request, and when it reported first.
    Column("taken_at", Utc),
    Column("reported_at", Utc),
    # Why it was not taken.
    Column("reason", Plain(), nullable=False),
)

custody_item = Table(
    "custody_item",
    metadata,
    Column("custody_id", _Id, ForeignKey("custody.id", ondelete="CASCADE"), primary_key=True),
    Column("delivery_id", _Id, ForeignKey("delivery.id", ondelete="CASCADE"), primary_key=True, index=True),
    # Of the delivery when it was asked for: a report on what was sent again since says nothing of that.
    Column("fence", Integer, nullable=False),
    Column("asked", Integer, nullable=False),
    # Null until a report has said something of it.
    Column("outcome", String(16)),
)

# By destination, so that those with nobody to tell cost nothing.
delivery_unnoticed = text("done_at IS NOT NULL AND NOT noticed")
Index(
    "ix_delivery_unnoticed",
    delivery.c.destination,
    sqlite_where=delivery_unnoticed,
    postgresql_where=delivery_unnoticed,
)

# Who is told that a result is done at a destination, and in which form (`domain.notices`).
notice = Table(
    "notice",
    metadata,
    _id(),
    _references("result.id"),
    Column("destination", String(100), nullable=False),
    Column("form", String(8), nullable=False),
    # An AE title, a host with its port, a URL: whatever the form is told to.
    Column("target", Plain(300), nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("available_at", Utc, nullable=False),
    Column("fence", Integer, nullable=False),
    Column("lease_expires_at", Utc),
    Column("reason", Plain(), nullable=False),
    Column("created_at", Utc, nullable=False),
    Column("sent_at", Utc),
    UniqueConstraint("result_id", "destination", "form", "target"),
)
notice_open = text(f"state IN ('{DeliveryState.PENDING}', '{DeliveryState.RETRYABLE}', '{DeliveryState.SENDING}')")
Index(
    "ix_notice_open",
    notice.c.destination,
    notice.c.form,
    notice.c.available_at,
    sqlite_where=notice_open,
    postgresql_where=notice_open,
)

commitment = Table(
    "commitment",
    metadata,
    _id(),
    Column("transaction_uid", _Uid, nullable=False),
    Column("calling_ae_title", _AeTitle, nullable=False),
    # [SOP Class UID, SOP Instance UID] of each instance, in the order of the request.
    Column("instances", JSON, nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("available_at", Utc, nullable=False),
    Column("fence", Integer, nullable=False),
    Column("lease_expires_at", Utc),
    # How many instances the report named as failed; null until the peer has heard it.
    Column("failed", Integer),
    Column("reason", Plain(), nullable=False),
    Column("asked_at", Utc, nullable=False),
    Column("reported_at", Utc),
    UniqueConstraint("calling_ae_title", "transaction_uid"),
)
commitment_open = text(f"state IN ('{DeliveryState.PENDING}', '{DeliveryState.RETRYABLE}', '{DeliveryState.SENDING}')")
Index(
    "ix_commitment_open",
    commitment.c.available_at,
    sqlite_where=commitment_open,
    postgresql_where=commitment_open,
)

commitment_held = text(f"state = '{DeliveryState.HELD}'")
Index("ix_commitment_held", commitment.c.id, sqlite_where=commitment_held, postgresql_where=commitment_held)
announcement = Table(
    "announcement",
    metadata,
    _id(),
    # MPPS or IAN, the UID of that object, and who sent it.
    Column("source", String(8), nullable=False),
    Column("sop_instance_uid", _Uid, nullable=False, unique=True),
    Column("ae_title", _AeTitle, nullable=False),
    Column("state", String(16), nullable=False),
    Column("changed_at", Utc, nullable=False, index=True),
    # Whether the studies that it tells of have been made to be looked at.
    Column("told", Boolean, nullable=False, server_default=false()),
)
announcement_untold = text("NOT told")
Index(
    "ix_announcement_untold",
    announcement.c.id,
    sqlite_where=announcement_untold,
    postgresql_where=announcement_untold,
)

# The studies that an announcement tells of: they need not be here, and one step may have made parts of several.
announced_study = Table(
    "announced_study",
    metadata,
    Column("study_instance_uid", _Uid, primary_key=True),
    Column("announcement_id", _Id, ForeignKey("announcement.id", ondelete="CASCADE"), primary_key=True, index=True),
)

announced_instance = Table(
    "announced_instance",
    metadata,
    Column("announcement_id", _Id, ForeignKey("announcement.id", ondelete="CASCADE"), primary_key=True),
    Column("sop_instance_uid", _Uid, primary_key=True),
)

inquiry = Table(
    "inquiry",
    metadata,
    _id(),
    _references("study.id"),
    Column("ae_title", _AeTitle, nullable=False),
    Column("wanted_at", Utc, nullable=False),
    # Null as long as nobody has answered; then how many instances the peer has, or why it did not say.
    Column("answered_at", Utc),
    Column("instances", Integer),
    Column("problem", Plain(), nullable=False),
    UniqueConstraint("study_id", "ae_title"),
)
inquiry_open = text("answered_at IS NULL")
Index("ix_inquiry_open", inquiry.c.ae_title, sqlite_where=inquiry_open, postgresql_where=inquiry_open)

process = Table(
    "process",
    metadata,
    _id(),
    Column("name", String(100), nullable=False, unique=True),
    Column("role", String(16), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("host", String(255), nullable=False),
    Column("address", String(255), nullable=False),
    Column("started_at", Utc, nullable=False),
    Column("seen_at", Utc, nullable=False),
)

# One row: the volume that the store lies on (see meddaemon.ingest.volume).
volume = Table(
    "volume",
    metadata,
    _id(),
    Column("identity", String(64), nullable=False),
    # Whether the file that repeats the identity was written there.
    Column("placed", Boolean, nullable=False),
)

VIEWS = tuple(
    f"{prefix}_{name}"
    for name in ("result", "segment", "finding", "measurement", "object", "delivery")
    for prefix in ("v", "v_all")
)
"""For analysts, see docs/views.md; the migration makes them."""
