"""Command lines, capabilities and measures of the engines; none is started."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tokenmill.domain.errors import EngineError, MissingExtraError, NotFoundError
from tokenmill.engine import adapter
from tokenmill.engine.adapter import Launch

PLAIN = Launch(
    alias="assistant",
    weights=Path("/w/model.gguf"),
    port=4000,
    unpacked=Path("/c/model"),
    slots=4,
    context_tokens=1024,
)


def argv_of(name: str, **changes: object) -> tuple[adapter.Command, str]:
    launch = Launch(**{**{f: getattr(PLAIN, f) for f in Launch.__slots__}, **changes})  # type: ignore[arg-type]
    build = adapter.engine_named(name).command
    assert build is not None
    command = build(launch)
    return command, " ".join(command.argv)


def test_embedded_command_is_this_python_on_loopback() -> None:
    command, line = argv_of("embedded")
    assert command.argv[:3] == (sys.executable, "-m", "tokenmill.engine.embedded")
    assert "--weights /w/model.gguf --alias assistant --host 127.0.0.1 --port 4000" in line
    assert "--slots 4 --context 1024 --threads 0" in line
    assert "--lora" not in line
    assert "--embedding" not in line
    assert command.model == "assistant"


@pytest.mark.parametrize("name", sorted(n for n, e in adapter.ENGINES.items() if e.command is not None))
def test_every_engine_listens_on_loopback_unless_told_otherwise(name: str) -> None:
    command, _ = argv_of(name)
    assert command.argv.count("--host") == 1
    assert command.argv[command.argv.index("--host") + 1] == "127.0.0.1"


def test_embedded_command_with_adapter_and_own_arguments() -> None:
    _, line = argv_of("embedded", lora=Path("/w/a.gguf"), engine_args=("--threads", "1"))
    assert "--lora /w/a.gguf" in line
    assert line.endswith("--threads 1")


def test_embedding_models_get_the_flag_once() -> None:
    assert argv_of("embedded", kind="embedding")[1].count("--embedding") == 1
    assert argv_of("embedding")[1].count("--embedding") == 1
    assert argv_of("embedding", kind="embedding")[1].count("--embedding") == 1


def test_vllm_command_on_gpus() -> None:
    command, line = argv_of("vllm", accelerators=("0", "1"), lora=Path("/w/adapter"))
    assert "--model /w/model.gguf --served-model-name assistant.base" in line
    assert "--max-model-len 1024 --max-num-seqs 4" in line
    assert "--enable-lora --lora-modules assistant=/w/adapter --max-lora-rank 64" in line
    assert "--tensor-parallel-size 2" in line
    assert command.env["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert command.env["VLLM_NO_USAGE_STATS"] == "1"
    assert command.model == "assistant"


def test_vllm_command_on_cpu_keeps_its_cache_within_memory() -> None:
    command, line = argv_of("vllm", memory_bytes=8 << 30, kind="embedding")
    assert command.env["VLLM_CPU_KVCACHE_SPACE"] == "4"
    assert "CUDA_VISIBLE_DEVICES" not in command.env
    assert "--runner pooling" in line
    assert "--served-model-name assistant " in line


@pytest.mark.parametrize(("name", "flag"), [("vllm", "--model"), ("sglang", "--model-path")])
def test_a_gguf_file_is_unpacked_for_engines_that_read_none(name: str, flag: str, tmp_path: Path) -> None:
    weights = tmp_path / "b179"
    weights.write_bytes(b"GGUF")
    command, line = argv_of(name, weights=weights)
    assert command.argv[1:6] == ("-m", "tokenmill.engine.unpacked", str(weights), "/c/model", "--")
    assert f"{flag} /c/model " in line


def test_sglang_command() -> None:
    command, line = argv_of("sglang", accelerators=("3",), lora=Path("/w/adapter"), kind="embedding")
    assert "-m sglang.launch_server --model-path /w/model.gguf --served-model-name assistant.base" in line
    assert "--context-length 1024 --max-running-requests 4 --enable-metrics" in line
    assert "--lora-paths assistant=/w/adapter" in line
    assert "--is-embedding" in line
    assert command.env["CUDA_VISIBLE_DEVICES"] == "3"


def test_a_running_server_has_no_command() -> None:
    with pytest.raises(EngineError, match="url"):
        adapter.command("openai", PLAIN)


def test_unknown_engine_lists_those_there_are() -> None:
    with pytest.raises(NotFoundError, match="embedded, embedding, openai, sglang, vllm"):
        adapter.command("ollama", PLAIN)


def test_missing_engine_says_how_to_install_it() -> None:
    if adapter.probe("sglang").installed:
        pytest.skip("sglang is installed here")
    with pytest.raises(MissingExtraError, match="pip install"):
        adapter.command("sglang", PLAIN)


def test_probe_all_is_sorted_and_says_versions() -> None:
    probes = adapter.probe_all()
    assert [p.engine for p in probes] == sorted(adapter.ENGINES)
    for found in probes:
        assert found.installed or found.hint


def test_only_200_is_ready() -> None:
    assert adapter.is_ready(200)
    assert not adapter.is_ready(503)


@pytest.mark.parametrize("cache", ["kv_cache_usage_perc", "gpu_cache_usage_perc"])
def test_vllm_measures_under_old_and_new_names(cache: str) -> None:
    text = (
        "# TYPE vllm:num_requests_running gauge\n"
        'vllm:num_requests_running{engine="0",model_name="m"} 2.0\n'
        'vllm:num_requests_running{engine="1",model_name="m"} 1.0\n'
        f"# TYPE vllm:{cache} gauge\n"
        f'vllm:{cache}{{model_name="m"}} 0.25\n'
        "# TYPE vllm:generation_tokens_total counter\n"
        'vllm:generation_tokens_total{model_name="m"} 17.0\n'
    )
    assert adapter.measures("vllm", text) == {"running": 3.0, "cache_used": 0.25, "output_tokens": 17.0}


def test_measures_of_a_server_without_any() -> None:
    assert adapter.measures("openai", "x 1\n") == {}
