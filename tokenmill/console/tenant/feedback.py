"""``POST /v1/feedback``: what a client says of an answer, good or bad. The first word on each answer counts.

It is evidence about the release that gave the answer, which a canary weighs, and, where the project has
its traffic captured, about the answer as a row to learn from. The answer is named by its
``x-request-id`` or by the id in its body, and must be one of the caller's own project.
"""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from tokenmill.console.context import ApiContext
from tokenmill.console.tenant.answers import answer, bad, missing, read_json
from tokenmill.console.tenant.caller import owner_of
from tokenmill.domain.events import OutcomesReported
from tokenmill.domain.factory import Capture
from tokenmill.domain.ledger import Settlement
from tokenmill.domain.outcomes import Outcomes
from tokenmill.spec.capture_files import CaptureFiles

RATINGS = {"good": True, "bad": False}
LOOKS, LOOK_S = 8, 0.25
"""The ledger hears of an answer half a second after it was given; feedback may be faster."""


class Feedback:
    """The endpoint."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context

    async def create(self, request: Request) -> Response:
        body = await read_json(request, 16 * 1024)
        name, rating = body.get("id"), body.get("rating")
        unknown = sorted(set(body) - {"id", "rating"})
        if unknown:
            raise bad(f"Unknown parameter: '{unknown[0]}'. Expected id and rating.", unknown[0])
        if not isinstance(name, str) or not 1 <= len(name) <= 200:
            raise bad("'id' must be the x-request-id of an answer, or the id in its body.", "id")
        if not isinstance(rating, str) or rating not in RATINGS:
            raise bad("'rating' must be good or bad.", "rating")
        found = await self._find(name)
        owner = owner_of(request)
        if found is None or (found.tenant, found.project) != (owner.tenant, owner.project):
            raise missing("response", name)
        context, now_us = self._context, self._context.now_us()
        good = RATINGS[rating]
        new = await asyncio.to_thread(context.store.ledger.give_feedback, found, good, now_us)
        capture = _capture(context, found)
        if new and capture is not None:
            await asyncio.to_thread(_keep, context, found, capture, good, now_us)
        if new and found.release:
            seen = Outcomes(good=int(good), bad=int(not good))
            await context.runtime.submit(OutcomesReported(now_us, found.alias, found.release, seen))
        return answer({"object": "feedback", "id": name, "rating": rating, "counted": new})

    async def _find(self, name: str) -> Settlement | None:
        for _ in range(LOOKS):
            found = await asyncio.to_thread(self._context.store.ledger.find, name)
            if found is not None:
                return found
            await asyncio.sleep(LOOK_S)
        return None


def _capture(context: ApiContext, answer: Settlement) -> Capture | None:
    """What the project of ``answer`` agreed to have kept, where that is of such answers."""
    tenant = context.runtime.state.index.tenants.get(answer.tenant)
    projects = tenant.projects if tenant is not None else ()
    capture = next((project.capture for project in projects if project.name == answer.project), None)
    return capture if capture is not None and answer.alias in capture.aliases else None


def _keep(context: ApiContext, answer: Settlement, capture: Capture, good: bool, now_us: int) -> None:
    """An opinion that finds no room is left out like a row; the ledger has it all the same."""
    files = CaptureFiles(context.paths.captures, answer.tenant, answer.project)
    if files.admits(now_us, capture):
        files.rate(answer.at_us, answer.request, good)
