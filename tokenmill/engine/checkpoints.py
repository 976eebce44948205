"""How far training is: progress, time limit, checkpoints that survive a kill, and the learning rate's share.

A checkpoint counts only once its mark is in it, which is written last and atomically; so one that was cut off
by a kill is passed over, and so is one of other data or other settings. Imported by ``engine.sft`` only.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from tokenmill.domain.errors import EngineError
from tokenmill.engine.tuning import Progress, TrainOutcome, TrainRequest

MARK = "tokenmill.json"
WARMUP = 0.05  # share of the work
LAST_SHARE = 0.05  # of the learning rate, at the end
CURVE_POINTS = 200


def folder(request: TrainRequest) -> Path:
    """Where the trainer keeps its checkpoints."""
    return request.work_dir / "checkpoints"


def mark_of(request: TrainRequest, precision: str) -> str:
    """Digest of everything that decides what training computes. Another one cannot be continued from."""
    digest = hashlib.sha256(request.train_jsonl.read_bytes())
    for name in ("config.json", "tokenizer_config.json"):
        path = request.base_dir / name
        digest.update(path.read_bytes() if path.is_file() else b"")
    settings = [request.rank, request.alpha, request.epochs, request.batch, request.lr, request.seed]
    digest.update(json.dumps([*settings, request.max_tokens, precision]).encode())
    return digest.hexdigest()


class Watch:
    """Follows one training over its attempts. ``lengths`` are tokens of each row, in training order."""

    def __init__(
        self, request: TrainRequest, report: Callable[[Progress], None], mark: str, lengths: Sequence[int]
    ) -> None:
        self.request = request
        self.report = report
        self.mark = mark
        self.total = math.ceil(len(lengths) / request.batch)
        self._tokens_until = [0, *accumulate(lengths)]
        self.validation_before: float | None = None
        self.validation_after: float | None = None
        self.resumed_from = 0
        self.step = 0
        self.curve: list[tuple[int, float]] = []
        self.stopped_by = "epochs"
        self._message = "training"
        self._before_s = 0.0  # spent by earlier attempts, up to the checkpoint
        self._start_s = 0.0
        self._saved_s = 0.0
        self._end_s = 0.0

    def callback(self) -> Any:
        """A fresh callback for a trainer that reports to this watch."""
        return _Callback(self)

    def resume(self) -> Path | None:
        """The last whole checkpoint of this very training, whose account is taken over; or None.

        What else lies there, of other settings or cut off by a kill, is removed: the trainer keeps only the
        checkpoint with the highest step, and would delete ours in its favour.
        """
        found = sorted(
            folder(self.request).glob("checkpoint-*"), key=lambda p: int(p.name[11:]), reverse=True
        )
        chosen = next((path for path in found if self._take_over(path / MARK)), None)
        for path in found:
            if path != chosen:
                shutil.rmtree(path)
        return chosen

    def _take_over(self, path: Path) -> bool:
        """Go on with the account that ``path`` keeps, or with a new one when it is of another training."""
        kept = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        mine = kept.get("mark") == self.mark
        self.resumed_from = self.step = int(kept["step"]) if mine else 0
        self._before_s = float(kept["seconds"]) if mine else 0.0
        self.curve = [(int(s), float(v)) for s, v in kept["curve"]] if mine else []
        self.validation_before = kept["validation_before"] if mine else self.validation_before
        return mine

    def begin(self, now_s: float) -> None:
        """Start the clock of this attempt."""
        self._start_s = self._saved_s = self._end_s = now_s

    def seconds(self, now_s: float) -> float:
        """Spent in training, over all attempts."""
        return self._before_s + now_s - self._start_s

    def lr_share(self, step: int) -> float:
        """Share of the learning rate: a short linear rise, then a linear fall until work or time ends."""
        done = step / max(1, self.total)
        if self.request.max_seconds and self._start_s:
            done = max(done, self.seconds(time.monotonic()) / self.request.max_seconds)
        if done < WARMUP:
            return max(step, 1) / max(1.0, WARMUP * self.total) if step < WARMUP * self.total else 1.0
        return max(LAST_SHARE, 1.0 - (done - WARMUP) / (1.0 - WARMUP) * (1.0 - LAST_SHARE))

    def stepped(self, step: int, loss: float, now_s: float) -> tuple[bool, bool]:
        """Take note of a step. Returns whether to save a checkpoint, and whether to stop."""
        if not math.isfinite(loss):
            raise EngineError(
                f"training diverged at step {step}: the loss is {loss}", fix="Lower the learning rate."
            )
        self.step = step
        self._end_s = now_s
        self.curve.append((step, round(loss, 5)))
        self._tell(now_s)
        late = bool(self.request.max_seconds) and self.seconds(now_s) >= self.request.max_seconds
        if late and step < self.total:
            self.stopped_by = "max_seconds"
        due = now_s - self._saved_s >= self.request.save_every_s
        return due and step < self.total, late

    def saved(self, checkpoint: Path, now_s: float) -> None:
        """Mark a checkpoint as whole."""
        self._saved_s = now_s
        kept = {
            "mark": self.mark,
            "step": self.step,
            "seconds": self.seconds(now_s),
            "curve": self.curve,
            "validation_before": self.validation_before,
        }
        part = checkpoint / (MARK + ".part")
        with part.open("w", encoding="utf-8") as file:
            json.dump(kept, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(checkpoint / MARK)

    def say(self, message: str) -> None:
        """Tell people something that matters, with the next progress."""
        self._message = message
        self._tell(self._end_s)

    def tokens(self, step: int) -> int:
        """Tokens of all rows that were trained until ``step``."""
        return self._tokens_until[min(step * self.request.batch, len(self._tokens_until) - 1)]

    def outcome(self, rows: int, skipped: dict[str, int], precision: str, micro: int) -> TrainOutcome:
        """The account of the whole training."""
        seconds = self.seconds(self._end_s)
        every = max(1, math.ceil(len(self.curve) / CURVE_POINTS))
        return TrainOutcome(
            adapter_dir=self.request.out_dir,
            steps=self.step,
            total_steps=self.total,
            seconds=seconds,
            tokens=self.tokens(self.step),
            tokens_per_s=self.tokens(self.step) / max(seconds, 1e-9),
            loss_curve=tuple(self.curve[::every]),
            validation_loss_before=self.validation_before,
            validation_loss=self.validation_after,
            rows=rows,
            skipped=skipped,
            resumed_from=self.resumed_from,
            precision=precision,
            micro_batch=micro,
            stopped_by=self.stopped_by,
        )

    def _tell(self, now_s: float) -> None:
        spent = self.seconds(now_s)
        eta = spent / max(1, self.step) * (self.total - self.step)
        if self.request.max_seconds:
            eta = min(eta, max(0.0, self.request.max_seconds - spent))
        tokens = self.tokens(self.step)
        loss = self.curve[-1][1] if self.curve else math.nan
        rate = tokens / max(spent, 1e-9)
        self.report(Progress(self.step, self.total, "steps", self._message, loss, tokens, rate, eta))


class _Callback(TrainerCallback):  # type: ignore[misc]
    """Passes what the trainer reports to the watch, and the watch's wishes back."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" in (logs or {}):
            save, stop = self.watch.stepped(state.global_step, float(logs["loss"]), time.monotonic())
            control.should_save = control.should_save or save
            control.should_training_stop = control.should_training_stop or stop

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.watch.saved(Path(args.output_dir) / f"checkpoint-{state.global_step}", time.monotonic())
