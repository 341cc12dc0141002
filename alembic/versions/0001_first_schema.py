"""First schema.

Revision: 0001
Follows:
"""

import re

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "announcement",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("source", sa.String(length=8), nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("ae_title", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("changed_at", sa.Double(), nullable=False),
        sa.Column("told", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_announcement")),
        sa.UniqueConstraint("sop_instance_uid", name=op.f("uq_announcement_sop_instance_uid")),
    )
    with op.batch_alter_table("announcement", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_announcement_changed_at"), ["changed_at"], unique=False)
        batch_op.create_index(
            "ix_announcement_untold",
            ["id"],
            unique=False,
            sqlite_where=sa.text("NOT told"),
            postgresql_where=sa.text("NOT told"),
        )

    for name, uid in (("announced_study", "study_instance_uid"), ("announced_instance", "sop_instance_uid")):
        columns = [
            sa.Column("announcement_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
            sa.Column(uid, sa.String(length=64), nullable=False),
        ]
        # By study we look for announcements, by announcement for instances.
        if name == "announced_study":
            columns.reverse()
        op.create_table(
            name,
            *columns,
            sa.ForeignKeyConstraint(
                ["announcement_id"],
                ["announcement.id"],
                name=op.f(f"fk_{name}_announcement_id"),
                ondelete="CASCADE",
            ),
            sa.PrimaryKeyConstraint(*(column.name for column in columns), name=op.f(f"pk_{name}")),
        )
    with op.batch_alter_table("announced_study", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_announced_study_announcement_id"),
            ["announcement_id"],
            unique=False,
        )

    op.create_table(
        "commitment",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("transaction_uid", sa.String(length=64), nullable=False),
        sa.Column("calling_ae_title", sa.String(length=16), nullable=False),
        sa.Column("instances", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("available_at", sa.Double(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("lease_expires_at", sa.Double(), nullable=True),
        sa.Column("failed", sa.Integer(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("asked_at", sa.Double(), nullable=False),
        sa.Column("reported_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_commitment")),
        sa.UniqueConstraint(
            "calling_ae_title",
            "transaction_uid",
            name=op.f("uq_commitment_calling_ae_title_transaction_uid"),
        ),
    )
    with op.batch_alter_table("commitment", schema=None) as batch_op:
        batch_op.create_index(
            "ix_commitment_open",
            ["available_at"],
            unique=False,
            sqlite_where=sa.text("state IN ('pending', 'retryable', 'sending')"),
            postgresql_where=sa.text("state IN ('pending', 'retryable', 'sending')"),
        )

    op.create_table(
        "process",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("address", sa.String(length=255), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_process")),
        sa.UniqueConstraint("name", name=op.f("uq_process_name")),
    )
    op.create_table(
        "volume",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("identity", sa.String(length=64), nullable=False),
        sa.Column("placed", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_volume")),
    )
    op.create_table(
        "refusal",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("study_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("calling_ae_title", sa.String(length=16), nullable=False),
        sa.Column("called_ae_title", sa.String(length=16), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_refusal")),
    )
    with op.batch_alter_table("refusal", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_refusal_sop_instance_uid"), ["sop_instance_uid"], unique=False)
        batch_op.create_index(batch_op.f("ix_refusal_study_instance_uid"), ["study_instance_uid"], unique=False)

    op.create_table(
        "study",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("study_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("first_received_at", sa.Double(), nullable=False),
        sa.Column("last_received_at", sa.Double(), nullable=False),
        sa.Column("due_at", sa.Double(), nullable=True),
        sa.Column("looked_at", sa.Double(), nullable=True),
        sa.Column("waiting", sa.JSON(), nullable=True),
        sa.Column("patient_id", sa.String(length=64), nullable=False),
        sa.Column("accession_number", sa.String(length=64), nullable=False),
        sa.Column("study_date", sa.String(length=8), nullable=False),
        sa.Column("study_description", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_study")),
        sa.UniqueConstraint("study_instance_uid", name=op.f("uq_study_study_instance_uid")),
    )
    with op.batch_alter_table("study", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_study_due_at"), ["due_at"], unique=False)

    op.create_table(
        "inquiry",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("study_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("ae_title", sa.String(length=16), nullable=False),
        sa.Column("wanted_at", sa.Double(), nullable=False),
        sa.Column("answered_at", sa.Double(), nullable=True),
        sa.Column("instances", sa.Integer(), nullable=True),
        sa.Column("problem", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_inquiry_study_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_inquiry")),
        sa.UniqueConstraint("study_id", "ae_title", name=op.f("uq_inquiry_study_id_ae_title")),
    )
    with op.batch_alter_table("inquiry", schema=None) as batch_op:
        batch_op.create_index(
            "ix_inquiry_open",
            ["ae_title"],
            unique=False,
            sqlite_where=sa.text("answered_at IS NULL"),
            postgresql_where=sa.text("answered_at IS NULL"),
        )

    op.create_table(
        "decision",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("study_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("rule", sa.String(length=100), nullable=False),
        sa.Column("matched", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_decision_study_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_decision")),
        sa.UniqueConstraint("study_id", "generation", "rule", name=op.f("uq_decision_study_id_generation_rule")),
    )
    with op.batch_alter_table("decision", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_decision_study_id"), ["study_id"], unique=False)

    op.create_table(
        "job",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("study_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("rule", sa.String(length=100), nullable=False),
        sa.Column("model", sa.String(length=100), nullable=False),
        sa.Column("model_digest", sa.String(length=64), nullable=False),
        sa.Column("inputs", sa.JSON(), nullable=False),
        sa.Column("replaces", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("caveat", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("gate", sa.String(length=64), nullable=False),
        sa.Column("turn_at", sa.Double(), nullable=False),
        sa.Column("patience", sa.Double(), nullable=False),
        sa.Column("deadline_at", sa.Double(), nullable=True),
        sa.Column("deadline_seconds", sa.Double(), nullable=True),
        sa.Column("when_late", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("maximum_attempts", sa.Integer(), nullable=False),
        sa.Column("available_at", sa.Double(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("lease_expires_at", sa.Double(), nullable=True),
        sa.Column("worker", sa.String(length=100), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.Column("document_tries", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_job_study_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["replaces"], ["job.id"], name=op.f("fk_job_replaces"), ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job")),
        sa.UniqueConstraint("key", name=op.f("uq_job_key")),
    )
    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.create_index(
            "ix_job_executing",
            ["lease_expires_at"],
            unique=False,
            sqlite_where=sa.text("state IN ('executing', 'prepared')"),
            postgresql_where=sa.text("state IN ('executing', 'prepared')"),
        )
        batch_op.create_index(batch_op.f("ix_job_replaces"), ["replaces"], unique=False)
        batch_op.create_index(batch_op.f("ix_job_study_id"), ["study_id"], unique=False)
        batch_op.create_index(
            "ix_job_waiting",
            ["gate", "turn_at", "id"],
            unique=False,
            sqlite_where=sa.text("state IN ('available', 'retryable')"),
            postgresql_where=sa.text("state IN ('available', 'retryable')"),
        )

    op.create_table(
        "series",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("study_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("series_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("modality", sa.String(length=16), nullable=False),
        sa.Column("series_description", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_series_study_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_series")),
        sa.UniqueConstraint("study_id", "series_instance_uid", name=op.f("uq_series_study_id_series_instance_uid")),
    )
    with op.batch_alter_table("series", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_series_series_instance_uid"), ["series_instance_uid"], unique=False)

    op.create_table(
        "contradiction",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("study_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("kind", sa.String(length=64), nullable=False),
        sa.Column("subject", sa.String(length=64), nullable=False),
        sa.Column("value", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("released_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_contradiction_study_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_contradiction")),
        sa.UniqueConstraint(
            "study_id", "kind", "subject", "value", name=op.f("uq_contradiction_study_id_kind_subject_value")
        ),
    )
    op.create_table(
        "instance",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("series_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("sop_class_uid", sa.String(length=64), nullable=False),
        sa.Column("transfer_syntax_uid", sa.String(length=64), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("header", sa.JSON(), nullable=False),
        sa.Column("calling_ae_title", sa.String(length=16), nullable=False),
        sa.Column("called_ae_title", sa.String(length=16), nullable=False),
        sa.Column("received_at", sa.Double(), nullable=False),
        sa.Column("conflict", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("own_result", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("missing", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.ForeignKeyConstraint(["series_id"], ["series.id"], name=op.f("fk_instance_series_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_instance")),
        sa.UniqueConstraint("sha256", name=op.f("uq_instance_sha256")),
    )
    with op.batch_alter_table("instance", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_instance_series_id"), ["series_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_instance_sop_instance_uid"), ["sop_instance_uid"], unique=False)

    op.create_table(
        "job_event",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("job_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("event", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(length=100), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_job_event_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job_event")),
    )
    with op.batch_alter_table("job_event", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_job_event_job_id"), ["job_id"], unique=False)

    op.create_table(
        "request",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("study_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("rule", sa.String(length=100), nullable=False),
        sa.Column("model", sa.String(length=100), nullable=False),
        sa.Column("job_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("destinations", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_request_job_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_request_study_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_request")),
        sa.UniqueConstraint("study_id", "rule", "model", name=op.f("uq_request_study_id_rule_model")),
    )
    with op.batch_alter_table("request", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_request_job_id"), ["job_id"], unique=False)

    op.create_table(
        "result",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("job_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("failed_at", sa.Double(), nullable=True),
        sa.Column("study_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("model", sa.String(length=100), nullable=False),
        sa.Column("model_version", sa.String(length=64), nullable=False),
        sa.Column("model_digest", sa.String(length=64), nullable=False),
        sa.Column("series_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("provenance", sa.JSON(), nullable=False),
        sa.Column("seconds", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_result_job_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"], name=op.f("fk_result_study_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_result")),
        sa.UniqueConstraint("job_id", "failed_at", name=op.f("uq_result_job_id_failed_at")),
    )
    found = sa.text("failed_at IS NULL")
    op.create_index("ix_result_found", "result", ["job_id"], unique=True, sqlite_where=found, postgresql_where=found)
    with op.batch_alter_table("result", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_result_created_at"), ["created_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_result_model"), ["model"], unique=False)
        batch_op.create_index(batch_op.f("ix_result_study_id"), ["study_id"], unique=False)

    op.create_table(
        "result_object",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("result_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("part", sa.String(length=16), nullable=False),
        sa.Column("edition", sa.String(length=16), nullable=False),
        sa.Column("sop_class_uid", sa.String(length=64), nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("series_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("transfer_syntax_uid", sa.String(length=64), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("header", sa.JSON(), server_default="{}", nullable=False),
        sa.ForeignKeyConstraint(
            ["result_id"], ["result.id"], name=op.f("fk_result_object_result_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_result_object")),
        sa.UniqueConstraint(
            "result_id", "kind", "part", "edition", name=op.f("uq_result_object_result_id_kind_part_edition")
        ),
    )
    with op.batch_alter_table("result_object", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_result_object_result_id"), ["result_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_result_object_sop_instance_uid"), ["sop_instance_uid"], unique=False)

    op.create_table(
        "artefact",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("result_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("of", sa.String(length=64), nullable=False),
        sa.Column("unit_value", sa.String(length=16), nullable=False),
        sa.Column("shape", sa.JSON(), nullable=False),
        sa.Column("affine_lps", sa.JSON(), nullable=True),
        sa.Column("frame_of_reference_uid", sa.String(length=64), nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=True),
        sa.Column("frame_number", sa.Integer(), nullable=True),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["result_id"], ["result.id"], name=op.f("fk_artefact_result_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_artefact")),
    )
    with op.batch_alter_table("artefact", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_artefact_result_id"), ["result_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_artefact_sha256"), ["sha256"], unique=False)

    op.create_table(
        "segment",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("result_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("label", sa.String(length=64), nullable=False),
        sa.Column("category_value", sa.String(length=16), nullable=False),
        sa.Column("category_scheme", sa.String(length=16), nullable=False),
        sa.Column("category_meaning", sa.String(length=64), nullable=False),
        sa.Column("type_value", sa.String(length=16), nullable=False),
        sa.Column("type_scheme", sa.String(length=16), nullable=False),
        sa.Column("type_meaning", sa.String(length=64), nullable=False),
        sa.Column("laterality_value", sa.String(length=16), server_default="", nullable=False),
        sa.Column("laterality_meaning", sa.String(length=64), server_default="", nullable=False),
        sa.Column("voxel_count", sa.BigInteger(), nullable=False),
        sa.Column("tracking_uid", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["result_id"], ["result.id"], name=op.f("fk_segment_result_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_segment")),
        sa.UniqueConstraint("result_id", "number", name=op.f("uq_segment_result_id_number")),
    )
    op.create_table(
        "delivery",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("result_object_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("destination", sa.String(length=100), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("available_at", sa.Double(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("lease_expires_at", sa.Double(), nullable=True),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("wanted", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("sent_at", sa.Double(), nullable=True),
        sa.Column("committed_at", sa.Double(), nullable=True),
        sa.Column("verified_at", sa.Double(), nullable=True),
        sa.Column("done_at", sa.Double(), nullable=True),
        sa.Column("custody_at", sa.Double(), server_default=sa.text("0"), nullable=False),
        sa.Column("custody_asked", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("custody_missed", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("losses", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("faults", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("faulted_at", sa.Double(), nullable=True),
        sa.Column("custody_reason", sa.Text(), server_default="", nullable=False),
        sa.Column("sender", sa.String(length=16), nullable=True),
        sa.Column("noticed", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.ForeignKeyConstraint(
            ["result_object_id"], ["result_object.id"], name=op.f("fk_delivery_result_object_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_delivery")),
        sa.UniqueConstraint("result_object_id", "destination", name=op.f("uq_delivery_result_object_id_destination")),
    )
    with op.batch_alter_table("delivery", schema=None) as batch_op:
        batch_op.create_index(
            "ix_delivery_unsent",
            ["destination", "priority", "id"],
            unique=False,
            sqlite_where=sa.text("state IN ('pending', 'retryable', 'sending')"),
            postgresql_where=sa.text("state IN ('pending', 'retryable', 'sending')"),
        )

    op.create_table(
        "finding",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("result_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("segment_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("code_value", sa.String(length=16), nullable=False),
        sa.Column("code_scheme", sa.String(length=16), nullable=False),
        sa.Column("code_meaning", sa.String(length=64), nullable=False),
        sa.Column("present", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column("label", sa.String(length=64), nullable=True),
        sa.Column("laterality_value", sa.String(length=16), server_default="", nullable=False),
        sa.Column("laterality_meaning", sa.String(length=64), server_default="", nullable=False),
        sa.Column("tracking_uid", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["result_id"], ["result.id"], name=op.f("fk_finding_result_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["segment_id"], ["segment.id"], name=op.f("fk_finding_segment_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_finding")),
    )
    with op.batch_alter_table("finding", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_finding_code_value"), ["code_value"], unique=False)
        batch_op.create_index(batch_op.f("ix_finding_result_id"), ["result_id"], unique=False)

    op.create_table(
        "measurement",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("finding_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("code_value", sa.String(length=16), nullable=False),
        sa.Column("code_scheme", sa.String(length=16), nullable=False),
        sa.Column("code_meaning", sa.String(length=64), nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("unit_value", sa.String(length=16), nullable=False),
        sa.Column("unit_meaning", sa.String(length=64), nullable=False),
        sa.Column("derivation_value", sa.String(length=16), server_default="", nullable=False),
        sa.Column("derivation_meaning", sa.String(length=64), server_default="", nullable=False),
        sa.Column("key", sa.String(length=32), server_default="", nullable=False),
        sa.ForeignKeyConstraint(
            ["finding_id"], ["finding.id"], name=op.f("fk_measurement_finding_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_measurement")),
    )
    with op.batch_alter_table("measurement", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_measurement_code_value_value"), ["code_value", "value"], unique=False)
        batch_op.create_index(batch_op.f("ix_measurement_finding_id"), ["finding_id"], unique=False)

    op.create_table(
        "location",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("finding_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("sop_instance_uid", sa.String(length=64), nullable=False),
        sa.Column("frame_number", sa.Integer(), nullable=False),
        sa.Column("frame_of_reference_uid", sa.String(length=64), nullable=False),
        sa.Column("low_plane", sa.Double(), nullable=True),
        sa.Column("low_row", sa.Double(), nullable=True),
        sa.Column("low_column", sa.Double(), nullable=True),
        sa.Column("high_plane", sa.Double(), nullable=True),
        sa.Column("high_row", sa.Double(), nullable=True),
        sa.Column("high_column", sa.Double(), nullable=True),
        sa.Column("x", sa.Double(), nullable=True),
        sa.Column("y", sa.Double(), nullable=True),
        sa.Column("z", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(
            ["finding_id"], ["finding.id"], name=op.f("fk_location_finding_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_location")),
        sa.UniqueConstraint("finding_id", name=op.f("uq_location_finding_id")),
    )
    # The queue's own gate is always there, so that who shuts it and who claims a job meet at its row.
    gate = op.create_table(
        "gate",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("open_until", sa.Double(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("changed_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gate")),
        sa.UniqueConstraint("name", name=op.f("uq_gate_name")),
    )
    op.create_index(op.f("ix_gate_open_until"), "gate", ["open_until"])
    op.bulk_insert(gate, [{"name": "", "open_until": 253402300799.0, "reason": "", "changed_at": 0.0}])

    # Our requests for storage commitment.
    op.create_table(
        "custody",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("transaction_uid", sa.String(length=64), nullable=False),
        sa.Column("destination", sa.String(length=100), nullable=False),
        sa.Column("reported_by", sa.JSON(), nullable=False),
        sa.Column("maximum_losses", sa.Integer(), nullable=False),
        sa.Column("asked_at", sa.Double(), nullable=False),
        sa.Column("taken_at", sa.Double(), nullable=True),
        sa.Column("reported_at", sa.Double(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_custody")),
        sa.UniqueConstraint("transaction_uid", name=op.f("uq_custody_transaction_uid")),
    )
    op.create_table(
        "custody_item",
        sa.Column("custody_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("delivery_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("asked", sa.Integer(), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=True),
        sa.ForeignKeyConstraint(
            ["custody_id"], ["custody.id"], name=op.f("fk_custody_item_custody_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["delivery_id"], ["delivery.id"], name=op.f("fk_custody_item_delivery_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("custody_id", "delivery_id", name=op.f("pk_custody_item")),
    )
    op.create_index(op.f("ix_custody_item_delivery_id"), "custody_item", ["delivery_id"])
    op.create_table(
        "notice",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("result_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("destination", sa.String(length=100), nullable=False),
        sa.Column("form", sa.String(length=8), nullable=False),
        sa.Column("target", sa.String(length=300), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("available_at", sa.Double(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("lease_expires_at", sa.Double(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("sent_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["result_id"], ["result.id"], name=op.f("fk_notice_result_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_notice")),
        sa.UniqueConstraint(
            "result_id", "destination", "form", "target", name=op.f("uq_notice_result_id_destination_form_target")
        ),
    )

    # What listings and counts go by, where millions of instances are.
    missable = "state IN ('available', 'retryable') AND deadline_at IS NOT NULL AND when_late = 'discard'"
    alarm = "substr(reason, 1, 52) = 'the SOP Instance UID is that of an object of another'"
    for name, table, columns, condition in (
        ("ix_study_accession_number", "study", ["accession_number"], None),
        ("ix_study_held", "study", ["id"], "state = 'held'"),
        ("ix_instance_conflict", "instance", ["series_id"], "conflict"),
        ("ix_instance_missing", "instance", ["id"], "missing"),
        ("ix_refusal_alarm", "refusal", ["id"], alarm),
        ("ix_job_finished", "job", ["state", "id"], "state IN ('completed', 'discarded', 'cancelled')"),
        ("ix_job_missable", "job", ["deadline_at"], missable),
        ("ix_job_undocumented", "job", ["id"], "document_tries IS NOT NULL"),
        ("ix_result_object_sha256", "result_object", ["sha256"], None),
        ("ix_delivery_sending", "delivery", ["lease_expires_at"], "state = 'sending'"),
        ("ix_commitment_held", "commitment", ["id"], "state = 'held'"),
        ("ix_delivery_held", "delivery", ["destination"], "state = 'held'"),
        ("ix_delivery_sent", "delivery", ["destination", "sent_at"], "sent_at IS NOT NULL"),
        ("ix_delivery_unnoticed", "delivery", ["destination"], "done_at IS NOT NULL AND NOT noticed"),
        (
            "ix_notice_open",
            "notice",
            ["destination", "form", "available_at"],
            "state IN ('pending', 'retryable', 'sending')",
        ),
        ("ix_delivery_unconfirmed", "delivery", ["destination", "custody_at"], "state = 'sent' AND done_at IS NULL"),
    ):
        where = sa.text(condition) if condition else None
        op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)
    _create_views()


# --- views for analysts: docs/views.md explains each column, and a test holds it to what stands here ------------------
# A migration that changes a table which they read drops them first, and makes them again.

_OF_RESULT = """
    result.id AS result_id, result.study_id, study.study_instance_uid, study.accession_number, study.study_date,
    result.series_instance_uid, result.model, result.model_version, result.status, {result.created_at} AS made_at"""
_RESULT = """
    result JOIN study ON study.id = result.study_id JOIN job ON job.id = result.job_id"""
# A failure counts for as long as it is how its job has ended (`db.requests.is_current`).
_SUPERSEDED = """
    NOT EXISTS (SELECT 1 FROM request WHERE request.job_id = result.job_id) OR result.failed_at IS NOT NULL
    AND (job.state <> 'discarded' OR job.finished_at <> result.failed_at) AS superseded"""
# Name -> own columns, and what follows the joins of a result.
_VIEWS = {
    "result": ("result.model_digest, result.reason, job.rule, job.generation, job.caveat", ""),
    "segment": (
        """segment.id AS segment_id, segment.number, segment.label,
    segment.category_value, segment.category_scheme, segment.category_meaning,
    segment.type_value, segment.type_scheme, segment.type_meaning,
    segment.laterality_meaning AS laterality, segment.voxel_count, segment.tracking_uid""",
        "JOIN segment ON segment.result_id = result.id",
    ),
    "finding": (
        """finding.id AS finding_id, finding.code_value AS finding_value, finding.code_scheme AS finding_scheme,
    finding.code_meaning AS finding, finding.present, finding.segment_id,
    COALESCE(segment.label, finding.label) AS segment,
    location.sop_instance_uid, location.frame_number, location.frame_of_reference_uid,
    location.low_plane, location.low_row, location.low_column,
    location.high_plane, location.high_row, location.high_column,
    location.x AS x_lps_mm, location.y AS y_lps_mm, location.z AS z_lps_mm""",
        """JOIN finding ON finding.result_id = result.id
    LEFT JOIN segment ON segment.id = finding.segment_id LEFT JOIN location ON location.finding_id = finding.id""",
    ),
    "measurement": (
        """measurement.id AS measurement_id, finding.id AS finding_id,
    finding.code_value AS finding_value, finding.code_scheme AS finding_scheme, finding.code_meaning AS finding,
    finding.present, COALESCE(segment.label, finding.label) AS segment, measurement.code_value AS measurement_value,
    measurement.code_scheme AS measurement_scheme, measurement.code_meaning AS measurement,
    measurement.derivation_meaning AS derivation, measurement.value, measurement.unit_value AS unit,
    measurement.key""",
        """JOIN finding ON finding.result_id = result.id JOIN measurement ON measurement.finding_id = finding.id
    LEFT JOIN segment ON segment.id = finding.segment_id""",
    ),
    "object": (
        """result_object.id AS object_id, result_object.kind, result_object.part, result_object.edition,
    result_object.sop_class_uid,
    result_object.sop_instance_uid, result_object.series_instance_uid AS object_series_instance_uid,
    result_object.transfer_syntax_uid, result_object.sha256, result_object.size""",
        "JOIN result_object ON result_object.result_id = result.id",
    ),
    "delivery": (
        """delivery.id AS delivery_id, delivery.result_object_id AS object_id, result_object.kind,
    result_object.part, result_object.edition, result_object.sop_instance_uid,
    delivery.destination, delivery.state, delivery.attempt,
    delivery.status AS dimse_status, delivery.reason AS delivery_reason, delivery.wanted,
    {delivery.created_at} AS posted_at, {delivery.sent_at} AS sent_at, {delivery.committed_at} AS committed_at,
    {delivery.verified_at} AS verified_at, {delivery.done_at} AS done_at, delivery.custody_reason,
    delivery.losses""",
        """JOIN result_object ON result_object.result_id = result.id
    JOIN delivery ON delivery.result_object_id = result_object.id""",
    ),
}
# Seconds since 1970 as each database writes times: text in ISO 8601 UTC, and timestamps with a time zone.
_TIME = {"sqlite": "strftime('%Y-%m-%dT%H:%M:%fZ', {}, 'unixepoch')", "postgresql": "to_timestamp({})"}


def _create_views() -> None:
    """Make `v_NAME`, of current results, and `v_all_NAME`, of superseded and withdrawn ones too."""
    time = _TIME[op.get_bind().dialect.name]
    for name, (own, joins) in _VIEWS.items():
        columns = re.sub(r"{(.*?)}", lambda found: time.format(found[1]), f"{_OF_RESULT}, {own}")
        named = ", ".join(re.sub(r".* AS |.*\.", "", column).strip() for column in _split(columns))
        of_all = f"SELECT {columns}, {_SUPERSEDED} FROM {_RESULT} {joins}"  # noqa: S608  all of it stands above
        current = f"SELECT {named} FROM v_all_{name} WHERE NOT superseded"  # noqa: S608  likewise
        op.get_bind().exec_driver_sql(f"CREATE VIEW v_all_{name} AS {of_all}")
        op.get_bind().exec_driver_sql(f"CREATE VIEW v_{name} AS {current}")


def _split(columns: str) -> list[str]:
    """Return the columns of a SELECT, whose calls have commas of their own."""
    return re.split(r",(?![^(]*\))", " ".join(columns.split()))


def downgrade() -> None:
    """Drop the views and the tables."""
    for name in _VIEWS:
        op.execute(sa.text(f"DROP VIEW v_{name}"))
        op.execute(sa.text(f"DROP VIEW v_all_{name}"))
    op.drop_table("notice")
    op.drop_table("custody_item")
    op.drop_table("custody")
    op.drop_table("location")
    op.drop_table("gate")
    with op.batch_alter_table("measurement", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_measurement_finding_id"))
        batch_op.drop_index(batch_op.f("ix_measurement_code_value_value"))

    op.drop_table("measurement")
    with op.batch_alter_table("finding", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_finding_result_id"))
        batch_op.drop_index(batch_op.f("ix_finding_code_value"))

    op.drop_table("finding")
    with op.batch_alter_table("delivery", schema=None) as batch_op:
        batch_op.drop_index(
            "ix_delivery_unsent",
            sqlite_where=sa.text("state IN ('pending', 'retryable', 'sending')"),
            postgresql_where=sa.text("state IN ('pending', 'retryable', 'sending')"),
        )

    op.drop_table("delivery")
    op.drop_table("segment")
    with op.batch_alter_table("artefact", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_artefact_sha256"))
        batch_op.drop_index(batch_op.f("ix_artefact_result_id"))

    op.drop_table("artefact")
    with op.batch_alter_table("result_object", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_result_object_sop_instance_uid"))
        batch_op.drop_index(batch_op.f("ix_result_object_result_id"))

    op.drop_table("result_object")
    with op.batch_alter_table("result", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_result_study_id"))
        batch_op.drop_index(batch_op.f("ix_result_model"))
        batch_op.drop_index(batch_op.f("ix_result_created_at"))

    op.drop_table("result")
    with op.batch_alter_table("request", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_request_job_id"))

    op.drop_table("request")
    with op.batch_alter_table("job_event", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_job_event_job_id"))

    op.drop_table("job_event")
    with op.batch_alter_table("instance", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_instance_sop_instance_uid"))
        batch_op.drop_index(batch_op.f("ix_instance_series_id"))

    op.drop_table("instance")
    op.drop_table("contradiction")
    with op.batch_alter_table("series", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_series_series_instance_uid"))

    op.drop_table("series")
    with op.batch_alter_table("job", schema=None) as batch_op:
        batch_op.drop_index(
            "ix_job_waiting",
            sqlite_where=sa.text("state IN ('available', 'retryable')"),
            postgresql_where=sa.text("state IN ('available', 'retryable')"),
        )
        batch_op.drop_index(batch_op.f("ix_job_study_id"))
        batch_op.drop_index(batch_op.f("ix_job_replaces"))
        batch_op.drop_index(
            "ix_job_executing",
            sqlite_where=sa.text("state IN ('executing', 'prepared')"),
            postgresql_where=sa.text("state IN ('executing', 'prepared')"),
        )

    op.drop_table("job")
    with op.batch_alter_table("decision", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_decision_study_id"))

    op.drop_table("decision")
    with op.batch_alter_table("inquiry", schema=None) as batch_op:
        batch_op.drop_index(
            "ix_inquiry_open",
            sqlite_where=sa.text("answered_at IS NULL"),
            postgresql_where=sa.text("answered_at IS NULL"),
        )

    op.drop_table("inquiry")
    with op.batch_alter_table("study", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_study_due_at"))

    op.drop_table("study")
    with op.batch_alter_table("refusal", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_refusal_study_instance_uid"))
        batch_op.drop_index(batch_op.f("ix_refusal_sop_instance_uid"))

    op.drop_table("refusal")
    op.drop_table("volume")
    op.drop_table("process")
    with op.batch_alter_table("commitment", schema=None) as batch_op:
        batch_op.drop_index(
            "ix_commitment_open",
            sqlite_where=sa.text("state IN ('pending', 'retryable', 'sending')"),
            postgresql_where=sa.text("state IN ('pending', 'retryable', 'sending')"),
        )

    op.drop_table("commitment")
    with op.batch_alter_table("announced_study", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_announced_study_announcement_id"))

    op.drop_table("announced_study")
    op.drop_table("announced_instance")
    with op.batch_alter_table("announcement", schema=None) as batch_op:
        batch_op.drop_index(
            "ix_announcement_untold",
            sqlite_where=sa.text("NOT told"),
            postgresql_where=sa.text("NOT told"),
        )
        batch_op.drop_index(batch_op.f("ix_announcement_changed_at"))

    op.drop_table("announcement")
