"""Supervised fine-tuning with transformers and PEFT: the steps of a training, and what happens when memory is
short.

Imported by ``engine.trainer`` only, on first use, since it loads torch. Which checkpoint to continue from and
how far training is are in ``engine.checkpoints``; the model and its optimizer in ``engine.weights``.
"""

from __future__ import annotations

import gc
import inspect
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PrinterCallback, Trainer, TrainingArguments

from tokenmill.domain.errors import DataError, EngineError, ResourceError, UsageError
from tokenmill.engine import checkpoints, examples, flops, weights
from tokenmill.engine.checkpoints import Watch
from tokenmill.engine.embedded import usable_cores
from tokenmill.engine.gang import Gang, gang_of
from tokenmill.engine.meter import Meter
from tokenmill.engine.own_time import OwnTime
from tokenmill.engine.tuning import Progress, TrainOutcome, TrainRequest

VALIDATION_ROWS = 64
SHORT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
MICRO = "micro_batch"  # file in the work directory: what a gang goes on with after memory was short


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and in which number format to compute."""

    device: str
    precision: str

    @property
    def dtype(self) -> Any:
        return torch.bfloat16 if self.precision == "bf16" else torch.float32


def run(request: TrainRequest, report: Callable[[Progress], None]) -> TrainOutcome:
    """See ``engine.trainer.train``."""
    # 1. Who takes part, and what to learn.
    gang = gang_of()
    setting = _settle(request, gang)
    tokenizer = AutoTokenizer.from_pretrained(str(request.base_dir), local_files_only=True)
    rows, skipped = _rows(request, tokenizer)
    lengths = [row.tokens for row in rows]
    ordered = examples.order(lengths, request.batch, request.epochs, request.seed)
    validation = _validation(request, tokenizer)

    # 2. How far earlier attempts came.
    mark = checkpoints.mark_of(request, setting.precision)
    watch = Watch(request, report, mark, [lengths[i] for i in ordered], gang)
    micro = first_micro(request, gang)

    # 3. Train; with less at a time when memory is short.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice of libraries, about things that we decided
        while True:
            trainer = None
            try:
                trainer = _trainer(request, setting, tokenizer, [rows[i] for i in ordered], micro, watch)
                meter = Meter(setting.device, torch.cuda.current_device() if setting.device == "cuda" else 0)
                _measure(watch, trainer, meter, setting)
                _learn(trainer, watch, validation, meter)
                break
            except (MemoryError, RuntimeError) as error:
                if not isinstance(error, MemoryError) and not any(t in str(error) for t in SHORT_OF_MEMORY):
                    raise EngineError(f"training failed: {error}") from error
                micro = smaller(micro, request)
                _or_leave(gang, request, micro)
                watch.say(
                    f"memory was short; now {micro} rows at a time, as many steps for one batch as before"
                )
            # Outside of the handler: its traceback would hold the tensors that must be freed.
            trainer = None
            gc.collect()
            if setting.device == "cuda":
                torch.cuda.empty_cache()
        model = trainer.accelerator.unwrap_model(trainer.model)
        if watch.best[0] not in (0, watch.step):
            weights.Best(request.work_dir).restore(model)
        energy_mj = _sum(gang, meter.energy_mj)
        if gang.first:
            weights.save(model, tokenizer, request)
    return replace(
        watch.outcome(len(rows), skipped, setting.precision, micro),
        device=meter.device_name,
        peak_tflops=flops.peak_tflops(meter.device_name, setting.precision),
        energy_mj=energy_mj,
        energy_source=meter.energy_source,
        peak_memory_bytes=meter.peak_memory_bytes,
    )


def _settle(request: TrainRequest, gang: Gang) -> Setting:
    """Take this worker's cores and device. Raises ``UsageError`` for a batch that the gang cannot share."""
    if request.batch % gang.world:
        raise UsageError(
            f"a batch of {request.batch} rows cannot be shared by {gang.world} workers",
            expected="a batch that the number of workers divides",
        )
    torch.set_num_threads(request.threads or max(1, usable_cores() // gang.world))
    setting = choose(request.precision)
    if setting.device == "cuda":
        torch.cuda.set_device(gang.local_rank % torch.cuda.device_count())
    return setting


def choose(precision: str) -> Setting:
    """GPU when there is one; bf16 where the hardware multiplies it, else f32."""
    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported()
        device = "cuda"
    else:
        fast = _cpu_has_bf16()
        device = "cpu"
    return Setting(device, ("bf16" if fast else "fp32") if precision == "auto" else precision)


def first_micro(request: TrainRequest, gang: Gang) -> int:
    """Rows that a worker computes at a time at first: what is asked for, or what an earlier attempt came
    to.
    """
    share = request.batch // gang.world
    kept = request.work_dir / MICRO
    asked = int(kept.read_text("ascii")) if kept.is_file() else request.micro_batch or share
    return next(n for n in range(min(asked, share), 0, -1) if share % n == 0)


def smaller(micro: int, request: TrainRequest) -> int:
    """At most half as many rows at a time, and a divisor of ``micro``, so that the batch stays what it is.

    Raises ``ResourceError`` when it is one already.
    """
    if micro == 1:
        raise ResourceError(
            f"memory does not suffice to train on one row of {request.max_tokens} tokens",
            fix="Lower max_tokens or rank, set recompute, or ask for more memory.",
        )
    return next(n for n in range(micro // 2, 0, -1) if micro % n == 0)


def _or_leave(gang: Gang, request: TrainRequest, micro: int) -> None:
    """In a gang the others wait for this worker, so all must begin again, with what it writes down here."""
    if gang.world == 1:
        return
    request.work_dir.mkdir(parents=True, exist_ok=True)
    (request.work_dir / MICRO).write_text(str(micro), "ascii")
    raise ResourceError(
        f"memory was short on worker {gang.rank}; the next attempt takes {micro} rows at a time",
        fix="Nothing: the gang is started again, and goes on from its last checkpoint.",
    )


def _cpu_has_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _rows(request: TrainRequest, tokenizer: Any) -> tuple[list[examples.Example], dict[str, int]]:
    if request.method == "dpo":
        from tokenmill.engine.preference import read_pairs

        pairs, skipped = read_pairs(request.train_jsonl, tokenizer, request.max_tokens)
        rows = [examples.Example((0,) * pair["tokens"], (), pair) for pair in pairs]
    else:
        read = examples.read_rows(request.train_jsonl)
        rows, skipped = examples.tokenize(read, tokenizer, request.max_tokens, request.learn)
    if not rows:
        raise DataError(
            f"no row of {request.train_jsonl.name} can be trained on: {skipped or 'it is empty'}",
            expected=f"at least one row of at most {request.max_tokens} tokens",
            where=str(request.train_jsonl),
        )
    return rows, skipped


def _validation(request: TrainRequest, tokenizer: Any) -> list[examples.Example]:
    if request.validation_jsonl is None or request.method == "dpo":
        return []  # the loss of preferences is not that of answers
    rows = examples.read_rows(request.validation_jsonl)[:VALIDATION_ROWS]
    kept, _ = examples.tokenize(rows, tokenizer, request.max_tokens, request.learn)
    return sorted(kept, key=lambda row: row.tokens)


def arguments(request: TrainRequest, setting: Setting, micro: int, gang: Gang) -> dict[str, Any]:
    """What every kind of training tells transformers' trainer."""
    backend = "nccl" if setting.device == "cuda" else "gloo"
    return {
        "output_dir": str(checkpoints.folder(request)),
        "per_device_train_batch_size": micro,
        "per_device_eval_batch_size": micro,
        "gradient_accumulation_steps": math.ceil(request.batch / micro / gang.world),
        "num_train_epochs": 1,  # the rows already hold every epoch, in order
        "train_sampling_strategy": "sequential",
        "gradient_checkpointing": request.recompute,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "bf16": False,  # the model is bf16 as it is; this would add autocast
        "use_cpu": setting.device == "cpu",
        "ddp_backend": backend if gang.world > 1 else None,
        "ddp_find_unused_parameters": False,
        "seed": request.seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # else a loss that is not a number goes unseen
        "save_strategy": "no",  # by the clock, see Watch
        "save_total_limit": 2,
        "eval_strategy": "no",
        "prediction_loss_only": True,
        "report_to": "none",
        "disable_tqdm": True,
        "log_level": "error",
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
    }


def _trainer(
    request: TrainRequest,
    setting: Setting,
    tokenizer: Any,
    rows: Sequence[examples.Example],
    micro: int,
    watch: Watch,
) -> Any:
    model = weights.load(request, setting.dtype, setting.device)
    optimizer = weights.MasterAdamW(model, request.lr)
    optimizers = (optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, watch.lr_share))
    settings = arguments(request, setting, micro, watch.gang)
    if request.method == "dpo":
        from tokenmill.engine.preference import dpo_trainer

        pairs = [row.pair for row in rows]
        trainer = dpo_trainer(request, settings, model, tokenizer, pairs, optimizers, watch.callback())
    else:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(**settings),
            train_dataset=[row.row() for row in rows],
            data_collator=Padding(tokenizer.pad_token_id or 0, narrow=_narrows(model)),
            callbacks=[watch.callback()],
            optimizers=optimizers,
        )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _narrows(model: Any) -> bool:
    """Whether the model can be told to make logits for the last positions only."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(base.forward).parameters


@dataclass(frozen=True, slots=True)
class Padding:
    """Rows into one batch: (rows, longest) of ids and attention mask, filled up on the right.

    ``narrow``: the model makes logits only from the first position that any row learns to continue; labels
    are (rows, that many). Of a small model the logits are a fifth of the work, and prompts need none.
    """

    pad_id: int
    narrow: bool = False

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        longest = max(len(row["input_ids"]) for row in rows)

        def filled(name: str, value: int) -> Any:
            return torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])

        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        mask = (torch.arange(longest)[None, :] < lengths[:, None]).long()
        labels = filled("labels", examples.IGNORED)
        batch = {"input_ids": filled("input_ids", self.pad_id), "attention_mask": mask, "labels": labels}
        if self.narrow:
            learnt = (labels != examples.IGNORED).any(dim=0).nonzero()
            first = max(0, int(learnt[0]) - 1) if len(learnt) else 0
            batch |= {"labels": labels[:, first:], "logits_to_keep": longest - first}
        return batch


def _measure(watch: Watch, trainer: Any, meter: Meter, setting: Setting) -> None:
    """Let the watch tell how well the device is used, and keep the best weights."""
    work = flops.work_of(trainer.model)
    peak = flops.peak_tflops(meter.device_name, setting.precision)

    def utilisation(tokens: int, squares: int, seconds: float) -> float:
        return flops.mfu(work.flops_of(tokens, squares), seconds, peak, watch.gang.world)

    def improve() -> None:
        if watch.gang.first:
            weights.Best(watch.request.work_dir).keep(trainer.accelerator.unwrap_model(trainer.model))

    watch.mfu_of = utilisation
    watch.own_time = OwnTime(watch.gang, torch.cuda.synchronize if setting.device == "cuda" else lambda: None)
    watch.own_time.watch(trainer.model)
    watch.improve = improve


def _learn(trainer: Any, watch: Watch, validation: Sequence[examples.Example], meter: Meter) -> None:
    held_out = [row.row() for row in validation] or None
    resume = watch.resume()
    trainer.eval_dataset = held_out
    if held_out is not None and watch.validation_before is None:
        watch.validation_before = trainer.evaluate(held_out)["eval_loss"]
    watch.begin(watch.gang.agree([time.monotonic()])[0])
    meter.begin()
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if held_out is not None:
        best_kept = watch.best[0] not in (0, watch.step)
        watch.validation_after = watch.best[1] if best_kept else trainer.evaluate(held_out)["eval_loss"]


def _sum(gang: Gang, value: int) -> int:
    if gang.world == 1:
        return value
    from torch import distributed

    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    total = torch.tensor([value], dtype=torch.int64, device=device)
    distributed.all_reduce(total)
    return int(total.item())
