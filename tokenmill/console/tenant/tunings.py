"""``/v1/fine_tuning/jobs``: create, list, look at, cancel, pause, resume, events, checkpoints.

A job is a real run of a line of its own on the floor that serves; what it makes is a model name that only its
tenant sees. Jobs are seen by the project that made them.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from tokenmill.console.commands import Commands
from tokenmill.console.context import ApiContext
from tokenmill.console.tenant.answers import (
    ApiRefusedError,
    answer,
    bad,
    listing,
    missing,
    query_count,
    read_json,
)
from tokenmill.console.tenant.caller import key_of, owner_of
from tokenmill.console.tenant.tuning_line import base_of, read_asked, tuning_of
from tokenmill.console.tenant.tuning_view import checkpoints, job_events, job_view
from tokenmill.domain import events
from tokenmill.domain.errors import ConflictError, NotFoundError
from tokenmill.domain.tenancy import Owner, Purpose
from tokenmill.domain.work import Tuning

PAGE_MOST = 100


class Tunings:
    """The endpoints over the controller's state."""

    def __init__(self, context: ApiContext, commands: Commands) -> None:
        self._context = context
        self._commands = commands

    async def create(self, request: Request) -> Response:
        context, owner = self._context, owner_of(request)
        asked = read_asked(await read_json(request))
        base_of(context.state, asked.model, owner)
        train = await run_in_threadpool(self._kept, owner, asked.training_file, "training_file")
        test = None
        if asked.validation_file:
            test = await run_in_threadpool(self._kept, owner, asked.validation_file, "validation_file")
        tuning = tuning_of(context.state, asked, owner, train, test, context.now_us())
        await self._commands.tune(tuning, key_of(request).id)
        return answer(self._view(context.state.tunings[tuning.id]))

    async def page(self, request: Request) -> Response:
        limit = query_count(request, "limit", 20, PAGE_MOST)
        wanted = {
            name[9:-1]: value
            for name, value in request.query_params.items()
            if name.startswith("metadata[") and name.endswith("]")
        }
        mine = [
            tuning
            for tuning in self._mine(owner_of(request))
            if all(tuning.asked.get("metadata", {}).get(name) == value for name, value in wanted.items())
        ]
        found = _page(mine, [t.id for t in mine], request, limit)
        return listing([self._view(tuning) for tuning in found], limit)

    async def get(self, request: Request) -> Response:
        return answer(self._view(self._named(request)))

    async def events(self, request: Request) -> Response:
        limit = query_count(request, "limit", 20, PAGE_MOST)
        tuning = self._named(request)
        rows = await run_in_threadpool(job_events, self._context.state, self._context.paths, tuning)
        shown = [{k: v for k, v in row.items() if k != "_order"} for row in reversed(rows)]
        return listing(_page(shown, [row["id"] for row in shown], request, limit), limit)

    async def checkpoints(self, request: Request) -> Response:
        limit = query_count(request, "limit", 10, PAGE_MOST)
        rows = checkpoints(self._context.state, self._named(request))
        return listing(_page(rows, [row["id"] for row in rows], request, limit), limit)

    async def cancel(self, request: Request) -> Response:
        return await self._steer(request, self._commands.cancel_run)

    async def pause(self, request: Request) -> Response:
        return await self._steer(request, self._commands.pause_run)

    async def resume(self, request: Request) -> Response:
        return await self._steer(request, self._commands.resume_run)

    async def delete_model(self, request: Request) -> Response:
        """``DELETE /v1/models/{model}``: only a fine-tuned one, by a key of its tenant."""
        name, owner = request.path_params["model"], owner_of(request)
        tuning = next((t for t in self._mine(owner) if t.deployment.name == name and not t.dropped), None)
        if tuning is None:
            raise ApiRefusedError(
                404, "model_not_found", f"The model '{name[:200]}' does not exist.", "model"
            )
        try:
            await self._commands.submit(
                events.TuningDropped(self._context.now_us(), tuning.id, key_of(request).id)
            )
        except ConflictError as error:
            raise bad(f"{error}", "model") from None
        return answer({"id": name, "object": "model", "deleted": True})

    async def _steer(self, request: Request, act: Any) -> Response:
        tuning = self._named(request)
        try:
            await act(tuning.run, key_of(request).id)
        except (ConflictError, NotFoundError) as error:
            raise bad(f"{error}", "fine_tuning_job_id") from None
        return answer(self._view(tuning))

    def _view(self, tuning: Tuning) -> dict[str, Any]:
        context = self._context
        return job_view(context.state, context.runtime.progress, tuning, context.now_us())

    def _mine(self, owner: Owner) -> list[Tuning]:
        """The project's jobs, newest first."""
        found = [
            tuning
            for tuning in self._context.state.tunings.values()
            if (tuning.line.tenant, tuning.line.project) == (owner.tenant, owner.project)
        ]
        return sorted(found, key=lambda tuning: (tuning.created_us, tuning.id), reverse=True)

    def _named(self, request: Request) -> Tuning:
        name, owner = request.path_params["id"], owner_of(request)
        tuning = self._context.state.tunings.get(name)
        if tuning is None or (tuning.line.tenant, tuning.line.project) != (owner.tenant, owner.project):
            raise missing("fine_tuning_job", name)
        return tuning

    def _kept(self, owner: Owner, name: str, param: str) -> Path:
        """A link of our own to an uploaded file: the job can be run again after the file is deleted."""
        shelf = self._context.shelf
        try:
            file = shelf.get(owner, name)
            source = shelf.path(file)
        except NotFoundError:
            raise ApiRefusedError(400, "invalid_file", f"invalid {param}: {name[:100]}", param) from None
        if file.purpose is not Purpose.FINE_TUNE:
            text = f"The file {name} is for {file.purpose.value}; upload it with the purpose fine-tune."
            raise ApiRefusedError(400, "invalid_file_purpose", text, param)
        place = self._context.paths.root / "tunings" / owner.tenant / f"{file.digest.partition(':')[2]}.jsonl"
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not place.exists():
            try:
                os.link(source, place)
            except OSError:  # another disk, or a file system without links
                fresh = place.with_suffix(".new")
                shutil.copyfile(source, fresh)
                fresh.replace(place)
        return place


def _page(rows: list[Any], names: list[str], request: Request, limit: int) -> list[Any]:
    """One more than ``limit`` of what follows ``after``."""
    after = request.query_params.get("after", "")
    if not after:
        return rows[: limit + 1]
    if after not in names:
        raise bad(f"'after' names nothing in this list: {after[:100]!r}.", "after")
    start = names.index(after) + 1
    return rows[start : start + limit + 1]
