"""Alembic's script directory: one file per revision, applied by ``store.migrate``. Revisions never change."""
