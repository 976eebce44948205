"""One replica with continuous batching, advanced in virtual time from one event to the next.

Between two arrivals or ends the batch does not change and the cache grows by one token per sequence, so n
iterations take n (T + c K) + c B n (n - 1) / 2 and are skipped in one step. Tests hold this to a plain
loop over iterations. A prompt is prefilled in chunks, mixed with the decoding of others; sequences are never
evicted.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field

from tokenmill.twin.engine_model import EngineModel


@dataclass(slots=True)
class Served:
    """One request in a replica. Times are seconds; 0 until they are known."""

    arrival_s: float
    input_tokens: int
    output_tokens: int
    alias: str = ""
    first_s: float = 0.0
    end_s: float = 0.0

    @property
    def ttft_s(self) -> float:
        return self.first_s - self.arrival_s

    @property
    def tpot_s(self) -> float:
        """Seconds per output token after the first; 0 for a single one."""
        return (self.end_s - self.first_s) / (self.output_tokens - 1) if self.output_tokens > 1 else 0.0


@dataclass(slots=True)
class ReplicaModel:
    """``slots`` sequences decode together; a prompt's chunk and the decoding share ``budget`` tokens."""

    name: str
    model: EngineModel
    slots: int
    budget: int = 512
    now_s: float = 0.0
    busy_s: float = 0.0
    step: int = 0
    cached: int = 0
    prefilled: int = 0  # tokens of the first waiting request that are done
    waiting: deque[Served] = field(default_factory=deque)
    running: list[tuple[int, int, Served]] = field(
        default_factory=list
    )  # heap of (last step, order, request)
    order: int = 0

    @property
    def outstanding(self) -> int:
        return len(self.waiting) + len(self.running)

    def submit(self, request: Served) -> None:
        """Take a request that arrives now or, when the replica is in an iteration, at its end."""
        self.advance(request.arrival_s)
        if self.outstanding == 0:
            self.now_s = max(self.now_s, request.arrival_s)
        self.waiting.append(request)

    def advance(self, until_s: float) -> None:
        """Go on to the first end of an iteration at or after ``until_s``, or until nothing is left to do."""
        while self.now_s < until_s and self.outstanding:
            if self.waiting and (self.prefilled or len(self.running) < self.slots):
                self._mixed()
            else:
                self._decode(until_s)
        if not self.outstanding and not math.isinf(until_s):
            self.now_s = max(self.now_s, until_s)

    def _mixed(self) -> None:
        """One iteration that decodes the batch and prefills as many prompt tokens as the budget allows."""
        decode = len(self.running)
        room = max(1, self.budget - decode)
        start = self.prefilled
        prefill = 0
        done: list[Served] = []
        pairs = 0.0
        while room and self.waiting and len(self.running) + len(done) < self.slots:
            head = self.waiting[0]
            chunk = min(room, head.input_tokens - self.prefilled)
            pairs += chunk * (self.prefilled + chunk / 2)
            room, prefill, self.prefilled = room - chunk, prefill + chunk, self.prefilled + chunk
            if self.prefilled < head.input_tokens:
                break
            done.append(self.waiting.popleft())
            self.prefilled = 0
        # Chunks of several prompts: the same attention work as one chunk at this mean context.
        context = round(pairs / prefill - prefill / 2) if len(done) + bool(self.prefilled) > 1 else start
        self._spend(self.model.iteration_s(decode, prefill, self.cached, context))
        self.step += 1
        self.cached += decode
        self._finish()
        for request in done:
            request.first_s = self.now_s
            if request.output_tokens <= 1:
                request.end_s = self.now_s
                continue
            self.order += 1
            heapq.heappush(self.running, (self.step + request.output_tokens - 1, self.order, request))
            self.cached += request.input_tokens + 1

    def _decode(self, until_s: float) -> None:
        """As many pure decoding iterations as nothing interrupts."""
        batch = len(self.running)
        steps = self.running[0][0] - self.step
        first = self.model.iteration_s(batch, 0, self.cached)
        growth = self.model.cached_token_s * batch
        if self.now_s + _series(first, growth, steps) > until_s:
            steps = min(steps, _steps_for(first, growth, until_s - self.now_s))
        self._spend(_series(first, growth, steps))
        self.step += steps
        self.cached += batch * steps
        self._finish()

    def _finish(self) -> None:
        while self.running and self.running[0][0] == self.step:
            _, _, request = heapq.heappop(self.running)
            request.end_s = self.now_s
            self.cached -= request.input_tokens + request.output_tokens

    def _spend(self, seconds: float) -> None:
        self.now_s += seconds
        self.busy_s += seconds


def _series(first: float, growth: float, steps: int) -> float:
    """Seconds of ``steps`` iterations of which each takes ``growth`` longer than the one before."""
    return steps * first + growth * steps * (steps - 1) / 2


def _steps_for(first: float, growth: float, seconds: float) -> int:
    """The fewest iterations that last at least ``seconds``, and at least one."""
    if growth <= 0:
        return max(1, math.ceil(seconds / first - 1e-9))
    half = growth / 2
    slope = first - half
    return max(1, math.ceil((-slope + math.sqrt(slope**2 + 4 * half * seconds)) / (2 * half) - 1e-9))
