"""The embedded engine as its own process: what no cheaper test shows is how the real server behaves."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from ports import free_port

from tokenmill.domain.errors import CorruptWeightsError, MissingExtraError, UsageError
from tokenmill.engine import adapter, embedded
from tokenmill.line.conversation import conversation

pytestmark = [pytest.mark.live, pytest.mark.model]
READY_S = 60.0
CLOSE = {"connection": "close"}  # see engine.generate


def start(launch: adapter.Launch) -> tuple[subprocess.Popen[bytes], httpx.Client]:
    command = adapter.command("embedded", launch)
    process = subprocess.Popen(command.argv, stderr=subprocess.PIPE)
    client = httpx.Client(base_url=f"http://127.0.0.1:{launch.port}", timeout=60.0, trust_env=False)
    until = time.monotonic() + READY_S
    while time.monotonic() < until and process.poll() is None:
        try:
            if adapter.is_ready(client.get("/health").status_code):
                return process, client
        except httpx.TransportError:
            time.sleep(0.05)
    process.kill()
    raise AssertionError(process.communicate()[1])


def stop(process: subprocess.Popen[bytes], client: httpx.Client) -> None:
    client.close()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert process.stderr is not None
    process.stderr.close()


@pytest.fixture(scope="module")
def chat(chat_gguf: Path) -> Iterator[httpx.Client]:
    unread = chat_gguf.parent
    launch = adapter.Launch("assistant", chat_gguf, free_port(), unread, slots=2, context_tokens=512)
    process, client = start(launch)
    yield client
    stop(process, client)


@pytest.fixture(scope="module")
def embeddings(minilm_gguf: Path) -> Iterator[httpx.Client]:
    unread = minilm_gguf.parent
    launch = adapter.Launch("embed", minilm_gguf, free_port(), unread, context_tokens=512, kind="embedding")
    process, client = start(launch)
    yield client
    stop(process, client)


def ask(**more: object) -> dict[str, object]:
    return {
        "model": "assistant",
        "messages": [{"role": "user", "content": "Say hello."}],
        "max_tokens": 8,
        **more,
    }


def test_chat_answers_under_its_alias_with_usage(chat: httpx.Client) -> None:
    body = chat.post("/v1/chat/completions", json=ask()).raise_for_status().json()
    assert body["model"] == "assistant"
    assert body["choices"][0]["message"]["content"]
    assert 1 <= body["usage"]["completion_tokens"] <= 8
    assert chat.get("/v1/models").json()["data"][0]["id"] == "assistant"


def test_streams_end_with_usage_and_done(chat: httpx.Client) -> None:
    body = ask(stream=True, stream_options={"include_usage": True})
    with chat.stream("POST", "/v1/chat/completions", json=body, headers=CLOSE) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[-2][6:])["usage"]["prompt_tokens"] > 0


def test_tools_and_json_schema_are_taken(chat: httpx.Client) -> None:
    weather = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 8}},
        "required": ["city"],
    }
    tool = {"type": "function", "function": {"name": "weather", "parameters": weather}}
    assert chat.post("/v1/chat/completions", json=ask(tools=[tool])).status_code == 200
    user = {"role": "user", "content": "Weather in Riga?"}
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Riga"}'}}
    talk = [user, {"role": "assistant", "content": "", "tool_calls": [call]}, {**user, "role": "tool"}, user]
    whole = chat.post("/apply-template", json={"messages": talk, "tools": [tool]}).json()["prompt"]
    learnt, _, _ = conversation(
        {"messages": [*talk, {"role": "assistant", "content": "?"}], "tools": [tool]}, ""
    )
    texts = [f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in learnt[:-1]]
    assert whole == "".join(texts) + "<|im_start|>assistant\n"
    shape = {"type": "json_schema", "json_schema": {"name": "w", "schema": weather}}
    text = chat.post("/v1/chat/completions", json=ask(response_format=shape, max_tokens=40)).json()
    assert "city" in json.loads(text["choices"][0]["message"]["content"])


def test_a_prompt_beyond_the_context_is_refused(chat: httpx.Client) -> None:
    messages = [{"role": "user", "content": "hello " * 600}]
    assert chat.post("/v1/chat/completions", json=ask(messages=messages)).status_code == 400


def test_a_client_that_leaves_ends_its_generation(chat: httpx.Client) -> None:
    body = ask(stream=True, max_tokens=450, ignore_eos=True)
    with chat.stream("POST", "/v1/chat/completions", json=body, headers=CLOSE) as answer:
        next(answer.iter_lines())
    until = time.monotonic() + 30
    while time.monotonic() < until:
        found = adapter.measures("embedded", chat.get("/metrics").text)
        if found["running"] == 0:
            break
        time.sleep(0.05)
    assert found["running"] == 0
    assert found["output_tokens"] < 450


def test_no_page_and_no_view_of_others_prompts(chat: httpx.Client) -> None:
    assert chat.get("/").status_code == 404
    assert chat.get("/slots").status_code == 501


@pytest.mark.parametrize("given", ["hello", ["hello", "world"], [7592], [[7592], [2088, 2003]]])
def test_embeddings_take_all_forms_of_input(embeddings: httpx.Client, given: object) -> None:
    body = (
        embeddings.post("/v1/embeddings", json={"model": "embed", "input": given}).raise_for_status().json()
    )
    assert len(body["data"]) == (len(given) if isinstance(given, list) and given != [7592] else 1)
    assert len(body["data"][0]["embedding"]) == 384
    assert body["usage"]["prompt_tokens"] > 0


def test_embeddings_in_base64(embeddings: httpx.Client) -> None:
    body = {"model": "embed", "input": "hello", "encoding_format": "base64"}
    assert isinstance(embeddings.post("/v1/embeddings", json=body).json()["data"][0]["embedding"], str)


def test_too_long_an_input_is_refused_as_the_clients_fault(embeddings: httpx.Client) -> None:
    body = {"model": "embed", "input": "word " * 700}
    assert embeddings.post("/v1/embeddings", json=body).status_code == 400


def test_embeddings_equal_those_of_transformers(embeddings: httpx.Client, minilm: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    texts = [f"Sentence {i} about naïve cafés, card PINs and 东京: {'very ' * i}long!" for i in range(20)]
    answer = embeddings.post("/v1/embeddings", json={"model": "embed", "input": texts}).json()
    ours = torch.tensor([item["embedding"] for item in answer["data"]])
    batch = transformers.AutoTokenizer.from_pretrained(minilm)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = transformers.AutoModel.from_pretrained(minilm)(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    theirs = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
    assert (ours * theirs).sum(1).min().item() > 0.9999
    assert answer["usage"]["prompt_tokens"] == int(mask.sum())


def test_broken_weights_end_with_code_7(chat_gguf: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    with chat_gguf.open("rb") as whole:
        cut.write_bytes(whole.read(8 << 20))
    argv = [sys.executable, "-m", "tokenmill.engine.embedded", "--weights", str(cut), "--alias", "x"]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 7
    assert "could not load" in ended.stderr


def options(weights: Path, **more: object) -> embedded.EmbeddedOptions:
    return embedded.EmbeddedOptions(weights, "x", **more)  # type: ignore[arg-type]


def test_refusals_name_their_cause(chat_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "x.gguf"
    text.write_text("hello")
    with pytest.raises(CorruptWeightsError, match="not a GGUF"):
        embedded.open_server(options(text))
    with pytest.raises(CorruptWeightsError, match="not a GGUF"):
        embedded.open_server(options(chat_gguf, lora=text))
    with pytest.raises(UsageError, match="loopback"):
        embedded.open_server(options(chat_gguf, host="0.0.0.0"))
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(MissingExtraError, match="pip install"):
        embedded.open_server(options(chat_gguf))
