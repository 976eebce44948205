"""What is posted for a request and for work: tokens, time, energy and money, in integers.

A price is looked up by alias, then by the model, then by ``*``; of several prices of one name the one that
began last before the request was admitted is valid. Token units do not overlap: ``token.input`` is input
that was not cached, ``token.cached`` the rest of the input, ``token.output`` output that is not reasoning and
``token.reasoning`` the rest of the output, so the four sum to the engine's totals. A request's money is one
posting: the exact sum over its tokens, rounded half up to a millionth once, and only when it is not zero.

Tokens move from ``factory/<alias>`` to ``tenant/<tenant>/<project>``. Work moves from ``factory/idle`` to the
tenant, or to ``factory/<deployment>`` for replicas, whose cost their tokens then recover. Energy prices are
per kilowatt-hour: 3.6e9 millijoules; time per hour: 3.6e9 microseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenmill.domain.codec import digest_of
from tokenmill.domain.effects import ChargeWork
from tokenmill.domain.factory import Price
from tokenmill.domain.ledger import Posting, Settlement

MTOK = 1_000_000
PER_HOUR = 3_600_000_000
FREE = Price(model="*")


def price_of(prices: Iterable[Price], *names: str, at_us: int = 0) -> Price:
    """The price of the first of ``names`` that has one at ``at_us``, else of ``*``, else free."""
    kept = [price for price in prices if price.from_us <= at_us]
    for name in (*names, "*"):
        found = [price for price in kept if name and price.model == name]
        if found:
            return max(found, key=lambda price: price.from_us)
    return FREE


def price_ahead(prices: Sequence[Price]) -> Price | None:
    """What a plan counts with: the last to begin of the prices of ``*``, else of the first name."""
    if not prices:
        return None
    every = any(price.model == "*" for price in prices)
    name = "*" if every else prices[0].model
    return price_of(prices, name, at_us=max(price.from_us for price in prices))


def hour_micros(price: Price, held: Iterable[tuple[str, int]]) -> int:
    """What an hour of these accelerators, type and number, costs at ``price``."""
    return sum(count * price.hour_micros(kind) for kind, count in held)


def book_of(prices: Sequence[Price], *names: str) -> tuple[Price, ...]:
    """Every price that ``names`` have over time, by ``from_us``: each is valid until the next one begins."""
    starts = {0, *(price.from_us for price in prices if price.model in (*names, "*"))}
    book: list[Price] = []
    for start_us in sorted(starts):
        price = price_of(prices, *names, at_us=start_us)
        if not book or book[-1] != price:
            book.append(price)
    return tuple(book)


def price_id(price: Price) -> str:
    """Names a price by what it says: two that differ in anything have different ids."""
    return f"{price.model}:{digest_of(price)[7:19]}"


def cost_micros(price: Price, input_tokens: int, cached: int, output_tokens: int, reasoning: int) -> int:
    """What a request costs, in millionths of the price's currency, rounded half up once.

    ``cached`` is a part of the input and ``reasoning`` of the output; more than the whole is cut to it.
    """
    cached = min(cached, input_tokens)
    exact = (
        (input_tokens - cached) * price.input_micros_per_mtok
        + cached * price.cached_micros_per_mtok
        + output_tokens * price.output_micros_per_mtok
    )
    if price.reasoning_micros_per_mtok is not None:
        dearer = price.reasoning_micros_per_mtok - price.output_micros_per_mtok
        exact += min(reasoning, output_tokens) * dearer
    return _half_up(exact, MTOK)


def settlement_cost(settlement: Settlement, price: Price) -> int:
    """What a settled request costs its tenant. The operator's own (a candidate's copy) costs nobody."""
    if not settlement.tenant:
        return 0
    return cost_micros(
        price,
        settlement.input_tokens,
        settlement.cached_tokens,
        settlement.output_tokens,
        settlement.reasoning_tokens,
    )


def settlement_postings(settlement: Settlement, price: Price) -> tuple[Posting, ...]:
    """Postings of one request at ``price``.

    Counts that contradict each other (more cached than input) are cut to what can be, never billed twice.
    """
    cached = min(settlement.cached_tokens, settlement.input_tokens)
    reasoning = min(settlement.reasoning_tokens, settlement.output_tokens)
    amounts = (
        ("token.input", settlement.input_tokens - cached),
        ("token.cached", cached),
        ("token.output", settlement.output_tokens - reasoning),
        ("token.reasoning", reasoning),
        (f"micros:{price.currency}", settlement_cost(settlement, price)),
    )
    debit = f"tenant/{settlement.tenant}/{settlement.project}" if settlement.tenant else "factory/shadow"
    return tuple(
        Posting(
            entry=settlement.request,
            line=line,
            at_us=settlement.at_us,
            debit=debit,
            credit=f"factory/{settlement.alias}",
            unit=unit,
            amount=amount,
            tenant=settlement.tenant,
            project=settlement.project,
            key=settlement.key,
            model=settlement.alias,
            release=settlement.release,
            kind="serve" if settlement.tenant else "shadow",
        )
        for line, (unit, amount) in enumerate(_nonzero(amounts))
    )


def work_postings(charge: ChargeWork, prices: Sequence[Price], at_us: int) -> tuple[Posting, ...]:
    """Postings of what one lease used. Work of the factory itself (no tenant) costs no money.

    Accelerators of several types are charged for equal parts of the time.
    """
    usage = charge.usage
    price = price_of(prices, charge.model, at_us=at_us)
    held = charge.held or (("", 1),)
    count = sum(number for _, number in held)
    exact = usage.accelerator_us * hour_micros(price, held) + usage.energy_mj * price.kwh_micros * count
    amounts = (
        ("accelerator_us", usage.accelerator_us),
        ("cpu_us", usage.cpu_us),
        ("energy_mj", usage.energy_mj),
        (f"micros:{price.currency}", _half_up(exact, PER_HOUR * count) if charge.tenant else 0),
    )
    debit = f"tenant/{charge.tenant}/{charge.project}" if charge.tenant else f"factory/{charge.model}"
    return tuple(
        Posting(
            entry=f"work:{charge.id}",
            line=line,
            at_us=at_us,
            debit=debit,
            credit="factory/idle",
            unit=unit,
            amount=amount,
            tenant=charge.tenant,
            project=charge.project,
            key="",
            model=charge.model,
            release="",
            kind=charge.kind,
        )
        for line, (unit, amount) in enumerate(_nonzero(amounts))
    )


def _nonzero(amounts: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    return [(unit, amount) for unit, amount in amounts if amount != 0]


def _half_up(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)
