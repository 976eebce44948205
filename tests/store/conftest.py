"""The store's tests run on SQLite and on PostgreSQL alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tokenmill.domain.ledger import Outcome, Posting, Settlement
from tokenmill.store import Store, open_store

KINDS = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/tokenmill.db"
    postgres: str = request.getfixturevalue("postgres_url")
    return postgres


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    opened = open_store(url)
    yield opened
    opened.close()


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(f"sqlite:///{tmp_path}/tokenmill.db")
    yield opened
    opened.close()


DAY_US = 86_400_000_000


def make_settlement(request: str, **changes: object) -> Settlement:
    """A request that went well: 100 tokens in, 20 of them cached, and 50 out."""
    values: dict[str, object] = {
        "request": request,
        "at_us": 1_700_000_000_000_000,
        "tenant": "acme",
        "project": "search",
        "key": "key-0001",
        "alias": "chat",
        "release": "rel-000001",
        "replica": "r-000001",
        "endpoint": "chat.completions",
        "outcome": Outcome.OK,
        "status": 200,
        "input_tokens": 100,
        "cached_tokens": 20,
        "output_tokens": 50,
        "counted_by": "engine",
        "first_token_us": 30_000,
        "duration_us": 900_000,
    }
    return Settlement(**(values | changes))  # type: ignore[arg-type]


def make_postings(settlement: Settlement, micros: int = 7) -> list[Posting]:
    """What pricing makes of a settlement: its tokens by kind, and what they cost."""
    tenant, factory = f"tenant/{settlement.tenant}/{settlement.project}", f"factory/{settlement.alias}"
    amounts = [
        ("token.input", settlement.input_tokens - settlement.cached_tokens),
        ("token.cached", settlement.cached_tokens),
        ("token.output", settlement.output_tokens - settlement.reasoning_tokens),
        ("token.reasoning", settlement.reasoning_tokens),
        ("micros:USD", micros),
    ]
    return [
        Posting(
            settlement.request,
            line,
            settlement.at_us,
            tenant,
            factory,
            unit,
            amount,
            settlement.tenant,
            settlement.project,
            settlement.key,
            settlement.alias,
            settlement.release,
            "serve",
        )
        for line, (unit, amount) in enumerate((unit, amount) for unit, amount in amounts if amount)
    ]


@pytest.fixture
def settlement() -> Callable[..., Settlement]:
    return make_settlement


@pytest.fixture
def postings_of() -> Callable[..., list[Posting]]:
    return make_postings
