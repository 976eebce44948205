"""``/metrics`` of all processes on one port: whoever is asked asks the others, and labels each series.

A counter of a process that was started again begins anew in its own series, which is what Prometheus expects;
a sum over processes would fall. One that does not answer in time is left out of this answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from tokenmill.gateway.client import ClientConnection
from tokenmill.gateway.edge import Gateway
from tokenmill.gateway.fetch import fetch
from tokenmill.gateway.health import gauges
from tokenmill.gateway.message import HttpRequest
from tokenmill.gateway.upstream import Address

PATIENCE_S = 1.0
TEXT = b"text/plain; version=0.0.4; charset=utf-8"


class Gathering:
    """Responder of one scrape."""

    def __init__(self, gateway: Gateway, connection: ClientConnection, http: HttpRequest) -> None:
        self._gateway = gateway
        self._connection = connection
        self._http = http
        self._gone = False

    def begin(self) -> None:
        """Ask the others, then answer."""
        self._gateway.spawn(self._answer())

    async def _answer(self) -> None:
        gateway = self._gateway
        others = await asyncio.gather(*(self._ask(number) for number in gateway.options.siblings))
        texts = dict(zip(gateway.options.siblings, others, strict=True))
        texts[gateway.options.index] = own_metrics(gateway)
        if not self._gone:
            self._connection.respond(self._http, 200, merged(texts), content_type=TEXT)

    async def _ask(self, number: int) -> bytes:
        address = Address(path=str(self._gateway.options.sibling(number)))
        try:
            async with asyncio.timeout(PATIENCE_S):
                status, body = await fetch(self._gateway.pool, address, b"GET", b"/metrics")
        except (OSError, TimeoutError):
            return b""
        return body if status == 200 else b""

    def client_gone(self) -> None:
        self._gone = True

    def pause(self) -> None:
        """The answer is small and written at once."""

    def resume(self) -> None:
        """See ``pause``."""


def own_metrics(gateway: Gateway) -> bytes:
    """The metrics of this process."""
    return gateway.metrics.text(gauges(gateway))


def merged(texts: Mapping[int, bytes]) -> bytes:
    """The texts of several processes as one: every family once, every series with its ``process``."""
    heads: dict[str, list[str]] = {}
    series: dict[str, list[str]] = {}
    for number in sorted(texts):
        name = ""
        for line in texts[number].decode().splitlines():
            if line.startswith("# HELP "):
                name = line.split(" ", 3)[2]
                heads.setdefault(name, [])
                series.setdefault(name, [])
            if not line.startswith("#"):
                series[name].append(_labelled(line, number))
            elif len(heads[name]) < 2:
                heads[name].append(line)
    lines = [line for name in heads for line in (*heads[name], *series[name])]
    return ("\n".join(lines) + "\n").encode()


def _labelled(line: str, number: int) -> str:
    name, brace, rest = line.partition("{")
    if brace and " " not in name:
        return f'{name}{{process="{number}",{rest}'
    name, _, value = line.partition(" ")
    return f'{name}{{process="{number}"}} {value}'
