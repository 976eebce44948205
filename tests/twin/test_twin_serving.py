"""The replica model against a plain loop, queueing theory and conservation."""

import math
import random

import pytest

from tokenmill.twin.engine_model import LinearModel
from tokenmill.twin.serving import ReplicaModel, Served

MODEL = LinearModel(0.004, 0.0005, 2e-7, 0.0002, 1e-8)


def requests(count, seed, rate=20.0):
    draw = random.Random(seed)
    at = 0.0
    made = []
    for _ in range(count):
        at += draw.expovariate(rate)
        made.append(Served(at, draw.randint(1, 900), draw.randint(1, 120)))
    return made


def naive(replica, work):  # noqa: C901
    """One iteration at a time, with lists; the same rules, none of the skipping."""
    now, cached, prefilled = 0.0, 0, 0
    waiting, running, coming = [], [], list(work)
    while coming or waiting or running:
        if not waiting and not running:
            now = max(now, coming[0].arrival_s)
        while coming and coming[0].arrival_s <= now:
            waiting.append(coming.pop(0))
        decode, room, prefill, pairs, done, start = (
            len(running),
            max(1, replica.budget - len(running)),
            0,
            0.0,
            [],
            prefilled,
        )
        while room and waiting and len(running) + len(done) < replica.slots:
            chunk = min(room, waiting[0].input_tokens - prefilled)
            pairs += chunk * (prefilled + chunk / 2)
            room, prefill, prefilled = room - chunk, prefill + chunk, prefilled + chunk
            if prefilled < waiting[0].input_tokens:
                break
            done.append(waiting.pop(0))
            prefilled = 0
        context = start
        if prefill and len(done) + bool(prefilled) > 1:
            context = round(pairs / prefill - prefill / 2)
        now += replica.model.iteration_s(decode, prefill, cached, context)
        cached += decode
        for pair in list(running):
            pair[1] -= 1
            if pair[1] == 0:
                pair[0].end_s = now
                cached -= pair[0].input_tokens + pair[0].output_tokens
                running.remove(pair)
        for one in done:
            one.first_s = now
            if one.output_tokens == 1:
                one.end_s = now
            else:
                running.append([one, one.output_tokens - 1])
                cached += one.input_tokens + 1


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("slots", [1, 4, 16])
def test_skipping_equals_a_plain_loop(seed, slots):
    skipped, plain = requests(120, seed), requests(120, seed)
    replica = ReplicaModel("r", MODEL, slots, budget=256)
    for one in skipped:
        replica.submit(one)
    replica.advance(math.inf)
    naive(ReplicaModel("n", MODEL, slots, budget=256), plain)
    for left, right in zip(skipped, plain, strict=True):
        assert left.first_s == pytest.approx(right.first_s, abs=1e-8)
        assert left.end_s == pytest.approx(right.end_s, abs=1e-8)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_waiting_time_is_that_of_an_m_d_1_queue(load):
    """One slot and fixed lengths make a replica an M/D/1 queue: W = rho s / (2 (1 - rho))."""
    replica = ReplicaModel("r", LinearModel(0.01, 0.0, 0.0, 0.0, 0.0), slots=1)
    service = 0.01 * 10  # a prefill iteration and nine decoding ones
    draw = random.Random(11)
    at, work = 0.0, []
    for _ in range(400_000 if load > 0.7 else 150_000):
        at += draw.expovariate(load / service)
        work.append(Served(at, 8, 10))
        replica.submit(work[-1])
    replica.advance(math.inf)
    waited = math.fsum(one.ttft_s - 0.01 for one in work) / len(work)
    assert waited == pytest.approx(load * service / (2 * (1 - load)), rel=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_tokens_and_time_are_conserved(seed):
    work = requests(200, seed)
    replica = ReplicaModel("r", MODEL, 8)
    for one in work:
        replica.submit(one)
        assert replica.cached >= 0
        assert replica.outstanding <= len(work)
    replica.advance(math.inf)
    assert replica.outstanding == replica.cached == replica.prefilled == 0
    assert all(one.arrival_s < one.first_s <= one.end_s for one in work)
    assert replica.busy_s <= replica.now_s
    assert replica.now_s == max(one.end_s for one in work)
