"""What is posted for a request and for work: tokens, time, energy and money, in integers.

A price is looked up by alias, then by the model, then by ``*``. Token units do not overlap: ``token.input``
is input that was not cached, ``token.cached`` the rest of the input, ``token.output`` output that is not
reasoning and ``token.reasoning`` the rest of the output, so the four sum to the engine's totals. Reasoning
costs what output costs. A request's money is one posting: the exact sum over its tokens, rounded half up to a
millionth once, and only when it is not zero.

Tokens move from ``factory/<alias>`` to ``tenant/<tenant>/<project>``. Work moves from ``factory/idle`` to the
tenant, or to ``factory/<deployment>`` for replicas, whose cost their tokens then recover. Energy prices are
per kilowatt-hour: 3.6e9 millijoules; time per hour: 3.6e9 microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenmill.domain.effects import ChargeWork
from tokenmill.domain.factory import Price
from tokenmill.domain.ledger import Posting, Settlement

MTOK = 1_000_000
PER_HOUR = 3_600_000_000
FREE = Price(model="*")


def price_of(prices: Sequence[Price], *names: str) -> Price:
    """The price of the first of ``names`` that has one, else of ``*``, else free."""
    for name in (*names, "*"):
        for price in prices:
            if name and price.model == name:
                return price
    return FREE


def settlement_postings(
    settlement: Settlement, prices: Sequence[Price], model: str = ""
) -> tuple[Posting, ...]:
    """Postings of one request. ``model`` is the model under the alias, where the caller knows it.

    Counts that contradict each other (more cached than input) are cut to what can be, never billed twice.
    """
    price = price_of(prices, settlement.alias, model)
    cached = min(settlement.cached_tokens, settlement.input_tokens)
    reasoning = min(settlement.reasoning_tokens, settlement.output_tokens)
    fresh = settlement.input_tokens - cached
    exact = (
        fresh * price.input_micros_per_mtok
        + cached * price.cached_micros_per_mtok
        + settlement.output_tokens * price.output_micros_per_mtok
    )
    amounts = (
        ("token.input", fresh),
        ("token.cached", cached),
        ("token.output", settlement.output_tokens - reasoning),
        ("token.reasoning", reasoning),
        (f"micros:{price.currency}", _half_up(exact, MTOK) if settlement.tenant else 0),
    )
    # Without a tenant it was the operator's own: a copy for a candidate. It costs nobody money.
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
    """Postings of what one lease used. Work of the factory itself (no tenant) costs no money."""
    usage = charge.usage
    price = price_of(prices, charge.model)
    exact = usage.accelerator_us * price.accelerator_hour_micros + usage.energy_mj * price.kwh_micros
    amounts = (
        ("accelerator_us", usage.accelerator_us),
        ("cpu_us", usage.cpu_us),
        ("energy_mj", usage.energy_mj),
        (f"micros:{price.currency}", _half_up(exact, PER_HOUR) if charge.tenant else 0),
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
