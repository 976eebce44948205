"""Asks endpoints that failed whether they are well, and peers what they offer.

An endpoint is asked shortly before requests would try it again.

A replica that is still sick is left alone for longer at the cost of one small probe, not of a request.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from tokenmill.control.edge import COOLING_MOST_US, COOLING_US
from tokenmill.domain.table import Endpoint
from tokenmill.federation.directory import peers_in, read_models, unreachable
from tokenmill.gateway.body import HOP
from tokenmill.gateway.edge import Gateway
from tokenmill.gateway.fetch import fetch
from tokenmill.gateway.upstream import address_of

AHEAD_US = 1_000_000
PATIENCE_S = 0.8
PEER_PATIENCE_S = 5.0


class Prober:
    """``look`` starts probes for endpoints whose time alone ends soon; one at a time per endpoint."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self._running: set[str] = set()

    def look(self) -> None:
        """Called several times a second."""
        gateway = self.gateway
        now_us = gateway.clock()
        for replica, seen in gateway.memory.endpoints.items():
            endpoint = gateway.serving.endpoints.get(replica)
            if endpoint is None or not seen.failures or replica in self._running:
                continue
            if 0 < seen.cooling_until_us - now_us <= AHEAD_US:
                self._running.add(replica)
                gateway.spawn(self._probe(endpoint))
        peers = peers_in(gateway.tables.table)
        if peers:
            for endpoint in gateway.tables.directory.due(peers, now_us):
                gateway.spawn(self._ask_peer(endpoint))

    async def _ask_peer(self, endpoint: Endpoint) -> None:
        gateway = self.gateway
        try:
            secret = gateway.secrets.read(endpoint.key_ref) if endpoint.key_ref else b""
            headers = b"authorization: Bearer %b\r\n%b: 1\r\n" % (secret, HOP)
            address = address_of(endpoint.address, endpoint.tls)
            async with asyncio.timeout(PEER_PATIENCE_S):
                status, body = await fetch(gateway.pool, address, b"GET", b"/v1/models", b"", headers)
            found = read_models(status, body, gateway.clock())
        except (OSError, TimeoutError, ValueError) as error:
            found = unreachable(f"it cannot be asked: {error or 'no answer in time'}", gateway.clock())
        if gateway.tables.directory.record(endpoint.replica, found):
            gateway.tables.refresh()

    async def _probe(self, endpoint: Endpoint) -> None:
        try:
            well = await self._well(endpoint)
        finally:
            self._running.discard(endpoint.replica)
        gateway = self.gateway
        with gateway.shared:
            self._conclude(endpoint, well=well)

    def _conclude(self, endpoint: Endpoint, *, well: bool) -> None:
        gateway = self.gateway
        seen = gateway.memory.endpoints.get(endpoint.replica)
        if seen is None or not seen.failures:
            return
        now_us = gateway.clock()
        if well:
            changed = replace(seen, cooling_until_us=min(seen.cooling_until_us, now_us))
        else:
            cooling_us = min(COOLING_US << min(seen.failures, 5), COOLING_MOST_US)
            changed = replace(seen, failures=seen.failures + 1, cooling_until_us=now_us + cooling_us)
        gateway.memory = replace(
            gateway.memory, endpoints=gateway.memory.endpoints.set(endpoint.replica, changed)
        )

    async def _well(self, endpoint: Endpoint) -> bool:
        """``/health`` answers 2xx; a server without it (404) is well when it answers at all."""
        try:
            address = address_of(endpoint.address, endpoint.tls)
            async with asyncio.timeout(PATIENCE_S):
                status, _ = await fetch(self.gateway.pool, address, b"GET", b"/health")
        except (OSError, TimeoutError, ValueError):
            return False
        return 200 <= status < 300 or status in (401, 404, 405)
