"""Bodies are checked before anything is sent, and what the engine gets is what was checked."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from gateway_rig import table_of

from tokenmill.control.requests import Refuse
from tokenmill.domain.table import AliasEntry, Endpoint
from tokenmill.domain.value import replace
from tokenmill.gateway.body import (
    CHAT,
    COMPLETION_OUTPUT,
    COMPLETIONS,
    DEFAULT_OUTPUT,
    EMBEDDINGS,
    INPUT,
    check_engine,
    check_kind,
    engine_body,
    output_bound,
    prefix_blocks,
    read_body,
)
from tokenmill.gateway.embedded import WITHHELD
from tokenmill.gateway.errors import ApiError, from_engine, refusal

USER = {"role": "user", "content": "hello"}


def read(document: Any, endpoint: str = CHAT) -> Any:
    return read_body(endpoint, orjson.dumps(document))


def alias(kind: str = "chat") -> AliasEntry:
    return next(a for a in table_of([]).aliases if a.kind == kind)


@pytest.mark.parametrize(
    ("endpoint", "document", "param"),
    [
        (CHAT, [], None),
        (CHAT, {"messages": [USER]}, "model"),
        (CHAT, {"model": 5, "messages": [USER]}, "model"),
        (CHAT, {"model": "m"}, "messages"),
        (CHAT, {"model": "m", "messages": []}, "messages"),
        (CHAT, {"model": "m", "messages": ["hi"]}, "messages[0]"),
        (CHAT, {"model": "m", "messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (
            CHAT,
            {"model": "m", "messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
        ),
        *(
            (
                CHAT,
                {"model": "m", "messages": [{"role": "user", "content": [part]}]},
                f"messages[0].content[0].{name}",
            )
            for name in ("image_url", "audio_url", "video_url")
            for part in (
                {name: "http://169.254.169.254/"},
                {name: {"url": "file:///etc/passwd"}, "type": "text", "text": "hi"},
                {"type": name},
            )
        ),
        (CHAT, {"model": "m", "messages": [USER], "max_tokens": 10**12}, "max_tokens"),
        (CHAT, {"model": "m", "messages": [USER], "stop": 5}, "stop"),
        (CHAT, {"model": "m", "messages": [USER], "stop": ["a", None]}, "stop"),
        (CHAT, {"model": "m", "messages": [USER], "stop": ["a", ""]}, "stop"),
        (COMPLETIONS, {"model": "m", "prompt": "x", "stop": ""}, "stop"),
        (CHAT, {"model": "m", "messages": [USER, {"content": "x"}]}, "messages[1]"),
        (CHAT, {"model": "m", "messages": [USER], "stream": "yes"}, "stream"),
        (CHAT, {"model": "m", "messages": [USER], "stream_options": 3}, "stream_options"),
        (CHAT, {"model": "m", "messages": [USER], "max_tokens": 0}, "max_tokens"),
        (CHAT, {"model": "m", "messages": [USER], "max_completion_tokens": 1.5}, "max_completion_tokens"),
        (CHAT, {"model": "m", "messages": [USER], "n": 1000}, "n"),
        (CHAT, {"model": "m", "messages": [USER], "temperature": 3}, "temperature"),
        (COMPLETIONS, {"model": "m"}, "prompt"),
        (COMPLETIONS, {"model": "m", "prompt": [1, "a"]}, "prompt"),
        (EMBEDDINGS, {"model": "m", "input": ""}, "input"),
        (EMBEDDINGS, {"model": "m", "input": "x", "encoding_format": "hex"}, "encoding_format"),
    ],
)
def test_bad_requests_are_400_and_name_the_parameter(endpoint: str, document: Any, param: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        read(document, endpoint)
    assert caught.value.status == 400
    assert caught.value.param == param
    assert set(json.loads(caught.value.body)["error"]) == {"message", "type", "param", "code"}


def test_bad_json_is_400() -> None:
    for body in (b"", b"{", b'{"model": NaN}', b"[" * 5000):
        with pytest.raises(ApiError) as caught:
            read_body(CHAT, body)
        assert caught.value.status == 400


def test_usage_is_always_asked_for_and_other_options_stay() -> None:
    asked = read({"model": "m", "messages": [USER], "stream": True, "stream_options": {"x": 1}})
    assert not asked.wants_usage
    sent = json.loads(engine_body(asked, ""))
    assert sent["stream_options"] == {"x": 1, "include_usage": True}
    assert asked.document["stream_options"] == {"x": 1}
    plain = json.loads(engine_body(read({"model": "m", "messages": [USER], "stream_options": {}}), ""))
    assert "stream_options" not in plain


def test_developer_becomes_system_and_unknown_fields_pass() -> None:
    messages = [{"role": "developer", "content": "be brief", "name": "n"}, USER]
    asked = read({"model": "m", "messages": messages, "grammar": "root ::= x", "max_completion_tokens": 4})
    sent = json.loads(engine_body(asked, "served"))
    assert sent["messages"][0] == {"role": "system", "content": "be brief", "name": "n"}
    assert sent["messages"][1] == USER
    assert sent["grammar"] == "root ::= x"
    assert sent["max_completion_tokens"] == 4
    assert sent["model"] == "served"


def test_a_key_that_occurs_twice_has_one_meaning() -> None:
    asked = read_body(CHAT, b'{"model":"private","messages":[{"role":"user","content":"x"}],"model":"m"}')
    assert asked.alias == "m"
    assert engine_body(asked, "").count(b'"model"') == 1


def test_reservations() -> None:
    entry = alias()
    stated = read({"model": "m", "messages": [USER], "max_tokens": 10, "n": 3})
    assert output_bound(stated, entry) == 30
    assert output_bound(read({"model": "m", "messages": [USER]}), entry) == DEFAULT_OUTPUT
    huge = read({"model": "m", "messages": [{"role": "user", "content": "x" * 15_000}], "max_tokens": 9000})
    assert output_bound(huge, entry) == entry.context_tokens - huge.input_estimate
    assert read({"model": "m", "prompt": list(range(17))}, COMPLETIONS).input_estimate == 17
    parts = [{"type": "text", "text": "x" * 40}, {"type": "image_url", "image_url": {"url": "data:"}}]
    assert read({"model": "m", "messages": [{"role": "user", "content": parts}]}).input_estimate == 14


def test_several_answers() -> None:
    """Each prompt has ``n`` of them; an engine that counts the first only is asked for one at a time."""
    two = read({"model": "m", "prompt": ["a", "b"], "max_tokens": 10, "n": 3}, COMPLETIONS)
    assert (two.answers, output_bound(two, alias())) == (6, 60)
    ids = read({"model": "m", "prompt": [[1, 2], [3]]}, COMPLETIONS)
    assert (ids.answers, output_bound(ids, alias())) == (2, 2 * COMPLETION_OUTPUT)
    assert json.loads(engine_body(ids, ""))["max_tokens"] == COMPLETION_OUTPUT
    assert read({"model": "m", "prompt": "a", "max_tokens": None, "n": 3}, COMPLETIONS).max_output == 48
    assert read({"model": "m", "prompt": "a", "max_completion_tokens": 5}, COMPLETIONS).max_output == 5
    assert read({"model": "m", "prompt": [1, 2, 3]}, COMPLETIONS).answers == 1
    choices = read({"model": "m", "messages": [USER], "n": 2})
    own = Endpoint("r-1", "rel", "h:1", "DE", 4, engine="embedded")
    counted = replace(own, engine="vllm")
    for asked, param in ((two, "prompt"), (ids, "prompt"), (choices, "n")):
        check_engine(asked, replace(alias(), endpoints=(counted,)))
        with pytest.raises(ApiError) as refused:
            check_engine(asked, replace(alias(), endpoints=(counted, own)))
        assert (refused.value.code, refused.value.param) == ("unsupported_parameter", param)
    check_engine(read({"model": "m", "messages": [USER], "n": 1}), replace(alias(), endpoints=(own,)))


def test_what_an_engine_reads_over_is_refused() -> None:
    own = Endpoint("r-1", "rel", "h:1", "DE", 4, engine="embedded")
    counted = replace(own, engine="vllm")
    completion, vector = {"model": "m", "prompt": "a"}, {"model": "m", "input": "a"}
    talk = {"model": "m", "messages": [USER]}
    for document, endpoint, name in (
        ({**completion, "echo": True}, COMPLETIONS, "echo"),
        ({**completion, "suffix": "b"}, COMPLETIONS, "suffix"),
        ({**completion, "best_of": 2}, COMPLETIONS, "best_of"),
        ({**vector, "dimensions": 10}, EMBEDDINGS, "dimensions"),
        ({**completion, "n_cmpl": 3}, COMPLETIONS, "n_cmpl"),
        ({**completion, "n_predict": 3000, "max_tokens": 4}, COMPLETIONS, "n_predict"),
        ({**talk, "n_cmpl": 3}, CHAT, "n_cmpl"),
        ({**talk, "n_predict": -1}, CHAT, "n_predict"),
        ({**talk, "n_probs": 40_000}, CHAT, "n_probs"),
        ({**talk, "guided_json": {"type": "object"}}, CHAT, "guided_json"),
        ({**talk, "structured_outputs": {"choice": ["a"]}}, CHAT, "structured_outputs"),
        ({**completion, "guided_choice": ["a", "b"]}, COMPLETIONS, "guided_choice"),
        ({**talk, "repetition_penalty": 1.1}, CHAT, "repetition_penalty"),
        ({**completion, "min_tokens": 5}, COMPLETIONS, "min_tokens"),
        ({**talk, "stop_token_ids": [2]}, CHAT, "stop_token_ids"),
        ({**talk, "chat_template": "{{ x }}"}, CHAT, "chat_template"),
        ({**talk, "audio": {"voice": "x"}}, CHAT, "audio"),
        ({**talk, "web_search_options": {}}, CHAT, "web_search_options"),
        ({**talk, "modalities": ["text", "audio"]}, CHAT, "modalities"),
    ):
        asked = read(document, endpoint)
        check_engine(asked, replace(alias(), endpoints=(counted,)))
        with pytest.raises(ApiError) as refused:
            check_engine(asked, replace(alias(), endpoints=(own,)))
        assert (refused.value.code, refused.value.param) == ("unsupported_parameter", name)
    for value in (0, False, [], [{"id": 0, "scale": 0.0}], "x"):  # slot 0 and no adapter are values too
        for document in (completion, talk):
            for name in WITHHELD:
                asked = read({**document, name: value}, COMPLETIONS if "prompt" in document else CHAT)
                check_engine(asked, replace(alias(), endpoints=(counted,)))
                with pytest.raises(ApiError) as refused:
                    check_engine(asked, replace(alias(), endpoints=(own,)))
                assert (refused.value.code, refused.value.param) == ("unsupported_parameter", name)
    usual = {**completion, "echo": False, "suffix": None, "best_of": 1, "id_slot": None, "top_k": 5}
    usual |= {"repetition_penalty": 1.0, "min_tokens": 0, "stop_token_ids": [], "use_beam_search": False}
    check_engine(read(usual, COMPLETIONS), replace(alias(), endpoints=(own,)))


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"logprobs": True, "top_logprobs": 40_000}, "top_logprobs"),
        ({"repeat_last_n": 2**31 - 1}, "repeat_last_n"),
        ({"dry_penalty_last_n": 2**31 - 1, "dry_multiplier": 1}, "dry_penalty_last_n"),
        ({"reasoning_format": "bogus"}, "reasoning_format"),
        ({"reasoning_format": ""}, "reasoning_format"),
        ({"reasoning_format": ["none"]}, "reasoning_format"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": "x"}}},
            "response_format.json_schema",
        ),
    ],
)
def test_what_llama_cpp_would_take_wrongly_is_refused(more: dict[str, Any], param: str) -> None:
    own = Endpoint("r-1", "rel", "h:1", "DE", 4, engine="embedded")
    with pytest.raises(ApiError) as refused:
        check_engine(read({"model": "m", "messages": [USER], **more}), replace(alias(), endpoints=(own,)))
    assert (refused.value.status, refused.value.param) == (400, param)


def test_a_field_that_the_engine_names_is_the_parameter() -> None:
    said = b'{"error":{"message":"Field \'seed\': [json.exception.type_error.302] type must be number"}}'
    error = from_engine(400, said, 4096)
    assert (error.param, error.message) == ("seed", "'seed': type must be number.")


def test_kinds() -> None:
    check_kind(read({"model": "m", "messages": [USER]}), alias())
    with pytest.raises(ApiError):
        check_kind(read({"model": "m", "messages": [USER]}), alias("embedding"))
    with pytest.raises(ApiError):
        check_kind(read({"model": "m", "input": "x"}, EMBEDDINGS), alias())
    peer = Endpoint("peer:b", "peer:b", "h:1", "DE", 1)
    away = AliasEntry("m", "chat", 0, (("peer:b", 1000),), (peer,), (), 0, "b")
    check_kind(read({"model": "m", "input": "x"}, EMBEDDINGS), away)
    check_kind(read({"model": "m", "input": "x"}, EMBEDDINGS), replace(away, endpoints=()))  # it is lost


def test_prefix_blocks_grow_with_the_common_prefix() -> None:
    def blocks(text: str, tenant: str = "a") -> tuple[int, ...]:
        return prefix_blocks(read({"model": "m", "messages": [{"role": "user", "content": text}]}), tenant)

    one, two = blocks("x" * 3000), blocks("x" * 1500 + "y" * 1500)
    assert len(one) == len(two) == 5
    assert one[:2] == two[:2]
    assert one[3:] != two[3:]
    assert not set(one) & set(blocks("x" * 3000, "b"))
    assert blocks("short") == ()
    assert len(blocks("x" * 100_000)) == 8


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (
            400,
            b'{"error":{"code":400,"message":"request exceeds the available context size","n_ctx":2048}}',
            (400, "context_length_exceeded"),
        ),
        (
            400,
            b'{"message":"This model\'s maximum context length is 4096 tokens.","type":"BadRequestError"}',
            (400, "context_length_exceeded"),
        ),
        (
            500,
            b'{"error":{"message":"input (2002 tokens) is too large to process. increase the batch size"}}',
            (400, "context_length_exceeded"),
        ),
        (422, b'{"detail":[{"msg":"field required"}]}', (400, "invalid_value")),
        (500, b"<html>oops</html>", (500, "engine_error")),
        (429, b'{"error":{"message":"slow down"}}', (429, "engine_error")),
        (401, b'{"error":{"message":"bad key","code":"invalid_api_key"}}', (502, "engine_error")),
        (404, b"", (404, "engine_error")),
    ],
)
def test_engine_errors_take_our_shape(status: int, body: bytes, expected: tuple[int, str]) -> None:
    error = from_engine(status, body, 4096)
    assert (error.status, error.code) == expected
    if error.code == "context_length_exceeded":
        assert "maximum context length is" in error.message
    assert "<html>" not in error.message


def test_a_prompt_that_is_too_long_is_called_what_the_request_calls_it() -> None:
    said = {"message": "exceeds the available context size", "n_prompt_tokens": 300, "n_ctx": 256}
    body = orjson.dumps({"error": said})
    for endpoint, field in ((CHAT, "messages"), (COMPLETIONS, "prompt"), (EMBEDDINGS, "input")):
        error = from_engine(400, body, 4096, INPUT[endpoint])
        assert error.param == field
        assert error.message.startswith("This model's maximum context length is 256 tokens. ")
        assert (
            f"your {field} resulted in 300 tokens. Please reduce the length of the {field}." in error.message
        )


def test_refusals_take_openai_codes() -> None:
    over = refusal(Refuse(429, "rate_limit_exceeded", "Over quota.", 7))
    assert over.code == "rate_limit_exceeded"
    assert b"retry-after: 7\r\n" in over.headers
    for hopeless in (Refuse(429, "request_too_large", "x"), Refuse(429, "rate_limit_exceeded", "x", 7200)):
        error = refusal(hopeless)
        assert error.code == "insufficient_quota"
        assert b"x-should-retry: false" in error.headers
    away = refusal(Refuse(503, "model_not_ready", "No replica.", 2, ("r-1: is draining",)))
    assert "r-1: is draining" in away.message
    assert b"retry-after: 2\r\n" in away.headers
