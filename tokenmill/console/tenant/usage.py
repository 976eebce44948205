"""``GET /v1/usage``: what the caller's project has used, from the ledger that its bill is made of.

``start_time`` and ``end_time`` are seconds since the epoch, the end exclusive; ``group_by`` is some of model,
key and day (UTC), with commas.
"""

from __future__ import annotations

from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from tokenmill.console.context import ApiContext
from tokenmill.console.tenant.answers import answer, bad
from tokenmill.console.tenant.caller import owner_of
from tokenmill.domain.units import format_money
from tokenmill.store.usage import UsageRow

GROUPS = ("model", "key", "day")
ROWS_MOST = 10_000
LATEST_S = 253_402_300_800  # the year 10000


class TenantUsage:
    """The endpoint."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context

    async def list(self, request: Request) -> Response:
        by = _groups(request)
        since_us, until_us = _moment(request, "start_time"), _moment(request, "end_time")
        if until_us and until_us <= since_us:
            raise bad("'end_time' must be after 'start_time'.", "end_time")
        owner = owner_of(request)
        rows = await run_in_threadpool(
            self._context.store.ledger.usage, ("project", *by), since_us, until_us, owner.tenant
        )
        mine = [_shown(row, by) for row in rows if row.project == owner.project]
        if len(mine) > ROWS_MOST:
            raise bad(f"More than {ROWS_MOST} rows; ask for less time or fewer groups.", "group_by")
        return answer({"object": "list", "data": mine})


def _groups(request: Request) -> tuple[str, ...]:
    text = request.query_params.get("group_by", "model")
    found = tuple(part for part in text.split(",") if part)
    unknown = [part for part in found if part not in GROUPS]
    if unknown:
        raise bad(f"'group_by' must be some of {', '.join(GROUPS)}, not '{unknown[0][:100]}'.", "group_by")
    return found


def _moment(request: Request, name: str) -> int:
    """Microseconds since the epoch; 0 when nothing is said."""
    text = request.query_params.get(name, "0")
    if not text.isascii() or not text.isdecimal() or len(text) > 12 or int(text) > LATEST_S:
        raise bad(f"'{name}' must be whole seconds since the epoch.", name)
    return int(text) * 1_000_000


def _shown(row: UsageRow, by: tuple[str, ...]) -> dict[str, Any]:
    return {
        "object": "usage",
        "project": row.project,
        **{name: getattr(row, name) for name in by},
        "requests": row.requests,
        "outcomes": dict(row.outcomes),
        "input_tokens": row.input_tokens,
        "cached_tokens": row.cached_tokens,
        "output_tokens": row.output_tokens,
        "reasoning_tokens": row.reasoning_tokens,
        "cost": {currency: format_money(micros) for currency, micros in row.micros.items()},
    }
