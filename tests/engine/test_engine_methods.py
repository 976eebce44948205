"""Ways to tune, on a model whose steps take milliseconds: all weights, a gang, early stopping, short
memory.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ports import free_port

from tokenmill.domain.errors import CorruptWeightsError, DataError, EngineError, ResourceError, UsageError
from tokenmill.engine import examples
from tokenmill.engine.gang import Gang, gang_of
from tokenmill.engine.safe import check_adapter_fits, check_safe, shapes_of
from tokenmill.engine.trainer import train
from tokenmill.engine.tuning import Progress, TrainRequest

pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("ignore")]


def write_rows(path: Path, count: int, answer: str = "yes {}") -> Path:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"number {i % 7}?"},
                {"role": "assistant", "content": answer.format(i % 3)},
            ]
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def request_(toy: Path, tmp_path: Path) -> TrainRequest:
    rows = write_rows(tmp_path / "rows.jsonl", 32)
    return TrainRequest(
        toy, rows, tmp_path / "out", tmp_path / "work", batch=8, lr=1e-2, max_tokens=64, precision="fp32"
    )


def test_all_weights_are_tuned_and_saved_as_a_model(request_: TrainRequest) -> None:
    outcome = train(replace(request_, method="full", epochs=3))
    assert outcome.method == "full"
    assert outcome.loss_curve[-1][1] < outcome.loss_curve[0][1] - 0.5
    names = sorted(path.name for path in outcome.adapter_dir.iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(names)
    base = shapes_of(request_.base_dir / "model.safetensors")
    assert shapes_of(outcome.adapter_dir / "model.safetensors") == base
    check_safe(outcome.adapter_dir)


def test_a_smaller_micro_batch_computes_the_same(request_: TrainRequest, tmp_path: Path) -> None:
    whole = train(request_)
    pieces = train(
        replace(request_, micro_batch=2, recompute=True, out_dir=tmp_path / "b", work_dir=tmp_path / "bw")
    )
    assert (whole.micro_batch, pieces.micro_batch) == (8, 2)
    assert [loss for _, loss in pieces.loss_curve] == pytest.approx(
        [loss for _, loss in whole.loss_curve], abs=2e-4
    )


def test_logits_of_prompts_are_not_needed(
    request_: TrainRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenmill.engine import sft

    narrow = train(request_)
    monkeypatch.setattr(sft, "_narrows", lambda model: False)
    wide = train(replace(request_, out_dir=tmp_path / "b", work_dir=tmp_path / "bw"))
    assert [loss for _, loss in narrow.loss_curve] == pytest.approx(
        [loss for _, loss in wide.loss_curve], abs=2e-4
    )
    assert len({round(loss, 3) for _, loss in narrow.loss_curve}) > 1  # it learnt something


def test_the_same_seed_gives_the_same_bytes(request_: TrainRequest, tmp_path: Path) -> None:
    again = replace(request_, out_dir=tmp_path / "b", work_dir=tmp_path / "bw")
    other = replace(request_, out_dir=tmp_path / "c", work_dir=tmp_path / "cw", seed=request_.seed + 1)
    first, second, third = (
        (train(one).adapter_dir / "adapter_model.safetensors").read_bytes()
        for one in (request_, again, other)
    )
    assert first == second
    assert first != third


def test_patience_ends_training_and_the_best_weights_are_kept(request_: TrainRequest, tmp_path: Path) -> None:
    # What is learnt is the opposite of what is asked, so the validation loss rises again.
    other = write_rows(tmp_path / "val.jsonl", 8, "no! {}")
    request = replace(
        request_, validation_jsonl=other, patience=2, validate_every=1, epochs=40, method="full", lr=3e-3
    )
    outcome = train(request)
    assert outcome.stopped_by == "patience"
    assert 0 < outcome.best_step == outcome.steps - 2 < outcome.total_steps
    assert outcome.validation_loss is not None
    again = train(
        replace(request, base_dir=outcome.adapter_dir, work_dir=tmp_path / "again", out_dir=tmp_path / "o2")
    )
    assert again.validation_loss_before == pytest.approx(outcome.validation_loss, abs=2e-3)


TRAIN = (
    "import sys, pickle, dataclasses, pathlib; from tokenmill.engine.trainer import train;"
    "r = pickle.loads(bytes.fromhex(sys.argv[1])); o = train(r);"
    "print(o.workers, o.loss_curve[-1][1]) if o else None"
)

# The second rank's model takes 60 ms longer: a throttled GPU.
THROTTLED = """
import os, pickle, sys, time
from tokenmill.engine import environment, own_time
environment.prepare()
from tokenmill.engine import weights
from tokenmill.engine.trainer import train
own_time.WINDOW_S = 0.3
load = weights.load
def slow_load(*given):
    model = load(*given)
    if os.environ["RANK"] == "1":
        model.get_input_embeddings().register_forward_hook(lambda *_: time.sleep(0.06))
    return model
weights.load = slow_load
told = []
train(pickle.loads(bytes.fromhex(sys.argv[1])), told.append)
print([p.ranks.slow[0] for p in told if p.ranks and p.ranks.slow][:1] if told else "")
"""


def worker(
    rank: int, world: int, port: int, folder: Path, request: TrainRequest, code: str = TRAIN
) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    log = (folder / f"worker-{rank}.log").open("wb")
    argv = [sys.executable, "-c", code, pickle.dumps(request).hex()]
    return subprocess.Popen(argv, env=environment, stdout=log, stderr=log)


@pytest.mark.live  # two processes that average gradients over gloo, which no cheaper test shows
def test_two_workers_learn_what_one_learns(request_: TrainRequest, tmp_path: Path) -> None:
    alone = train(request_)
    port = free_port()
    shared = replace(request_, out_dir=tmp_path / "gang", work_dir=tmp_path / "gw", threads=1)
    gang = [worker(rank, 2, port, tmp_path, shared) for rank in range(2)]
    codes = [process.wait(240) for process in gang]
    logs = [(tmp_path / f"worker-{rank}.log").read_text() for rank in range(2)]
    assert codes == [0, 0], "\n".join(logs)
    ours = [text.split() for text in logs]
    assert ours[0] == ours[1]
    assert ours[0][0] == "2"
    assert float(ours[0][1]) == pytest.approx(alone.loss_curve[-1][1], abs=0.05)
    assert (tmp_path / "gang" / "adapter_model.safetensors").is_file()


@pytest.mark.live  # the collective in which ranks compare their own time exists only in a real gang
def test_a_gang_names_the_worker_that_holds_it_up(request_: TrainRequest, tmp_path: Path) -> None:
    port = free_port()
    shared = replace(request_, epochs=4, out_dir=tmp_path / "gang", work_dir=tmp_path / "gw", threads=1)
    gang = [worker(rank, 2, port, tmp_path, shared, THROTTLED) for rank in range(2)]
    codes = [process.wait(240) for process in gang]
    logs = [(tmp_path / f"worker-{rank}.log").read_text() for rank in range(2)]
    assert codes == [0, 0], "\n".join(logs)
    assert logs[0].startswith("[(1, ")


def test_short_memory_lowers_the_micro_batch_and_says_so(
    request_: TrainRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Trainer

    real = Trainer.training_step

    def small_memory(self: Any, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        if inputs["input_ids"].shape[0] > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, model, inputs, *rest, **more)

    monkeypatch.setattr(Trainer, "training_step", small_memory)
    said: list[Progress] = []
    outcome = train(request_, said.append)
    assert (outcome.micro_batch, outcome.steps, len(outcome.loss_curve)) == (2, 4, 4)
    assert any("memory was short; now 2 rows" in p.message for p in said)


def test_in_a_gang_short_memory_is_left_to_the_next_attempt(request_: TrainRequest) -> None:
    from tokenmill.engine import sft

    gang = Gang(1, 2, 1)
    with pytest.raises(ResourceError, match="next attempt takes 2 rows"):
        sft._or_leave(gang, request_, 2)
    assert sft.first_micro(request_, gang) == 2


def test_a_gang_is_read_from_the_environment() -> None:
    assert gang_of({}) == Gang()
    whole = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert gang_of(whole) == Gang(1, 2, 1)
    with pytest.raises(UsageError, match="MASTER_PORT"):
        gang_of({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a"})
    with pytest.raises(UsageError, match="rank 2 of 2"):
        gang_of(whole | {"RANK": "2"})
    with pytest.raises(UsageError, match="no whole number"):
        gang_of({"WORLD_SIZE": "two"})


def test_all_of_the_assistants_turns_can_be_learnt(toy: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(toy))
    turns = [("user", "a?"), ("assistant", "one"), ("user", "b?"), ("assistant", "two")]
    messages = [{"role": role, "content": text} for role, text in turns]
    (last,), _ = examples.tokenize([messages], tokenizer, 200)
    (every,), _ = examples.tokenize([messages], tokenizer, 200, "all")
    assert last.input_ids == every.input_ids

    def learnt(example: examples.Example) -> str:
        return str(tokenizer.decode([t for t in example.row()["labels"] if t != examples.IGNORED]))

    assert learnt(last) == "two</s>"
    assert learnt(every) == "one</s>two</s>"


class Poison:
    """A pickle that writes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.write_text, (self.path, "opened"))


def test_a_poisoned_pickle_is_refused_unopened(request_: TrainRequest, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for path in request_.base_dir.iterdir():
        if path.suffix != ".safetensors":
            (base / path.name).write_bytes(path.read_bytes())
    (base / "pytorch_model.bin").write_bytes(pickle.dumps(Poison(tmp_path / "proof")))
    with pytest.raises(CorruptWeightsError, match="is a pickle"):
        train(replace(request_, base_dir=base))
    assert not (tmp_path / "proof").exists()
    (base / "pytorch_model.bin").unlink()
    (base / "model.safetensors").write_bytes(b"\x80\x04 not what it says")
    with pytest.raises(CorruptWeightsError, match="no safetensors file"):
        train(replace(request_, base_dir=base))
    assert not request_.out_dir.exists()


def test_an_adapter_for_another_base_is_refused(request_: TrainRequest, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    outcome = train(request_)
    check_adapter_fits(outcome.adapter_dir, request_.base_dir)
    config = AutoConfig.from_pretrained(request_.base_dir)
    config.update({"intermediate_size": 96})
    other = tmp_path / "other"
    AutoModelForCausalLM.from_config(config).save_pretrained(other)
    with pytest.raises(EngineError, match="for another base model"):
        check_adapter_fits(outcome.adapter_dir, other)
    config.update({"num_hidden_layers": 1})
    AutoModelForCausalLM.from_config(config).save_pretrained(other)
    with pytest.raises(EngineError, match=r"base does not have|where the base has"):
        check_adapter_fits(outcome.adapter_dir, other)


def test_a_batch_that_the_gang_cannot_share_is_refused(
    request_: TrainRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="8 rows cannot be shared by 3"):
        train(request_)


def test_preferences_move_the_model_towards_the_better_answer(request_: TrainRequest) -> None:
    from tokenmill.engine.likelihood import mean_log_likelihoods

    def said(answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": "who?"}, {"role": "assistant", "content": answer}]

    row = {"messages": said("Marta"), "rejected": "nobody"}
    request_.train_jsonl.write_text(f"{json.dumps(row)}\n" * 16)
    outcome = train(replace(request_, method="dpo", batch=4, epochs=2))
    assert outcome.method == "dpo"
    assert outcome.loss_curve[0][1] == pytest.approx(0.693, abs=0.01)  # ln 2: policy and reference are one
    assert outcome.loss_curve[-1][1] < 0.6
    better, worse = said("Marta"), said("nobody")
    before = mean_log_likelihoods(request_.base_dir, None, [better, worse])
    after = mean_log_likelihoods(request_.base_dir, outcome.adapter_dir, [better, worse])
    assert after[0] - after[1] > before[0] - before[1] + 0.1
    write_rows(request_.train_jsonl, 4)
    with pytest.raises(DataError, match="no worse answer"):
        train(replace(request_, method="dpo", seed=3))
