"""Small requests of the gateway's own to an engine or peer, whose answers are kept whole.

Probes, token counts and the like: nothing that a client waits for byte by byte.
"""

from __future__ import annotations

import asyncio

from tokenmill.gateway.pool import Pool
from tokenmill.gateway.upstream import Address

COLLECTED_BYTES = 16 * 1024 * 1024


class _Collector:
    """A receiver that keeps a small answer whole."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.answer: asyncio.Future[tuple[int, bytes]] = loop.create_future()
        self.status = 0
        self.parts: list[bytes] = []
        self.size = 0

    def on_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.status = status

    def on_payload(self, data: bytes) -> None:
        self.size += len(data)
        if self.size <= COLLECTED_BYTES:
            self.parts.append(data)

    def on_end(self) -> None:
        if not self.answer.done():
            self.answer.set_result((self.status, b"".join(self.parts)))

    def on_lost(self, reason: str, *, untouched: bool) -> None:
        if not self.answer.done():
            self.answer.set_exception(OSError(reason))


async def fetch(
    pool: Pool, address: Address, method: bytes, path: bytes, body: bytes = b"", headers: bytes = b""
) -> tuple[int, bytes]:
    """One small request on a fresh connection. Raises ``OSError``; the caller sets a timeout."""
    upstream = await pool.connect(address)
    collector = _Collector(pool.loop)
    head = b"%b %b HTTP/1.1\r\nhost: %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b\r\n" % (
        method,
        path,
        address.authority,
        len(body),
        headers,
    )
    try:
        upstream.begin(collector, head, body)
        return await collector.answer
    finally:
        if upstream.receiver is collector:  # else it is in the pool again, or at work for somebody else
            upstream.abort()
