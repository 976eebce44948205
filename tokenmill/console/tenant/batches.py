"""``/v1/batches``: create, look at, list and cancel. What runs them is ``batch_runner``."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from tokenmill.console.tenant.answers import (
    ApiRefusedError,
    answer,
    bad,
    listing,
    metadata_of,
    missing,
    query_count,
    read_json,
    seconds,
)
from tokenmill.console.tenant.batch_runner import BatchRunner
from tokenmill.console.tenant.caller import key_of, owner_of
from tokenmill.console.tenant.files import FileShelf
from tokenmill.console.tenant.uploads import KEEP_SECONDS
from tokenmill.domain.errors import NotFoundError
from tokenmill.domain.tenancy import Batch, BatchStatus, Owner, Purpose
from tokenmill.store.tenancy import BatchRecords

ENDPOINTS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/rerank",
)
OPEN_MOST = 100  # batches of one project that have not ended
PAGE_MOST = 100
WINDOW = re.compile(r"([1-9][0-9]{0,3})([mh])")
WINDOW_S = (60, 7 * 86_400)
SECOND_US = 1_000_000


def batch_view(batch: Batch) -> dict[str, Any]:
    """The public Batch object."""
    reached = batch.reached_us
    problems = [
        {"code": p.code, "message": p.message, "line": p.line or None, "param": p.param or None}
        for p in batch.problems
    ]
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.model or None,
        "errors": {"object": "list", "data": problems} if problems else None,
        "input_file_id": batch.input_file,
        "completion_window": batch.window,
        "status": batch.status.value,
        "output_file_id": batch.output_file or None,
        "error_file_id": batch.error_file or None,
        "created_at": seconds(batch.created_us),
        "in_progress_at": seconds(reached.get(BatchStatus.IN_PROGRESS, 0)),
        "expires_at": seconds(batch.deadline_us),
        "finalizing_at": seconds(reached.get(BatchStatus.FINALIZING, 0)),
        "completed_at": seconds(reached.get(BatchStatus.COMPLETED, 0)),
        "failed_at": seconds(reached.get(BatchStatus.FAILED, 0)),
        "expired_at": seconds(reached.get(BatchStatus.EXPIRED, 0)),
        "cancelling_at": seconds(reached.get(BatchStatus.CANCELLING, 0)),
        "cancelled_at": seconds(reached.get(BatchStatus.CANCELLED, 0)),
        "request_counts": {
            "total": batch.counts.total,
            "completed": batch.counts.completed,
            "failed": batch.counts.failed,
        },
        "metadata": dict(batch.metadata) or None,
    }


class Batches:
    """The endpoints over the store's batches."""

    def __init__(
        self, records: BatchRecords, shelf: FileShelf, runner: BatchRunner, now_us: Callable[[], int]
    ) -> None:
        self.records = records
        self.shelf = shelf
        self.runner = runner
        self.now_us = now_us

    async def create(self, request: Request) -> Response:
        body, key, owner = await read_json(request), key_of(request), owner_of(request)
        endpoint, window = body.get("endpoint"), body.get("completion_window")
        if endpoint not in ENDPOINTS:
            raise bad(f"'endpoint' must be one of {', '.join(ENDPOINTS)}.", "endpoint")
        now_us = self.now_us()
        batch = Batch(
            id=f"batch_{secrets.token_hex(12)}",
            owner=owner,
            key=key.id,
            endpoint=str(endpoint),
            input_file=await self._input(owner, body.get("input_file_id")),
            window=str(window),
            created_us=now_us,
            deadline_us=now_us + _window_us(window),
            results_keep_us=_keep_us(body.get("output_expires_after")),
            reached_us={BatchStatus.VALIDATING: now_us},
            metadata=metadata_of(body.get("metadata")),
        )
        await run_in_threadpool(self._add, batch)
        self.runner.wake()
        return answer(batch_view(batch))

    async def get(self, request: Request) -> Response:
        return answer(batch_view(await self._named(request)))

    async def list(self, request: Request) -> Response:
        limit = query_count(request, "limit", 20, PAGE_MOST)
        after = request.query_params.get("after", "")
        found = await run_in_threadpool(self.records.page, owner_of(request), after=after, limit=limit + 1)
        return listing([batch_view(batch) for batch in found], limit)

    async def cancel(self, request: Request) -> Response:
        """Start nothing more of it. Requests that run are finished, and kept with the others' output."""
        batch = await self._named(request)
        if batch.status.ended:
            raise ApiRefusedError(409, "batch_ended", f"Batch '{batch.id}' is {batch.status.value} already.")
        return answer(batch_view(await self.runner.cancel(batch)))

    def _add(self, batch: Batch) -> None:
        running = [b for b in self.records.open() if b.owner == batch.owner]
        if len(running) >= OPEN_MOST:
            message = f"{len(running)} batches of this project have not ended, limit {OPEN_MOST}."
            raise ApiRefusedError(429, "rate_limit_exceeded", message)
        self.records.put(batch)

    async def _input(self, owner: Owner, name: object) -> str:
        if not isinstance(name, str):
            raise bad("'input_file_id' must name a file.", "input_file_id", "missing_required_parameter")
        try:
            file = await run_in_threadpool(self.shelf.get, owner, name)
        except NotFoundError:
            raise bad(f"No such File object: {name[:100]}.", "input_file_id", "file_not_found") from None
        if file.purpose is not Purpose.BATCH:
            raise bad(f"The file has purpose '{file.purpose.value}', not 'batch'.", "input_file_id")
        return file.id

    async def _named(self, request: Request) -> Batch:
        name = request.path_params["id"]
        found = await run_in_threadpool(self.records.get, owner_of(request), name)
        if found is None:
            raise missing("batch", name)
        return found


def _window_us(window: object) -> int:
    match = WINDOW.fullmatch(window) if isinstance(window, str) else None
    if match is None:
        raise bad("'completion_window' must be a time such as '24h'.", "completion_window")
    seconds_ = int(match[1]) * (60 if match[2] == "m" else 3600)
    if not WINDOW_S[0] <= seconds_ <= WINDOW_S[1]:
        raise bad("'completion_window' must be from '1m' to '168h'.", "completion_window")
    return seconds_ * SECOND_US


def _keep_us(wanted: object) -> int:
    if wanted is None:
        return 0
    low, high = KEEP_SECONDS
    found = wanted.get("seconds") if isinstance(wanted, dict) else None
    if not isinstance(found, int) or isinstance(found, bool) or not low <= found <= high:
        raise bad(f"'output_expires_after.seconds' must be from {low} to {high}.", "output_expires_after")
    return found * SECOND_US
