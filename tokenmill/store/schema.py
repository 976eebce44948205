"""The tables of the store. The migrations build the same ones, and a test compares both.

Times are microseconds since the epoch, amounts are integers in the unit that their row names. There are
no foreign keys between tables: a posting's entry is a request or a piece of work, and the journal may be
compacted while the ledger stays.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, Table, Text

# SQLite compares text by bytes. PostgreSQL compares by the locale of the database unless it is told to do
# the same, and then both return rows in the same order, which copying and its digests rely on.
TEXT = Text().with_variant(Text(collation="C"), "postgresql")

# SQLite only makes an INTEGER primary key the row's own number.
SEQUENCE = BigInteger().with_variant(Integer(), "sqlite")

metadata = MetaData(naming_convention={"pk": "pk_%(table_name)s", "ix": "ix_%(column_0_label)s"})

# One row. ``last_seq`` lies here and not in the journal so that one UPDATE both checks the epoch and
# takes the next sequence numbers, also after every event was compacted away.
leader = Table(
    "leader",
    metadata,
    Column("id", SEQUENCE, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False),
    Column("holder", TEXT, nullable=False),
    Column("expires_us", BigInteger, nullable=False),
    Column("ttl_us", BigInteger, nullable=False),
    Column("last_seq", BigInteger, nullable=False),
    Column("home", TEXT, nullable=False, server_default=""),
)

journal = Table(
    "journal",
    metadata,
    Column("seq", SEQUENCE, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("kind", TEXT, nullable=False),
    Column("body", TEXT, nullable=False),
    Column("decided", TEXT, nullable=False, server_default=""),  # sentences, as JSON
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("seq", SEQUENCE, primary_key=True, autoincrement=False),
    Column("digest", TEXT, nullable=False),
    Column("body", TEXT, nullable=False),
)

settlements = Table(
    "settlements",
    metadata,
    Column("request", TEXT, primary_key=True),
    Column("at_us", BigInteger, nullable=False),
    Column("tenant", TEXT, nullable=False),
    Column("project", TEXT, nullable=False),
    Column("key", TEXT, nullable=False),
    Column("alias", TEXT, nullable=False),
    Column("release", TEXT, nullable=False),
    Column("replica", TEXT, nullable=False),
    Column("endpoint", TEXT, nullable=False),
    Column("outcome", TEXT, nullable=False),
    Column("status", Integer, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("counted_by", TEXT, nullable=False),
    Column("first_token_us", BigInteger, nullable=False),
    Column("duration_us", BigInteger, nullable=False),
    Column("reason", TEXT, nullable=False),
    Column("response", TEXT, nullable=False),
    Column("tried", TEXT, nullable=False),
    Column("price", TEXT, nullable=False),
    Index("ix_settlements_at_us", "at_us"),
    Index("ix_settlements_response", "response"),
)

postings = Table(
    "postings",
    metadata,
    Column("entry", TEXT, primary_key=True),
    Column("line", Integer, primary_key=True, autoincrement=False),
    Column("at_us", BigInteger, nullable=False),
    Column("debit", TEXT, nullable=False),
    Column("credit", TEXT, nullable=False),
    Column("unit", TEXT, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("tenant", TEXT, nullable=False),
    Column("project", TEXT, nullable=False),
    Column("key", TEXT, nullable=False),
    Column("model", TEXT, nullable=False),
    Column("release", TEXT, nullable=False),
    Column("kind", TEXT, nullable=False),
    Index("ix_postings_at_us", "at_us"),
    # A request's postings lie side by side, and there is no second tree to keep.
    sqlite_with_rowid=False,
)

# Every price that was ever valid, so that a bill can be explained and checked after the file has changed.
prices = Table(
    "prices",
    metadata,
    Column("id", TEXT, primary_key=True),
    Column("body", TEXT, nullable=False),
)

# What the ledger adds up to, kept by ``store.usage`` in the transaction that posts, so that a year of
# requests can be shown without reading them all. ``store.verify`` compares it with what it was made from.
usage_days = Table(
    "usage_days",
    metadata,
    Column("day", BigInteger, primary_key=True, autoincrement=False),  # since 1970-01-01, UTC
    Column("tenant", TEXT, primary_key=True),
    Column("project", TEXT, primary_key=True),
    Column("key", TEXT, primary_key=True),
    Column("model", TEXT, primary_key=True),
    Column("measure", TEXT, primary_key=True),
    Column("amount", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

spools = Table(
    "spools",
    metadata,
    Column("spool", TEXT, primary_key=True),
    Column("offset_bytes", BigInteger, nullable=False),
)

# Beside the releases, which never change.
recalls = Table(
    "recalls",
    metadata,
    Column("release", TEXT, primary_key=True),
    Column("at_us", BigInteger, nullable=False),
    Column("by", TEXT, nullable=False),
    Column("reason", TEXT, nullable=False),
)

# What clients said of answers; the first word on each counts.
feedback = Table(
    "feedback",
    metadata,
    Column("request", TEXT, primary_key=True),
    Column("at_us", BigInteger, nullable=False),
    Column("tenant", TEXT, nullable=False),
    Column("project", TEXT, nullable=False),
    Column("alias", TEXT, nullable=False),
    Column("release", TEXT, nullable=False),
    Column("good", Integer, nullable=False),
    Index("ix_feedback_at_us", "at_us"),
)

releases = Table(
    "releases",
    metadata,
    Column("id", TEXT, primary_key=True),
    Column("model", TEXT, nullable=False),
    Column("line", TEXT, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("body", TEXT, nullable=False),
)

# What tenants keep with us. A file's bytes are an artifact of its tenant; a batch is one JSON body.
files = Table(
    "files",
    metadata,
    Column("id", TEXT, primary_key=True),
    Column("tenant", TEXT, nullable=False),
    Column("project", TEXT, nullable=False),
    Column("purpose", TEXT, nullable=False),
    Column("name", TEXT, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("digest", TEXT, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("expires_us", BigInteger, nullable=False),
    Index("ix_files_owner", "tenant", "project", "created_us", "id"),
)

batches = Table(
    "batches",
    metadata,
    Column("id", TEXT, primary_key=True),
    Column("tenant", TEXT, nullable=False),
    Column("project", TEXT, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("ended", Integer, nullable=False),
    Column("body", TEXT, nullable=False),
    Index("ix_batches_owner", "tenant", "project", "created_us", "id"),
    Index("ix_batches_ended", "ended"),
)

# The ended lines of batches that run, until they are in the batch's files.
batch_lines = Table(
    "batch_lines",
    metadata,
    Column("batch", TEXT, primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("ok", Integer, nullable=False),
    Column("body", TEXT, nullable=False),
)
