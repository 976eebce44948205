"""Checks the ledger against itself and against the gateways' spools. Reads only; repairs nothing.

1. Double entry: every posting moves a non-negative amount between two different named accounts, so each
   unit sums to zero over all accounts.
2. Tokens: what was posted for a request is what its settlement says.
   Money: it is what its tokens cost at the price that it was admitted at.
3. Usage: the kept sums of the days are what the settlements and postings add up to.
4. Spools: every settled line that was read is in the ledger once, with the same figures.
5. Ends: every request that was opened has its end, or may still be running.
6. Engines: what was settled on each living engine is what it counted itself; see ``verify_engines``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec.json import decode
from sqlalchemy import Connection, Select, case, exists, func, or_, select

from tokenmill.domain.errors import StoreError
from tokenmill.domain.factory import Price
from tokenmill.domain.ledger import Settlement
from tokenmill.domain.units import format_money
from tokenmill.policy.price import cost_micros
from tokenmill.store.schema import postings, prices, settlements, spools
from tokenmill.store.spool import SpoolBatch, read_spool, spool_files
from tokenmill.store.usage import counted_days, day_text, kept_days
from tokenmill.store.verify_engines import CountEngines, EngineCheck, Tally, add_settled, check_engines

# A request may run this long before an end is missed: longer than any timeout of the gateway.
IN_FLIGHT_US = 3_600_000_000
SHOWN = 20
_KEYS_PER_QUERY = 5_000

_FIGURES = (
    "at_us",
    "tenant",
    "project",
    "key",
    "release",
    "outcome",
    "status",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "reasoning_tokens",
)


@dataclass(frozen=True, slots=True)
class LedgerReport:
    """What was checked and what is wrong. ``problems`` shows at most SHOWN of each kind.

    ``balances`` maps account and unit to debit minus credit. ``unreconciled_tokens`` are tokens of spooled
    lines that the ledger lost or tells otherwise. ``pending`` lines wait to be read, ``in_flight`` requests
    have no end yet; neither is wrong. ``engines`` has those whose counters could be read.
    """

    settlements: int
    postings: int
    spool_lines: int
    pending: int
    in_flight: int
    unreconciled_tokens: int
    balances: Mapping[str, Mapping[str, int]]
    problems: tuple[str, ...]
    engines: tuple[EngineCheck, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.problems


@dataclass(slots=True)
class _Findings:
    """What the checks collect on their way."""

    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    shown: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, kind: str, text: str) -> None:
        self.counts[kind] += 1
        if len(self.shown[kind]) < SHOWN:
            self.shown[kind].append(text)

    def texts(self) -> tuple[str, ...]:
        out = []
        for kind, texts in self.shown.items():
            out.extend(texts)
            if self.counts[kind] > len(texts):
                out.append(f"... and {self.counts[kind] - len(texts)} more: {kind}")
        return tuple(out)


def verify_ledger(
    connection: Connection, spool_dir: Path, in_flight_us: int, count_engines: CountEngines = tuple
) -> LedgerReport:
    """Run every check on one moment of the database. ``in_flight_us`` is how long a request may run."""
    findings = _Findings()
    before = count_engines()
    balances = _check_postings(connection, findings)
    _check_tokens(connection, findings)
    _check_money(connection, findings)
    _check_days(connection, findings)
    spooled = _check_spools(connection, spool_dir, findings)
    in_flight = _check_ends(connection, spooled, in_flight_us, findings)
    engines: tuple[EngineCheck, ...] = ()
    if before:
        add_settled(connection, spooled.tally, [count.replica for count in before])
        engines = check_engines(before, count_engines(), spooled.tally, in_flight)
    for engine in engines:
        if not engine.ok:
            findings.add("engines", f"{engine.replica} ({engine.alias}): {engine.difference}")
    return LedgerReport(
        settlements=_count(connection, settlements),
        postings=_count(connection, postings),
        spool_lines=spooled.lines,
        pending=spooled.pending,
        in_flight=in_flight,
        unreconciled_tokens=spooled.lost_tokens,
        balances=balances,
        problems=findings.texts(),
        engines=engines,
    )


def _count(connection: Connection, table: Any) -> int:
    return int(connection.execute(select(func.count()).select_from(table)).scalar_one())


def _check_postings(connection: Connection, findings: _Findings) -> dict[str, dict[str, int]]:
    column = postings.c
    wrong = or_(column.amount < 0, column.debit == column.credit, column.debit == "", column.credit == "")
    for row in connection.execute(select(postings).where(wrong).order_by(column.entry, column.line)):
        findings.add(
            "unbalanced", f"posting {row.entry}/{row.line}: {row.credit!r} -> {row.debit!r} {row.amount}"
        )
    balances: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    moved = select(column.debit, column.credit, column.unit, func.sum(column.amount).label("amount"))
    for row in connection.execute(moved.group_by(column.debit, column.credit, column.unit)):
        balances[row.debit][row.unit] += int(row.amount)
        balances[row.credit][row.unit] -= int(row.amount)
    return {account: dict(sorted(balances[account].items())) for account in sorted(balances)}


def _check_tokens(connection: Connection, findings: _Findings) -> None:
    for row in connection.execute(_token_differences()):
        findings.add(
            "tokens",
            f"request {row.request}: settled {row.input_tokens} in, {row.output_tokens} out; "
            f"posted {int(row.posted_input)} in, {int(row.posted_output)} out",
        )
    settled = exists().where(settlements.c.request == postings.c.entry)
    of_request = postings.c.unit.startswith("token.", autoescape=True)
    orphans = select(postings.c.entry).where(of_request, ~settled).distinct().order_by(postings.c.entry)
    for entry in connection.execute(orphans).scalars():
        findings.add("orphans", f"request {entry} was posted but never settled")


def _check_money(connection: Connection, findings: _Findings) -> None:
    """Requests that name their price, those of equal figures at once."""
    book = {row.id: decode(row.body, type=Price) for row in connection.execute(select(prices))}
    for row in connection.execute(_charges()):
        price = book.get(row.price)
        if price is None:
            continue
        figures = row.input_tokens, row.cached_tokens, row.output_tokens, row.reasoning_tokens
        due, posted = cost_micros(price, *figures) if row.tenant else 0, int(row.posted)
        if due != posted or (posted and row.unit != f"micros:{price.currency}"):
            many = f" and {row.requests - 1} more" if row.requests > 1 else ""
            cost = format_money(due, price.currency)
            paid = format_money(posted, row.unit.removeprefix("micros:") or price.currency)
            findings.add("money", f"request {row.request}{many}: its tokens cost {cost}, posted are {paid}")


def _charges() -> Select[Any]:
    """Settled figures, and the money posted for them."""
    column, asked = postings.c, settlements.c
    paid = (
        select(column.entry, func.max(column.unit).label("unit"), func.sum(column.amount).label("amount"))
        .where(column.unit.startswith("micros:", autoescape=True))
        .group_by(column.entry)
        .subquery()
    )
    posted, unit = func.coalesce(paid.c.amount, 0), func.coalesce(paid.c.unit, "")
    figures = (
        asked.tenant, asked.price, asked.input_tokens, asked.cached_tokens, asked.output_tokens,
        asked.reasoning_tokens, posted.label("posted"), unit.label("unit"),
    )  # fmt: skip
    return (
        select(*figures, func.min(asked.request).label("request"), func.count().label("requests"))
        .select_from(settlements.outerjoin(paid, paid.c.entry == asked.request))
        .where(asked.price != "")
        .group_by(*figures[:6], posted, unit)
        .order_by(func.min(asked.request))
    )


def _check_days(connection: Connection, findings: _Findings) -> None:
    kept, counted = kept_days(connection), counted_days(connection)
    for group in sorted(kept.keys() | counted.keys()):
        if kept.get(group, 0) != counted.get(group, 0):
            day, *names = group
            where = f"{day_text(day)} {'/'.join(names)}"
            findings.add(
                "sums", f"usage of {where}: kept {kept.get(group, 0)}, counted {counted.get(group, 0)}"
            )


def _token_differences() -> Select[Any]:
    """Requests whose posted tokens are not the settled ones.

    Cached tokens are a part of the input that is posted under its own unit, because it has its own price;
    reasoning tokens likewise are a part of the output.
    """
    posted = _posted_tokens().subquery()
    asked = settlements.c
    input_tokens = func.coalesce(posted.c.posted_input, 0)
    output_tokens = func.coalesce(posted.c.posted_output, 0)
    return (
        select(
            asked.request,
            asked.input_tokens,
            asked.output_tokens,
            input_tokens.label("posted_input"),
            output_tokens.label("posted_output"),
        )
        .select_from(settlements.outerjoin(posted, posted.c.entry == asked.request))
        .where(or_(input_tokens != asked.input_tokens, output_tokens != asked.output_tokens))
        .order_by(asked.request)
    )


def _posted_tokens() -> Select[Any]:
    """Per entry, the input and the output tokens that its postings move."""
    column = postings.c

    def total(*units: str) -> Any:
        return func.sum(case((column.unit.in_(units), column.amount), else_=0))

    return (
        select(
            column.entry,
            total("token.input", "token.cached").label("posted_input"),
            total("token.output", "token.reasoning").label("posted_output"),
        )
        .where(column.unit.startswith("token.", autoescape=True))
        .group_by(column.entry)
    )


@dataclass(slots=True)
class _Spooled:
    """What the spool files say, gathered file by file."""

    lines: int = 0
    pending: int = 0
    lost_tokens: int = 0
    newest_us: int = 0
    opened: dict[str, int] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    tally: Tally = field(default_factory=Tally)  # what waits to be read

    def note(self, batch: SpoolBatch) -> None:
        self.lines += len(batch.settlements) + len(batch.opened)
        self.opened.update((item.request, item.at_us) for item in batch.opened)
        self.ended.update(item.request for item in batch.settlements)
        self.newest_us = max([self.newest_us, *(item.at_us for item in batch.opened)])
        self.newest_us = max([self.newest_us, *(item.at_us for item in batch.settlements)])


def _check_spools(connection: Connection, spool_dir: Path, findings: _Findings) -> _Spooled:
    offsets = {row.spool: row.offset_bytes for row in connection.execute(select(spools))}
    spooled = _Spooled()
    for path in spool_files(spool_dir):
        try:
            _check_file(connection, path, offsets.get(path.name, 0), spooled, findings)
        except StoreError:
            # The controller deletes a file that is wholly in the ledger, also while this looks at it.
            if path.exists():
                raise
    return spooled


def _check_file(
    connection: Connection, path: Path, read_to: int, spooled: _Spooled, findings: _Findings
) -> None:
    position = 0
    while (batch := read_spool(path, position)).offset > position:
        position = batch.offset
        for text in batch.damaged:
            findings.add("damaged", f"a spooled line cannot be read: {text}")
        ends = zip(batch.settlements, batch.settlement_offsets, strict=True)
        read = [settlement for settlement, end in ends if end <= read_to]
        for settlement in batch.settlements[len(read) :]:
            spooled.pending += 1
            spooled.tally.add(settlement)
        spooled.lost_tokens += _check_lines(connection, path.name, read, findings)
        spooled.note(batch)


def _check_lines(connection: Connection, name: str, read: Sequence[Settlement], findings: _Findings) -> int:
    """Compare lines that were read with the ledger; return the tokens of those that differ."""
    lost = 0
    for start in range(0, len(read), _KEYS_PER_QUERY):
        chunk = read[start : start + _KEYS_PER_QUERY]
        wanted = select(settlements).where(settlements.c.request.in_([item.request for item in chunk]))
        kept = {row.request: row for row in connection.execute(wanted)}
        for line in chunk:
            row = kept.get(line.request)
            if row is None:
                findings.add("lost", f"{name}: request {line.request} was read but is not in the ledger")
            elif different := [item for item in _FIGURES if getattr(row, item) != getattr(line, item)]:
                findings.add("changed", f"{name}: request {line.request} differs in {', '.join(different)}")
            else:
                continue
            lost += line.input_tokens + line.output_tokens
    return lost


def _check_ends(connection: Connection, spooled: _Spooled, in_flight_us: int, findings: _Findings) -> int:
    """Find opened requests without an end; return how many may still be running."""
    in_flight = 0
    waiting = sorted(set(spooled.opened) - spooled.ended)
    for start in range(0, len(waiting), _KEYS_PER_QUERY):
        chunk = waiting[start : start + _KEYS_PER_QUERY]
        wanted = select(settlements.c.request).where(settlements.c.request.in_(chunk))
        ended = set(connection.execute(wanted).scalars())
        for request in (name for name in chunk if name not in ended):
            if spooled.opened[request] + in_flight_us > spooled.newest_us:
                in_flight += 1
            else:
                findings.add("endless", f"request {request} was opened and never ended")
    return in_flight
