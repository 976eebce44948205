"""Two factories from their files: one answers for the other, within the law, and both settle the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_bed import FACTORY, LiveFactory, check_books

from tokenmill.domain.factory import Project, Tenant
from tokenmill.spec.factory_file import load

pytestmark = [pytest.mark.live, pytest.mark.model, pytest.mark.timeout(240)]

HERE = """
kind: factory
name: here
---
kind: site
name: here
jurisdiction: tw
nodes: this-machine
---
kind: tenant
name: acme
projects: [default]
---
kind: tenant
name: bound
projects: [default]
jurisdictions: [tw]
---
kind: peer
name: there
url: {url}/v1
jurisdiction: ee
key: secret://file{key}
aliases: [smol]
"""


THERE = replace(FACTORY, tenants=(*FACTORY.tenants, Tenant("here", (Project("forwarded"),))))


@pytest.fixture
def there(live: LiveFactory, until: Callable[..., None]) -> LiveFactory:
    """A factory that serves the small model."""
    live.up(THERE)
    live.make_key()
    until(live.ready)
    until(live.answers)
    return live


@pytest.fixture
def here(there: LiveFactory, tmp_path: Path) -> Iterator[LiveFactory]:
    """A factory without a model, whose peer is ``there``."""
    folder = tmp_path / "here"
    folder.mkdir()
    key = there.api("POST", "/api/keys", {"tenant": "here", "project": "forwarded"})
    (folder / "key").write_text(key["secret"] + "\n")
    factory = LiveFactory(folder)
    factory.file.write_text(HERE.format(url=there.url, key=folder / "key"))
    try:
        factory.up(load([factory.file], {}))
        factory.make_key()
        yield factory
    finally:
        factory.show_logs()
        factory.clean_up()


def ask(url: str, secret: str, **more: Any) -> httpx.Response:
    body = {"model": "smol", "messages": [{"role": "user", "content": "Say hi"}], "max_tokens": 8, **more}
    headers = {"authorization": f"Bearer {secret}"}
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60, trust_env=False)


def peer_of(factory: LiveFactory) -> Any:
    return factory.api("GET", "/api/peers")[0]


def test_a_peer_answers_and_bills_what_was_settled_here(
    here: LiveFactory, there: LiveFactory, until: Callable[..., None]
) -> None:
    until(lambda: here.api("GET", "/api/status")["peers"][0]["reachable"] is True)
    whole = ask(here.url, here.secret)
    assert whole.status_code == 200, whole.text
    stream = ask(here.url, here.secret, stream=True)
    assert stream.text.rstrip().endswith("data: [DONE]")
    key = {"tenant": "bound", "project": "default"}
    refused = ask(here.url, here.api("POST", "/api/keys", key)["secret"])
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "residency_refused")

    until(lambda: peer_of(here)["here"]["requests"] == 2)
    found = peer_of(here)
    assert found["there"]["requests"] == 2, "the refused one never left"
    assert found["differs"] == []
    assert found["there"]["output_tokens"] > 0
    assert float(found["there"]["cost"]["USD"]) > 0
    assert "the same" in here.tokenmill("peers", "--since", "1h")
    assert here.api("GET", "/api/ledger/verify")["ok"]
    check_books(there)
    assert "peer there" in here.tokenmill("status")
    assert here.api("GET", "/api/why/smol")["status"] == "elsewhere"

    there.down()
    until(lambda: here.api("GET", "/api/status")["peers"][0]["reachable"] is False)
    lost = ask(here.url, here.secret)
    assert (lost.status_code, lost.json()["error"]["code"]) == (503, "model_not_ready")
    assert "cannot be asked" in peer_of(here)["problem"]
    assert peer_of(here)["here"]["requests"] == 2
    here.down()
