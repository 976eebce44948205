"""Runs batches: each line goes through the gateway as a request of the key that created the batch.

So lines are admitted, priced and settled like any other request. The gateway sends them back while clients
need the slots, and they are asked again. What has ended is in the store within a moment; after a crash the
rest is asked again under the same ``Idempotency-Key``, which gives the gateway's answer to a line that was
under way, so that no line is done twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace

import httpx

from tokenmill.console.tenant.batch_job import BatchJob
from tokenmill.console.tenant.files import FileShelf
from tokenmill.domain.errors import TokenmillError
from tokenmill.domain.tenancy import Batch, BatchStatus
from tokenmill.store.tenancy import BatchRecords

log = logging.getLogger(__name__)

LOOK_S = 2.0
SWEEP_S = 60.0
CONNECTIONS = 128


class BatchRunner:
    """All batches of one factory. ``run`` it beside the API; it ends when it is cancelled."""

    def __init__(
        self,
        records: BatchRecords,
        shelf: FileShelf,
        url: Callable[[], str],
        proof: str,
        now_us: Callable[[], int],
    ) -> None:
        self.records = records
        self.shelf = shelf
        self._url = url
        self.proof = proof
        self._now_us = now_us
        self._jobs: dict[str, BatchJob] = {}
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """A batch was created."""
        self._woken.set()

    async def cancel(self, batch: Batch) -> Batch:
        """Ask a batch to stop, and return it as it is then."""
        job = self._jobs.get(batch.id)
        if job is not None:
            return await job.cancel()
        now_us = self._now_us()
        reached = {**batch.reached_us, BatchStatus.CANCELLING: now_us}
        changed = replace(batch, status=BatchStatus.CANCELLING, reached_us=reached)
        await asyncio.to_thread(self.records.put, changed)
        self.wake()
        return changed

    async def run(self) -> None:
        """Start a job for every open batch, and delete files whose time is over."""
        loop = asyncio.get_running_loop()
        limits = httpx.Limits(max_connections=CONNECTIONS)
        timeout = httpx.Timeout(1800.0, connect=5.0, pool=None)
        swept = 0.0
        async with (
            httpx.AsyncClient(limits=limits, timeout=timeout, trust_env=False) as client,
            asyncio.TaskGroup() as group,
        ):
            told = ""
            while True:
                self._woken.clear()
                try:
                    await self._look(client, group)
                    if loop.time() - swept > SWEEP_S:
                        swept = loop.time()
                        await asyncio.to_thread(self.shelf.sweep)
                except TokenmillError as error:
                    if str(error) != told:
                        log.warning("batches wait: %s", error)
                    told = str(error)
                else:
                    told = ""
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._woken.wait(), LOOK_S)

    async def _look(self, client: httpx.AsyncClient, group: asyncio.TaskGroup) -> None:
        for batch in await asyncio.to_thread(self.records.open):
            if batch.id not in self._jobs:
                job = BatchJob(batch, self.records, self.shelf, client, self._url, self.proof, self._now_us)
                self._jobs[batch.id] = job
                group.create_task(self._keep(job), name=batch.id)

    async def _keep(self, job: BatchJob) -> None:
        """One batch to its end. A store or disk that is away for a while only costs time."""
        try:
            await job.run()
        except TokenmillError as error:
            log.warning("%s waits: %s", job.batch.id, error)
            await asyncio.sleep(LOOK_S)
        except Exception:  # one batch's failure is not the others'
            log.exception("%s failed and is tried again", job.batch.id)
            await asyncio.sleep(10 * LOOK_S)
        finally:
            del self._jobs[job.batch.id]
            self.wake()
