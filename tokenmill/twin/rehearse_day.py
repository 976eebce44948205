"""A factory under its traffic: from a question to a day in virtual time, and from that to an outlook."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tokenmill.domain.errors import DataError
from tokenmill.domain.factory import Factory, Resources
from tokenmill.domain.work import JobSpec
from tokenmill.spec.catalogue import catalogue
from tokenmill.spec.traffic import TrafficDocument
from tokenmill.twin.day_power import Power
from tokenmill.twin.demand import generator
from tokenmill.twin.engine_tables import tables
from tokenmill.twin.factory_day import DayJob, FactoryDay
from tokenmill.twin.faults import Fault, correlated, llama3_rates, schedule, shared_parts
from tokenmill.twin.outlook import Outlook, outlook
from tokenmill.twin.question import Question
from tokenmill.twin.training import Training
from tokenmill.twin.world import Timings

LOADING_BYTES_S = 2.5e9
"""Of weights into one replica: from a site's own store over its front network. Assumed."""

SPAWN_US = 60_000_000
"""From an order to an engine that loads: image, process, graphs. Assumed."""

LONGEST_S = 31 * 86_400
MOST_REPLICAS = 20_000


def rehearse_day(
    asked: Question, seed: int, progress: Callable[[float, float], None] = lambda done, whole: None
) -> Outlook:
    """Bring the factory up, go through the traffic, and say what came of it.

    ``progress`` hears the seconds done and those of the whole. Raises ``DataError`` for what cannot be.
    """
    seconds = asked.traffic.duration / 1e6
    if seconds > LONGEST_S:
        raise DataError(f"the traffic lasts {seconds:.0f} s", expected=f"at most {LONGEST_S} s")
    day = make_day(asked, seed)  # 1 the factory, up
    day.run(seconds, lambda at_s: progress(at_s, seconds))  # 2 the traffic
    return outlook(asked, day, seed, seconds)  # 3 what came of it


def make_day(asked: Question, seed: int) -> FactoryDay:
    """The factory with engines, jobs, faults and power, up and ready at its first request."""
    factory, traffic = asked.factory, asked.traffic
    most = sum(max(d.replicas, d.max_replicas) for d in factory.deployments)
    if most > MOST_REPLICAS:
        raise DataError(f"up to {most} replicas are asked for", expected=f"at most {MOST_REPLICAS}")
    if not factory.nodes:
        raise DataError(
            "the factory states no nodes to plan",
            expected="racks or nodes of the catalogue in a site document",
            fix="racks: {type: gb300-nvl72, count: 8}",
        )
    engines = [tables(one.asked, asked.profile, prefix_cache=one.prefixes) for one in asked.services]
    weights = max(engine_bytes(asked) or [0.0])
    horizon_us = round(traffic.duration)
    return FactoryDay(
        factory=factory,
        engines=engines,
        demands=asked.arrivals,
        jobs=_jobs(traffic, seed),
        faults=_faults(factory, traffic, horizon_us, seed),
        power=_power(factory),
        seed=seed,
        router=traffic.router,
        timings=Timings(load_us=SPAWN_US + round(weights / LOADING_BYTES_S * 1e6), import_us=1_000_000),
        targets=[(one.targets[0] - one.arrival_s, one.targets[1]) for one in asked.services],
        contexts=[one.asked.context for one in asked.services],
        units=asked.units,
    )


def engine_bytes(asked: Question) -> list[float]:
    """Bytes of weights that a replica of each service loads."""
    bits = {"bf16": 2.0, "fp8": 1.0, "fp4": 0.5625}
    return [one.asked.model.parameters * bits[one.asked.precision] for one in asked.services]


def _power(factory: Factory) -> Power:
    """Of all sites, as one: the sum of their caps where all state one, and the highest PUE."""
    caps = [site.power_cap_mw / 1000 for site in factory.sites]
    pue = max((site.pue_milli for site in factory.sites), default=1000) / 1000
    return Power(catalogue(factory.types).accelerators, pue, math.fsum(caps) if all(caps) else 0.0)


def _jobs(traffic: TrafficDocument, seed: int) -> list[DayJob]:
    made = []
    for number, one in enumerate(traffic.training):
        draw = generator(seed, "training", number)
        for job in range(one.jobs):
            workers = int(draw.choice(np.array(one.workers)))
            work_s = float(np.clip(draw.lognormal(math.log(one.work / 1e6), 0.7), 60, 30 * 86_400))
            at_s = float(draw.uniform(0, 0.9)) * traffic.duration / 1e6
            spec = JobSpec(
                "command", one.tenant, one.project, ("train",), workers=workers,
                resources=Resources(accelerators=one.accelerators), timeout_us=30 * 86_400_000_000,
                max_attempts=50, runtime_us=round(work_s * 1e6),
            )  # fmt: skip
            made.append(DayJob(f"{one.project}-{number}-{job:04}", at_s, spec, Training(work_s)))
    return made


def _faults(factory: Factory, traffic: TrafficDocument, horizon_us: int, seed: int) -> list[Fault]:
    if traffic.faults == "none":
        return []
    names = [node.id for node in factory.nodes if node.accelerators]
    held = max(len(node.accelerators) for node in factory.nodes)
    found = [*schedule(names, llama3_rates(max(1, held)), horizon_us, seed)]
    found += correlated(shared_parts(factory.nodes, traffic.feeds), horizon_us, seed)
    return sorted(found)
