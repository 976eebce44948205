"""A chat template that has no place for tools gets one, so that llama.cpp tells the model of them.

Without it a request's tools would be read over: no word of them in the prompt, and no call ever answered.
What is put before the template turns tools and calls into messages of plain text, as training does
(``domain.tool_text``). A conversation without tools reads as before.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from tokenmill.domain.errors import CorruptWeightsError
from tokenmill.domain.tool_text import BEGIN, CALL_FIRST, END, INTRODUCTION

_KEY = b"tokenizer.chat_template"
_STRING, _ARRAY = 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
FIELDS_MOST = 4096
ITEMS_MOST = 4_000_000  # vocabularies have up to some 300,000 words
FIELD_BYTES = 64 * 1024 * 1024

_BEFORE = """\
{%- set said = namespace(messages=[], tools='') -%}
{%- if tools -%}
{%- set said.tools = 'INTRODUCTION\\n<tools>' -%}
{%- for tool in tools -%}
{%- set said.tools = said.tools + '\\n' + (tool.function | tojson) -%}
{%- endfor -%}
{%- set said.tools = said.tools + '\\n</tools>' -%}
{%- if messages[0].role != 'system' -%}
{%- set said.messages = [{'role': 'system', 'content': said.tools}] -%}
{%- endif -%}
{%- endif -%}
{%- for message in messages -%}
{%- set text = namespace(all=message.content or '') -%}
{%- if loop.first and message.role == 'system' and said.tools -%}
{%- set text.all = text.all + ('\\n\\n' if text.all else '') + said.tools -%}
{%- endif -%}
{%- for call in message.tool_calls or [] -%}
{%- set given = call.function.arguments -%}
{%- set given = given if given is string else given | tojson -%}
{%- set body = '{"name": ' + (call.function.name | tojson) + ', "arguments": ' + given + '}' -%}
{%- set text.all = text.all + ('\\n' if text.all else '') + 'BEGIN' + body + 'END' -%}
{%- endfor -%}
{%- set said.messages = said.messages + [{'role': message.role, 'content': text.all}] -%}
{%- endfor -%}
{%- set messages = said.messages -%}
"""
_AFTER = "{% if add_generation_prompt and tools and CALL_FIRST %}{{ 'BEGIN' }}{% endif %}"
_TEXTS = {"INTRODUCTION": INTRODUCTION, "BEGIN": BEGIN, "END": END, "CALL_FIRST": CALL_FIRST}


def with_tools(template: str) -> str:
    """``template`` with a place for tools; as it is when it has one."""
    if not template or "tools" in template:
        return template
    before, after = _BEFORE, _AFTER
    for word, text in _TEXTS.items():
        before, after = before.replace(word, text), after.replace(word, text)
    return before + template + after


def template_of(path: Path) -> str:
    """The chat template in a GGUF file, ``""`` without one. Raises ``CorruptWeightsError``.

    Only the fields before it are read: a reader of the whole file takes seconds for a vocabulary.
    """
    try:
        with path.open("rb", buffering=1 << 20) as file:
            return _found(file)
    except (EOFError, UnicodeDecodeError) as error:
        raise CorruptWeightsError(
            f"the header of {path} cannot be read: {error}",
            expected="a whole GGUF file of version 2 or 3",
            fix="Import the model again.",
        ) from error


def _found(file: BinaryIO) -> str:
    if _take(file, 4) != b"GGUF" or _number(file, 4) not in (2, 3):
        raise EOFError("it is of another format or version")
    _number(file, 8)  # tensors
    for _ in range(min(_number(file, 8), FIELDS_MOST)):
        name = _take(file, _number(file, 8))
        kind = _number(file, 4)
        if name == _KEY and kind == _STRING:
            return _take(file, _number(file, 8)).decode()
        _skip(file, kind)
    return ""


def _skip(file: BinaryIO, kind: int) -> None:
    if kind == _STRING:
        _take(file, _number(file, 8))
    elif kind == _ARRAY:
        kind, count = _number(file, 4), _number(file, 8)
        if count > ITEMS_MOST:
            raise EOFError(f"a list of {count} items")
        if kind in _SIZES:
            _take(file, _SIZES[kind] * count)
        else:
            for _ in range(count):
                _skip(file, kind)
    elif kind in _SIZES:
        _take(file, _SIZES[kind])
    else:
        raise EOFError(f"a field of the unknown kind {kind}")


def _number(file: BinaryIO, size: int) -> int:
    return int.from_bytes(_take(file, size), "little")


def _take(file: BinaryIO, size: int) -> bytes:
    if size > FIELD_BYTES:
        raise EOFError(f"a field of {size} bytes")
    data = file.read(size)
    if len(data) < size:
        raise EOFError("it is cut off")
    return data
