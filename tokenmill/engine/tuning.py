"""What is asked of a tuning and what comes back. Loads nothing heavy and does no work itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenmill.engine.own_time import Window


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What to tune, on what, and for how long.

    ``base_dir`` is a Hugging Face directory (see ``convert.gguf_to_safetensors``). Rows of the two JSONL
    files are ``{"messages": [{"role", "content"}, ...]}`` whose last message is the assistant's. Only what
    the assistant says is learnt: its last message, or with ``learn="all"`` each of its messages. Rows for
    ``dpo`` also have ``rejected``, the worse answer. ``max_seconds``, ``epochs`` and ``patience`` all
    bound the work; the earliest ends it.
    """

    base_dir: Path
    train_jsonl: Path
    out_dir: Path  # the PEFT adapter, or with method full the whole model, is written here
    work_dir: Path  # checkpoints; kept by the caller between attempts
    validation_jsonl: Path | None = None
    method: str = "lora"  # lora, full (all weights) or dpo (a LoRA adapter from preferences)
    learn: str = "last"  # last or all of the assistant's messages
    beta: float = 0.1  # of DPO: how far the policy may leave the base
    rank: int = 16
    alpha: int = 32
    epochs: float = 1.0
    max_seconds: float = 0.0  # 0 is no limit; counts training over all attempts
    batch: int = 16  # rows per optimizer step, over all workers
    micro_batch: int = 0  # rows that one worker computes at a time; 0 begins with all of its share
    recompute: bool = False  # activations in the backward pass: less memory, a third more time
    validate_every: int = 0  # steps; 0 is a tenth of the training where patience asks for it
    patience: int = 0  # stop after so many validations without a better loss, and keep the best; 0 never does
    lr: float = 5e-4
    seed: int = 0
    max_tokens: int = 512  # longer rows are left out and counted
    save_every_s: float = 30.0
    pace: Path | None = None  # file that says another time between checkpoints, which may change any time
    threads: int = 0  # 0 is all cores
    precision: str = "auto"  # auto, bf16 or fp32


@dataclass(frozen=True, slots=True)
class Progress:
    """``done`` of ``total`` optimizer steps; ``eta_s`` until the end, by steps or by the time limit."""

    done: int
    total: int
    unit: str
    message: str
    loss: float
    tokens: int  # trained so far: prompts and completions, no padding
    tokens_per_s: float
    eta_s: float
    mfu: float = 0.0
    saved_us: int = 0  # since the epoch: when the last checkpoint of this attempt was made
    save_us: int = 0  # how long training stood still for it
    ranks: Window | None = None  # of a gang: whose own work takes long


@dataclass(frozen=True, slots=True)
class TrainOutcome:
    """What came of it. ``loss_curve`` is (step, loss) pairs, ``skipped`` reasons with counts.

    ``seconds`` and ``tokens`` are of all attempts together; ``tokens_per_s`` is of the steps alone.
    """

    adapter_dir: Path  # what ``out_dir`` of the request was
    steps: int
    total_steps: int
    seconds: float
    tokens: int
    tokens_per_s: float
    loss_curve: tuple[tuple[int, float], ...]
    validation_loss_before: float | None
    validation_loss: float | None
    rows: int
    skipped: dict[str, int]
    resumed_from: int  # step; 0 when from the start
    precision: str
    micro_batch: int
    stopped_by: str  # epochs, max_seconds or patience
    method: str = "lora"
    workers: int = 1
    best_step: int = 0  # whose weights were kept; 0 is the last one's
    device: str = ""
    peak_tflops: float = 0.0  # dense peak of one accelerator; 0 where it is not known
    mfu: float = 0.0  # see ``engine.flops``; 0 where the peak is not known
    energy_mj: int = 0  # of the workers' GPUs in this attempt
    energy_source: str = ""  # empty where nothing was measured
    peak_memory_bytes: int = 0  # of the first worker
