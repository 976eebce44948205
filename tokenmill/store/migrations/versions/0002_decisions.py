"""Beside each event, what the control core decided at it: for people, never read by the core."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Events of before have none."""
    op.add_column("journal", sa.Column("decided", TEXT, nullable=False, server_default=""))
