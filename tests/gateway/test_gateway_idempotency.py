"""The bounds of what is kept for ``Idempotency-Key``."""

from __future__ import annotations

import pytest

from tokenmill.domain.table import KeyEntry
from tokenmill.gateway import idempotency
from tokenmill.gateway.errors import ApiError
from tokenmill.gateway.idempotency import Entry, Replays
from tokenmill.gateway.message import HttpRequest, RequestHead

KEY = KeyEntry("k", "d", "acme", "p", "inference")


def begin(replays: Replays, name: str, now_s: float = 0.0) -> Entry:
    headers = [(b"idempotency-key", name.encode())]
    head = RequestHead("POST", "/v1/x", b"/v1/x", headers, dict(headers), True, True)
    http = HttpRequest(head, "/v1/x", b"/v1/x", b"{}", True, True, 0.0, 0)
    entry = replays.begin(KEY, http, "req-1", now_s)
    assert entry is not None
    return entry


def test_entries_bytes_and_age_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "ENTRIES", 10)
    monkeypatch.setattr(idempotency, "KEPT_BYTES", 1000)
    replays = Replays()
    for number in range(50):
        entry = begin(replays, f"n{number}")
        entry.keep(b"x" * 10)
        replays.end(entry, well=True)
    assert len(replays) <= 10
    for number in range(50):
        entry = begin(replays, f"m{number}")
        entry.keep(b"x" * 400)
        replays.end(entry, well=True)
    assert replays._bytes <= 1400
    assert not begin(replays, "m49").open
    assert begin(replays, "m49", idempotency.KEEP_S + 1).open
    assert len(replays) == 1
    assert replays._bytes == 0


def test_open_entries_are_never_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "ENTRIES", 4)
    replays = Replays()
    held = [begin(replays, f"n{number}") for number in range(8)]
    for entry in held:
        with pytest.raises(ApiError, match="still runs"):
            begin(replays, entry.name[2].decode(), idempotency.KEEP_S * 2)


def test_an_answer_too_large_to_keep_is_still_not_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "ANSWER_BYTES", 100)
    replays = Replays()
    entry = begin(replays, "big")
    for _ in range(5):
        entry.keep(b"x" * 60)
    replays.end(entry, well=True)
    assert entry.parts == []
    with pytest.raises(ApiError, match="more than is kept"):
        begin(replays, "big")
