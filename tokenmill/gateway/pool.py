"""Idle connections to engines, peers and the controller, kept for the next request."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque

from tokenmill.gateway.upstream import Address, Upstream

IDLE_PER_ADDRESS = 64


class Pool:
    """Idle connections by address, newest first, at most ``IDLE_PER_ADDRESS`` each."""

    def __init__(self, loop: asyncio.AbstractEventLoop, connect_s: float) -> None:
        self.loop = loop
        self.connect_s = connect_s
        self.opened = 0
        self._idle: dict[Address, deque[Upstream]] = {}
        self._live: set[Upstream] = set()
        self._tls: ssl.SSLContext | None = None

    def take(self, address: Address) -> Upstream | None:
        """An idle connection that is fresh enough to be used, or ``None``."""
        idle = self._idle.get(address)
        now = self.loop.time()
        while idle:
            upstream = idle.pop()
            if upstream.usable and now - upstream.idle_since < upstream.keep_s:
                return upstream
            upstream.abort()
        return None

    async def connect(self, address: Address) -> Upstream:
        """Open a connection. Raises ``OSError`` (also for a timeout or a TLS failure)."""

        def build() -> Upstream:
            return Upstream(self, address)

        try:
            async with asyncio.timeout(self.connect_s):
                if address.path:
                    _, upstream = await self.loop.create_unix_connection(build, address.path)
                elif address.tls:
                    _, upstream = await self.loop.create_connection(
                        build, address.host, address.port, ssl=self.tls_context()
                    )
                else:
                    _, upstream = await self.loop.create_connection(build, address.host, address.port)
        except TimeoutError as error:
            raise OSError(f"no connection within {self.connect_s:g} s") from error
        self.opened += 1
        self._live.add(upstream)
        return upstream

    def tls_context(self) -> ssl.SSLContext:
        """The client context for peers: the system's authorities, or those in ``SSL_CERT_FILE``."""
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls

    def give(self, upstream: Upstream) -> None:
        """Take a connection back that has finished its answer."""
        idle = self._idle.setdefault(upstream.address, deque())
        if len(idle) >= IDLE_PER_ADDRESS:
            idle.popleft().abort()
        upstream.idle_since = self.loop.time()
        idle.append(upstream)

    def forget(self, upstream: Upstream) -> None:
        """A connection is gone."""
        self._live.discard(upstream)
        idle = self._idle.get(upstream.address)
        if idle is not None and upstream in idle:
            idle.remove(upstream)

    def sweep(self, live: set[Address] | None = None) -> None:
        """Close connections that were idle too long, and forget addresses that nobody uses any more."""
        now = self.loop.time()
        for address in list(self._idle):
            idle = self._idle[address]
            while idle and (
                now - idle[0].idle_since >= idle[0].keep_s or (live is not None and address not in live)
            ):
                idle.popleft().abort()
            if not idle:
                del self._idle[address]

    def close(self) -> None:
        """Abort every connection."""
        for upstream in list(self._live):
            upstream.abort()
        self._idle.clear()
