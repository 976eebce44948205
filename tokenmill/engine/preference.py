"""Tuning an adapter from preferences with TRL's DPO (Rafailov et al. 2023): the better answer against the
worse.

Imported by ``engine.sft`` for method dpo only. The model without its adapter is the reference, so that it
takes no second copy in memory.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from tokenmill.domain.errors import DataError, MissingExtraError
from tokenmill.engine.tuning import TrainRequest

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer
except ImportError as error:
    raise MissingExtraError(
        f"tuning from preferences needs trl ({error})", fix="pip install 'tokenmill[tune]'"
    ) from error


def read_pairs(path: Path, tokenizer: Any, max_tokens: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Rows for the trainer, with the tokens of both answers, and how many rows were left out, by reason.

    Raises ``DataError`` naming the row that has no worse answer.
    """
    rows: list[dict[str, Any]] = []
    skipped = 0
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            body = json.loads(line)
            if not body.get("rejected"):
                raise DataError(
                    "the row has no worse answer, which DPO needs",
                    where=f"{path.name}:{number}",
                    expected='rows with "preferred_output" and "non_preferred_output"',
                    fix="Tune with method lora, or bring preference rows.",
                )
            given = [{"role": m["role"], "content": m["content"]} for m in body["messages"]]
            better, worse = given[-1]["content"], body["rejected"]
            row = {
                "prompt": given[:-1],
                "chosen": [{"role": "assistant", "content": better}],
                "rejected": [{"role": "assistant", "content": worse}],
            }
            text = tokenizer.apply_chat_template([*given[:-1]], tokenize=False, add_generation_prompt=True)
            counts = [len(tokenizer(text + answer)["input_ids"]) for answer in (better, worse)]
            if max(counts) > max_tokens:
                skipped += 1
            else:
                rows.append({**row, "tokens": sum(counts)})
    return rows, ({"longer than max_tokens": skipped} if skipped else {})


def dpo_trainer(
    request: TrainRequest,
    arguments: dict[str, Any],
    model: Any,
    tokenizer: Any,
    rows: list[dict[str, Any]],
    optimizers: Any,
    callback: Any,
) -> Any:
    """TRL's trainer on ``rows`` in their order."""
    config = DPOConfig(**{**arguments, "beta": request.beta, "max_length": None, "bf16": False})
    return DPOTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list([{k: v for k, v in row.items() if k != "tokens"} for row in rows]),
        processing_class=tokenizer,
        callbacks=[callback],
        optimizers=optimizers,
    )
