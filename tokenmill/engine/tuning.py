"""What is asked of a tuning and what comes back. Loads nothing heavy and does no work itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What to tune, on what, and for how long.

    ``base_dir`` is a Hugging Face directory (see ``convert.gguf_to_safetensors``). Rows of the two JSONL
    files are ``{"messages": [{"role", "content"}, ...]}`` whose last message is the assistant's; only the
    tokens of that last message are learnt. ``max_seconds`` and ``epochs`` both bound the work; the earlier
    one ends it.
    """

    base_dir: Path
    train_jsonl: Path
    out_dir: Path  # the PEFT adapter is written here
    work_dir: Path  # checkpoints; kept by the caller between attempts
    validation_jsonl: Path | None = None
    rank: int = 16
    alpha: int = 32
    epochs: float = 1.0
    max_seconds: float = 0.0  # 0 is no limit; counts training over all attempts
    batch: int = 16  # rows per optimizer step
    lr: float = 5e-4
    seed: int = 0
    max_tokens: int = 512  # longer rows are left out and counted
    save_every_s: float = 30.0
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


@dataclass(frozen=True, slots=True)
class TrainOutcome:
    """What came of it. ``loss_curve`` is (step, loss) pairs, ``skipped`` reasons with counts.

    ``seconds`` and ``tokens`` are of all attempts together; ``tokens_per_s`` is of the steps alone.
    """

    adapter_dir: Path
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
    stopped_by: str  # epochs or max_seconds
