"""What a peer will bill us: the usage of our key there, as its ledger has it (``GET /v1/usage``)."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import httpx

from tokenmill.domain.factory import Peer
from tokenmill.federation.secrets import Secrets

PATIENCE_S = 10.0
COUNTS = ("requests", "input_tokens", "cached_tokens", "output_tokens")


@dataclass(frozen=True, slots=True)
class Bill:
    """Sums of all models by name of ``COUNTS``, and amounts by currency."""

    counts: Mapping[str, int]
    cost: Mapping[str, Decimal]


async def ask_bill(peer: Peer, since_s: int, until_s: int) -> Bill | str:
    """The bill so far of a window in seconds since the epoch (0 is open), or why there is none."""
    url = f"{peer.url.rstrip('/').removesuffix('/v1')}/v1/usage"
    window = {name: at for name, at in (("start_time", since_s), ("end_time", until_s)) if at}
    try:
        secret = Secrets().read(peer.key_ref).decode()
        verify = ssl.create_default_context() if url.startswith("https") else True
        async with httpx.AsyncClient(timeout=PATIENCE_S, verify=verify, trust_env=False) as client:
            headers = {"authorization": f"Bearer {secret}"}
            said = await client.get(url, params=window, headers=headers)
    except (OSError, httpx.HTTPError) as error:
        return f"it cannot be asked: {error or type(error).__name__}"
    if said.status_code != 200:
        return f"it answered {said.status_code} to GET /v1/usage"
    try:
        return _bill(said.json()["data"])
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
        return "what it says of our usage cannot be read"


def _bill(rows: list[dict[str, Any]]) -> Bill:
    counts = {name: sum(int(row[name]) for row in rows) for name in COUNTS}
    cost: dict[str, Decimal] = {}
    for row in rows:
        for currency, amount in row["cost"].items():
            cost[str(currency)] = cost.get(str(currency), Decimal(0)) + Decimal(amount)
    return Bill(counts, cost)
