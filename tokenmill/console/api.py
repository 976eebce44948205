"""The admin API: every endpoint, on the controller's unix socket and, through the gateway, for admin keys.

Endpoints read the state, or hand an event to the runtime; blocking reads go to a thread. The routes are one
list. Errors are JSON with the kind, what was expected, how to fix it and the CLI's exit code.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from tokenmill.console import pages, views
from tokenmill.console.auth import TENANT_TREE, Sessions, guard
from tokenmill.console.commands import Commands, key_view
from tokenmill.console.context import ApiContext, sample_throughput
from tokenmill.console.event_text import event_views
from tokenmill.console.peers import peer_views
from tokenmill.console.processes import ProcessTable
from tokenmill.console.reading import log_name, read_log
from tokenmill.console.requests import Endpoint, answer, query_number, read_object, refuse
from tokenmill.console.run_view import run_row, run_view
from tokenmill.console.tenant.api import make_tenant_app
from tokenmill.console.tenant.batch_runner import BatchRunner
from tokenmill.console.trace import ROWS_MOST, trace
from tokenmill.control.why import why
from tokenmill.domain.codec import to_plain
from tokenmill.domain.errors import NotFoundError, RefusedError, TokenmillError, UsageError
from tokenmill.floor.engine_counts import counting
from tokenmill.spec.files import write_atomically

COUNTERS_LAG_S = 1.0
USAGE_BY = ("tenant", "project", "key", "model", "day")


def make_app(context: ApiContext) -> Starlette:
    """The whole console of one controller, as an ASGI app."""
    api = Api(context)
    sessions = Sessions(context.now_us)
    proof = secrets.token_urlsafe(32)
    runner = BatchRunner(context.store.batches, context.shelf, lambda: context.url, proof, context.now_us)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        beside = [
            asyncio.create_task(sample_throughput(context), name="throughput"),
            asyncio.create_task(_run_batches(context, runner), name="batches"),
        ]
        try:
            yield
        finally:
            for task in beside:
                task.cancel()
            for task in beside:
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    def guarded(app: ASGIApp) -> ASGIApp:
        return guard(app, context, sessions)

    tenant = Mount(TENANT_TREE.rstrip("/"), make_tenant_app(context, runner, api.commands))
    return Starlette(
        routes=[*api.routes(), *pages.routes(context, sessions, api.processes), tenant],
        middleware=[Middleware(guarded)],
        exception_handlers={TokenmillError: _refused, 404: _unknown, 405: _unknown, Exception: _broken},
        lifespan=lifespan,
    )


async def _run_batches(context: ApiContext, runner: BatchRunner) -> None:
    """Batches run once this controller leads; its word for the gateway replaces that of the one before."""
    await context.runtime.ready.wait()
    await asyncio.to_thread(write_atomically, context.paths.proof, runner.proof.encode(), private=True)
    await runner.run()


async def _refused(_request: Request, error: Exception) -> Response:
    return refuse(error) if isinstance(error, TokenmillError) else answer({}, 500)


async def _broken(_request: Request, error: Exception) -> Response:
    """A mistake of ours, which the log has: still an error object, so that clients can show it."""
    return refuse(
        TokenmillError(f"the controller failed: {type(error).__name__}", fix="tokenmill logs control")
    )


async def _unknown(request: Request, _error: Exception) -> Response:
    return refuse(NotFoundError(f"there is no {request.method} {request.url.path}"))


class Api:
    """Endpoints by name; ``routes`` says which path each one answers."""

    def __init__(self, context: ApiContext) -> None:
        self.context = context
        self.commands = Commands(context)
        self.processes = ProcessTable(context)

    def routes(self) -> list[Route]:
        table: list[tuple[str, str, Endpoint]] = [
            ("GET", "/api/status", self.status),
            ("GET", "/api/processes", self.process_list),
            ("GET", "/api/why/{id:path}", self.explain),
            ("GET", "/api/trace/{id:path}", self.trace),
            ("GET", "/api/logs/{id:path}", self.logs),
            ("GET", "/api/keys", self.keys),
            ("POST", "/api/keys", self.create_key),
            ("DELETE", "/api/keys/{id:path}", self.disable_key),
            ("GET", "/api/tenants", self.tenants),
            ("GET", "/api/models", self.models),
            ("GET", "/api/runs", self.runs),
            ("POST", "/api/runs", self.start_run),
            ("GET", "/api/runs/{id:path}", self.run),
            ("POST", "/api/runs/{id:path}/cancel", self.cancel_run),
            ("POST", "/api/runs/{id:path}/pause", self.pause_run),
            ("POST", "/api/runs/{id:path}/resume", self.resume_run),
            ("GET", "/api/jobs", self.jobs),
            ("POST", "/api/jobs", self.start_job),
            ("GET", "/api/jobs/{id:path}", self.job),
            ("POST", "/api/jobs/{id:path}/cancel", self.cancel_job),
            ("POST", "/api/plan", self.plan),
            ("POST", "/api/apply", self.apply),
            ("POST", "/api/rollback", self.roll_back),
            ("POST", "/api/steer", self.steer),
            ("POST", "/api/recall", self.recall),
            ("POST", "/api/cordon", self.cordon),
            ("GET", "/api/leases", self.leases),
            ("POST", "/api/leases", self.request_lease),
            ("DELETE", "/api/leases/{id:path}", self.release_lease),
            ("GET", "/api/usage", self.usage),
            ("GET", "/api/ledger/verify", self.verify_ledger),
            ("GET", "/api/peers", self.peers),
            ("GET", "/api/events", self.events),
            ("POST", "/api/down", self.down),
        ]
        return [Route(path, endpoint, methods=[method]) for method, path, endpoint in table]

    async def status(self, _request: Request) -> Response:
        shown = views.status_view(self.context)
        rows = await run_in_threadpool(self.processes.rows)
        memory: dict[str, int] = {"control_bytes": 0, "gateway_bytes": 0}
        for row in rows:
            name = f"{row['kind']}_bytes"
            if name in memory:
                memory[name] += row["memory_bytes"]
        return answer({**shown, "memory": memory})

    async def process_list(self, _request: Request) -> Response:
        return answer(await run_in_threadpool(self.processes.rows))

    async def explain(self, request: Request) -> Response:
        return answer(why(self.context.state, request.path_params["id"], self.context.now_us()))

    async def trace(self, request: Request) -> Response:
        rows = query_number(request, "rows", 0, ROWS_MOST)
        offset = query_number(request, "offset", 0)
        name = request.path_params["id"]
        return answer(await run_in_threadpool(trace, self.context, name, rows, offset))

    async def logs(self, request: Request) -> Response:
        name = log_name(self.context.state, request.path_params["id"])
        tail = query_number(request, "tail", 200, 100_000)
        offset = query_number(request, "offset", 0) if "offset" in request.query_params else None
        return answer(await run_in_threadpool(read_log, self.context.paths, name, tail, offset))

    async def keys(self, _request: Request) -> Response:
        return answer([key_view(key) for _, key in sorted(self.context.state.keys.items())])

    async def create_key(self, request: Request) -> Response:
        return answer(await self.commands.create_key(await read_object(request)), 201)

    async def disable_key(self, request: Request) -> Response:
        return answer(await self.commands.disable_key(request.path_params["id"], _by(request)))

    async def tenants(self, _request: Request) -> Response:
        tenants = self.context.state.factory.tenants
        return answer([{"name": t.name, "projects": [p.name for p in t.projects]} for t in tenants])

    async def models(self, _request: Request) -> Response:
        return answer(views.models_view(self.context))

    async def runs(self, request: Request) -> Response:
        state, now_us = self.context.state, self.context.now_us()
        limit = query_number(request, "limit", 50, 1000)
        newest = [run for _, run in sorted(state.runs.items(), reverse=True)][:limit]
        return answer([run_row(state, run, now_us) for run in newest])

    async def start_run(self, request: Request) -> Response:
        return answer(await self.commands.start_run(await read_object(request), _by(request)), 201)

    async def run(self, request: Request) -> Response:
        context = self.context
        shown = run_view(context.state, context.runtime.progress, request.path_params["id"], context.now_us())
        return answer(shown)

    async def cancel_run(self, request: Request) -> Response:
        return answer(
            await self.commands.cancel_run(
                request.path_params["id"], _by(request), await read_object(request)
            )
        )

    async def pause_run(self, request: Request) -> Response:
        return answer(await self.commands.pause_run(request.path_params["id"], _by(request)))

    async def resume_run(self, request: Request) -> Response:
        return answer(await self.commands.resume_run(request.path_params["id"], _by(request)))

    async def jobs(self, _request: Request) -> Response:
        return answer(views.job_rows(self.context))

    async def start_job(self, request: Request) -> Response:
        return answer(await self.commands.start_job(await read_object(request), _by(request)), 201)

    async def job(self, request: Request) -> Response:
        job = self.context.state.jobs.get(request.path_params["id"])
        if job is None:
            raise NotFoundError(f"there is no job {request.path_params['id']!r}", fix="tokenmill jobs list")
        return answer(views.job_view(self.context, job))

    async def cancel_job(self, request: Request) -> Response:
        return answer(
            await self.commands.cancel_job(
                request.path_params["id"], _by(request), await read_object(request)
            )
        )

    async def plan(self, request: Request) -> Response:
        body = await read_object(request)
        return answer(await run_in_threadpool(self.commands.plan, body))

    async def apply(self, request: Request) -> Response:
        return answer(await self.commands.apply(await read_object(request), _by(request)))

    async def roll_back(self, request: Request) -> Response:
        return answer(await self.commands.roll_back(await read_object(request), _by(request)))

    async def steer(self, request: Request) -> Response:
        return answer(await self.commands.steer(await read_object(request), _by(request)))

    async def cordon(self, request: Request) -> Response:
        return answer(await self.commands.cordon(await read_object(request), _by(request)))

    async def recall(self, request: Request) -> Response:
        return answer(await self.commands.recall(await read_object(request), _by(request)))

    async def leases(self, _request: Request) -> Response:
        return answer([lease for _, lease in sorted(self.context.state.leases.items())])

    async def request_lease(self, request: Request) -> Response:
        return answer(await self.commands.request_lease(await read_object(request)), 201)

    async def release_lease(self, request: Request) -> Response:
        return answer(await self.commands.release_lease(request.path_params["id"], _by(request)))

    async def usage(self, request: Request) -> Response:
        by = tuple(part for part in request.query_params.get("by", "tenant,model").split(",") if part)
        unknown = [part for part in by if part not in USAGE_BY]
        if unknown or not by:
            raise UsageError(f"by={','.join(by)!r} cannot be used", expected=f"some of {', '.join(USAGE_BY)}")
        rows = await run_in_threadpool(
            self.context.store.ledger.usage,
            by,
            query_number(request, "since_us", 0),
            query_number(request, "until_us", 0),
            request.query_params.get("tenant", ""),
        )
        return answer([to_plain(row) for row in rows])

    async def verify_ledger(self, _request: Request) -> Response:
        ledger, counts = self.context.store.ledger, counting(self.context.state)
        report = await run_in_threadpool(ledger.verify, self.context.paths.spool, counts)
        if not all(engine.ok for engine in report.engines):
            # Some engines bring their counters up to date a moment after the answer.
            await asyncio.sleep(COUNTERS_LAG_S)
            report = await run_in_threadpool(ledger.verify, self.context.paths.spool, counts)
        return answer({"ok": not report.problems, **to_plain(report)})

    async def peers(self, request: Request) -> Response:
        window = query_number(request, "since_us", 0), query_number(request, "until_us", 0)
        return answer(await peer_views(self.context, *window))

    async def events(self, request: Request) -> Response:
        """The newest ``limit`` events, or with ``after`` those that follow it."""
        limit, journal = query_number(request, "limit", 200, 10_000), self.context.store.journal
        if "after" in request.query_params:
            found = await run_in_threadpool(journal.read, query_number(request, "after", 0), limit)
        else:
            found = await run_in_threadpool(journal.tail, limit)
        names = views.names_of(self.context.state)
        return answer(await run_in_threadpool(event_views, journal, found, names))

    async def down(self, request: Request) -> Response:
        body = await read_object(request)
        if body.get("stop") is not True:
            raise RefusedError("nothing was stopped", fix='Send {"stop": true}.')
        self.context.stop()
        return answer({"stopping": True}, 202)


def _by(request: Request) -> str:
    return str(request.scope.get("state", {}).get("by", ""))
