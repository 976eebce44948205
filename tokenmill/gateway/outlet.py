"""Where an exchange's answer goes, and what a model endpoint is called and reads.

A client's connection is the plain outlet. ``bridge`` puts another one before it, which turns the answer into
another wire format or keeps it for a client that asks again; the exchange knows of neither.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tokenmill.gateway.body import Asked, read_body
from tokenmill.gateway.message import HttpRequest


class Outlet(Protocol):
    """The part of ``ClientConnection`` that an exchange and its relay write to."""

    def write(self, data: bytes) -> None:
        """Bytes of a head, or of a body as the request's HTTP version frames it."""

    def respond(
        self,
        request: HttpRequest,
        status: int,
        body: bytes,
        *,
        headers: bytes = b"",
        content_type: bytes = b"application/json",
    ) -> None:
        """A whole answer; nothing follows it."""

    def head(self, request: HttpRequest, status: int, headers: bytes, length: int | None) -> bytes:
        """The head of an answer that is written in pieces; ``length`` ``None`` means that it is not known."""

    def finish(self, keep_alive: bool) -> None:
        """An answer in pieces is complete."""

    def abort(self) -> None:
        """An answer in pieces cannot be completed, and has no other way to say so."""


@dataclass(frozen=True, slots=True)
class Surface:
    """One model endpoint: what its requests are settled as, which endpoint of the engine serves them, and how
    a body is read (``ApiError`` when it is wrong)."""

    name: str
    endpoint: str
    read: Callable[[bytes], Asked]


def plain(endpoint: str) -> Surface:
    """An endpoint that the engine has itself."""
    return Surface(endpoint, endpoint, lambda body: read_body(endpoint, body))
