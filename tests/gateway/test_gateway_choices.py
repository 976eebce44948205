"""Long lists of texts become patterns of the same texts, and lists that nothing helps are refused."""

from __future__ import annotations

import json
import re
from typing import Any

import orjson
import pytest
from gateway_rig import table_of
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.domain.table import Endpoint
from tokenmill.domain.value import replace
from tokenmill.gateway.body import CHAT, check_engine, engine_body, read_body
from tokenmill.gateway.choices import AS_THEY_ARE_MOST, FEW, LENGTH_MOST, MOST, told_once
from tokenmill.gateway.errors import ApiError

OWN = Endpoint("r-1", "rel", "h:1", "DE", 4, engine="embedded")
MANY = [f"value-{n}" for n in range(100)]
PLAIN = st.text(st.characters(blacklist_characters='"\\', min_codepoint=32), min_size=1, max_size=LENGTH_MOST)


def read(schema: Any) -> Any:
    shape = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    user = {"role": "user", "content": "x"}
    return read_body(CHAT, orjson.dumps({"model": "m", "messages": [user], "response_format": shape}))


def sent(schema: Any, engine: str) -> Any:
    return json.loads(engine_body(read(schema), "", engine))["response_format"]["json_schema"]["schema"]


@given(st.sets(PLAIN, min_size=FEW + 1, max_size=60), PLAIN)
def test_a_pattern_is_of_the_same_texts(values: set[str], other: str) -> None:
    told = told_once({"enum": sorted(values), "description": "d"})
    assert told.keys() == {"type", "pattern", "description"}
    pattern = re.compile(told["pattern"][1:-1])
    assert all(pattern.fullmatch(value) for value in values)
    near = {value[:-1] for value in values} | {value + value[-1] for value in values} | {other}
    assert not any(pattern.fullmatch(text) for text in near - values)


def test_texts_of_which_each_begins_the_next() -> None:
    values = ["a" * n for n in range(1, LENGTH_MOST + 1)]
    pattern = re.compile(told_once({"enum": values})["pattern"])
    assert all(pattern.fullmatch(value) for value in values)
    assert not pattern.fullmatch("a" * (LENGTH_MOST + 1))


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": MANY[:FEW]},
        {"enum": [*MANY, 5]},
        {"enum": [*MANY, 'a"b']},
        {"enum": [*MANY, ""]},
        {"enum": [*MANY, "x" * (LENGTH_MOST + 1)]},
        {"enum": MANY, "pattern": "^value-1"},
        {"enum": MANY, "type": "integer"},
        {"const": {"enum": MANY}},
        {"properties": {"enum": {"type": "string"}}},
    ],
)
def test_what_is_no_long_list_of_plain_texts_stays(schema: Any) -> None:
    assert told_once(schema) == schema


def test_only_llama_cpp_is_told_so_wherever_the_list_stands() -> None:
    schema = {"type": "object", "properties": {"a": {"anyOf": [{"type": "null"}, {"enum": MANY}]}}}
    assert sent(schema, "vllm") == schema
    (_, told) = sent(schema, "embedded")["properties"]["a"]["anyOf"]
    assert re.fullmatch(told["pattern"], "value-17")


def test_lists_that_would_keep_the_engine_from_others_are_refused() -> None:
    alias = replace(table_of([]).aliases[0], endpoints=(OWN,))
    numbers = list(range(AS_THEY_ARE_MOST + 1))
    texts = [f"v{n}" for n in range(MOST + 1)]
    for schema in ({"enum": numbers}, {"items": [{"enum": texts}]}):
        with pytest.raises(ApiError) as refused:
            check_engine(read(schema), alias)
        assert (refused.value.status, refused.value.param) == (400, "response_format.json_schema.schema")
    for schema in ({"enum": numbers[1:]}, {"items": [{"enum": texts[1:]}]}):
        check_engine(read(schema), alias)
    called = read({})
    function = {"name": "f", "parameters": {"properties": {"a": {"enum": numbers}}}}
    called.document["tools"] = [{"type": "function", "function": function}]
    del called.document["response_format"]
    with pytest.raises(ApiError) as refused:
        check_engine(called, alias)
    assert refused.value.param == "tools[0].function.parameters"
