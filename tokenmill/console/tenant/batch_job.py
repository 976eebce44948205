"""One batch from validation to its output files."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import msgspec

from tokenmill.console.tenant import batch_input
from tokenmill.console.tenant.batch_input import InputLine
from tokenmill.console.tenant.files import FileShelf
from tokenmill.domain.codec import parse_json
from tokenmill.domain.errors import DataError, NotFoundError, TokenmillError
from tokenmill.domain.tenancy import Batch, BatchCounts, BatchLine, BatchProblem, BatchStatus, Purpose
from tokenmill.store.tenancy import BatchRecords

log = logging.getLogger(__name__)

WORKERS = 64  # lines asked for at once; the gateway's idle slots are the real limit
TRIES = 4  # of a line whose engine failed
FLUSH_S = 0.2
ENDED_MOST = 256  # lines that the store has not taken, before no more are asked for
WAIT_S = (0.25, 2.0)  # between tries while all slots are taken
LONGEST_WAIT_S = 30.0
EXPIRED = "This request could not be executed before the completion window expired."
CANCELLED = "This request was not executed, because the batch was cancelled."


class BatchJob:
    """One batch. ``run`` returns when it has ended; every state on the way is in the store first."""

    def __init__(
        self,
        batch: Batch,
        records: BatchRecords,
        shelf: FileShelf,
        client: httpx.AsyncClient,
        url: Callable[[], str],
        proof: str,
        now_us: Callable[[], int],
    ) -> None:
        self.batch = batch
        self.records = records
        self.shelf = shelf
        self._client = client
        self._url = url
        self._proof = proof
        self._now_us = now_us
        self._stopping = asyncio.Event()  # cancelled or expired: start nothing more
        self._ended: list[BatchLine] = []

    async def run(self) -> None:
        """Go on from where the store says that it is."""
        try:
            path = await asyncio.to_thread(self._input)
        except NotFoundError:
            problem = BatchProblem("file_not_found", "The input file was deleted.")
            await self._finish(replace(self.batch, problems=(problem,)), BatchStatus.FAILED)
            return
        if self.batch.status is BatchStatus.VALIDATING:
            checked = await asyncio.to_thread(batch_input.check, path, self.batch.endpoint)
            if checked.problems:
                failed = replace(self.batch, problems=checked.problems, model=checked.model)
                await self._finish(failed, BatchStatus.FAILED)
                return
            counts = BatchCounts(checked.total)
            self.batch = replace(self.batch, counts=counts, model=checked.model)
            await self._reach(BatchStatus.IN_PROGRESS)
        if self.batch.status is BatchStatus.CANCELLING:
            self._stopping.set()
        if self.batch.status is not BatchStatus.FINALIZING:
            await self._work(path)
        await self._finalize(path)

    async def cancel(self) -> Batch:
        """Start nothing more; what runs is finished."""
        self._stopping.set()
        if not self.batch.status.ended and self.batch.status is not BatchStatus.FINALIZING:
            await self._reach(BatchStatus.CANCELLING)
        return self.batch

    def _input(self) -> Path:
        return self.shelf.path(self.shelf.get(self.batch.owner, self.batch.input_file))

    # -- lines
    async def _work(self, path: Path) -> None:
        done = await asyncio.to_thread(self.records.done, self.batch.id)
        counts = BatchCounts(self.batch.counts.total)  # what the store has is what counts
        self.batch = replace(self.batch, counts=counts)
        self._count(done.values())
        left = (x for x in batch_input.requests(path, self.batch.endpoint) if x.number not in done)
        workers = max(1, min(WORKERS, self.batch.counts.total - len(done)))
        with contextlib.closing(left):
            async with asyncio.TaskGroup() as group:
                flushing = group.create_task(self._flushing())
                async with asyncio.TaskGroup() as lines:
                    for _ in range(workers):
                        lines.create_task(self._worker(left))
                flushing.cancel()
        await self._flush()

    async def _worker(self, left: Iterator[InputLine]) -> None:
        for line in left:
            while len(self._ended) > ENDED_MOST:
                await asyncio.sleep(FLUSH_S)  # the store is away
            ended = await self._ask(line)
            if ended is None:
                return
            self._ended.append(ended)

    async def _ask(self, line: InputLine) -> BatchLine | None:
        """One line to its end; ``None`` when it was not begun because the batch stops."""
        failures, wait_s = 0, WAIT_S[0]
        while not self._over():
            try:
                answer = await self._send(line)
            except (httpx.HTTPError, OSError):
                # The gateway is away. What it did with this line it tells when it is asked again.
                await self._pause(wait_s)
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
                continue
            code = _code(answer)
            if answer.status_code < 400:
                return self._line(line, answer, ok=True)
            patient = answer.status_code in (409, 429, 503) and code not in (
                "insufficient_quota",
                "idempotency_conflict",
                "idempotency_answer_gone",
            )
            failures += not patient
            if not patient and (answer.status_code < 500 or failures >= TRIES):
                return self._line(line, answer, ok=False)
            wait_s = min(2 * wait_s, WAIT_S[1] if code == "yielding" else LONGEST_WAIT_S)
            await self._pause(max(wait_s, 0.0 if code == "yielding" else _retry_after(answer)))
        return None

    async def _send(self, line: InputLine) -> httpx.Response:
        url = self._url()
        if not url:
            raise httpx.ConnectError("the gateway does not listen")
        headers = {
            "x-tokenmill-on-behalf": self.batch.key,
            "x-tokenmill-proof": self._proof,
            "idempotency-key": f"{self.batch.id}:{line.number}",
            "content-type": "application/json",
        }
        body = msgspec.json.encode(line.body)
        return await self._client.post(url + self.batch.endpoint, content=body, headers=headers)

    def _line(self, line: InputLine, answer: httpx.Response, *, ok: bool) -> BatchLine:
        try:
            body: Any = parse_json(answer.content)
        except DataError:
            body = answer.text[:1000]
        response = {
            "status_code": answer.status_code,
            "request_id": answer.headers.get("x-request-id", ""),
            "body": body,
        }
        return BatchLine(line.number, ok, _output(line, response, None))

    def _over(self) -> bool:
        if self._now_us() >= self.batch.deadline_us:
            self._stopping.set()
        return self._stopping.is_set()

    async def _pause(self, wait_s: float) -> None:
        """Wait, but not beyond the end of the batch; spread out, so that lines do not come back as one."""
        left_s = max(0.0, (self.batch.deadline_us - self._now_us()) / 1e6)
        wait_s = min(wait_s * random.uniform(0.5, 1.0), LONGEST_WAIT_S, left_s)  # no secret
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), wait_s)

    async def _flushing(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            try:
                await self._flush()
            except TokenmillError as error:
                log.warning("%s cannot keep what has ended: %s", self.batch.id, error)
                await asyncio.sleep(5 * FLUSH_S)

    async def _flush(self) -> None:
        if not self._ended:
            return
        ended, self._ended = self._ended, []
        try:
            await asyncio.to_thread(self.records.add_lines, self.batch.id, ended)
        except BaseException:
            self._ended = ended + self._ended
            raise
        self._count(line.ok for line in ended)
        await asyncio.to_thread(self.records.put, self.batch)

    def _count(self, ended: Any) -> None:
        counts = self.batch.counts
        oks = [bool(ok) for ok in ended]
        counts = BatchCounts(counts.total, counts.completed + sum(oks), counts.failed + len(oks) - sum(oks))
        self.batch = replace(self.batch, counts=counts)

    # -- ends
    async def _finalize(self, path: Path) -> None:
        cancelled = BatchStatus.CANCELLING in self.batch.reached_us
        await self._reach(BatchStatus.FINALIZING)
        changed = await asyncio.to_thread(self._write_files, path, cancelled)
        counts = changed.counts
        if cancelled:
            status = BatchStatus.CANCELLED
        elif counts.completed + counts.failed < counts.total:
            status = BatchStatus.EXPIRED
        else:
            status = BatchStatus.COMPLETED
        await self._finish(changed, status)

    def _write_files(self, path: Path, cancelled: bool) -> Batch:
        """Output and error file; what was never done is in the error file of an expired batch."""
        batch = self.batch
        done = self.records.done(batch.id)
        completed = sum(done.values())
        batch = replace(batch, counts=BatchCounts(batch.counts.total, completed, len(done) - completed))
        undone = (x for x in batch_input.requests(path, batch.endpoint) if x.number not in done)
        code, message = ("batch_cancelled", CANCELLED) if cancelled else ("batch_expired", EXPIRED)
        errors = (_output(line, None, {"code": code, "message": message}) for line in undone)
        output = self._write_file("output", self._bodies(ok=True))
        return replace(
            batch,
            output_file=output,
            error_file=self._write_file("error", self._bodies(ok=False), () if cancelled else errors),
        )

    def _bodies(self, *, ok: bool) -> Iterator[str]:
        after = 0
        while page := self.records.lines(self.batch.id, ok=ok, after=after):
            yield from (line.body for line in page)
            after = page[-1].number

    def _write_file(self, kind: str, *parts: Any) -> str:
        """Write one file from its lines and return its id; empty when there is no line."""
        batch = self.batch
        folder = self.shelf.incoming(batch.owner.tenant)
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False, encoding="utf-8") as target:
            path = Path(target.name)
            for part in parts:
                target.writelines(body + "\n" for body in part)
        try:
            if path.stat().st_size == 0:
                return ""
            name = f"{batch.id}_{kind}.jsonl"
            id_ = f"file-{batch.id.removeprefix('batch_')}{kind[0]}"
            purpose, keep_us = Purpose.BATCH_OUTPUT, batch.results_keep_us
            return self.shelf.add(batch.owner, purpose, name, path, keep_us=keep_us, id=id_).id
        finally:
            path.unlink(missing_ok=True)

    async def _reach(self, status: BatchStatus) -> None:
        reached = {**self.batch.reached_us, status: self._now_us()}
        self.batch = replace(self.batch, status=status, reached_us=reached)
        await asyncio.to_thread(self.records.put, self.batch)

    async def _finish(self, batch: Batch, status: BatchStatus) -> None:
        reached = {**batch.reached_us, status: self._now_us()}
        self.batch = replace(batch, status=status, reached_us=reached)
        await asyncio.to_thread(self.records.finish, self.batch)


def _output(line: InputLine, response: Any, error: Any) -> str:
    """One line of an output or error file."""
    found = {
        "id": f"batch_req_{secrets.token_hex(12)}",
        "custom_id": line.custom_id,
        "response": response,
        "error": error,
    }
    return msgspec.json.encode(found).decode()


def _code(answer: httpx.Response) -> str:
    if answer.status_code < 400:
        return ""
    try:
        return str(parse_json(answer.content)["error"]["code"])
    except (DataError, LookupError, TypeError):
        return ""


def _retry_after(answer: httpx.Response) -> float:
    text = answer.headers.get("retry-after", "")
    return min(float(text), LONGEST_WAIT_S) if text.isascii() and text.isdecimal() else 0.0
