"""Where an exchange's answer goes, and what a model endpoint is called and reads.

A client's connection is the plain outlet. ``bridge`` puts another one before it, which turns the answer into
another wire format or keeps it for a client that asks again; the exchange knows of neither.
"""

from __future__ import annotations

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


class Surface(Protocol):
    """One model endpoint: what its requests are settled as, which endpoint of the engine serves them, and how
    a body is read."""

    @property
    def name(self) -> str: ...

    @property
    def endpoint(self) -> str: ...

    def read(self, body: bytes) -> Asked:
        """Check a body. Raises ``ApiError`` when it is wrong."""


@dataclass(frozen=True, slots=True)
class Plain:
    """An endpoint that the engine has itself."""

    endpoint: str

    @property
    def name(self) -> str:
        return self.endpoint

    def read(self, body: bytes) -> Asked:
        return read_body(self.endpoint, body)
