"""Chat rows into token ids with labels, and the order in which they are trained.

Does not pad and does not truncate: a row that is too long is left out and counted, never cut in silence.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenmill.domain.errors import DataError

IGNORED = -100  # the label that the loss passes over (PyTorch's default)
TOKENIZE_ROWS = 1000
BATCHES_SORTED_TOGETHER = 32
EXPECTED = '{"messages": [..., {"role": "assistant", "content": "..."}]}'


@dataclass(frozen=True, slots=True)
class Example:
    """``input_ids`` of a conversation, in (given, learnt, given, learnt ...) pieces of ``lengths``."""

    input_ids: tuple[int, ...]
    lengths: tuple[int, ...]
    pair: dict[str, Any] = field(default_factory=dict)  # of a preference row: prompt and both answers

    @property
    def tokens(self) -> int:
        return len(self.input_ids)

    @property
    def learnt(self) -> int:
        """How many of the tokens are learnt."""
        return sum(self.lengths[1::2])

    def row(self) -> dict[str, list[int]]:
        """What the trainer reads: ids and labels of the same length."""
        labels: list[int] = []
        for at, length in enumerate(self.lengths):
            labels += self.input_ids[len(labels) : len(labels) + length] if at % 2 else [IGNORED] * length
        return {"input_ids": list(self.input_ids), "labels": labels}


def read_rows(path: Path) -> list[list[dict[str, str]]]:
    """Messages of each line of a JSONL file. Raises ``DataError`` that names file and line."""
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                rows.append(_messages(line, f"{path.name}:{number}"))
    return rows


def tokenize(
    rows: Sequence[Sequence[dict[str, str]]], tokenizer: Any, max_tokens: int, learn: str = "last"
) -> tuple[list[Example], dict[str, int]]:
    """Examples in the order of ``rows``, and how many rows were left out, by reason.

    What is given and what is learnt are tokenised apart, as they are when the engine serves: it reads the
    prompt as a whole and then produces the completion token by token. ``learn`` is last or all: which of the
    assistant's messages are learnt. Where a template rewrites earlier turns, only the last one can be.
    """
    examples: list[Example] = []
    skipped: Counter[str] = Counter()
    for start in range(0, len(rows), TOKENIZE_ROWS):
        pieces = [_pieces(messages, tokenizer, learn) for messages in rows[start : start + TOKENIZE_ROWS]]
        flat = [text for row in pieces for text in row]
        ids = iter(tokenizer(flat, add_special_tokens=False)["input_ids"])
        for row in pieces:
            parts = [next(ids) for _ in row]
            whole = tuple(token for part in parts for token in part)
            if len(whole) > max_tokens:
                skipped["longer than max_tokens"] += 1
            else:
                examples.append(Example(whole, tuple(len(part) for part in parts)))
    return examples, dict(skipped)


def _pieces(messages: Sequence[dict[str, str]], tokenizer: Any, learn: str) -> list[str]:
    """The conversation's text in pieces that are given and learnt in turn."""
    if learn != "all":
        return list(_texts(messages, tokenizer))
    pieces: list[str] = []
    done = ""
    for at, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt, completion = _texts(messages[: at + 1], tokenizer)
        if not prompt.startswith(done):
            return list(_texts(messages, tokenizer))
        pieces += [prompt[len(done) :], completion]
        done = prompt + completion
    return pieces


def order(lengths: Sequence[int], batch: int, epochs: float, seed: int) -> list[int]:
    """Indices to train one after the other, such that rows of one batch have about the same length.

    Each epoch is shuffled anew; within ``BATCHES_SORTED_TOGETHER`` batches rows are sorted by length, and the
    batches are shuffled again so that length does not go up and down with time. A pure function of its
    arguments, so training that is continued sees the same rows.
    """
    rng = random.Random(seed)
    ordered: list[int] = []
    remaining = round(epochs * len(lengths))
    while remaining > 0:
        indices = list(range(len(lengths)))
        rng.shuffle(indices)
        indices = indices[:remaining]
        remaining -= len(indices)
        ordered.extend(_grouped(indices, lengths, batch, rng))
    return ordered


def _grouped(indices: list[int], lengths: Sequence[int], batch: int, rng: random.Random) -> list[int]:
    span = batch * BATCHES_SORTED_TOGETHER
    batches: list[list[int]] = []
    tail: list[int] = []
    for start in range(0, len(indices), span):
        block = sorted(indices[start : start + span], key=lambda i: (-lengths[i], i))
        for first in range(0, len(block), batch):
            piece = block[first : first + batch]
            if len(piece) == batch:
                batches.append(piece)
            else:
                tail = piece  # only the last block has one; kept last so that batches stay aligned
    rng.shuffle(batches)
    return [index for piece in [*batches, tail] for index in piece]


def _messages(line: str, where: str) -> list[dict[str, str]]:
    try:
        messages = json.loads(line)["messages"]
        good = messages[-1]["role"] == "assistant" and all(
            isinstance(m["role"], str) and isinstance(m["content"], str) for m in messages
        )
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError("the row is no conversation", expected=EXPECTED, where=where) from error
    if not good:
        raise DataError("the row does not end with an assistant's text", expected=EXPECTED, where=where)
    return list(messages)


def _texts(messages: Sequence[dict[str, str]], tokenizer: Any) -> tuple[str, str]:
    prompt = str(
        tokenizer.apply_chat_template(list(messages[:-1]), tokenize=False, add_generation_prompt=True)
    )
    whole = str(tokenizer.apply_chat_template(list(messages), tokenize=False))
    if not whole.startswith(prompt):
        # A template that rewrites earlier turns; the answer and its end mark are what must be learnt.
        return prompt, messages[-1]["content"] + str(tokenizer.eos_token)
    completion = whole[len(prompt) :]
    # Templates put a line break after the end mark. Nobody generates it, so it is not learnt.
    head, mark, _ = completion.rpartition(str(tokenizer.eos_token))
    return prompt, head + mark if mark else completion
