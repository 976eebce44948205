"""The reference: the same replica, one iteration at a time, with lists and dictionaries and no closed form.

Slow on purpose. It shares nothing with the compiled core but ``StepTable``, so that each is a test of the
other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from tokenmill.domain.errors import invariant
from tokenmill.twin.iteration import combined
from tokenmill.twin.step_table import StepTable


@dataclass(slots=True)
class Asked:
    """One request and what became of it. ``prefix`` names the leading units of its prompt."""

    at_s: float
    input_tokens: int
    output_tokens: int
    prefix: tuple[int, ...] = ()
    first_s: float = 0.0
    end_s: float = 0.0
    made: int = 0  # output tokens before it was thrown out
    gained: float = 0.0  # tokens since its last prefill, in 1/1024
    order: int = 0

    @property
    def length(self) -> int:
        """Tokens in the cache while it decodes, without fractions."""
        return self.input_tokens + self.made + 1 + int(self.gained) // 1024


@dataclass(slots=True)
class NaiveReplica:
    """``unit_tokens`` are the tokens of one prefix unit; ``cache_units`` bounds the entries of the cache."""

    table: StepTable
    unit_tokens: int = 512
    cache_units: int = 1 << 30
    now_s: float = 0.0
    joules: float = 0.0
    waiting: list[Asked] = field(default_factory=list)
    running: list[Asked] = field(default_factory=list)
    cache: OrderedDict[int, None] = field(default_factory=OrderedDict)
    progress: int = 0
    begun: int = 0
    preempted: int = 0
    hits: int = 0
    prefilled: int = 0

    def serve(self, requests: Sequence[Asked]) -> None:
        """Serve all of them, in order of their time."""
        coming = list(requests)
        while coming or self.waiting or self.running:
            if not self.waiting and not self.running:
                self.now_s = max(self.now_s, coming[0].at_s)
            while coming and coming[0].at_s <= self.now_s:
                self.waiting.append(coming.pop(0))
            self.iterate()

    def iterate(self) -> None:
        """One iteration of the engine."""
        alone = self._make_room()
        if not alone and self.waiting and (self.progress or self._fits(self.waiting[0], 0)):
            self._prefill()
        else:
            decoding = len(self.running) * (1 + self.table.rules.draft_tokens)
            self._pass_time(decoding, (0.0, 0.0), decodes=True)

    def blocks(self) -> int:
        """Blocks that are taken now."""
        rules = self.table.rules
        taken = sum(self._blocks(one.length if rules.preempt else self._most(one)) for one in self.running)
        if self.progress:
            taken += self._need(self.waiting[0])
        return taken

    def _most(self, one: Asked) -> int:
        return one.input_tokens + one.output_tokens

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.table.rules.block_tokens)

    def _need(self, one: Asked) -> int:
        if self.table.rules.preempt:
            return self._blocks(one.input_tokens + one.made + 1)
        return self._blocks(self._most(one))

    @property
    def _capacity(self) -> int:
        return self.table.cache_tokens // self.table.rules.block_tokens

    def _growth(self) -> int:
        block = self.table.rules.block_tokens
        return sum(one.length % block == 0 for one in self.running) if self.table.rules.preempt else 0

    def _fits(self, one: Asked, begun: int, taken: int | None = None) -> bool:
        rules = self.table.rules
        if len(self.running) + begun >= rules.max_sequences:
            return False
        growth = self._growth() if rules.mixed else 0
        return (self.blocks() if taken is None else taken) + growth + self._need(one) <= self._capacity

    def _make_room(self) -> bool:
        """Throw out what began last until one more iteration fits; says whether anything was."""
        alone = False
        while self.table.rules.preempt and self.blocks() + self._growth() > self._capacity:
            self.preempted += 1
            alone = True
            if self.progress:
                self.progress = 0
                continue
            youngest = max(self.running, key=lambda one: one.order)
            self.running.remove(youngest)
            youngest.made = youngest.length - youngest.input_tokens
            youngest.gained = 0
            self.waiting.insert(0, youngest)
        return alone

    def _prefill(self) -> None:
        rules = self.table.rules
        decoding = tokens = len(self.running) * (1 + rules.draft_tokens) if rules.mixed else 0
        room = max(1, rules.token_budget - tokens)
        done: list[Asked] = []
        taken = self.blocks()
        pairs = 0.0
        while room and self.waiting:
            head = self.waiting[0]
            if not self.progress:
                if not self._fits(head, len(done), taken):
                    break
                taken += self._need(head)
                self.progress = self._found(head, taken)
            prompt = head.input_tokens + head.made
            chunk = min(room, prompt - self.progress)
            pairs += chunk * (self.progress + chunk / 2)
            tokens, room, self.progress = tokens + chunk, room - chunk, self.progress + chunk
            self.prefilled += chunk
            if self.progress < prompt:
                break
            self.progress = 0
            done.append(self.waiting.pop(0))
        added = [self._cost(tokens, n) - (self._cost(decoding, n) if decoding else 0.0) for n in (0, 1)]
        added[0] = combined(added[0] + self.table.pair_s * pairs, self.table.eager_s)
        added[1] += self.table.pair_j * pairs
        self._pass_time(decoding, [self.table.prefill_share * one for one in added], decodes=rules.mixed)
        for n, one in enumerate(done):
            self._begin(one, done[n + 1 :])

    def _found(self, head: Asked, taken: int) -> int:
        """Tokens of a prompt that the cache holds; at least one is always computed."""
        if not self.table.rules.prefix_cache:
            return 0
        found = 0
        while found < len(head.prefix) and head.prefix[found] in self.cache:
            found += 1
        for key in reversed(head.prefix[:found]):
            self.cache.move_to_end(key)
        self._trim(self._spare_units(taken))
        hit = min(found * self.unit_tokens, head.input_tokens + head.made - 1)
        self.hits += hit
        return hit

    def _spare_units(self, taken: int) -> int:
        free = (self._capacity - taken) * self.table.rules.block_tokens
        return max(0, min(free // self.unit_tokens, self.cache_units))

    def _trim(self, most: int) -> None:
        while len(self.cache) > most:
            self.cache.popitem(last=False)

    def _keep(self, one: Asked, taken: int) -> None:
        most = self._spare_units(taken)
        for key in reversed(one.prefix[:most]):
            if key in self.cache:
                self.cache.move_to_end(key)
                continue
            self._trim(most - 1)
            self.cache[key] = None

    def _cost(self, tokens: int, which: int) -> float:
        """Seconds (0) or joules (1) of an iteration with so many tokens."""
        row = (self.table.seconds, self.table.joules)[which]
        return row[tokens] if row else 0.0

    def _pass_time(self, decoding: int, added: Sequence[float], *, decodes: bool) -> None:
        """One iteration; ``added`` are the seconds and joules of what it prefills."""
        table = self.table
        cached = sum(one.input_tokens + one.made + 1 + one.gained / 1024 for one in self.running)
        seconds, joules = (
            (self._cost(decoding, which) if decoding else 0.0) + more for which, more in enumerate(added)
        )
        if decodes:
            seconds += table.cached_token_s * cached
            joules += table.cached_token_j * cached
        self.now_s += seconds
        self.joules += joules
        if not decodes:
            return
        gain = round(table.rules.tokens_per_step * 1024)
        for one in list(self.running):
            one.gained += gain
            if one.made + 1 + one.gained / 1024 >= one.output_tokens:
                one.end_s = self.now_s
                self.running.remove(one)
        invariant(self.blocks() <= self._capacity, "the cache is overfull")

    def _begin(self, one: Asked, after: list[Asked]) -> None:
        if self.table.rules.prefix_cache:
            taken = self.blocks() + self._need(one) + sum(self._need(other) for other in after)
            self._keep(one, taken)
        if one.made == 0:
            one.first_s = self.now_s
        if one.output_tokens - one.made <= 1:
            one.end_s = self.now_s
            return
        self.begun += 1
        one.order = self.begun
        self.running.append(one)
