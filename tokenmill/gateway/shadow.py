"""Copies of requests for a candidate that takes no traffic: its answers are kept, and nobody gets them.

A copy never delays, changes or bills the request that it was made of. It is settled to the operator (no
tenant), so that the ledger still holds every token that an engine made. Few run at once and large ones are
left out: a shadow that is late is skipped, never queued. A tenant's residency holds for copies too.
"""

from __future__ import annotations

from tokenmill.control.requests import TokenUsage
from tokenmill.domain.ledger import Outcome, Settlement
from tokenmill.domain.table import Endpoint
from tokenmill.gateway.body import Asked, engine_body, engine_head
from tokenmill.gateway.edge import Gateway
from tokenmill.gateway.meter import find_usage
from tokenmill.gateway.outlet import Surface
from tokenmill.gateway.upstream import Upstream, address_of
from tokenmill.policy.reside import reside

COPIES_MOST = 8
ASKED_BYTES = 64 * 1024
ANSWER_BYTES = 256 * 1024
LONGEST_S = 300
"""A copy is given up after so long."""


def mirror(gateway: Gateway, request_id: str, tenant: str, asked: Asked, surface: Surface) -> None:
    """Send a copy of a request to its alias's candidate, if one is shadowed, its turn has come and there is
    room."""
    shadows = gateway.shadows
    entry = gateway.serving.index.aliases.get(asked.alias)
    if entry is None or entry.shadow is None or gateway.draw() >= entry.shadow[1] or gateway.draining:
        return
    known = gateway.serving.index.tenants.get(tenant)
    endpoints, _ = reside(entry.endpoints, known.jurisdictions if known else ())
    ready = [e for e in endpoints if e.release == entry.shadow[0] and not e.draining]
    if not ready or shadows.running >= COPIES_MOST:
        shadows.skipped += 1
        return
    endpoint = min(ready, key=lambda e: (shadows.at.get(e.replica, 0), e.replica))
    body = engine_body(asked, endpoint.served_model)
    if len(body) > ASKED_BYTES:
        shadows.skipped += 1
        return
    copy = Copy(gateway, request_id, tenant, asked, surface.name, endpoint)
    gateway.spawn(copy.run(body, surface.endpoint))


class Copy:
    """Receiver of one copy's answer."""

    def __init__(
        self, gateway: Gateway, of: str, tenant: str, asked: Asked, surface: str, endpoint: Endpoint
    ) -> None:
        self.gateway = gateway
        self.of = of
        self.tenant = tenant
        self.asked = asked
        self.surface = surface
        self.endpoint = endpoint
        self.began_us = gateway.clock()
        self.first_us = 0
        self._upstream: Upstream | None = None
        self._status = 0
        self._parts: list[bytes] = []
        self._size = 0
        self._ended = False

    async def run(self, body: bytes, endpoint_path: str) -> None:
        """Connect and ask; the answer comes to the methods below."""
        shadows = self.gateway.shadows
        shadows.running += 1
        shadows.at[self.endpoint.replica] = shadows.at.get(self.endpoint.replica, 0) + 1
        try:
            address = address_of(self.endpoint.address, self.endpoint.tls)
            upstream = await self.gateway.pool.connect(address)
        except (OSError, ValueError) as error:
            self.on_lost(str(error), untouched=True)
            return
        head = engine_head(
            endpoint_path,
            address.authority,
            len(body),
            request_id=f"{self.of}-shadow".encode(),
            trace=b"",
            secret=b"",
            hop=False,
        )
        self._upstream = upstream
        self.gateway.loop.call_later(LONGEST_S, self._too_late)
        upstream.begin(self, head, body)

    def on_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._status = status

    def on_payload(self, data: bytes) -> None:
        self.first_us = self.first_us or self.gateway.clock()
        self._size += len(data)
        if self._size <= ANSWER_BYTES:
            self._parts.append(data)
        elif self._upstream is not None:
            self._upstream.abort()
            self._end(Outcome.CANCELLED, "its answer is longer than is kept")

    def on_end(self) -> None:
        self._end(Outcome.OK if self._status == 200 else Outcome.ENGINE_ERROR, "")

    def on_lost(self, reason: str, *, untouched: bool) -> None:
        self._end(Outcome.ENGINE_FAILED, reason)

    def _too_late(self) -> None:
        if not self._ended and self._upstream is not None:
            self._upstream.abort()
            self._end(Outcome.ENGINE_FAILED, f"it took longer than {LONGEST_S} s")

    def _end(self, outcome: Outcome, reason: str) -> None:
        """Settle to the operator, count for the candidate, keep the answer. Once."""
        if self._ended:
            return
        self._ended = True
        gateway, endpoint = self.gateway, self.endpoint
        gateway.shadows.running -= 1
        gateway.shadows.at[endpoint.replica] -= 1
        answer = b"".join(self._parts)
        usage = find_usage(answer) or TokenUsage()
        now_us = gateway.clock()
        settlement = Settlement(
            request=f"{self.of}-shadow",
            at_us=now_us,
            tenant="",
            project="",
            key="",
            alias=self.asked.alias,
            release=endpoint.release,
            replica=endpoint.replica,
            endpoint=self.surface,
            outcome=outcome,
            status=self._status or 502,
            input_tokens=usage.input_tokens,
            cached_tokens=usage.cached_tokens,
            output_tokens=usage.output_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            counted_by=usage.counted_by,
            first_token_us=max(0, self.first_us - self.began_us),
            duration_us=now_us - self.began_us,
            reason=reason,
        )
        gateway.spool.settle(settlement)
        gateway.outcomes.settled(settlement)
        gateway.shadows.keep(
            {
                "request": self.of,
                "at_us": now_us,
                "tenant": self.tenant,
                "alias": self.asked.alias,
                "release": endpoint.release,
                "status": self._status,
                "outcome": outcome.value,
                "answer": answer.decode("utf-8", "replace"),
            }
        )
