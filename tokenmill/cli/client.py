"""Talks to the admin API over the controller's unix socket, or at ``TOKENMILL_URL`` with a key.

Errors of the API are raised here as the errors that they were there. Nothing is retried.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from tokenmill.cli.options import Place
from tokenmill.console.problems import error_of
from tokenmill.domain.errors import NotFoundError, ResourceError, TokenmillError, UsageError

TIMEOUT_S = 30.0


class Client:
    """One connection to one controller. Use as a context manager."""

    def __init__(self, place: Place, *, timeout_s: float = TIMEOUT_S) -> None:
        self.place = place
        remote = place.settings.url
        if remote:
            headers = {"authorization": f"Bearer {place.settings.api_key}"} if place.settings.api_key else {}
            self._http = httpx.Client(base_url=remote.removesuffix("/v1"), headers=headers, timeout=timeout_s)
        else:
            self._transport = socket_transport(place)
            self._http = httpx.Client(
                base_url="http://tokenmill",
                transport=self._transport,
                timeout=timeout_s,
                trust_env=False,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str, **query: str | int) -> Any:
        return self._ask("GET", path, query=query)

    def post(self, path: str, body: Mapping[str, Any] | None = None, *, timeout_s: float = TIMEOUT_S) -> Any:
        return self._ask("POST", path, body=body or {}, timeout_s=timeout_s)

    def delete(self, path: str) -> Any:
        return self._ask("DELETE", path)

    def running(self) -> bool:
        """Whether a controller answers."""
        with contextlib.suppress(TokenmillError):
            self.get("/api/status")
            return True
        return False

    def _ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        body: Mapping[str, Any] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Any:
        if not self.place.settings.url and not self._reachable():
            raise self._not_running()
        try:
            answer = self._http.request(method, path, params=query or None, json=body, timeout=timeout_s)
        except (httpx.ConnectError, httpx.UnsupportedProtocol) as error:
            raise self._not_running() from error
        except httpx.TimeoutException as error:
            raise ResourceError(
                f"the controller did not answer {path} in {timeout_s:g} s",
                expected="an answer",
                fix="tokenmill logs control",
            ) from error
        except httpx.HTTPError as error:
            raise ResourceError(f"the controller broke off: {error}", fix="tokenmill logs control") from error
        try:
            found = answer.json()
        except ValueError as error:
            raise UsageError(
                f"{self._http.base_url} answered {answer.status_code} with something that is not JSON",
                expected="the URL of a Tokenmill gateway",
                fix="Check TOKENMILL_URL.",
            ) from error
        if answer.is_error:
            raise error_of(found if isinstance(found, dict) else {})
        return found

    def _reachable(self) -> bool:
        """Whether the socket is there; connecting to one that is not would leave a descriptor behind."""
        return (
            not isinstance(self._transport, httpx.HTTPTransport) or self.place.paths.control_socket.exists()
        )

    def _not_running(self) -> NotFoundError:
        if self.place.settings.url:
            return NotFoundError(
                f"nothing answers at {self.place.settings.url}", fix="Check TOKENMILL_URL, or unset it."
            )
        return NotFoundError(
            f"the factory in {self.place.file.parent} is not running",
            expected=f"a controller on {self.place.paths.control_socket}",
            fix="tokenmill up",
        )


def segment(name: str) -> str:
    """A name that a person gave, as one part of a path: it may hold slashes, dots and question marks."""
    return quote(name, safe="") if name.strip(".") else name.replace(".", "%2E")


def socket_transport(place: Place) -> httpx.BaseTransport:
    return httpx.HTTPTransport(uds=str(place.paths.control_socket))


@contextlib.contextmanager
def connect(place: Place, *, timeout_s: float = TIMEOUT_S) -> Iterator[Client]:
    with Client(place, timeout_s=timeout_s) as client:
        yield client
