"""Runs the revisions on the connection that ``store.migrate`` hands over. It opens none of its own.

Alembic executes this file under a name of its own. Importing it as a module of the package does nothing.
"""

from __future__ import annotations

from alembic import context


def migrate() -> None:
    """Apply what Alembic asks for inside the transaction that the caller began."""
    context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
    with context.begin_transaction():
        context.run_migrations()


if __name__ != "tokenmill.store.migrations.env":
    migrate()
