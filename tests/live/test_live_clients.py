"""Unmodified clients against the real gateway, the real controller and a real small model.

One factory for all of them: what a scripted engine cannot show is that real answers fit what clients expect.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pytest
from live_bed import LiveFactory, until
from pydantic import BaseModel

pytestmark = [pytest.mark.live, pytest.mark.model, pytest.mark.filterwarnings("ignore")]

Require = Callable[[bool, str], None]
ROOT = Path(__file__).resolve().parents[2]
CLIENTS = ROOT / ".venv-clients" / "bin" / "python"
PAGE = ROOT / "docs" / "api.md"
EXAMPLE = re.compile(r"```(python|bash)\n((?:(?!```).)*)```\n```\n((?:(?!```).)*)```\n", re.DOTALL)
RUN = {"python": (sys.executable, "-c"), "bash": ("bash", "-euc")}
SAY = [{"role": "user", "content": "Say one short sentence about rain."}]
LOOK = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Riga", "Tallinn"]}},
        "required": ["city"],
    },
}


@pytest.fixture
def client(mill: LiveFactory) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=mill.url + "/v1", api_key=mill.secret, timeout=120) as found:
        yield found


def test_every_example_of_the_page_runs(mill: LiveFactory) -> None:
    """Each is run as it stands. What they print is what the page shows; a model's numbers and words differ by
    machine, so that only what does not is compared.
    """
    examples = EXAMPLE.findall(PAGE.read_text())
    assert len(examples) >= 7
    where = {**os.environ, "OPENAI_BASE_URL": mill.url + "/v1", "OPENAI_API_KEY": mill.secret}
    for kind, code, shown in examples:
        command = (*RUN[kind], code)
        done = subprocess.run(command, env=where, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, code + done.stderr[-2000:]
        print(f"{code}{done.stdout}")  # noqa: T201 - `pytest -s` gives the page's text
        # The model's words may have lines of their own.
        assert done.stdout.count("\n") >= shown.count("\n") or kind == "bash", done.stdout
        if '"error"' in shown:
            assert done.stdout.strip() == shown.strip()


class Weather(BaseModel):
    city: Literal["Riga", "Tallinn"]
    warm: bool


def test_openai_chat_streams_and_parses(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="smol", messages=SAY, max_completion_tokens=8, store=False, reasoning_effort="low"
    )
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 8
    with client.chat.completions.stream(model="smol", messages=SAY, max_tokens=300) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        assert stream.get_final_completion().choices[0].message.content == text
    ask = [{"role": "user", "content": "Is it warm in Tallinn? Answer as JSON."}]
    parsed = client.chat.completions.parse(
        model="smol", messages=ask, response_format=Weather, max_tokens=60, temperature=0
    )
    assert isinstance(parsed.choices[0].message.parsed, Weather)


def test_a_text_of_very_many_is_one_of_them(client: openai.OpenAI) -> None:
    """As they stand, 2,000 values take llama.cpp seconds, in which it answers nobody else."""
    nested = ["a" * length for length in range(1, 81)]
    odd = [f"é({n}) a.b|c? [x] {{{n}}} $1 ^2 + * / ü{n}" for n in range(300)]
    for values in ([f"value-{n}" for n in range(2000)], nested, odd):
        shape: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": values}}}
        answer = client.chat.completions.create(
            model="smol", messages=SAY, response_format=shape, max_tokens=100, temperature=0
        )
        assert json.loads(answer.choices[0].message.content or "") in values


class Forecast(BaseModel):
    at: Weather
    days: Literal[1, 2, 3]


def test_a_call_that_is_asked_for_comes(client: openai.OpenAI) -> None:
    """SmolLM2 was not trained to call tools: left to itself it answers in sentences."""
    ask: Any = {"model": "smol", "messages": [{"role": "user", "content": "Is it warm in Tallinn?"}]}
    tools: Any = [
        openai.pydantic_function_tool(Forecast),
        {"type": "function", "function": {**LOOK, "strict": True}},
    ]
    offered = client.chat.completions.create(**ask, tools=tools[1:], max_tokens=8)
    assert offered.choices[0].message.content
    assert offered.usage is not None
    assert offered.usage.prompt_tokens > 60  # the tool is in the prompt
    named: Any = {"type": "function", "function": {"name": "Forecast"}}
    made = client.chat.completions.parse(**ask, tools=tools, tool_choice=named, max_tokens=200)
    assert made.choices[0].finish_reason == "tool_calls"
    (call,) = made.choices[0].message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, Forecast)
    with client.chat.completions.stream(**ask, tools=tools, tool_choice="required", max_tokens=200) as stream:
        (call,) = stream.get_final_completion().choices[0].message.tool_calls or ()
    assert call.function.name in ("Forecast", LOOK["name"])
    responded = client.responses.create(
        model="smol",
        input="Is it warm in Tallinn?",
        tools=[{"type": "function", "strict": True, **LOOK}],
        tool_choice="required",
    )
    assert responded.output[0].type == "function_call"
    assert json.loads(responded.output[0].arguments)["city"] in ("Riga", "Tallinn")
    several = client.chat.completions.create(
        **ask, tools=tools[1:], tool_choice="required", parallel_tool_calls=True, max_tokens=200
    )
    for call in several.choices[0].message.tool_calls or ():
        assert call.function.name == LOOK["name"]
    first = (several.choices[0].message.tool_calls or ())[0]
    assert json.loads(first.function.arguments)["city"] in ("Riga", "Tallinn")
    odd: Any = {"type": "function", "function": {"name": "b", "parameters": {"type": "objekt"}}}
    with pytest.raises(openai.BadRequestError, match="objekt") as refused:
        client.chat.completions.create(**ask, tools=[*tools, odd], tool_choice="required", max_tokens=9)
    assert refused.value.param == "tools[2].function.parameters"
    cut = client.chat.completions.create(**ask, tools=tools, tool_choice="required", max_tokens=3)
    assert cut.choices[0].finish_reason == "length"
    assert cut.choices[0].message.tool_calls is None


def test_openai_is_told_what_the_engine_cannot_do(client: openai.OpenAI) -> None:
    """llama.cpp counts the first of several answers only, so the others would be billed to nobody."""
    with pytest.raises(openai.BadRequestError) as several:
        client.chat.completions.create(model="smol", messages=SAY, n=3, max_tokens=5)
    assert (several.value.code, several.value.param) == ("unsupported_parameter", "n")
    with pytest.raises(openai.BadRequestError) as prompts:
        client.completions.create(model="smol", prompt=["a b c", "d e"], max_tokens=5)
    assert (prompts.value.code, prompts.value.param) == ("unsupported_parameter", "prompt")
    with pytest.raises(openai.BadRequestError) as shorter:
        client.embeddings.create(model="embed", input="rain", dimensions=10)
    assert (shorter.value.code, shorter.value.param) == ("unsupported_parameter", "dimensions")
    for own in ({"id_slot": 0}, {"lora": [{"id": 0, "scale": 0.0}]}, {"reasoning_format": "x"}):
        with pytest.raises(openai.BadRequestError) as shared:
            client.chat.completions.create(model="smol", messages=SAY, max_tokens=2, extra_body=own)
        assert shared.value.param == next(iter(own))
    sound: Any = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}
    with pytest.raises(openai.BadRequestError) as heard:
        client.chat.completions.create(model="smol", messages=[{"role": "user", "content": [sound]}])
    assert heard.value.code == "unsupported_content"
    assert "cannot hear audio" in heard.value.message


def test_openai_usage_comes_when_it_is_asked_for(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="smol", messages=SAY, max_tokens=2, stream=True))
    assert all(chunk.choices for chunk in chunks)
    usage = list(
        client.chat.completions.create(
            model="smol", messages=SAY, max_tokens=2, stream=True, stream_options={"include_usage": True}
        )
    )
    assert usage[-1].choices == []
    assert usage[-1].usage is not None


def test_openai_async_embeddings_completions_and_errors(mill: LiveFactory) -> None:
    async def work() -> None:
        async with openai.AsyncOpenAI(base_url=mill.url, api_key=mill.secret, timeout=120) as c:
            made = await c.embeddings.create(model="embed", input=["rain", "snow"])  # base64, as the SDK asks
            plain = await c.embeddings.create(model="embed", input="rain", encoding_format="float")
            assert len(made.data) == 2
            assert made.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-3)
            ids = httpx.post(
                f"{mill.url}/tokenize", json={"model": "embed", "prompt": "rain"}, headers=mill.headers
            ).json()["tokens"]
            for tokens in (ids, [ids, ids]):
                found = await c.embeddings.create(model="embed", input=tokens)
                assert len(found.data) == (2 if tokens is not ids else 1)
            text = await c.completions.create(model="smol", prompt="One, two,", max_tokens=4)
            assert text.choices[0].text
            with pytest.raises(openai.NotFoundError) as gone:
                await c.chat.completions.create(model="none", messages=SAY)
            assert gone.value.code == "model_not_found"
            long_words = [{"role": "user", "content": "word " * 3000}]
            with pytest.raises(openai.BadRequestError) as long:
                await c.chat.completions.create(model="smol", messages=long_words, stream=True)
            assert long.value.code == "context_length_exceeded"
            assert "maximum context length is 1024 tokens" in str(long.value)
            with pytest.raises(openai.BadRequestError) as text_too_long:
                await c.embeddings.create(model="embed", input="word " * 2000)  # beyond llama.cpp's batch
            assert "resulted in 2002 tokens" in str(text_too_long.value)
            assert (text_too_long.value.code, text_too_long.value.param) == (
                "context_length_exceeded",
                "input",
            )
            assert "reduce the length of the input." in str(text_too_long.value)
            picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
            with pytest.raises(openai.BadRequestError) as blind:
                await c.chat.completions.create(
                    model="smol", messages=[{"role": "user", "content": [picture]}]
                )
            assert "cannot see images" in str(blind.value)

    asyncio.run(work())


def test_openai_responses(client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model="smol", input="Say hello.", max_output_tokens=8, top_logprobs=2, temperature=0
    )
    said = answer.output[0].content[0].logprobs
    assert "".join(token.token for token in said) == answer.output_text != ""
    assert [len(token.top_logprobs) for token in said] == [2] * len(said)
    assert answer.usage is not None
    counted = client.responses.input_tokens.count(model="smol", input="Say hello.")
    assert counted.input_tokens == answer.usage.input_tokens
    with pytest.raises(openai.BadRequestError, match="reduce the length of the input") as long:
        client.responses.create(model="smol", input="word " * 3000)
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "input")
    assert answer.status in ("completed", "incomplete")
    with client.responses.stream(model="smol", input="Say hello.", max_output_tokens=200) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert "response.output_text.delta" in kinds
    assert final.output_text
    parsed = client.responses.parse(
        model="smol", input="Is it warm in Tallinn?", text_format=Weather, max_output_tokens=60
    )
    assert isinstance(parsed.output_parsed, Weather)


def test_anthropic_messages(mill: LiveFactory) -> None:
    anthropic = importlib.import_module("anthropic")
    with anthropic.Anthropic(base_url=mill.url, api_key=mill.secret, timeout=120) as c:
        words: Any = [{"role": "user", "content": "Say hello."}]
        answer = c.messages.create(model="smol", max_tokens=8, system="Be brief.", messages=words)
        assert answer.content[0].text
        assert answer.usage.output_tokens > 0
        assert answer._request_id.startswith("req-")
        with c.messages.stream(model="smol", max_tokens=8, messages=words) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        assert final.content[0].text == text
        assert final.usage.input_tokens + (final.usage.cache_read_input_tokens or 0) > 0
        assert c.messages.count_tokens(model="smol", messages=words).input_tokens > 3
        tools: Any = [{"name": LOOK["name"], "description": "weather", "input_schema": LOOK["parameters"]}]
        assert c.messages.create(model="smol", max_tokens=8, messages=words, tools=tools).content
        called = c.messages.create(
            model="smol",
            max_tokens=100,
            messages=SAY,
            tools=[{"name": "look", "input_schema": LOOK["parameters"]}],
            tool_choice={"type": "any"},
        )
        assert called.stop_reason == "tool_use"
        assert called.content[0].input["city"] in ("Riga", "Tallinn")
        shaped = c.messages.parse(model="smol", max_tokens=80, messages=SAY, output_format=Weather)
        assert isinstance(shaped.parsed_output, Weather)
        with pytest.raises(anthropic.NotFoundError):
            c.messages.create(model="none", max_tokens=8, messages=words)
        with pytest.raises(anthropic.AuthenticationError):
            c.with_options(api_key="tm-none").messages.create(model="smol", max_tokens=8, messages=words)


def test_the_same_prompt_costs_the_same_on_every_surface(mill: LiveFactory, client: openai.OpenAI) -> None:
    # The first one warms the prompt's cache, which has a price of its own.
    for _ in range(2):
        chat = client.chat.completions.create(model="smol", messages=SAY, max_tokens=1, temperature=0)
    response = client.responses.create(
        model="smol", input=SAY[0]["content"], max_output_tokens=1, temperature=0
    )
    body = {"model": "smol", "messages": SAY, "max_tokens": 1, "temperature": 0}
    message = httpx.post(f"{mill.url}/v1/messages", json=body, headers=mill.headers, timeout=60)
    names = [chat._request_id, response._request_id, message.headers["x-request-id"]]

    def costs() -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(f"file:{mill.paths.database}?mode=ro", uri=True)) as db:
            return [
                db.execute(
                    "SELECT input_tokens, output_tokens, "
                    "(SELECT sum(amount) FROM postings WHERE entry = request AND unit LIKE 'micros:%') "
                    "FROM settlements WHERE request = ?",
                    (name,),
                ).fetchone()
                for name in names
            ]

    until(lambda: None not in costs())
    assert len(set(costs())) == 1, costs()
    assert costs()[0][2] > 0


def test_langchain(mill: LiveFactory) -> None:
    langchain = importlib.import_module("langchain_openai")
    base: dict[str, Any] = {"base_url": mill.url + "/v1", "api_key": mill.secret}
    chat = langchain.ChatOpenAI(model="smol", max_tokens=60, **base)
    answer = chat.invoke("Say hello.")
    assert answer.content
    assert answer.usage_metadata["output_tokens"] > 0
    assert "".join(str(chunk.content) for chunk in chat.stream("Say hello."))
    assert chat.with_structured_output(Weather, method="json_schema").invoke("Is Tallinn warm?")
    # Its default cuts texts with a tokenizer that it downloads; ours is the engine's.
    embedder = langchain.OpenAIEmbeddings(model="embed", check_embedding_ctx_length=False, **base)
    assert len(embedder.embed_documents(["rain", "snow"])) == 2


def test_litellm(mill: LiveFactory) -> None:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the internet when it is imported
    litellm = importlib.import_module("litellm")
    base: dict[str, Any] = {"api_base": mill.url + "/v1", "api_key": mill.secret}
    answer = litellm.completion(model="openai/smol", messages=SAY, max_tokens=8, **base)
    assert answer.choices[0].message.content
    chunks = list(litellm.completion(model="openai/smol", messages=SAY, max_tokens=8, stream=True, **base))
    assert any(chunk.choices[0].delta.content for chunk in chunks)
    assert len(litellm.embedding(model="openai/embed", input=["rain"], **base).data) == 1


LLAMA_INDEX = """
import sys
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
base = {"api_base": sys.argv[1] + "/v1", "api_key": sys.argv[2], "model": "smol", "max_tokens": 8}
chat = OpenAILike(is_chat_model=True, **base)
assert str(chat.chat([ChatMessage(role="user", content="Say hello.")]).message.content)
assert "".join(part.delta or "" for part in chat.stream_chat([ChatMessage(role="user", content="Hi.")]))
assert OpenAILike(is_chat_model=False, **base).complete("One, two,").text
print("fine")
"""


def test_llama_index(mill: LiveFactory, require: Require) -> None:
    """In an environment of its own: it wants an older transformers than the tuning does."""
    require(CLIENTS.exists(), "there is no .venv-clients; `python .ci/setup.py apart` makes it")
    command = (str(CLIENTS), "-c", LLAMA_INDEX, mill.url, mill.secret)
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.stdout.strip().endswith("fine"), done.stderr[-2000:]


def test_open_webuis_probe_sequence(mill: LiveFactory) -> None:
    """What it asks when a connection is added, a page is opened and a chat is begun."""
    with httpx.Client(base_url=mill.url + "/v1", headers=mill.headers, timeout=60) as c:
        models = c.get("/models").json()
        assert {"smol", "embed"} <= {m["id"] for m in models["data"]}
        assert all({"id", "object", "created", "owned_by"} <= m.keys() for m in models["data"])
        body = {
            "model": "smol",
            "messages": SAY,
            "stream": True,
            "max_tokens": 4,
            "stream_options": {"include_usage": True},
            "metadata": {"chat_id": "x"},
        }
        with c.stream("POST", "/chat/completions", json=body) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = [line for line in answer.iter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        assert json.loads(lines[-2][6:])["choices"] == []
    assert httpx.get(mill.url + "/v1/models", headers={"authorization": "Bearer none"}).status_code == 401


def test_schemathesis_finds_no_server_error(mill: LiveFactory, tmp_path: Path) -> None:
    """Requests made from the description, right and wrong ones, to the gateway and the real controller."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", mill.url + "/openapi.json"]
    command += ["--header", f"Authorization: Bearer {mill.secret}", "--checks", "not_a_server_error"]
    command += ["--max-examples", "12", "--phases", "examples,coverage,fuzzing", "--seed", "7"]
    command += ["--exclude-path", "/readyz", "--generation-database", "none", "--no-color"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    tried = re.search(r"generated, (\d+) passed", done.stdout)
    assert tried, done.stdout[-2000:]
    assert int(tried[1]) > 1000, done.stdout[-2000:]
    assert mill.answers()  # and all goes on


def settled_after_a_while(mill: LiveFactory) -> set[str]:
    """The ledger's requests when it has taken all that the gateway wrote."""

    def written() -> int:
        files = mill.paths.spool.glob("gateway-*.jsonl")
        return sum(path.read_bytes().count(b'"t":"settle"') for path in files)

    until(lambda: len(mill.settlements()) >= written())
    return set(mill.settlements())


def test_files_and_batches_survive_a_killed_controller(mill: LiveFactory, client: openai.OpenAI) -> None:
    def line(number: int) -> str:
        words = [{"role": "user", "content": f"Say the number {number}."}]
        body = {"model": "smol", "messages": words, "max_tokens": 4}
        return json.dumps(
            {"custom_id": f"n{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        )

    before = settled_after_a_while(mill)
    data = "\n".join(line(number) for number in range(30)).encode()
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    assert client.files.retrieve(file.id).bytes == len(data)
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )

    def counts() -> Any:
        return client.batches.retrieve(batch.id).request_counts

    until(lambda: counts().completed >= 3, 120)
    mill.kill_controller()
    with pytest.raises(openai.InternalServerError):
        client.with_options(max_retries=0).batches.retrieve(batch.id)
    assert mill.ask(2).status_code == 200  # models go on without the controller
    asked = 1
    mill.up()
    until(lambda: client.batches.retrieve(batch.id).status == "completed", 180)
    done = client.batches.retrieve(batch.id)
    assert (done.request_counts.total, done.request_counts.completed) == (30, 30)
    assert done.error_file_id is None
    rows = [json.loads(x) for x in client.files.content(done.output_file_id).text.splitlines()]
    assert [row["custom_id"] for row in rows] == [f"n{number}" for number in range(30)]
    names = {row["response"]["request_id"] for row in rows}
    assert len(names) == 30
    # Each line was done once, whoever led at the time, and the ledger agrees with the engine's answers.
    new = settled_after_a_while(mill) - before
    assert names <= new
    assert len(new) == 30 + asked
    assert mill.api("GET", "/api/ledger/verify")["ok"]
    assert {f.id for f in client.files.list(purpose="batch_output")} == {done.output_file_id}
    client.files.delete(file.id)
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)
