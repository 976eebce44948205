"""Holds what was settled on each living engine against what the engine itself counted. Reads only.

An engine counts every token that it processes. A settlement counts what an answer said, or, when the answer
was cut, what reached the gateway. So the sums are the same to the token as long as nothing was cut; a cut
request may differ by what the engine did after the client had gone, and by a prompt that it never began.
Whatever differs is named; what no cut request can explain is a problem.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, or_, select

from tokenmill.domain.ledger import EngineCount, Outcome, Settlement
from tokenmill.store.schema import settlements

CountEngines = Callable[[], Sequence[EngineCount]]
"""Reads the counters of every engine that runs and has some. Blocks."""

_CUT = (Outcome.CANCELLED, Outcome.ENGINE_FAILED, Outcome.INTERRUPTED)
_COLUMNS = ("replica", "tried", "outcome", "counted_by", "input_tokens", "output_tokens")


@dataclass(slots=True)
class Settled:
    """What was settled on one engine. ``sure_*`` leave estimates out."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    sure_input: int = 0
    sure_output: int = 0
    cut: int = 0  # cut short, without a usage object, or lost here and answered elsewhere

    def add(self, outcome: str, counted_by: str, input_tokens: int, output_tokens: int) -> None:
        self.requests += 1
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens
        if counted_by == "engine":
            self.sure_input += input_tokens
        if counted_by in ("engine", "stream"):
            self.sure_output += output_tokens
        if outcome in _CUT or (counted_by != "engine" and (input_tokens or output_tokens)):
            self.cut += 1


@dataclass(slots=True)
class Tally:
    """What was settled, by engine."""

    by_replica: dict[str, Settled] = field(default_factory=dict)

    def add(self, item: Settlement | Row[Any]) -> None:
        if item.replica:
            own = self.by_replica.setdefault(item.replica, Settled())
            own.add(item.outcome, item.counted_by, item.input_tokens, item.output_tokens)
        for lost in item.tried.split() if item.tried else ():
            self.by_replica.setdefault(lost, Settled()).cut += 1


@dataclass(frozen=True, slots=True)
class EngineCheck:
    """One engine's tokens by its own counters and by the ledger; ``difference`` says why they differ."""

    replica: str
    alias: str
    requests: int
    counted_input: int
    settled_input: int
    counted_output: int
    settled_output: int
    difference: str = ""
    ok: bool = True


def add_settled(connection: Connection, tally: Tally, replicas: Iterable[str]) -> None:
    """Add what the ledger has of these replicas."""
    columns = [settlements.c[name] for name in _COLUMNS]
    of_these = or_(settlements.c.replica.in_(sorted(replicas)), settlements.c.tried != "")
    for row in connection.execution_options(yield_per=10_000).execute(select(*columns).where(of_these)):
        tally.add(row)


def check_engines(
    before: Sequence[EngineCount],
    after: Sequence[EngineCount],
    tally: Tally,
    in_flight: int,
) -> tuple[EngineCheck, ...]:
    """Compare. The ledger was read between ``before`` and ``after``, with ``in_flight`` requests open."""
    earlier = {count.replica: count for count in before}
    checks = []
    for count in sorted(after, key=lambda item: item.replica):
        sums = tally.by_replica.get(count.replica, Settled())
        quiet = not in_flight and earlier.get(count.replica) == count
        difference, ok = _difference(count, sums, quiet=quiet)
        checks.append(
            EngineCheck(
                count.replica,
                count.alias,
                sums.requests,
                count.input_tokens,
                sums.input_tokens,
                count.output_tokens,
                sums.output_tokens,
                difference,
                ok,
            )
        )
    return tuple(checks)


def _difference(count: EngineCount, sums: Settled, *, quiet: bool) -> tuple[str, bool]:
    more_input = count.input_tokens - sums.input_tokens
    more_output = count.output_tokens - sums.output_tokens
    if more_input == more_output == 0:
        return "", True
    text = f"the engine counted {more_input:+} input and {more_output:+} output tokens"
    if count.output_tokens < sums.sure_output or count.input_tokens < sums.sure_input:
        return f"{text}: more was settled than it ever processed", False
    if not quiet:
        return f"{text}: requests are open", True
    if sums.cut:
        return f"{text}: {sums.cut} requests were cut, which it had begun or not begun", True
    return f"{text}, and no request was cut", False
