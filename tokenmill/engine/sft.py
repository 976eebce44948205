"""Supervised fine-tuning with TRL and PEFT: model, optimizer, trainer, and what happens when memory is short.

Imported by ``engine.trainer`` only, on first use, since it loads torch. Which checkpoint to continue from and
how far training is are in ``engine.checkpoints``.
"""

from __future__ import annotations

import gc
import math
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl import SFTConfig, SFTTrainer

from tokenmill.domain.errors import DataError, EngineError, ResourceError
from tokenmill.engine import checkpoints, examples
from tokenmill.engine.checkpoints import Watch
from tokenmill.engine.embedded import usable_cores
from tokenmill.engine.tuning import Progress, TrainOutcome, TrainRequest

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
VALIDATION_ROWS = 64
SHORT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and in which number format to compute."""

    device: str
    precision: str

    @property
    def dtype(self) -> Any:
        return torch.bfloat16 if self.precision == "bf16" else torch.float32


class MasterAdamW(torch.optim.AdamW):  # type: ignore[misc]
    """AdamW that keeps f32 copies of bf16 parameters, to which small updates would otherwise be lost.

    Holding the adapter itself in bf16 makes training 1.2 to 1.4 times as fast on CPUs as an f32 adapter with
    autocast, because nothing is cast in the forward pass.
    """

    def __init__(self, model: Any, lr: float) -> None:
        self._model = model
        self._narrow = _trainable(model)
        self._masters = [p.detach().float().clone() for p in self._narrow]
        super().__init__(self._masters, lr=lr, weight_decay=0.0)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, closure: Any = None) -> None:
        for master, narrow in zip(self._masters, self._narrow, strict=True):
            master.grad = None if narrow.grad is None else narrow.grad.float()
        super().step(closure)
        for master, narrow in zip(self._masters, self._narrow, strict=True):
            narrow.copy_(master)

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for narrow in self._narrow:
            narrow.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "masters": [m.detach() for m in self._masters]}

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict({k: v for k, v in state.items() if k != "masters"})
        # PEFT puts new parameters, in f32, into the model when it loads an adapter's checkpoint, as the
        # trainer let it do just before. Training the old ones would change nothing.
        dtypes = [p.dtype for p in self._narrow]
        self._narrow = _trainable(self._model)
        rows = zip(self._masters, self._narrow, dtypes, state["masters"], strict=True)
        for master, narrow, dtype, kept in rows:
            master.copy_(kept)
            narrow.data = master.to(dtype, copy=True)


def _trainable(model: Any) -> list[Any]:
    return [p for p in model.parameters() if p.requires_grad]


def run(request: TrainRequest, report: Callable[[Progress], None]) -> TrainOutcome:
    """See ``engine.trainer.train``."""
    # 1. What to learn.
    torch.set_num_threads(request.threads or usable_cores())
    setting = choose(request.precision)
    tokenizer = AutoTokenizer.from_pretrained(str(request.base_dir), local_files_only=True)
    rows, skipped = examples.tokenize(examples.read_rows(request.train_jsonl), tokenizer, request.max_tokens)
    if not rows:
        raise DataError(
            f"no row of {request.train_jsonl.name} can be trained on: {skipped or 'it is empty'}",
            expected=f"at least one row of at most {request.max_tokens} tokens",
            where=str(request.train_jsonl),
        )
    lengths = [len(row.input_ids) for row in rows]
    ordered = examples.order(lengths, request.batch, request.epochs, request.seed)
    validation = _validation(request, tokenizer)

    # 2. How far earlier attempts came.
    mark = checkpoints.mark_of(request, setting.precision)
    watch = Watch(request, report, mark, [lengths[i] for i in ordered])

    # 3. Train; with less at a time when memory is short.
    micro = request.batch
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice of libraries, about things that we decided
        while True:
            try:
                trainer = _trainer(request, setting, tokenizer, [rows[i] for i in ordered], micro, watch)
                _learn(trainer, watch, validation)
                break
            except (MemoryError, RuntimeError) as error:
                if not isinstance(error, MemoryError) and not any(t in str(error) for t in SHORT_OF_MEMORY):
                    raise EngineError(f"training failed: {error}") from error
                micro = smaller(micro, request)
                watch.say(f"memory was short; now {micro} rows at a time")
            # Outside of the handler: its traceback would hold the tensors that must be freed.
            trainer = None
            gc.collect()
        _save(trainer, request.out_dir, request.base_dir.name)
    return watch.outcome(len(rows), skipped, setting.precision, micro)


def choose(precision: str) -> Setting:
    """GPU when there is one; bf16 where the hardware multiplies it, else f32."""
    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported()
        device = "cuda"
    else:
        fast = _cpu_has_bf16()
        device = "cpu"
    return Setting(device, ("bf16" if fast else "fp32") if precision == "auto" else precision)


def smaller(micro: int, request: TrainRequest) -> int:
    """Half as many rows at a time. Raises ``ResourceError`` when it is one already."""
    if micro == 1:
        raise ResourceError(
            f"memory does not suffice to train on one row of {request.max_tokens} tokens",
            fix="Lower max_tokens or rank, or ask for more memory.",
        )
    return micro // 2


def _cpu_has_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _validation(request: TrainRequest, tokenizer: Any) -> list[examples.Example]:
    if request.validation_jsonl is None:
        return []
    rows = examples.read_rows(request.validation_jsonl)[:VALIDATION_ROWS]
    kept, _ = examples.tokenize(rows, tokenizer, request.max_tokens)
    return sorted(kept, key=lambda row: len(row.input_ids))


def _trainer(
    request: TrainRequest,
    setting: Setting,
    tokenizer: Any,
    rows: list[examples.Example],
    micro: int,
    watch: Watch,
) -> Any:
    torch.manual_seed(request.seed)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(request.base_dir), dtype=setting.dtype, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(f"the model to tune does not load: {error}", where=str(request.base_dir)) from error
    lora = LoraConfig(
        r=request.rank, lora_alpha=request.alpha, target_modules=list(TARGETS), task_type="CAUSAL_LM"
    )
    model = get_peft_model(model, lora, autocast_adapter_dtype=False).to(setting.device)
    optimizer = MasterAdamW(model, request.lr)
    config = SFTConfig(
        output_dir=str(checkpoints.folder(request)),
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=math.ceil(request.batch / micro),
        num_train_epochs=1,  # ``rows`` already holds every epoch, in order
        train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        packing=False,
        gradient_checkpointing=False,
        bf16=False,  # the model is bf16 as it is; this would add autocast
        use_cpu=setting.device == "cpu",
        seed=request.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,  # else a loss that is not a number goes unseen
        save_strategy="no",  # by the clock, see Watch
        save_total_limit=2,
        eval_strategy="no",
        prediction_loss_only=True,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    from datasets import Dataset

    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list([row.row() for row in rows]),
        processing_class=tokenizer,
        callbacks=[watch.callback()],
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, watch.lr_share)),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _learn(trainer: Any, watch: Watch, validation: list[examples.Example]) -> None:
    from datasets import Dataset

    held_out = Dataset.from_list([row.row() for row in validation]) if validation else None
    resume = watch.resume()
    if held_out is not None and watch.validation_before is None:
        watch.validation_before = trainer.evaluate(held_out)["eval_loss"]
    watch.begin(time.monotonic())
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if held_out is not None:
        watch.validation_after = trainer.evaluate(held_out)["eval_loss"]


def _save(trainer: Any, out_dir: Path, base_name: str) -> None:
    part = out_dir.with_name(out_dir.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    # A path of this machine has no place in a release, and would change its digest.
    trainer.model.peft_config["default"].base_model_name_or_path = base_name
    trainer.model.save_pretrained(str(part), save_embedding_layers=False)
    (part / "README.md").unlink(missing_ok=True)
    shutil.rmtree(out_dir, ignore_errors=True)
    part.rename(out_dir)
