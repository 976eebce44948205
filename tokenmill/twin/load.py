"""Traffic through the replicas of a table: the real ``policy.route`` in front of modelled engines.

At most ``MOST_REPLICAS`` replicas of a deployment are modelled, with their share of its traffic; the rest is
taken to do the same. Admission (quotas) is not rehearsed: the traffic is what was admitted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tokenmill.domain.table import AliasEntry
from tokenmill.policy.route import Candidate, Routed, route
from tokenmill.twin.engine_model import EngineModel
from tokenmill.twin.faults import stream
from tokenmill.twin.serving import ReplicaModel, Served
from tokenmill.twin.traffic import Arrival, Lengths, Stream, generate

MOST_REPLICAS = 32
PROBE_SECONDS = 60.0
PROBE_LOAD = 0.5
PROBE_REQUESTS = 2_000
PROBE_INPUT, PROBE_OUTPUT = 128, 64


@dataclass(slots=True)
class AliasLoad:
    """One alias's modelled replicas and what went through. ``scale`` is all replicas per modelled one."""

    entry: AliasEntry
    model: EngineModel
    replicas: dict[str, ReplicaModel]
    scale: float
    served: list[Served] = field(default_factory=list)
    refused: int = 0
    seconds: float = 0.0  # of its traffic, over which it is counted
    busy_s: float = 0.0  # of all its replicas within that time


def alias_load(entry: AliasEntry, model: EngineModel, slots: int) -> AliasLoad:
    """The modelled replicas behind one alias of the table."""
    ready = [endpoint for endpoint in entry.endpoints if not endpoint.draining and endpoint.replica]
    kept = sorted(ready, key=lambda endpoint: endpoint.replica)[:MOST_REPLICAS]
    replicas = {e.replica: ReplicaModel(e.replica, model, e.slots or slots) for e in kept}
    return AliasLoad(entry, model, replicas, len(ready) / max(1, len(kept)))


def capacity_per_s(model: EngineModel, slots: int, inputs: float, outputs: float) -> float:
    """Requests per second of a replica whose slots are always full."""
    cached = round(slots * (inputs + outputs / 2))
    decode = model.iteration_s(slots, 0, cached)
    extra = model.iteration_s(slots, round(inputs), cached) - decode
    return slots / (outputs * decode + slots * extra)


def probe(loads: Sequence[AliasLoad], seed: int) -> tuple[Arrival, ...]:
    """Poisson traffic at half of what each alias can do, for a minute or 2,000 requests.

    Each alias gets the ``seconds`` that this takes: a fast one is counted over fewer than a slow one, and
    neither over the time in which its last answers end.
    """
    streams = []
    for load in loads:
        rate = PROBE_LOAD * sum(
            capacity_per_s(load.model, replica.slots, PROBE_INPUT, PROBE_OUTPUT)
            for replica in load.replicas.values()
        )
        seconds = min(PROBE_SECONDS, PROBE_REQUESTS / rate) if rate > 0 else 0.0
        load.seconds = seconds
        lengths = Lengths(PROBE_INPUT, 0.5), Lengths(PROBE_OUTPUT, 0.5)
        streams.append(Stream(load.entry.name, rate, seconds, *lengths))
    return generate(streams, seed)


def run_load(loads: Mapping[str, AliasLoad], arrivals: Sequence[Arrival], seed: int) -> float:
    """Send every arrival through its alias; returns the seconds of the longest traffic.

    An alias without a time of its own is counted until the last answer of all has ended.
    """
    draws = {name: stream(seed, "route", name) for name in loads}
    for arrival in arrivals:
        load = loads.get(arrival.alias)
        if load is None:
            continue
        at_s = arrival.at_us / 1e6
        candidates = []
        for endpoint in load.entry.endpoints:
            replica = load.replicas.get(endpoint.replica)
            if replica is not None:
                replica.advance(at_s)
                candidates.append(Candidate(endpoint, replica.outstanding))
        draw = draws[arrival.alias].randrange(1000)
        choice = route(candidates, load.entry.targets, arrival.at_us, draw)
        if isinstance(choice, Routed):
            request = Served(at_s, arrival.input_tokens, arrival.output_tokens, arrival.alias)
            load.served.append(request)
            load.replicas[choice.endpoint.replica].submit(request)
        else:
            load.refused += 1
    for load in loads.values():
        _drain(load)
    ends = [request.end_s for load in loads.values() for request in load.served]
    for load in loads.values():
        if not load.seconds:
            load.seconds = max(ends, default=0.0)
            load.busy_s = math.fsum(replica.busy_s for replica in load.replicas.values())
    return max((load.seconds for load in loads.values()), default=0.0)


def _drain(load: AliasLoad) -> None:
    """Let every answer end; what is done after the time of the traffic does not count as its work."""
    for _, replica in sorted(load.replicas.items()):
        if load.seconds:
            replica.advance(load.seconds)
            load.busy_s += min(replica.busy_s, load.seconds)
        replica.advance(math.inf)
