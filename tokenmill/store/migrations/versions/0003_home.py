"""Which data directory the store belongs to: its artifacts and spools lie there and nowhere else."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """A store of before belongs to the directory that leads it next."""
    op.add_column("leader", sa.Column("home", TEXT, nullable=False, server_default=""))
