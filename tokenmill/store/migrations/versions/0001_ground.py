"""The first schema: lease, journal, snapshots, ledger, spool offsets, releases and what tenants keep."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision: str | None = None

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _text(name: str, *, key: bool = False) -> sa.Column[str]:
    return sa.Column(name, TEXT, primary_key=key, nullable=False)


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=False)


def _sequence(name: str) -> sa.Column[int]:
    return sa.Column(name, SEQUENCE, primary_key=True, autoincrement=False, nullable=False)


def upgrade() -> None:
    """Create every table, and the one row of ``leader``."""
    _create_control()
    _create_ledger()
    _create_tenancy()
    op.create_table(
        "releases",
        _text("id", key=True),
        _text("model"),
        _text("line"),
        _number("created_us"),
        _text("body"),
    )
    op.create_table("recalls", _text("release", key=True), _number("at_us"), _text("by"), _text("reason"))
    op.create_table(
        "feedback",
        _text("request", key=True),
        _number("at_us"),
        *(_text(n) for n in ("tenant", "project", "alias", "release")),
        sa.Column("good", sa.Integer(), nullable=False),
    )
    op.create_index("ix_feedback_at_us", "feedback", ["at_us"])
    op.execute(
        "INSERT INTO leader (id, epoch, holder, expires_us, ttl_us, last_seq) VALUES (1, 0, '', 0, 0, 0)"
    )


def _create_control() -> None:
    op.create_table(
        "leader",
        _sequence("id"),
        _number("epoch"),
        _text("holder"),
        _number("expires_us"),
        _number("ttl_us"),
        _number("last_seq"),
    )
    op.create_table(
        "journal", _sequence("seq"), _number("epoch"), _number("at_us"), _text("kind"), _text("body")
    )
    op.create_table("prices", _text("id", key=True), _text("body"))
    op.create_table("snapshots", _sequence("seq"), _text("digest"), _text("body"))


def _create_ledger() -> None:
    op.create_table(
        "settlements",
        _text("request", key=True),
        _number("at_us"),
        *(
            _text(n)
            for n in ("tenant", "project", "key", "alias", "release", "replica", "endpoint", "outcome")
        ),
        sa.Column("status", sa.Integer(), nullable=False),
        *(_number(n) for n in ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")),
        _text("counted_by"),
        _number("first_token_us"),
        _number("duration_us"),
        _text("reason"),
        _text("response"),
        _text("tried"),
        _text("price"),
    )
    op.create_index("ix_settlements_at_us", "settlements", ["at_us"])
    op.create_index("ix_settlements_response", "settlements", ["response"])
    op.create_table(
        "postings",
        _text("entry", key=True),
        sa.Column("line", sa.Integer(), primary_key=True, autoincrement=False, nullable=False),
        _number("at_us"),
        *(_text(n) for n in ("debit", "credit", "unit")),
        _number("amount"),
        *(_text(n) for n in ("tenant", "project", "key", "model", "release", "kind")),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_postings_at_us", "postings", ["at_us"])
    op.create_table(
        "usage_days",
        sa.Column("day", sa.BigInteger(), primary_key=True, autoincrement=False, nullable=False),
        *(_text(n, key=True) for n in ("tenant", "project", "key", "model", "measure")),
        _number("amount"),
        sqlite_with_rowid=False,
    )
    op.create_table("spools", _text("spool", key=True), _number("offset_bytes"))


def _create_tenancy() -> None:
    op.create_table(
        "files",
        _text("id", key=True),
        *(_text(n) for n in ("tenant", "project", "purpose", "name")),
        _number("size_bytes"),
        _text("digest"),
        *(_number(n) for n in ("created_us", "expires_us")),
    )
    op.create_index("ix_files_owner", "files", ["tenant", "project", "created_us", "id"])
    op.create_table(
        "batches",
        _text("id", key=True),
        *(_text(n) for n in ("tenant", "project")),
        _number("created_us"),
        sa.Column("ended", sa.Integer(), nullable=False),
        _text("body"),
    )
    op.create_index("ix_batches_owner", "batches", ["tenant", "project", "created_us", "id"])
    op.create_index("ix_batches_ended", "batches", ["ended"])
    op.create_table(
        "batch_lines",
        _text("batch", key=True),
        sa.Column("number", sa.BigInteger(), primary_key=True, autoincrement=False, nullable=False),
        sa.Column("ok", sa.Integer(), nullable=False),
        _text("body"),
    )


def downgrade() -> None:
    """Drop everything: there is nothing before the first revision."""
    for table in (
        "batch_lines",
        "batches",
        "files",
        "feedback",
        "recalls",
        "releases",
        "spools",
        "usage_days",
        "postings",
        "settlements",
        "snapshots",
        "journal",
        "leader",
    ):
        op.drop_table(table)
