"""Many replicas and the requests that go through them: the compiled core's only door.

A ``Fleet`` holds arrays and hands them to the kernels. Everything is checked here: what a request may
ask, that tokens, blocks and energy are conserved. It knows no control plane; ``factory_day`` joins it
with one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tokenmill.domain.errors import DataError, invariant
from tokenmill.domain.factory import Quota
from tokenmill.twin import floor_arrays as fa
from tokenmill.twin import histogram_kernel, replica_kernel, router_kernel
from tokenmill.twin.floor_arrays import Array, Floor
from tokenmill.twin.histogram_kernel import BINS
from tokenmill.twin.router_kernel import AFFINITY, LEAST_WORK, QUEUE_PER_SLOT, RANDOM, TWO_CHOICES
from tokenmill.twin.step_table import StepTable

ROUTERS = {
    "random": RANDOM,
    "two-choices": TWO_CHOICES,
    "least-work": LEAST_WORK,
    "prefix-affinity": AFFINITY,
}
HOMES = 1 << 16
"""Prefixes whose last replica the affinity router remembers; a newer one takes an older one's place."""

MAX_LOG = 5_000_000
MAX_CACHE_UNITS = 1 << 19
MAX_SLOTS = 1 << replica_kernel.SHIFT
FOREVER = 1e18


@dataclass(slots=True)
class Fleet:
    """Replicas by number, each of one of ``tables``, behind aliases by number.

    ``engine_of[r]`` is the table of replica r. ``routers`` has one name for each alias; every replica serves
    alias 0 until ``pool`` says otherwise. ``log_rows`` keeps the times of requests with ids below it.
    ``units`` names prefix units one by one; without it they are made of a request's session and tenant.
    ``queue_per_slot`` bounds the requests of a replica, as ``policy.route`` does live.
    ``targets`` are (TTFT, TPOT) seconds by alias, for goodput.
    """

    tables: Sequence[StepTable]
    engine_of: Sequence[int]
    routers: Sequence[str] = ("two-choices",)
    quotas: Sequence[Quota] = ()
    targets: Sequence[tuple[float, float]] = ()
    unit_tokens: int = 512
    units: Array | None = None
    cache_units: int = 4096
    log_rows: int = 0
    queue_per_slot: int = QUEUE_PER_SLOT
    floor: Floor = field(init=False)
    home: Array = field(init=False)
    pools: Array = field(init=False)
    sizes: Array = field(init=False)
    kinds: Array = field(init=False)

    def __post_init__(self) -> None:
        """Raise ``DataError`` for an unknown router or more than fits into memory."""
        unknown = sorted(set(self.routers) - set(ROUTERS))
        if unknown:
            raise DataError(f"there is no router {unknown[0]!r}", expected=f"one of: {', '.join(ROUTERS)}")
        if self.log_rows > MAX_LOG:
            raise DataError(f"{self.log_rows} rows are too many to keep", expected=f"at most {MAX_LOG}")
        count, aliases = len(self.engine_of), len(self.routers)
        self.floor = _floor(self)
        self.home = np.zeros((HOMES if AFFINITY in [ROUTERS[x] for x in self.routers] else 1, 3), np.int64)
        self.pools = np.zeros((aliases, count), np.int64)
        self.sizes = np.zeros(aliases, np.int64)
        self.kinds = np.array([ROUTERS[name] for name in self.routers], np.int64)
        self.pool(0, range(count))

    def pool(self, alias: int, replicas: Sequence[int]) -> None:
        """Let these replicas, and only these, take new requests of an alias."""
        invariant(len(replicas) <= self.pools.shape[1], "more replicas in a pool than there are")
        self.pools[alias, : len(replicas)] = replicas
        self.sizes[alias] = len(replicas)
        self.floor.replicas["open"][:] = 0
        for one in range(len(self.sizes)):
            self.floor.replicas["open"][self.pools[one, : self.sizes[one]]] = 1

    def send(self, requests: Array) -> None:
        """Route requests (records of ``REQUEST``) in order of time, and advance the replicas looked at."""
        router_kernel.run(self.floor, requests, self.pools, self.sizes, self.kinds, self.home)

    def advance(self, until_s: float = FOREVER) -> None:
        """Bring every replica to ``until_s``; without it, until all work is done."""
        look = np.zeros(1, fa.REQUEST)
        look["at"], look["alias"] = until_s, fa.LOOK
        self.send(look)

    def fail(self, r: int, at_s: float) -> tuple[Array, int]:
        """A replica is lost at ``at_s``: what waited is returned, to be sent elsewhere; what had begun
        breaks.

        Returns the waiting requests, with their first arrival in ``at``, and how many answers broke.
        """
        floor = self.floor
        self.advance(at_s)
        state = floor.replicas[r]
        queued = self._waiting(r)
        waiting = floor.slots[queued]
        decoding = floor.heap[r, : int(state["batch"])] & replica_kernel.SLOT_MASK
        running = floor.slots[decoding]
        again = _requests_of(waiting[waiting["made"] == 0])
        broken = len(running) + int((waiting["made"] > 0).sum())
        if floor.quotas.shape[0]:
            for tenant in (*waiting["tenant"], *running["tenant"]):
                floor.meters[tenant, 0] -= 1
        floor.counts[fa.TAKEN] -= len(again) + broken
        prompts = int(running["input"].sum())
        floor.counts[fa.INPUT] -= int(waiting["input"].sum()) + prompts
        # What was prefilled for nothing; of those thrown out before, the second time has not come.
        floor.counts[fa.RECOMPUTED] += prompts + int(state["progress"]) - int(waiting["made"].sum())
        for slot in (*queued, *decoding):
            floor.slots[slot]["next"] = floor.spare[0]
            floor.spare[0] = slot
        for name in ("quiet", "batch", "cached", "blocks", "waiting", "progress", "alone"):
            state[name] = 0
        floor.phases[r % floor.phases.shape[0]] = 0
        _empty_cache(floor, r)
        return again, broken

    def clock(self, engines: Array) -> None:
        """Let each replica go on as the engine that ``engines`` has for it."""
        self.floor.replicas["engine"][:] = engines
        self.floor.replicas["quiet"] = 0.0

    def _waiting(self, r: int) -> list[int]:
        """The slots of the requests that wait in a replica, first come first."""
        state = self.floor.replicas[r]
        slots = []
        at = int(state["first"])
        for _ in range(int(state["waiting"])):
            slots.append(at)
            at = int(self.floor.slots[at]["next"])
        return slots

    def outstanding(self) -> Array:
        """Requests in each replica, running and waiting, as of its own time."""
        state = self.floor.replicas
        return state["batch"] + state["waiting"]

    def longest_wait_s(self, alias: int, at_s: float) -> float:
        """How long the oldest request that waits in a replica of an alias has waited; 0 when none does."""
        floor = self.floor
        pool = self.pools[alias, : self.sizes[alias]]
        state = floor.replicas[pool]
        waits = state["waiting"] > 0
        if not waits.any():
            return 0.0
        first = floor.slots["arrival"][state["first"][waits]]
        return float(max(0.0, at_s - first.min()))

    def joules(self) -> float:
        """Energy above idle so far."""
        return float(math.fsum(self.floor.replicas["joules"]))

    def idle_w(self) -> Array:
        """Idle watts of each replica."""
        return self.floor.engines["idle_w"][self.floor.replicas["engine"]]

    def count(self, which: int) -> int:
        return int(self.floor.counts[which])

    def check(self) -> None:
        """Nothing is lost or made up: requests, tokens and cache blocks, now or at the end."""
        floor, counts = self.floor, self.floor.counts
        state = floor.replicas
        inside = int(self.outstanding().sum())
        invariant(int(counts[fa.TAKEN]) == int(counts[fa.FINISHED]) + inside, "a request was lost")
        capacity = floor.engines["capacity"][state["engine"]]
        invariant(bool(np.all((state["blocks"] >= 0) & (state["blocks"] <= capacity))), "blocks overdrawn")
        used = int(floor.spare[1]) - _listed(floor)
        invariant(used == inside, "a slot was lost")
        invariant(bool(np.all(state["cached"] >= 0)), "a cache holds less than nothing")
        idle = state["batch"] + state["waiting"] == 0
        invariant(bool(np.all(state["blocks"][idle] == 0)), "an idle replica holds blocks")
        invariant(bool(np.all(state["cached"][idle] == 0)), "an idle replica holds tokens")
        invariant(bool(np.all(state["busy"] <= state["now"] + 1e-6)), "a replica was busy longer than it ran")
        if inside == 0:
            worked = int(counts[fa.PREFILLED]) + int(counts[fa.HIT])
            owed = int(counts[fa.INPUT]) + int(counts[fa.RECOMPUTED])
            # What preemption or a failure threw out was computed, or found in the cache, and is owed again.
            invariant(worked == owed, "prompt tokens were lost")

    def quantile(self, alias: int, measure: int, q: float) -> float:
        """Seconds below which a share ``q`` of an alias's requests are; ``measure`` is TTFT, TPOT or
        END_TO_END. Within a bin values are taken as evenly spread; 0 without any."""
        return quantile(self.floor.histograms[alias, measure], q)


def quantile(histogram: Array, q: float) -> float:
    """A quantile of a histogram of ``histogram_kernel``, exact to the width of a bin (3.2 %)."""
    total = int(histogram.sum())
    if total == 0:
        return 0.0
    wanted = q * total
    above = np.cumsum(histogram)
    at = int(np.searchsorted(above, wanted))
    at = min(at, BINS - 1)
    before = float(above[at] - histogram[at])
    part = (wanted - before) / max(1.0, float(histogram[at]))
    low, high = histogram_kernel.edge(at), histogram_kernel.edge(at + 1)
    return low + (high - low) * min(1.0, max(0.0, part))


def requests_of(
    at_s: Array, inputs: Array, outputs: Array, draws: Array | None = None, *, first_id: int = -1
) -> Array:
    """Records of ``REQUEST`` from columns; ``draws`` is n x 2 for the router. Times must not go back."""
    made = np.zeros(len(at_s), fa.REQUEST)
    made["at"], made["input"], made["output"] = at_s, inputs, outputs
    made["id"] = np.arange(len(at_s)) + first_id if first_id >= 0 else -1
    if draws is not None:
        made["draw"], made["draw2"] = draws[:, 0], draws[:, 1]
    return made


def _requests_of(slots: Array) -> Array:
    made = np.zeros(len(slots), fa.REQUEST)
    made["at"] = slots["arrival"]
    for name in ("key", "input", "output", "units", "shared", "alias", "tenant", "id"):
        made[name] = slots[name]
    return made


def _floor(fleet: Fleet) -> Floor:
    tables, count, aliases = fleet.tables, len(fleet.engine_of), len(fleet.routers)
    sequences = max(table.rules.max_sequences for table in tables)
    slots = count * sequences * fleet.queue_per_slot + 1
    if slots > MAX_SLOTS:
        raise DataError(f"{slots} requests at once", expected=f"at most {MAX_SLOTS}: fewer replicas or slots")
    caching = any(table.rules.prefix_cache for table in tables)
    preempts = any(table.rules.preempt for table in tables)
    units = min(fleet.cache_units, MAX_CACHE_UNITS) if caching else 1
    hashed = 1 << max(1, (2 * units - 1).bit_length())
    replicas = fa.zeros((count,), fa.REPLICA)
    replicas["engine"] = fleet.engine_of
    for name in ("newest", "oldest", "spare"):
        replicas[name] = -1
    tenants = len(fleet.quotas)
    targets = list(fleet.targets) or [(math.inf, math.inf)] * aliases
    block = max(table.rules.block_tokens for table in tables)
    return Floor(
        replicas=replicas,
        slots=fa.zeros((slots,), fa.SLOT),
        spare=np.array([-1, 0]),
        heap=fa.zeros((count, -(-sequences // 8) * 8), np.int64),
        phases=np.zeros((count if preempts else 1, block), np.int32),
        engines=np.array([_engine(table, fleet.queue_per_slot) for table in tables], fa.ENGINE),
        curves=_curves(tables),
        counts=np.zeros(fa.COUNTS, np.int64),
        refused=np.zeros(aliases, np.int64),
        served=np.zeros((aliases, 5), np.int64),
        histograms=np.zeros((aliases, 3, BINS), np.int64),
        targets=np.array(targets, np.float64),
        log=np.zeros((fleet.log_rows, 3)),
        unit_tokens=fleet.unit_tokens,
        units=np.zeros(0, np.int64) if fleet.units is None else np.asarray(fleet.units, np.int64),
        nodes=np.zeros((count if caching else 1, units), fa.NODE),
        index=np.full((count if caching else 1, hashed), -1, np.int32),
        quotas=np.array([_limits(quota) for quota in fleet.quotas], np.int64).reshape(tenants, 4),
        meters=np.zeros((tenants, 5), np.int64),
    )


def _listed(floor: Floor) -> int:
    """Free slots that were in use before."""
    count, at = 0, int(floor.spare[0])
    while at >= 0:
        count, at = count + 1, int(floor.slots[at]["next"])
    return count


def _empty_cache(floor: Floor, r: int) -> None:
    state = floor.replicas[r]
    state["units"] = 0
    for name in ("newest", "oldest", "spare"):
        state[name] = -1
    floor.index[r % len(floor.index)] = -1


def _limits(quota: Quota) -> tuple[int, int, int, int]:
    found = (
        quota.requests_per_minute,
        quota.tokens_per_minute,
        quota.tokens_per_day,
        quota.concurrent_requests,
    )
    return tuple(-1 if limit is None else limit for limit in found)  # type: ignore[return-value]


def _engine(table: StepTable, queue_per_slot: int) -> tuple[object, ...]:
    rules = table.rules
    return (
        table.cached_token_s / fa.UNIT,
        table.pair_s,
        table.cached_token_j / fa.UNIT,
        table.pair_j,
        table.idle_w,
        table.prefill_share,
        table.late_share,
        table.eager_s,
        table.cache_tokens // rules.block_tokens,
        rules.block_tokens,
        rules.token_budget,
        rules.max_sequences,
        rules.max_sequences * queue_per_slot,
        1 + rules.draft_tokens,
        round(rules.tokens_per_step * fa.UNIT),
        rules.mixed,
        rules.preempt,
        rules.prefix_cache,
    )


def _curves(tables: Sequence[StepTable]) -> Array:
    """Seconds and joules by tokens, side by side: an iteration reads both from one cache line."""
    curves = np.zeros((len(tables), max(len(table.seconds) for table in tables), 2))
    for curve, table in zip(curves, tables, strict=True):
        curve[: len(table.seconds), 0] = table.seconds
        if table.joules:
            curve[: len(table.joules), 1] = table.joules
    return curves
