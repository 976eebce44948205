"""What peer factories are to us: whether they can be asked, what they answered, and what they bill for it.

What we settled and what a peer bills differ by requests that are still under way to one of the ledgers, by
streams that were cut (each counts what it saw) and by tries that the peer failed.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.concurrency import run_in_threadpool

from tokenmill.console.context import ApiContext
from tokenmill.console.views import seen_peers
from tokenmill.federation.bills import COUNTS, Bill, ask_bill

LAG_S = 2.0
"""Both ledgers read their spools about once a second."""


async def peer_views(context: ApiContext, since_us: int, until_us: int) -> list[dict[str, Any]]:
    """One view per peer of the file, in its order. The window is widened to whole seconds."""
    since_s, until_s = since_us // 1_000_000, -(-until_us // 1_000_000)
    views = await _views(context, since_s, until_s)
    if any(view["differs"] for view in views):
        await asyncio.sleep(LAG_S)
        views = await _views(context, since_s, until_s)
    return views


async def _views(context: ApiContext, since_s: int, until_s: int) -> list[dict[str, Any]]:
    peers = context.state.factory.peers
    there = await asyncio.gather(*(ask_bill(peer, since_s, until_s) for peer in peers))
    window = since_s * 1_000_000, until_s * 1_000_000
    rows = await run_in_threadpool(context.store.ledger.forwarded, *window)
    ours = {row.peer: row for row in rows}
    return [
        {**seen, **_compared(ours.get(seen["name"]), bill)}
        for seen, bill in zip(seen_peers(context), there, strict=True)
    ]


def _compared(ours: Any | None, bill: Bill | str) -> dict[str, Any]:
    here = {name: getattr(ours, name, 0) for name in COUNTS}
    if isinstance(bill, str):
        return {"here": here, "there": None, "problem": bill, "differs": []}
    differs = [name for name in COUNTS if here[name] != bill.counts[name]]
    cost = {currency: f"{amount:f}" for currency, amount in bill.cost.items()}
    return {"here": here, "there": {**bill.counts, "cost": cost}, "problem": "", "differs": differs}
