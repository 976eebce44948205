"""Brings a database to the revision of this version of Tokenmill, or refuses before touching it."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from tokenmill.domain.errors import StoreError

# Any constant will do, as long as every version of Tokenmill takes the same one.
_ADVISORY_LOCK = 7_205_759_403


def alembic_config() -> Config:
    """Alembic's settings, with the packaged scripts and no file on disk."""
    config = Config()
    config.set_main_option("script_location", "tokenmill.store:migrations")
    config.set_main_option("path_separator", "os")
    return config


def head_revision() -> str:
    """The revision that this version of Tokenmill reads and writes."""
    return ScriptDirectory.from_config(alembic_config()).get_current_head() or ""


def check_revision(connection: Connection, where: str) -> str:
    """Return the database's revision, "" when it is empty. Reads only.

    Raises ``StoreError`` when the database was written by a newer version, or holds someone else's tables.
    """
    tables = set(inspect(connection).get_table_names())
    if not tables:
        return ""
    if "alembic_version" not in tables:
        raise StoreError(
            f"this database holds tables that are not Tokenmill's: {', '.join(sorted(tables)[:5])}",
            expected="an empty database, or one that Tokenmill made",
            fix="Name another database in TOKENMILL_DATABASE_URL.",
            where=where,
        )
    revision = MigrationContext.configure(connection).get_current_revision() or ""
    script = ScriptDirectory.from_config(alembic_config())
    known = {item.revision for item in script.walk_revisions()}
    if revision and revision not in known:
        raise StoreError(
            f"the database is at revision {revision!r}, which this version of Tokenmill does not know",
            expected=f"revision {script.get_current_head()} or older",
            fix="Upgrade Tokenmill to the version that last wrote it. Nothing was changed.",
            where=where,
        )
    return revision


def upgrade(connection: Connection) -> None:
    """Apply the missing revisions inside the caller's transaction; only one process does so at a time."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
    config = alembic_config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
