"""One replica with continuous batching, advanced from event to event: no iteration is gone through singly.

Between two arrivals or ends the batch does not change and its cache grows by the same amount every
iteration, so n iterations take ``n a + b n (n - 1) / 2`` and are one step here. The sequences that decode
are in a heap by the absolute number of their last step: one push and one pop per request, nothing per
token. ``naive`` does the same one iteration at a time, and tests hold both to 1e-9 s.
"""

from __future__ import annotations

import math

from tokenmill.twin.compiling import compiled, embedded, inlined
from tokenmill.twin.floor_arrays import (
    END_TO_END,
    ENDED,
    EVENTS,
    FINISHED,
    GOOD,
    HIT,
    LATE,
    MADE,
    MADE_GOOD,
    OUTPUT,
    PREEMPTED,
    PREFILLED,
    RECOMPUTED,
    SLOW,
    TPOT,
    TTFT,
    UNIT,
    Array,
    Floor,
)
from tokenmill.twin.heap_kernel import sift_down, sift_up
from tokenmill.twin.histogram_kernel import bin_of
from tokenmill.twin.overlap_kernel import combined
from tokenmill.twin.prefix_kernel import insert, lookup, trim
from tokenmill.twin.quota_kernel import give_back

SHIFT = 28
SLOT_MASK = (1 << SHIFT) - 1
AT_REST = 1e18


@embedded
def advance(floor: Floor, r: int, until: float) -> None:
    """Go on to the first end of an iteration at or after ``until``, or until nothing is left to do."""
    state = floor.replicas[r]
    engine = floor.engines[state["engine"]]
    while state["now"] < until:
        if engine["preempt"] and state["batch"] > 0:
            _make_room(floor, r, state, engine)
        begun = 0
        head = state["first"]
        if _admits(floor, r, state, engine):
            begun = _prefill(floor, r, state, engine)
        elif state["batch"] > 0:
            _decode(floor, r, state, engine, until)
        else:
            state["quiet"] = AT_REST
            if until < AT_REST:
                state["now"] = until
            break
        floor.counts[EVENTS] += 1
        _finish(floor, r, state, engine)
        for _ in range(begun):
            behind = floor.slots[head]["next"]
            _begin(floor, r, state, engine, head)
            head = behind


@inlined
def _blocks(tokens: int, engine: Array) -> int:
    return int((tokens + engine["block"] - 1) // engine["block"])


@inlined
def _need(slot: Array, engine: Array) -> int:
    """Blocks that a request takes on admission: all it can ever have, or its prompt and one token."""
    if engine["preempt"]:
        return _blocks(slot["input"] + slot["made"] + 1, engine)
    return _blocks(slot["input"] + slot["output"], engine)


@inlined
def _steps(slot: Array, engine: Array) -> int:
    """Decoding iterations after the prefill, which makes one token itself."""
    return int(((slot["output"] - slot["made"] - 1) * UNIT + engine["gain"] - 1) // engine["gain"])


@inlined
def _admits(floor: Floor, r: int, state: Array, engine: Array) -> bool:
    """Whether the next iteration prefills."""
    if state["waiting"] == 0 or state["alone"]:
        return False
    if state["progress"] > 0:
        return True
    return _fits(floor, r, state, engine, state["first"], 0)


@inlined
def _fits(floor: Floor, r: int, state: Array, engine: Array, s: int, begun: int) -> bool:
    if state["batch"] + begun >= engine["sequences"]:
        return False
    growth = 0
    if engine["preempt"]:
        growth = _growth(floor, r, state, engine, 1) if engine["mixed"] else 0
    return bool(state["blocks"] + growth + _need(floor.slots[s], engine) <= engine["capacity"])


@embedded
def _prefill(floor: Floor, r: int, state: Array, engine: Array) -> int:
    """One iteration that prefills as much as the budget allows, and decodes the batch where both mix.

    Returns how many prompts it completed: they left the head of the queue and have yet to begin.
    """
    decoding = state["batch"] * engine["width"] if engine["mixed"] else 0
    tokens = decoding
    room = max(1, engine["budget"] - tokens)
    begun = 0
    pairs = 0.0
    while room > 0 and state["waiting"] > 0:
        s = state["first"]
        slot = floor.slots[s]
        if state["progress"] == 0:
            if not _fits(floor, r, state, engine, s, begun):
                break
            _admit(floor, r, state, engine, slot)
        prompt = slot["input"] + slot["made"]
        chunk = min(room, prompt - state["progress"])
        pairs += chunk * (state["progress"] + 0.5 * chunk)
        tokens += chunk
        room -= chunk
        state["progress"] += chunk
        floor.counts[PREFILLED] += chunk
        if state["progress"] < prompt:
            break
        state["progress"] = 0
        state["first"] = slot["next"]
        state["waiting"] -= 1
        begun += 1
    _prefilled(floor, r, state, engine, decoding, tokens, pairs)
    return begun


@inlined
def _admit(floor: Floor, r: int, state: Array, engine: Array, slot: Array) -> None:
    """Take the blocks of a prompt, and begin after what the prefix cache holds of it."""
    state["blocks"] += _need(slot, engine)
    if engine["prefix"]:
        hits = lookup(floor, r, slot) * floor.unit_tokens
        trim(floor, r, _spare_units(floor, state, engine))
        state["progress"] = min(hits, slot["input"] + slot["made"] - 1)
        floor.counts[HIT] += state["progress"]
        if slot["made"] == 0:
            slot["hits"] = state["progress"]


@inlined
def _spare_units(floor: Floor, state: Array, engine: Array) -> int:
    return int((engine["capacity"] - state["blocks"]) * engine["block"] // floor.unit_tokens)


@inlined
def _prefilled(
    floor: Floor, r: int, state: Array, engine: Array, decoding: int, tokens: int, pairs: float
) -> None:
    """Let the time and energy of a prefilling iteration pass."""
    curve = floor.curves[state["engine"], tokens]
    seconds, joules = 0.0, 0.0
    if decoding > 0:
        without = floor.curves[state["engine"], decoding]
        seconds, joules = without[0], without[1]
    seconds += engine["prefill"] * combined(curve[0] - seconds + engine["pair_s"] * pairs, engine["eager_s"])
    joules += engine["prefill"] * (curve[1] - joules + engine["pair_j"] * pairs)
    if engine["mixed"]:
        seconds += engine["cached_s"] * state["cached"]
        joules += engine["cached_j"] * state["cached"]
        if engine["preempt"]:
            state["blocks"] += _growth(floor, r, state, engine, 1)
        state["step"] += 1
        state["cached"] += state["batch"] * engine["gain"]
    state["now"] += seconds
    state["busy"] += seconds
    state["joules"] += joules
    state["quiet"] = state["now"]


@inlined
def _decode(floor: Floor, r: int, state: Array, engine: Array, until: float) -> None:
    """As many decoding iterations as nothing interrupts: an end, a full cache, or somebody who looks.

    All but the last one before an end are quiet: who looks during them finds the batch as it is now.
    """
    steps = (floor.heap[r, 0] >> SHIFT) - state["step"]
    if engine["preempt"]:
        steps = 1 if state["alone"] else _steps_that_fit(floor, r, state, engine, steps)
    curve = floor.curves[state["engine"], state["batch"] * engine["width"]]
    won = state["batch"] * engine["gain"]
    first = curve[0] + engine["cached_s"] * state["cached"]
    slope = engine["cached_s"] * won
    left = until - state["now"]
    seconds = steps * first + slope * (0.5 * steps * (steps - 1))
    quiet = state["now"]
    if seconds > left:
        if not engine["preempt"]:
            quiet += (steps - 1) * first + slope * (0.5 * (steps - 1) * (steps - 2))
        steps = min(steps, _steps_for(first, slope, left))
        seconds = steps * first + slope * (0.5 * steps * (steps - 1))
    if engine["preempt"]:
        state["blocks"] += _growth(floor, r, state, engine, steps)
    joules = curve[1] + engine["cached_j"] * state["cached"]
    state["joules"] += steps * joules + engine["cached_j"] * won * (0.5 * steps * (steps - 1))
    state["now"] += seconds
    state["quiet"] = quiet
    state["busy"] += seconds
    state["step"] += steps
    state["cached"] += won * steps
    state["alone"] = 0


@inlined
def _steps_for(first: float, slope: float, seconds: float) -> int:
    """The fewest iterations that last at least ``seconds``, and at least one."""
    if slope <= 0.0:
        steps = math.ceil(seconds / first)
    else:
        middle = first - 0.5 * slope
        steps = math.ceil((math.sqrt(middle * middle + 2.0 * slope * seconds) - middle) / slope)
    steps = max(1, steps)
    # The root is rounded; the sum is what counts.
    while steps > 1 and (steps - 1) * first + slope * (0.5 * (steps - 1) * (steps - 2)) >= seconds:
        steps -= 1
    while steps * first + slope * (0.5 * steps * (steps - 1)) < seconds:
        steps += 1
    return steps


@embedded
def _finish(floor: Floor, r: int, state: Array, engine: Array) -> None:
    """End the sequences whose last step this was."""
    while state["batch"] > 0 and (floor.heap[r, 0] >> SHIFT) == state["step"]:
        s = floor.heap[r, 0] & SLOT_MASK
        slot = floor.slots[s]
        state["batch"] -= 1
        sift_down(floor.heap[r], state["batch"], floor.heap[r, state["batch"]])
        state["cached"] -= (slot["input"] + slot["made"] + 1) * UNIT + _steps(slot, engine) * engine["gain"]
        if engine["preempt"]:
            floor.phases[r, (slot["input"] + slot["output"] - state["step"]) % engine["block"]] -= 1
        state["blocks"] -= _blocks(slot["input"] + slot["output"], engine)
        _end(floor, r, state, s, slot)


@embedded
def _begin(floor: Floor, r: int, state: Array, engine: Array, s: int) -> None:
    """A prompt is done: its first token is out, and it decodes from the next iteration on."""
    slot = floor.slots[s]
    now = state["now"]
    if engine["prefix"]:
        insert(floor, r, slot, _spare_units(floor, state, engine))
    if slot["made"] == 0:
        slot["first"] = now
        late = _late(floor, state, engine, slot)
        floor.histograms[slot["alias"], TTFT, bin_of(now - slot["arrival"] + late)] += 1
    steps = _steps(slot, engine)
    if steps == 0:
        state["blocks"] -= _need(slot, engine)
        _end(floor, r, state, s, slot)
        return
    if engine["preempt"]:
        length = slot["input"] + slot["made"] + 1
        floor.phases[r, (length - state["step"]) % engine["block"]] += 1
    state["order"] += 1
    slot["next"] = state["order"]
    state["cached"] += (slot["input"] + slot["made"] + 1) * UNIT
    sift_up(floor.heap[r], state["batch"], ((state["step"] + steps) << SHIFT) | s)
    state["batch"] += 1


@inlined
def _late(floor: Floor, state: Array, engine: Array, slot: Array) -> float:
    """Seconds from the end of a prompt's last iteration until its first token is out: see ``StepTable``."""
    if engine["late"] == 0.0:
        return 0.0
    tokens = slot["input"] - slot["hits"]
    chunk = min(tokens, engine["budget"])
    alone = floor.curves[state["engine"], chunk, 0] * (tokens / chunk)
    alone += engine["pair_s"] * (0.5 * tokens * tokens)
    return float(engine["late"] * combined(alone, engine["eager_s"] * (tokens / chunk)))


@inlined
def _end(floor: Floor, r: int, state: Array, s: int, slot: Array) -> None:
    """Count a finished request and give its slot back."""
    now = state["now"]
    alias = slot["alias"]
    ttft = slot["first"] - slot["arrival"] + _late(floor, state, floor.engines[state["engine"]], slot)
    tpot = 0.0
    if slot["output"] > 1:
        tpot = (now - slot["first"]) / (slot["output"] - 1)
        floor.histograms[alias, TPOT, bin_of(tpot)] += 1
    floor.histograms[alias, END_TO_END, bin_of(now - slot["arrival"])] += 1
    floor.counts[FINISHED] += 1
    floor.counts[OUTPUT] += slot["output"]
    served = floor.served[alias]
    served[ENDED] += 1
    served[MADE] += slot["output"]
    if ttft > floor.targets[alias, 0]:
        served[LATE] += 1
    elif tpot > floor.targets[alias, 1]:
        served[SLOW] += 1
    else:
        served[MADE_GOOD] += slot["output"]
        floor.counts[GOOD] += 1
    if slot["id"] >= 0 and floor.log.shape[0] > 0:
        floor.log[slot["id"], 0] = slot["first"]
        floor.log[slot["id"], 1] = now
        floor.log[slot["id"], 2] = r
    if floor.quotas.shape[0] > 0:
        quota, meter = floor.quotas[slot["tenant"]], floor.meters[slot["tenant"]]
        begun_us, now_us = int(slot["arrival"] * 1e6), int(now * 1e6)
        give_back(quota, meter, slot["input"] + slot["output"], begun_us, now_us)
    slot["next"] = floor.spare[0]
    floor.spare[0] = s


@inlined
def _growth(floor: Floor, r: int, state: Array, engine: Array, steps: int) -> int:
    """Blocks that ``steps`` decoding iterations take. A sequence takes one when its last is full."""
    block = engine["block"]
    taken = (steps // block) * state["batch"]
    for i in range(steps % block):
        taken += floor.phases[r, -(state["step"] + i) % block]
    return int(taken)


@inlined
def _steps_that_fit(floor: Floor, r: int, state: Array, engine: Array, most: int) -> int:
    """How many of ``most`` decoding iterations the free blocks allow; ``_make_room`` has seen to one."""
    block = engine["block"]
    free = engine["capacity"] - state["blocks"]
    if state["batch"] * ((most + block - 1) // block) <= free:
        return most
    steps = (free // state["batch"]) * block
    free %= state["batch"]
    while steps < most:
        free -= floor.phases[r, -(state["step"] + steps) % block]
        if free < 0:
            break
        steps += 1
    return int(min(steps, most))


@compiled
def _make_room(floor: Floor, r: int, state: Array, engine: Array) -> None:
    """Throw out what began last until the next iteration's blocks fit: first a half-done prompt."""
    while state["blocks"] + _growth(floor, r, state, engine, 1) > engine["capacity"]:
        floor.counts[PREEMPTED] += 1
        state["alone"] = 1
        if state["progress"] > 0:
            waiting = floor.slots[state["first"]]
            floor.counts[RECOMPUTED] += state["progress"]
            state["blocks"] -= _need(waiting, engine)
            state["progress"] = 0
        else:
            _throw_out(floor, r, state, engine)


@inlined
def _throw_out(floor: Floor, r: int, state: Array, engine: Array) -> None:
    """Put the youngest sequence back at the head of the queue; what it has made is prefilled again later."""
    heap = floor.heap[r]
    youngest = 0
    for at in range(1, state["batch"]):
        if floor.slots[heap[at] & SLOT_MASK]["next"] > floor.slots[heap[youngest] & SLOT_MASK]["next"]:
            youngest = at
    s = heap[youngest] & SLOT_MASK
    slot = floor.slots[s]
    length = slot["input"] + slot["output"] - ((heap[youngest] >> SHIFT) - state["step"])
    floor.phases[r, (length - state["step"]) % engine["block"]] -= 1
    state["blocks"] -= _blocks(length, engine)
    state["cached"] -= length * UNIT
    slot["made"] = length - slot["input"]
    floor.counts[RECOMPUTED] += length
    state["batch"] -= 1
    last = heap[state["batch"]]
    if youngest < state["batch"]:
        at = youngest
        while at > 0:  # to the top and down again: rare, and right whichever way it has to go
            heap[at] = heap[(at - 1) >> 1]
            at = (at - 1) >> 1
        sift_down(heap, state["batch"], last)
    slot["next"] = state["first"]
    if state["waiting"] == 0:
        state["last"] = s
    state["first"] = s
    state["waiting"] += 1
