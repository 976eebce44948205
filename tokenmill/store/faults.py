"""What a database's error means and what to do about it. Knows SQLite's names and PostgreSQL's SQLSTATEs."""

from __future__ import annotations

from tokenmill.domain.errors import StoreError

# https://www.sqlite.org/rescode.html; an extended name such as SQLITE_IOERR_WRITE starts with its primary.
_SQLITE = (
    ("SQLITE_FULL", "the disk is full", "Free space where the database lies; nothing was lost. Then retry."),
    (
        "SQLITE_BUSY",
        "the database is locked",
        "Another process writes to it. Stop that one, or wait and retry.",
    ),
    ("SQLITE_LOCKED", "the database is locked", "Another connection writes to it. Wait and retry."),
    (
        "SQLITE_READONLY",
        "the database is read-only",
        "Give this user write access to the file and its folder.",
    ),
    (
        "SQLITE_CANTOPEN",
        "the database cannot be opened",
        "Create its folder, or give this user access to it.",
    ),
    ("SQLITE_PERM", "the database cannot be opened", "Give this user access to the file and its folder."),
    ("SQLITE_CORRUPT", "the database is damaged", "Restore it from a copy (tokenmill store copy)."),
    ("SQLITE_NOTADB", "the file is not a SQLite database", "Name another file in TOKENMILL_DATABASE_URL."),
    ("SQLITE_IOERR", "the disk failed", "Look at the machine's disk and its kernel log; then retry."),
)

# https://www.postgresql.org/docs/current/errcodes-appendix.html; the first two letters are the class.
_POSTGRESQL = (
    ("53100", "the database server's disk is full", "Free space on the server. Then retry."),
    ("53300", "the database server has no connection left", "Raise max_connections, or stop other clients."),
    ("25006", "the database is read-only", "Connect to the primary server, not to a standby."),
    ("55P03", "a row or table is locked", "Another process holds it. Wait and retry."),
    ("40001", "the transaction met another one", "Retry."),
    ("40P01", "the transaction met another one", "Retry."),
    ("42501", "the database user may not do this", "Grant it CREATE on the database and its tables."),
    ("3D000", "there is no such database", "Create it: createdb NAME."),
    ("28", "the database server refused this user", "Correct user and password in TOKENMILL_DATABASE_URL."),
    ("57P", "the database server is going down", "Wait for it to come back; Tokenmill retries."),
    ("58", "the database server's disk failed", "Look at the server's log."),
    ("08", "the database server does not answer", "Start it, or correct TOKENMILL_DATABASE_URL."),
)


def explain(error: Exception, where: str) -> StoreError:
    """Turn an error of SQLAlchemy or of a driver into a ``StoreError`` that says how to get out of it."""
    origin = getattr(error, "orig", None) or error
    detail = " ".join(str(origin).split())[:300]
    name = getattr(origin, "sqlite_errorname", None)
    state = getattr(origin, "sqlstate", None)
    table, code = (_SQLITE, name) if name else (_POSTGRESQL, state)
    for prefix, message, fix in table:
        if code and code.startswith(prefix):
            return StoreError(f"{message} ({code}: {detail})", fix=fix, where=where)
    if not code and ("connect" in detail or getattr(error, "connection_invalidated", False)):
        fix = "Start the database server, or correct TOKENMILL_DATABASE_URL."
        return StoreError(f"the database server does not answer ({detail})", fix=fix, where=where)
    fix = "Look at the database's own log; if the message makes no sense, report it as a bug."
    return StoreError(
        f"the database refused ({code or type(error).__name__}: {detail})", fix=fix, where=where
    )
