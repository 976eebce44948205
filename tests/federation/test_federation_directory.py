"""The directory: what a peer offers decides which of its endpoints stay in the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tokenmill.domain.table import AliasEntry, Endpoint, Table
from tokenmill.federation.directory import (
    REFRESH_US,
    RETRY_US,
    Directory,
    peers_in,
    read_models,
    resolve,
    unreachable,
)
from tokenmill.federation.secrets import Secrets

OWN = Endpoint("r-1", "rel-1", "127.0.0.1:1", "DE", 4)


def peer(name: str) -> Endpoint:
    return Endpoint(
        f"peer:{name}", f"peer:{name}", f"{name}:1", "US", 64, key_ref="secret://env/X", served_model="m"
    )


def table(*endpoints: Endpoint) -> Table:
    return Table(1, "f", (), (), (AliasEntry("m", "chat", 0, (("rel-1", 1000),), endpoints, (), 0, "f"),))


def offers(*names: str) -> bytes:
    return json.dumps({"data": [{"id": n, "max_model_len": 4096} for n in names]}).encode()


def test_peers_are_found_in_a_table() -> None:
    assert list(peers_in(table(OWN, peer("a"), peer("b")))) == ["peer:a", "peer:b"]


def test_only_peers_that_offer_the_alias_stay() -> None:
    full = table(OWN, peer("a"), peer("b"), peer("c"), peer("new"))
    statuses = {
        "peer:a": read_models(200, offers("m", "x"), 5),
        "peer:b": read_models(200, offers("x"), 5),
        "peer:c": unreachable("it cannot be asked", 5),
    }
    alias = resolve(full, statuses).aliases[0]
    assert [e.replica for e in alias.endpoints] == ["r-1", "peer:a", "peer:new"]
    assert alias.context_tokens == 4096
    assert "peer:b: does not offer m" in alias.reason
    assert "peer:c: it cannot be asked" in alias.reason
    assert resolve(full, {}) is full


@pytest.mark.parametrize(
    ("status", "body"), [(401, offers("m")), (200, b"<html>"), (200, b"[]"), (200, b'{"data": 5}')]
)
def test_what_is_no_list_of_models_is_a_failure(status: int, body: bytes) -> None:
    found = read_models(status, body, 5)
    assert not found.reachable
    assert found.reason


def test_who_is_asked_when() -> None:
    directory = Directory()
    peers = peers_in(table(peer("a")))
    assert [e.replica for e in directory.due(peers, 0)] == ["peer:a"]
    assert directory.due(peers, 0) == []  # one question at a time
    assert directory.record("peer:a", read_models(200, offers("m"), 10))
    assert not directory.record("peer:a", read_models(200, offers("m"), 20))
    assert directory.due(peers, 20 + REFRESH_US - 1) == []
    assert directory.due(peers, 20 + REFRESH_US)
    assert directory.record("peer:a", unreachable("gone", 30))
    assert directory.due(peers, 30 + RETRY_US)
    assert directory.due({}, 0) == []
    assert directory.statuses == {}


def test_secrets_by_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEER_KEY", " tm-secret ")
    (tmp_path / "key").write_text("tm-file\n")
    secrets = Secrets()
    assert secrets.read("secret://env/PEER_KEY") == b"tm-secret"
    assert secrets.read(f"secret://file{tmp_path / 'key'}") == b"tm-file"
    for bad in ("secret://env/UNSET_NAME", "tm-plain", f"secret://file{tmp_path / 'none'}"):
        with pytest.raises(OSError):
            secrets.read(bad)
    (tmp_path / "evil").write_bytes(b"a\r\nx: y")
    with pytest.raises(OSError):
        secrets.read(f"secret://file{tmp_path / 'evil'}")
