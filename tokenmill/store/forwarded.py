"""What peer factories answered for us, added up from settlements: what their bills should say."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from tokenmill.policy.route import PEER_PREFIX
from tokenmill.store.schema import settlements


@dataclass(frozen=True, slots=True)
class Forwarded:
    """Requests that a peer had last, and their tokens as we settled them."""

    peer: str
    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


def forwarded_rows(connection: Connection, since_us: int, until_us: int) -> list[Forwarded]:
    """By peer; ``until_us`` is exclusive and 0 is open."""
    column = settlements.c
    tokens = (column.input_tokens, column.cached_tokens, column.output_tokens)
    sums = [func.sum(one).label(one.name) for one in tokens]
    found = (
        select(column.release, func.count().label("requests"), *sums)
        .where(column.release.startswith(PEER_PREFIX, autoescape=True), column.at_us >= since_us)
        .group_by(column.release)
        .order_by(column.release)
    )
    if until_us:
        found = found.where(column.at_us < until_us)
    return [
        Forwarded(
            row.release.removeprefix(PEER_PREFIX),
            row.requests,
            int(row.input_tokens),
            int(row.cached_tokens),
            int(row.output_tokens),
        )
        for row in connection.execute(found)
    ]
