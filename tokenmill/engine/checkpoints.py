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
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from tokenmill.domain.errors import EngineError
from tokenmill.engine.gang import Gang
from tokenmill.engine.own_time import OwnTime
from tokenmill.engine.tuning import Progress, TrainOutcome, TrainRequest

MARK = "tokenmill.json"
WARMUP = 0.05  # share of the work
LAST_SHARE = 0.05  # of the learning rate, at the end
CURVE_POINTS = 200
VALIDATIONS = 10  # of one training, where patience asks for them and nobody says how often
PACE_READ_S = 1.0
BETTER = 1e-4  # by which a loss must fall to count as better


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
    more = [request.method, request.learn, request.beta, request.validate_every, request.patience]
    digest.update(json.dumps([*settings, *more, request.max_tokens, precision]).encode())
    return digest.hexdigest()


class Watch:
    """Follows one training over its attempts. ``lengths`` are tokens of each row, in training order.

    In a gang every rank has one; the first rank's clock counts for all, and it alone writes and reports.
    """

    def __init__(
        self,
        request: TrainRequest,
        report: Callable[[Progress], None],
        mark: str,
        lengths: Sequence[int],
        gang: Gang,
    ) -> None:
        self.request = request
        self.report = report
        self.mark = mark
        self.gang = gang
        self.total = math.ceil(len(lengths) / request.batch)
        self._tokens_until = [0, *accumulate(lengths)]
        self._squares_until = [0, *accumulate(s * s for s in lengths)]
        self.validation_before: float | None = None
        self.validation_after: float | None = None
        self.best: tuple[int, float] = (0, math.inf)  # step and loss
        self.improve: Callable[[], None] = lambda: None  # keeps the weights of the best validation
        self.mfu_of: Callable[[int, int, float], float] = lambda tokens, squares, seconds: 0.0
        self._worse = 0  # validations since the best one
        self.resumed_from = 0
        self.step = 0
        self.curve: list[tuple[int, float]] = []
        self.stopped_by = "epochs"
        self._message = "training"
        self._before_s = 0.0  # spent by earlier attempts, up to the checkpoint
        self._start_s = 0.0
        self._saved_s = 0.0
        self._saving = False
        self._end_s = 0.0
        self.own_time = OwnTime(gang)
        self.every_s = request.save_every_s  # the same on every rank
        self.save_from_s = 0.0  # since when training stands still for a checkpoint
        self._saved_us = self._save_us = 0
        self._looked_s = -math.inf

    def callback(self) -> Any:
        """A fresh callback for a trainer that reports to this watch."""
        return _Callback(self)

    def resume(self) -> Path | None:
        """The last whole checkpoint of this very training, whose account is taken over; or None.

        What else lies there, of other settings or cut off by a kill, is removed: the trainer keeps only the
        checkpoint with the highest step, and would delete ours in its favour. The first rank chooses.
        """
        where = folder(self.request)
        self.step, self.curve, self.best, self._worse = 0, [], (0, math.inf), 0
        found = sorted(where.glob("checkpoint-*"), key=lambda p: int(p.name[11:]), reverse=True)
        chosen = next((path for path in found if self._take_over(path / MARK)), None)
        (step,) = self.gang.agree([float(chosen.name[11:]) if chosen else -1.0])
        if step < 0:
            chosen = None
        elif chosen is None or chosen.name[11:] != f"{step:.0f}":
            chosen = where / f"checkpoint-{step:.0f}"
            if not self._take_over(chosen / MARK):
                raise EngineError(
                    f"worker {self.gang.rank} does not see the checkpoint of the first one",
                    expected="a work directory that all workers of the gang share",
                    where=str(chosen),
                )
        if self.gang.first:
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
        best = kept["best"] if mine else None
        self.best = (int(best[0]), float(best[1])) if best else (0, math.inf)
        self._worse = int(kept["worse"]) if mine else 0
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
            done = max(done, self.seconds(self._end_s) / self.request.max_seconds)
        if done < WARMUP:
            return max(step, 1) / max(1.0, WARMUP * self.total) if step < WARMUP * self.total else 1.0
        return max(LAST_SHARE, 1.0 - (done - WARMUP) / (1.0 - WARMUP) * (1.0 - LAST_SHARE))

    def stepped(self, step: int, loss: float, now_s: float) -> tuple[bool, bool]:
        """Take note of a step. Returns whether to save a checkpoint, and whether to stop.

        ``loss`` and ``now_s`` are the same on every rank.
        """
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
        if self._saving:  # the last step was saved; the next one counts from here, on every rank alike
            self._saved_s, self._saving = now_s, False
        self._saving = now_s - self._saved_s >= self.every_s and step < self.total
        return self._saving, late

    def pace_s(self, now_s: float) -> float:
        """Seconds between checkpoints that are wished now; the file is read once a second at most."""
        if self.request.pace is None or not self.gang.first or now_s - self._looked_s < PACE_READ_S:
            return self.every_s
        self._looked_s = now_s
        try:
            return float(json.loads(self.request.pace.read_text("utf-8"))["checkpoint_us"]) / 1e6
        except (OSError, ValueError, KeyError, TypeError):
            return self.every_s  # there is none yet

    def validate_due(self, step: int) -> bool:
        """Whether the validation rows are to be looked at after ``step``."""
        if not self.request.patience or self.request.validation_jsonl is None:
            return False
        every = self.request.validate_every or max(1, self.total // VALIDATIONS)
        return step % every == 0 or step >= self.total

    def validated(self, loss: float) -> bool:
        """Take note of a validation in the middle. Returns whether patience is at its end."""
        if loss < self.best[1] - BETTER:
            self.best, self._worse = (self.step, loss), 0
            self.improve()
            return False
        self._worse += 1
        if self._worse >= self.request.patience and self.step < self.total:
            self.stopped_by = "patience"
            return True
        return False

    def saved(self, checkpoint: Path, now_s: float) -> None:
        """Mark a checkpoint as whole. Only the first rank does; when to save next is no matter of it."""
        kept = {
            "mark": self.mark,
            "step": self.step,
            "seconds": self.seconds(now_s),
            "curve": self.curve,
            "validation_before": self.validation_before,
            "best": list(self.best) if self.best[0] else None,
            "worse": self._worse,
        }
        part = checkpoint / (MARK + ".part")
        with part.open("w", encoding="utf-8") as file:
            json.dump(kept, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(checkpoint / MARK)
        self._saved_us = time.time_ns() // 1000
        self._save_us = max(1, round((now_s - self.save_from_s) * 1e6))
        self._tell(self._end_s)

    def say(self, message: str) -> None:
        """Tell people something that matters, with the next progress."""
        self._message = message
        self._tell(self._end_s)

    def tokens(self, step: int) -> int:
        """Tokens of all rows that were trained until ``step``."""
        return self._tokens_until[min(step * self.request.batch, len(self._tokens_until) - 1)]

    def utilisation(self) -> float:
        """MFU of the steps of all attempts together."""
        last = min(self.step * self.request.batch, len(self._tokens_until) - 1)
        return self.mfu_of(self._tokens_until[last], self._squares_until[last], self.seconds(self._end_s))

    def outcome(self, rows: int, skipped: dict[str, int], precision: str, micro: int) -> TrainOutcome:
        """The account of the whole training; what only the device knows is added by the trainer."""
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
            method=self.request.method,
            workers=self.gang.world,
            best_step=self.best[0] if self.best[0] != self.step else 0,
            mfu=self.utilisation(),
        )

    def _tell(self, now_s: float) -> None:
        if not self.gang.first:
            return
        spent = self.seconds(now_s)
        eta = spent / max(1, self.step) * (self.total - self.step)
        if self.request.max_seconds:
            eta = min(eta, max(0.0, self.request.max_seconds - spent))
        tokens = self.tokens(self.step)
        loss = self.curve[-1][1] if self.curve else math.nan
        rate = tokens / max(spent, 1e-9)
        used = self.utilisation()
        done = Progress(self.step, self.total, "steps", self._message, loss, tokens, rate, eta, used)
        self.report(replace(done, saved_us=self._saved_us, save_us=self._save_us, ranks=self.own_time.last))


class _Callback(TrainerCallback):  # type: ignore[misc]
    """Passes what the trainer reports to the watch, and the watch's wishes back."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" not in (logs or {}):
            return
        watch = self.watch
        now_s = time.monotonic()
        loss, now_s, watch.every_s = watch.gang.agree([float(logs["loss"]), now_s, watch.pace_s(now_s)])
        watch.own_time.stepped(now_s)
        watch.save_from_s = time.monotonic()
        save, stop = watch.stepped(state.global_step, loss, now_s)
        control.should_save = control.should_save or save
        control.should_evaluate = watch.validate_due(state.global_step)
        control.should_training_stop = control.should_training_stop or stop

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        self.watch.save_from_s = time.monotonic()  # a save comes after it
        if (
            state.global_step
            and "eval_loss" in (metrics or {})
            and self.watch.validate_due(state.global_step)
        ):
            (loss,) = self.watch.gang.agree([float(metrics["eval_loss"])])
            if self.watch.validated(loss):
                control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.watch.gang.first:
            self.watch.saved(Path(args.output_dir) / f"checkpoint-{state.global_step}", time.monotonic())
