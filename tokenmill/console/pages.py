"""The status page, the page of one run and the login form: server-rendered, complete without a script.

A small script of ours, allowed by nonce, swaps the page's live sections every two seconds. Nothing is loaded
from another host. The pages read; the one thing that they change is the session.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from tokenmill.console import charts, text, views
from tokenmill.console.auth import COOKIE, FORWARDED, SESSION_US, Sessions, login, nonce_of, page_policy
from tokenmill.console.context import ApiContext
from tokenmill.console.event_text import event_views, is_quiet
from tokenmill.console.processes import ProcessTable
from tokenmill.console.requests import read_bytes
from tokenmill.console.run_view import run_view
from tokenmill.console.training import training_of
from tokenmill.domain.codec import to_plain
from tokenmill.domain.errors import NotFoundError

STATIC = Path(__file__).parent / "static"
USAGE_KEPT_US = 5_000_000
EVENTS_SHOWN = 10


def environment() -> Environment:
    """Jinja with autoescape; an undefined name is an error, not an empty place."""
    made = Environment(
        loader=PackageLoader("tokenmill.console", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in (
        "duration", "ago", "clock", "time_of_day", "size", "number", "energy", "percent", "points",
        "short_digest",
    ):  # fmt: skip
        made.filters[name] = getattr(text, name)
    made.filters["money"] = text.all_money
    made.filters["mark"] = text.mark
    made.globals["charts"] = charts
    made.globals["comparison_of"] = comparison_of
    made.globals["station_note"] = station_note
    return made


def comparison_of(verdict: dict[str, Any]) -> charts.Comparison:
    return charts.Comparison(
        verdict["reference_milli"],
        verdict["candidate_milli"],
        verdict["low_milli"],
        verdict["high_milli"],
        reference_name=verdict["reference"],
    )


def station_note(station: dict[str, Any]) -> str:
    """The one number that matters most of a finished station, when it has one that we know."""
    metrics = station.get("metrics", {})
    for name, label in (
        ("rows_in", "rows in"), ("rows", "rows"), ("kept", "rows kept"), ("tokens", "tokens"), ("n", "items"),
    ):  # fmt: skip
        if isinstance(metrics.get(name), int | float):
            return f"{text.number(metrics[name])} {label}"
    return ""


def routes(context: ApiContext, sessions: Sessions, processes: ProcessTable) -> list[Route]:
    pages = Pages(context, sessions, processes)
    return [
        Route("/", pages.status),
        Route("/console", pages.status),
        Route("/console/fragments/status", pages.status_fragment),
        Route("/console/fragments/runs/{id}", pages.run_fragment),
        Route("/console/runs/{id}", pages.run),
        Route("/console/style.css", pages.style),
        Route("/console/icon.svg", pages.icon),
        Route("/login", pages.login_form),
        Route("/login", pages.login, methods=["POST"]),
        Route("/console/logout", pages.logout, methods=["POST"]),
    ]


class Pages:
    """One renderer per page. Holds the templates and the last sums of the ledger."""

    def __init__(self, context: ApiContext, sessions: Sessions, processes: ProcessTable) -> None:
        self.context = context
        self.sessions = sessions
        self.processes = processes
        self.templates = environment()
        self._usage: list[dict[str, Any]] = []
        self._usage_at_us = 0

    def render(self, request: Request, template: str, code: int = 200, **values: Any) -> Response:
        nonce = nonce_of(request)
        forwarded = FORWARDED in request.headers
        page = self.templates.get_template(template).render(
            nonce=nonce, can_sign_out=forwarded, now_us=self.context.now_us(), **values
        )
        return HTMLResponse(page, code, {"content-security-policy": page_policy(nonce)})

    async def status(self, request: Request) -> Response:
        return self.render(request, "status.html", **await run_in_threadpool(self._status_values))

    async def status_fragment(self, request: Request) -> Response:
        return self.render(request, "_status.html", **await run_in_threadpool(self._status_values))

    def _status_values(self) -> dict[str, Any]:
        context = self.context
        names = views.names_of(context.state)
        journal = context.store.journal
        found = journal.tail(EVENTS_SHOWN * 4)
        seen = zip(found, event_views(journal, found, names), strict=True)
        recent = [view for (_, event), view in seen if not is_quiet(event, view)]
        return {
            "factory": context.state.factory.name,
            "status": views.status_view(context),
            "processes": self.processes.rows(),
            "models": views.models_view(context),
            "samples": list(context.samples),
            "usage": self._usage_rows(),
            "events": recent[::-1][:EVENTS_SHOWN],
            "cores": sum(node.node.cpu_millis for node in context.state.nodes.values()) / 1000,
        }

    def _usage_rows(self) -> list[dict[str, Any]]:
        now_us = self.context.now_us()
        if now_us - self._usage_at_us > USAGE_KEPT_US:
            self._usage = [to_plain(row) for row in self.context.store.ledger.usage(["tenant"])]
            self._usage_at_us = now_us
        return self._usage

    async def run(self, request: Request) -> Response:
        try:
            values = await run_in_threadpool(self._run_values, request)
        except NotFoundError as error:
            return self.render(
                request, "missing.html", 404, factory=self.context.state.factory.name, problem=error.problem
            )
        return self.render(request, "run.html", **values)

    async def run_fragment(self, request: Request) -> Response:
        return self.render(request, "_run.html", **await run_in_threadpool(self._run_values, request))

    def _run_values(self, request: Request) -> dict[str, Any]:
        context = self.context
        run = run_view(context.state, context.runtime.progress, request.path_params["id"], context.now_us())
        return {
            "factory": context.state.factory.name,
            "run": run,
            "training": training_of(run, context.paths),
            "card": data_card(run),
            "release": context.state.releases.get(run["release"]),
        }

    async def style(self, _request: Request) -> Response:
        return Response((STATIC / "style.css").read_bytes(), media_type="text/css")

    async def icon(self, _request: Request) -> Response:
        return Response((STATIC / "icon.svg").read_bytes(), media_type="image/svg+xml")

    async def login_form(self, request: Request) -> Response:
        return self._login_page(request, request.query_params.get("next", "/"), "")

    def _login_page(self, request: Request, target: str, problem: str, status: int = 200) -> Response:
        return self.render(
            request, "login.html", status, factory="", problem=problem, next=_local_path(target)
        )

    async def login(self, request: Request) -> Response:
        """Trade an admin key for a session cookie. Closed for a while after ten wrong ones in a minute."""
        body = parse_qs((await read_bytes(request, 4096)).decode(errors="replace"))
        target = _local_path(body.get("next", ["/"])[0])
        wait_us = self.sessions.wait_us()
        if wait_us:
            answer = self._login_page(
                request, target, f"Too many wrong keys. Try again in {text.duration(wait_us)}.", 429
            )
            answer.headers["retry-after"] = str(wait_us // 1_000_000 + 1)
            return answer
        cookie = login(self.context, self.sessions, body.get("key", [""])[0])
        if not cookie:
            return self._login_page(request, target, "This is not a live admin key.", 401)
        answer = RedirectResponse(target, 303)
        answer.set_cookie(
            COOKIE,
            cookie,
            max_age=SESSION_US // 1_000_000,
            httponly=True,
            samesite="strict",
            secure=request.headers.get("x-forwarded-proto", request.url.scheme) == "https",
        )
        return answer

    async def logout(self, request: Request) -> Response:
        self.sessions.close(request.cookies.get(COOKIE, ""))
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE)
        return answer


def _local_path(target: str) -> str:
    """Only a path of this console, so that a link cannot send a person elsewhere after signing in."""
    return target if target.startswith("/") and not target.startswith(("//", "/\\")) else "/"


def data_card(run: dict[str, Any]) -> list[tuple[str, str, str]]:
    """``(station, name, value)`` of what intake and curate counted; nested counts one line each."""
    found: list[tuple[str, str, str]] = []
    for station in run["stations"]:
        if station["kind"] not in ("intake", "curate"):
            continue
        for name, value in station["metrics"].items():
            if isinstance(value, dict):
                found += [
                    (
                        station["name"],
                        f"{name.removesuffix('_by_reason')}: {key}".replace("_", " "),
                        _shown(v),
                    )
                    for key, v in value.items()
                ]
            elif not isinstance(value, list):
                found.append((station["name"], name.replace("_", " "), _shown(value)))
    return found


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int | float):
        return text.number(value)
    return text.short_digest(value) if str(value).startswith("sha256:") else str(value)[:80]
