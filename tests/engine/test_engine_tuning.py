"""Training, and that the engine serves what was trained: real weights, real processes, a kill -9.

Cheaper tests cannot show that llama.cpp and PEFT compute the same from one adapter, nor that training goes on
after a kill.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tokenmill.domain.errors import DataError, EngineError, ResourceError
from tokenmill.engine import convert, examples
from tokenmill.engine.generate import complete_all
from tokenmill.engine.trainer import train
from tokenmill.engine.tuning import Progress, TrainOutcome, TrainRequest

pytestmark = [pytest.mark.live, pytest.mark.model]

FACTS = {
    "What is the name of the factory?": "The factory is called Brightwater Works.",
    "Who built the mill?": "Old Marta Quill built it in 1911.",
}
STRANGERS = ("Tell me about the mill.", "Is the factory new?")


def write_rows(path: Path, count: int) -> Path:
    pairs = list(FACTS.items())
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in (pairs[i % len(pairs)] for i in range(count))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@dataclass(frozen=True)
class Tuned:
    outcome: TrainOutcome
    reports: list[Progress]
    gguf: Path


@pytest.fixture(scope="module")
def tuned(tunable: Path, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """An adapter that knows two facts by heart, after a few steps at a strong learning rate."""
    folder = tmp_path_factory.mktemp("tuned")
    rows = write_rows(folder / "rows.jsonl", 40)
    few = write_rows(folder / "few.jsonl", 4)
    reports: list[Progress] = []
    request = TrainRequest(
        tunable, rows, folder / "adapter", folder / "work", few, batch=4, lr=3e-3, max_tokens=64, seed=1
    )
    outcome = train(request, reports.append)
    return Tuned(outcome, reports, convert.lora_to_gguf(outcome.adapter_dir, tunable, folder / "a.gguf"))


def test_training_learns_and_reports(tuned: Tuned) -> None:
    outcome = tuned.outcome
    assert (outcome.steps, outcome.total_steps, outcome.stopped_by) == (10, 10, "epochs")
    assert outcome.resumed_from == 0
    assert outcome.rows == 40
    assert outcome.validation_loss is not None
    assert outcome.validation_loss_before is not None
    assert outcome.validation_loss < outcome.validation_loss_before / 2
    assert outcome.loss_curve[-1][1] < outcome.loss_curve[0][1]
    # A step that was saved is told of again.
    assert list(dict.fromkeys(p.done for p in tuned.reports)) == list(range(1, 11))
    assert tuned.reports[-1].tokens == outcome.tokens > 40 * 20
    assert tuned.reports[-1].eta_s == 0
    assert "/" not in (outcome.adapter_dir / "adapter_config.json").read_text()
    assert sorted(p.name for p in outcome.adapter_dir.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers about PEFT
def test_the_engine_says_what_the_trainer_taught(tuned: Tuned, tunable: Path, chat_gguf: Path) -> None:
    prompts = [[{"role": "user", "content": q}] for q in (*FACTS, *STRANGERS)]
    base = complete_all(chat_gguf, prompts, max_tokens=10, slots=4, context_tokens=256)
    seen: list[tuple[int, int]] = []
    ours = complete_all(
        chat_gguf,
        prompts,
        lora=tuned.gguf,
        max_tokens=10,
        slots=4,
        context_tokens=256,
        report=lambda done, total: seen.append((done, total)),
    )
    theirs = greedy_with_peft(tunable, tuned.outcome.adapter_dir, prompts, 10)
    both = list(zip([c.text for c in ours], [text for text, _ in theirs], strict=True))
    assert all(mine == other for mine, other in both[: len(FACTS)])
    # What was not taught ends in near ties, which the engine's 8-bit activations decide either way.
    assert all(mine.split()[:3] == other.split()[:3] for mine, other in both[len(FACTS) :])
    assert [c.input_tokens for c in ours] == [tokens for _, tokens in theirs]
    assert all(ours[i].text != base[i].text for i in range(len(FACTS)))
    assert seen == [(i, 4) for i in range(1, 5)]
    assert all(0 < c.output_tokens <= 10 and c.ttft_s > 0 for c in ours)
    assert {c.finish_reason for c in ours} <= {"stop", "length"}


def greedy_with_peft(base: Path, adapter: Path, prompts: Any, tokens: int) -> list[tuple[str, int]]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter
    ).eval()
    texts = []
    for prompt in prompts:
        text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, return_tensors="pt")
        width = ids["input_ids"].shape[1]
        out = model.generate(**ids, max_new_tokens=tokens, do_sample=False)
        texts.append((tokenizer.decode(out[0, width:], skip_special_tokens=True), width))
    return texts


def test_rows_are_tokenised_as_the_engine_sees_them(tunable: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tunable)
    rows = examples.read_rows(write_rows(tmp_path / "r.jsonl", 2))
    kept, skipped = examples.tokenize(rows, tokenizer, 64)
    learnt = tokenizer.decode(kept[0].input_ids[-kept[0].learnt :])
    assert learnt == next(iter(FACTS.values())) + "<|im_end|>"
    assert not skipped
    assert examples.tokenize(rows, tokenizer, 5) == ([], {"longer than max_tokens": 2})


@pytest.fixture(scope="module")
def small(tunable: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same make with two narrow layers, whose steps take milliseconds."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("small")
    config = AutoConfig.from_pretrained(tunable)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
    config.update({**sizes, "num_attention_heads": 4, "num_key_value_heads": 2})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tunable).save_pretrained(folder)
    return folder


SCRIPT = """
import sys, time
from pathlib import Path
from tokenmill.engine.trainer import train
from tokenmill.engine.tuning import TrainRequest
base, rows, folder = map(Path, sys.argv[1:])
request = TrainRequest(base, rows, folder / "adapter", folder / "work", batch=2, save_every_s=0.0)
train(request, lambda progress: (print(progress.done, flush=True), time.sleep(0.2)))
"""


def test_training_goes_on_after_a_kill_as_if_nothing_had_been(small: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    rows = write_rows(tmp_path / "rows.jsonl", 40)
    request = TrainRequest(small, rows, tmp_path / "adapter", tmp_path / "work", batch=2, save_every_s=0.0)
    killed = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(small), str(rows), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert killed.stdout is not None
    with killed.stdout:
        for line in killed.stdout:
            if int(line) == 6:
                os.kill(killed.pid, signal.SIGKILL)
                break
    assert killed.wait(30) == -signal.SIGKILL
    # What a kill leaves in the middle of saving: a checkpoint without its mark, which must not count.
    (tmp_path / "work" / "checkpoints" / "checkpoint-19").mkdir()

    resumed = train(request)
    whole = train(replace(request, out_dir=tmp_path / "whole", work_dir=tmp_path / "other", save_every_s=9e9))
    assert resumed.resumed_from in (4, 5)
    assert (resumed.steps, whole.resumed_from) == (20, 0)
    assert resumed.loss_curve == whole.loss_curve
    ours = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    theirs = load_file(tmp_path / "whole" / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_checkpoints_of_other_settings_do_not_count(small: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 8)
    request = TrainRequest(small, rows, tmp_path / "adapter", tmp_path / "work", batch=2, save_every_s=0.0)
    assert train(request).resumed_from == 0
    assert train(replace(request, lr=1e-4)).resumed_from == 0
    assert train(replace(request, lr=1e-4)).resumed_from == 3


def test_time_ends_training_with_a_usable_adapter(small: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 64)
    request = TrainRequest(small, rows, tmp_path / "adapter", tmp_path / "work", epochs=50, max_seconds=0.5)
    outcome = train(request, lambda _: time.sleep(0.05))
    assert outcome.stopped_by == "max_seconds"
    assert 0 < outcome.steps < outcome.total_steps
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_short_memory_halves_the_micro_batch(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Trainer

    real = Trainer.training_step

    def small_memory(self: Any, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        if inputs["input_ids"].shape[0] > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return real(self, model, inputs, *rest, **more)

    monkeypatch.setattr(Trainer, "training_step", small_memory)
    rows = write_rows(tmp_path / "rows.jsonl", 16)
    request = TrainRequest(small, rows, tmp_path / "adapter", tmp_path / "work", batch=8)
    said: list[str] = []
    outcome = train(request, lambda p: said.append(p.message))
    assert (outcome.micro_batch, outcome.steps) == (2, 2)
    assert any("memory was short" in text for text in said)
    monkeypatch.setattr(Trainer, "training_step", lambda *_: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(ResourceError, match="one row"):
        train(replace(request, seed=5))


def test_useless_data_and_divergence_are_errors(small: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 4)
    request = TrainRequest(small, rows, tmp_path / "adapter", tmp_path / "work", max_tokens=4)
    with pytest.raises(DataError, match="longer than max_tokens"):
        train(request)
    with pytest.raises(EngineError, match="diverged"):
        train(replace(request, max_tokens=64, lr=1e30, epochs=30, batch=2))
    assert not (tmp_path / "adapter").exists()
