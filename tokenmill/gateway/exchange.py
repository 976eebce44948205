"""One model request from its admission to its settlement.

Decisions are ``control.requests``'; this does what they say: forward, refuse, break, settle. Whatever
happens, the settle line is in the spool before the last bytes of the answer are given to the client.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tokenmill.control import requests
from tokenmill.control.requests import Break, Forward, Phase, Refuse, Settle, TokenUsage, Turn
from tokenmill.domain.errors import invariant
from tokenmill.domain.ledger import Outcome, Settlement
from tokenmill.domain.table import Endpoint, KeyEntry
from tokenmill.domain.value import replace
from tokenmill.gateway.asking import call_of, servable
from tokenmill.gateway.body import HOP, Asked, engine_body, engine_head, is_forced
from tokenmill.gateway.count import count_input, with_input
from tokenmill.gateway.edge import Gateway
from tokenmill.gateway.endings import UNKNOWN_MODEL, opening, turned_away
from tokenmill.gateway.errors import ApiError, refusal, unavailable
from tokenmill.gateway.forced import ForcedCall
from tokenmill.gateway.limits import ratelimit_headers
from tokenmill.gateway.message import HttpRequest
from tokenmill.gateway.metrics import ModelMetrics
from tokenmill.gateway.outlet import Outlet, Surface
from tokenmill.gateway.relay import NOTHING, Relay
from tokenmill.gateway.shadow import mirror
from tokenmill.gateway.upstream import Address, Upstream, address_of
from tokenmill.policy.route import PEER_PREFIX


class Exchange:
    """Responder to the client, and owner of the relay of each attempt."""

    def __init__(
        self,
        gateway: Gateway,
        connection: Outlet,
        http: HttpRequest,
        surface: Surface,
        key: KeyEntry,
        request_id: str,
    ) -> None:
        self.gateway = gateway
        self.connection = connection
        self.http = http
        self.surface = surface
        self.endpoint = surface.endpoint
        self.key = key
        self.id = request_id
        self.model = ""  # the alias once it is admitted: safe as a metric's label
        self.hopped = bool(http.header(HOP))  # a peer sent it here: answer it here
        self.settled = False
        self.settlement: Settlement | None = None
        self.settling = False  # the end is decided; tokens are being counted
        self.hide_usage = self.hide_running = True
        self.response_id = ""  # what the answer calls itself, so that it can be traced
        self.context_tokens = 0
        self._asked: Asked | None = None
        self._request: requests.Request | None = None
        self._relay: Relay | None = None
        self._metrics: ModelMetrics | None = None
        self._task: asyncio.Task[None] | None = None
        self._fresh = False  # the next attempt opens a connection of its own
        self._sent = False  # an engine has had the request
        self._sent_s = 0.0
        self._paused = False
        self._ttft_s = 0.0  # of a stream that has begun
        self._limits: bytes | None = None  # header lines of a stream that has not

    @property
    def started(self) -> bool:
        """Whether the client has had bytes."""
        return self._relay is not None and self._relay.started

    @property
    def replica(self) -> str:
        """Where it is being answered."""
        endpoint = self.request.endpoint
        return endpoint.replica if endpoint is not None else ""

    @property
    def asked(self) -> Asked:
        invariant(self._asked is not None, "a request is read before it is admitted")
        return self._asked  # type: ignore[return-value]

    @property
    def request(self) -> requests.Request:
        invariant(self._request is not None, "a request arrives before anything else happens to it")
        return self._request  # type: ignore[return-value]

    # -- arrival
    def begin(self) -> bool:
        """Check, admit and forward. False when the client has its answer already."""
        gateway = self.gateway
        try:
            size = len(self.http.body)
            asked = self._asked = self.surface.read(self.http.body)
            self.http.body = b""
            entry = servable(gateway, asked, self.key)
        except ApiError as error:
            self._turn_away(error)
            return False
        self.context_tokens = entry.context_tokens
        call = call_of(gateway, self, asked, size, entry)
        index = self._index()
        found = requests.place(index, gateway.memory, call)
        if isinstance(found, Turn):
            turn = found
        else:
            with gateway.shared:
                turn = requests.take(index, gateway.memory, call, found)
        self._keep(turn)
        first = turn.actions[0]
        if not isinstance(first, Forward):
            self._act(turn)
            return False
        if not gateway.spool.open(opening(turn.request, first.endpoint)):
            self._unspooled()
            return False
        self.model = asked.alias
        self.hide_usage, self.hide_running = not asked.wants_usage, not asked.wants_running
        self._metrics = gateway.metrics.model(self.model)
        self._metrics.running += 1
        gateway.exchanges.add(self)
        self._send(first.endpoint)
        mirror(gateway, self.id, self.key.tenant, asked, self.surface)
        return not self.settled

    def _turn_away(self, error: ApiError) -> None:
        """Refuse before admission: settled, since the key is known, and with nothing used."""
        alias = self._asked.alias if self._asked else ""
        if self.gateway.serving.visible(alias, self.key.tenant) is None:
            alias = UNKNOWN_MODEL
        settlement = turned_away(
            self.id, self.key, alias, self.surface.name, error, self.http, self.gateway.clock()
        )
        self._settle(settlement, error.code or "bad_request")
        self._answer_error(error)

    def _unspooled(self) -> None:
        """The disk filled up at this very moment: give back what was reserved and refuse."""
        for action in self._decide(requests.interrupted, NOTHING).actions:
            if isinstance(action, Settle):
                refused = replace(action.settlement, outcome=Outcome.REFUSED, reason="spool_unwritable")
                self._settle(refused, "spool_unwritable")
        self._answer_error(unavailable("Requests cannot be recorded now.", 5_000_000, "spool_unwritable"))

    # -- doing what control says
    def _index(self) -> requests.Index:
        serving = self.gateway.tables.serving
        return serving.local if self.hopped else serving.index

    def _keep(self, turn: Turn) -> None:
        self.gateway.memory = turn.memory
        self._request = turn.request

    def _decide(self, what: Callable[..., Turn], *said: object) -> Turn:
        """Ask control what follows from what happened. Other processes wait for as long."""
        gateway = self.gateway
        with gateway.shared:
            turn = what(self._index(), gateway.memory, self.request, gateway.clock(), *said)
        self._keep(turn)
        return turn

    def _act(self, turn: Turn) -> None:
        """Settle first, whatever the order of the actions: the client's last bytes come after it."""
        for action in turn.actions:
            if isinstance(action, Settle):
                first = turn.actions[0]
                self._settle(action.settlement, first.code if isinstance(first, Refuse) else "")
        for action in turn.actions:
            if isinstance(action, Forward):
                self._send(action.endpoint)
            elif isinstance(action, Refuse):
                self._answer_error(refusal(action))
            elif isinstance(action, Break) and self._relay is not None:
                self._relay.break_off(ApiError(502, action.code, action.message))

    def _settle(self, settlement: Settlement, code: str = "") -> None:
        self.settled = True
        self.settlement = settlement
        gateway = self.gateway
        if self.response_id and not settlement.response:  # said after the first bytes
            settlement = replace(settlement, response=self.response_id)
        gateway.spool.settle(settlement)
        gateway.outcomes.settled(settlement)
        gateway.exchanges.discard(self)
        gateway.metrics.settled(settlement, self.model, code)
        if code == "overloaded":
            gateway.refused_full[settlement.alias] = gateway.refused_full.get(settlement.alias, 0) + 1
        elif code == "model_not_ready":
            gateway.asleep[settlement.alias] = gateway.asleep.get(settlement.alias, 0) + 1
        metrics = self._metrics
        if metrics is not None:
            metrics.running -= 1
            if self._ttft_s and self._relay is not None and self._relay.stream is not None:
                spent_s = gateway.loop.time() - self.http.arrived_s - self._ttft_s
                metrics.stream_ended(self._relay.stream.deltas, spent_s)
            entry = self._index().aliases.get(self.model)
            if entry is not None and entry.slo is not None:
                gateway.metrics.promised(entry.name, entry.slo, settlement, self._ttft_s)

    # -- to the engine
    def _send(self, endpoint: Endpoint) -> None:
        try:
            address = address_of(endpoint.address, endpoint.tls)
        except ValueError:
            address = Address()  # no such host: fails like any that cannot be reached
        upstream = None if self._fresh else self.gateway.pool.take(address)
        if upstream is not None:
            self._forward(upstream, endpoint)
        else:
            self._task = self.gateway.spawn(self._connect(endpoint, address))

    async def _connect(self, endpoint: Endpoint, address: Address) -> None:
        try:
            upstream = await self.gateway.pool.connect(address)
        except OSError as error:
            if not (self.settled or self.settling):
                self.lost(f"{endpoint.address} cannot be reached: {error.strerror or error}")
            return
        if self.settled or self.settling:
            upstream.abort()
        else:
            self._forward(upstream, endpoint)

    def _forward(self, upstream: Upstream, endpoint: Endpoint) -> None:
        body = engine_body(self.asked, endpoint.served_model, endpoint.engine)
        try:
            secret = self.gateway.secrets.read(endpoint.key_ref) if endpoint.key_ref else b""
        except OSError as error:
            upstream.abort()
            self.lost(f"the key of {endpoint.replica} cannot be read: {error}")
            return
        head = engine_head(
            self.endpoint,
            upstream.authority,
            len(body),
            request_id=self.id.encode(),
            trace=self.http.header(b"traceparent"),
            secret=secret,
            hop=endpoint.release.startswith(PEER_PREFIX),
        )
        forced = ForcedCall() if is_forced(self.asked, endpoint.engine) else None
        self._relay = Relay(self, upstream, forced)
        self._sent = True
        self._sent_s = self.gateway.loop.time()
        upstream.begin(self._relay, head, body)
        if self._paused:
            upstream.pause()
        if self.asked.stream:
            self._limits = self._limit_headers()  # while the engine works, not before its first token

    # -- what the relay tells
    def answer_headers(self) -> bytes:
        gateway = self.gateway
        spent_ms = int((gateway.loop.time() - self.http.arrived_s) * 1000)
        limits = self._limits
        if limits is None or self.settled:
            limits = self._limit_headers()
        return b"x-request-id: %b\r\nopenai-processing-ms: %d\r\n%b" % (self.id.encode(), spent_ms, limits)

    def _limit_headers(self) -> bytes:
        gateway = self.gateway
        return ratelimit_headers(self._index(), gateway.memory, self.key, gateway.clock(), self.model)

    def first_byte(self) -> None:
        gateway = self.gateway
        self._keep(requests.first_byte(gateway.memory, self.request, gateway.clock(), self.response_id))

    def first_token(self) -> None:
        self._ttft_s = self.gateway.loop.time() - self.http.arrived_s
        if self._metrics is not None:
            self._metrics.ttft.observe(self._ttft_s)

    def complete(self, status: int, usage: TokenUsage) -> None:
        gateway = self.gateway
        if usage.counted_by != "engine":  # an engine that gives no usage object
            usage = with_input(usage, None, self.asked.input_estimate)
        for action in self._decide(requests.finished, status, usage, self.response_id).actions:
            if isinstance(action, Settle):
                self._settle(action.settlement)
        if self._metrics is not None:
            self._metrics.e2e.observe(gateway.loop.time() - self.http.arrived_s)

    def reject(self, error: ApiError) -> None:
        for action in self._decide(requests.finished, error.status, NOTHING).actions:
            if isinstance(action, Settle):
                self._settle(replace(action.settlement, reason=error.reason[:500]))
        self._answer_error(error)

    def again(self) -> None:
        # The engine closed an idle connection just as it was reused; this says nothing of its health.
        self._fresh = True
        if (endpoint := self.request.endpoint) is not None:
            self._send(endpoint)

    def lost(self, reason: str) -> None:
        gateway = self.gateway
        gateway.metrics.add(gateway.metrics.engine_failures, (self.model,))
        if self.request.phase is Phase.ANSWERING:
            self.settling = True
            self._task = gateway.spawn(self._end_cut(reason))
            return
        tried = self.request.endpoint
        turn = self._decide(requests.engine_lost, reason, NOTHING)
        self._fresh = False
        if any(isinstance(a, Forward) for a in turn.actions):
            gateway.metrics.retries += 1
            gateway.outcomes.lost(self.model, tried)
        self._act(turn)

    # -- endings that nobody wanted
    async def _end_cut(self, reason: str) -> None:
        """Settle an answer that was cut: by the engine, for ``reason``, or by the client, without one."""
        usage = await self._counted()
        if self.settled:
            return
        cut = (requests.engine_lost, reason, usage) if reason else (requests.client_gone, usage)
        self._act(self._decide(*cut))
        self.ended()

    async def _counted(self) -> TokenUsage:
        usage = self._relay.counted() if self._relay is not None else NOTHING
        if usage.counted_by == "engine" or self.request.endpoint is None:
            return usage
        asked = self.asked
        counted = await count_input(self.gateway.pool, self.request.endpoint, asked)
        return with_input(usage, counted, asked.input_estimate)

    def client_gone(self) -> None:
        if self._relay is not None:
            self._relay.drop()
        if self.settling:
            return
        if self._sent and not self.settled:
            # The engine had the prompt, so its tokens count although nobody waits for the answer.
            self.settling = True
            self._task = self.gateway.spawn(self._end_cut(""))
            return
        if not self.settled:
            self._act(self._decide(requests.client_gone, NOTHING))
        self.ended()

    def interrupt(self) -> None:
        """The gateway stops and cannot wait any longer."""
        if self.settled:
            return
        usage = NOTHING
        if self._relay is not None:
            self._relay.drop()
            seen = self._relay.counted()
            usage = seen if seen.counted_by == "engine" else with_input(seen, None, self.asked.input_estimate)
        self._act(self._decide(requests.interrupted, usage))
        error = unavailable("The gateway stopped before the answer was complete.", code="interrupted")
        if self._relay is not None and self._relay.started:
            self._relay.break_off(error)
        else:
            self._answer_error(error)

    def sweep(self, now: float) -> None:
        """Give up on an engine that says nothing. Called every second."""
        relay, options = self._relay, self.gateway.options
        if relay is None or relay.upstream is None or self.settled or self.settling or self._paused:
            return
        limit = options.silence_s if relay.started else options.first_byte_s
        if now - max(self._sent_s, relay.upstream.heard_s(now)) > limit:
            relay.drop()
            self.lost(f"it said nothing for {limit:g} s")

    # -- to the client
    def pause(self) -> None:
        self._paused = True
        if self._relay is not None and self._relay.upstream is not None:
            self._relay.upstream.pause()

    def resume(self) -> None:
        self._paused = False
        if self._relay is not None and self._relay.upstream is not None:
            self._relay.upstream.resume()

    def _answer_error(self, error: ApiError) -> None:
        headers = self.answer_headers() + error.headers
        self.connection.respond(self.http, error.status, error.body, headers=headers)
        self.ended()

    def ended(self) -> None:
        """Let go of what was asked: in a circle with the relay it would stay until the collector comes."""
        self._relay = self._asked = None
