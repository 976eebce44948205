"""What a peer says of our usage: its sums, or a reason that a person can act on."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from pathlib import Path

import pytest

from tokenmill.domain.factory import Peer
from tokenmill.federation.bills import Bill, ask_bill


def row(requests: int, **cost: str) -> dict[str, object]:
    return {"requests": requests, "input_tokens": 10, "cached_tokens": 1, "output_tokens": 5, "cost": cost}


def asked(key: Path, status: str, body: bytes) -> tuple[Bill | str, bytes]:
    """The bill of a peer that answers with ``body``, and what it was asked."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        head = f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()

    async def work() -> Bill | str:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/"
        async with server:
            return await ask_bill(Peer("b", url, "de", f"secret://file{key}", ("m",)), 100, 0)

    return asyncio.run(work()), heads[0] if heads else b""


@pytest.fixture
def key(tmp_path: Path) -> Path:
    (tmp_path / "key").write_text("tm-1\n")
    return tmp_path / "key"


def test_models_and_currencies_are_added_up(key: Path) -> None:
    body = {"data": [row(2, USD="0.000011"), row(3, USD="0.1", EUR="2.00")]}
    bill, head = asked(key, "200 OK", json.dumps(body).encode())
    assert isinstance(bill, Bill)
    assert bill.counts == {"requests": 5, "input_tokens": 20, "cached_tokens": 2, "output_tokens": 10}
    assert bill.cost == {"USD": Decimal("0.100011"), "EUR": Decimal("2.00")}
    assert head.startswith(b"GET /v1/usage?start_time=100 HTTP/1.1\r\n")
    assert b"\r\nauthorization: Bearer tm-1\r\n" in head.lower().replace(b"bearer", b"Bearer")


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        ("401 No", b"{}", "it answered 401 to GET /v1/usage"),
        ("404 No", b"{}", "it answered 404 to GET /v1/usage"),
        ("200 OK", b"<html>", "what it says of our usage cannot be read"),
        ("200 OK", b"[]", "what it says of our usage cannot be read"),
        ("200 OK", b'{"data":[{"requests":1}]}', "what it says of our usage cannot be read"),
        (
            "200 OK",
            json.dumps({"data": [row(1, USD="much")]}).encode(),
            "what it says of our usage cannot be read",
        ),
    ],
)
def test_what_is_no_bill_is_said(key: Path, status: str, body: bytes, reason: str) -> None:
    assert asked(key, status, body)[0] == reason


def test_a_key_that_is_not_there_and_a_peer_that_is_away(key: Path) -> None:
    missing = asyncio.run(
        ask_bill(Peer("b", "http://127.0.0.1:1", "de", "secret://env/NO_SUCH", ("m",)), 0, 0)
    )
    assert missing == "it cannot be asked: secret://env/NO_SUCH is not set"
    away = asyncio.run(ask_bill(Peer("b", "http://127.0.0.1:1", "de", f"secret://file{key}", ("m",)), 0, 0))
    assert str(away).startswith("it cannot be asked: ")
