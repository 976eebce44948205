"""A rehearsed day in numbers: what was made, how fast, at what power and cost, and where the rest went.

Percentiles and counts are the simulation's. Their error is the performance model's on rows that its fit had
not seen; what was not calibrated says so. OEE is availability x performance x quality, as a plant counts it.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tokenmill.control.why import why
from tokenmill.domain.codec import digest_of
from tokenmill.domain.factory import Price
from tokenmill.domain.units import format_duration
from tokenmill.policy.price import hour_micros, price_ahead
from tokenmill.twin import floor_arrays as fa
from tokenmill.twin.day_series import Minute
from tokenmill.twin.engine_tables import basis
from tokenmill.twin.factory_day import FactoryDay
from tokenmill.twin.forecast import Estimate
from tokenmill.twin.profiles import profile
from tokenmill.twin.question import Question
from tokenmill.twin.recipe import Lengths, rate

SAMPLE_S = 600.0
STEADY_QUEUE = 0.05
"""With more requests waiting than this share of those that decode, waiting makes up the time to the first
token, and the iteration's error does not bound it."""


@dataclass(frozen=True, slots=True)
class ServiceOutlook:
    """One deployment over the whole time. Counts are of requests; ``too_long`` are those that its context
    does not take, which its gateway refuses however little there is to do."""

    name: str
    configuration: str
    basis: str
    replicas: tuple[int, int]
    offered: int
    ended: int
    good: int
    late: int
    slow: int
    refused: int
    too_long: int
    output_tokens: int
    good_tokens: int
    tokens_per_s: Estimate
    good_per_s: Estimate
    ttft_p50_ms: Estimate | None  # None: no answer, or none of several tokens
    ttft_p99_ms: Estimate | None
    tpot_p50_ms: Estimate | None
    tpot_p99_ms: Estimate | None
    target_ttft_ms: float
    target_tpot_ms: float
    arrival_ms: float  # beside iterations, in every time to the first token; the series is without it
    ideal_per_replica: float  # output tokens/s at full clock within the TPOT target
    headroom: float  # by how much slower the engine may be before the busiest minute no longer fits


@dataclass(frozen=True, slots=True)
class TrainingOutlook:
    """Training jobs. Hours are of accelerators that jobs held."""

    jobs: int
    done: int
    failures: int
    kept_h: float
    lost_h: float
    checkpoint_h: float


@dataclass(frozen=True, slots=True)
class Oee:
    """Availability: nodes that were not lost. Performance: tokens made, of what the ready replicas make at
    their best within the targets. Quality: tokens of requests that met both targets."""

    availability: float
    performance: float
    quality: float

    @property
    def oee(self) -> float:
        return self.availability * self.performance * self.quality


@dataclass(frozen=True, slots=True)
class Outlook:
    factory: str
    traffic: str
    seed: int
    seconds: float
    services: tuple[ServiceOutlook, ...]
    training: TrainingOutlook
    oee: Oee
    broken: int  # answers that had begun on a replica that was lost
    tokens_per_s: Estimate
    good_per_s: Estimate
    energy_j: float
    peak_w: float
    cap_w: float
    joules_per_token: Estimate | None  # None: no token
    energy_micros_per_mtok: int | None
    accelerator_micros_per_mtok: int | None
    currency: str
    assumptions: tuple[str, ...]
    simulated: str  # digest of the simulation itself
    series: tuple[Minute, ...]

    @property
    def cost_micros_per_mtok(self) -> int | None:
        parts = (self.energy_micros_per_mtok, self.accelerator_micros_per_mtok)
        return None if None in parts else sum(part or 0 for part in parts)

    @property
    def lasts(self) -> str:
        """For people: "10 minutes"."""
        return format_duration(round(self.seconds * 1e6), words=True)

    @property
    def digest(self) -> str:
        """The same for the same files and seed, on every machine and under any hash seed."""
        return digest_of(self)


def outlook(asked: Question, day: FactoryDay, seed: int, seconds: float) -> Outlook:
    """What came of a day that was run."""
    services = tuple(_service(asked, day, alias, seconds) for alias in range(len(asked.services)))
    made = sum(one.output_tokens for one in services)
    price = _price(asked.factory.prices)
    held = Counter(one.kind for node in asked.factory.nodes for one in node.accelerators).items()
    worth = price is not None and made > 0
    return Outlook(
        factory=asked.factory.name,
        traffic=asked.traffic.name,
        seed=seed,
        seconds=seconds,
        services=services,
        training=_training(day),
        oee=_oee(asked, day, services),
        broken=day.broken,
        tokens_per_s=_sum([one.tokens_per_s for one in services]),
        good_per_s=_sum([one.good_per_s for one in services]),
        energy_j=round(day.joules, 3),
        peak_w=round(max((row.watts for row in day.series), default=0.0), 3),
        cap_w=day.power.cap_w,
        joules_per_token=Estimate(round(day.joules / made, 6)) if made else None,
        energy_micros_per_mtok=round(day.joules / 3.6e6 * price.kwh_micros / made * 1e6)
        if price and worth
        else None,
        accelerator_micros_per_mtok=round(seconds / 3600 * hour_micros(price, held) / made * 1e6)
        if price and worth
        else None,
        currency=price.currency if price else "",
        assumptions=_assumptions(asked, day),
        simulated=day.digest(),
        series=tuple(day.series),
    )


def _service(asked: Question, day: FactoryDay, alias: int, seconds: float) -> ServiceOutlook:
    service, deployment = asked.services[alias], asked.factory.deployments[alias]
    floor, rests = day.fleet.floor, basis(service.asked, asked.profile)
    ended, made, good_tokens, late, slow = (int(value) for value in floor.served[alias])
    minutes = [row.aliases[alias] for row in day.series]
    ready = [minute.ready for minute in minutes] or [deployment.replicas]
    running = sum(minute.running for minute in minutes)
    calm = sum(minute.waiting for minute in minutes) <= STEADY_QUEUE * max(1, running)
    ideal, headroom = _headroom(asked, day, alias)
    # As much slower as the error says: 88 to 95 % of unseen rows, by kind of row, were at most that.
    short = max(0.0, 1 - headroom / (1 + rests.tpot)) if rests.tpot is not None else None

    def tokens(count: int) -> Estimate:
        return Estimate(round(count / seconds, 6), short, rests.text)

    def latency(measure: int, share: float, error: float | None) -> Estimate | None:
        if not floor.histograms[alias, measure].any():
            return None
        before_s = service.arrival_s if measure == fa.TTFT else 0.0
        value = (day.fleet.quantile(alias, measure, share) + before_s) * 1000
        return Estimate(round(value, 6), error, rests.text)

    return ServiceOutlook(
        name=deployment.name,
        configuration=str(service.asked),
        basis=rests.text,
        replicas=(min(ready), max(ready)),
        offered=int(day.offered[alias]),
        ended=ended,
        good=ended - late - slow,
        late=late,
        slow=slow,
        refused=int(floor.refused[alias]),
        too_long=int(day.too_long[alias]),
        output_tokens=made,
        good_tokens=good_tokens,
        tokens_per_s=tokens(made),
        good_per_s=tokens(good_tokens),
        ttft_p50_ms=latency(fa.TTFT, 0.5, rests.ttft if calm else None),
        ttft_p99_ms=latency(fa.TTFT, 0.99, rests.ttft if calm else None),
        tpot_p50_ms=latency(fa.TPOT, 0.5, rests.tpot),
        tpot_p99_ms=latency(fa.TPOT, 0.99, rests.tpot),
        target_ttft_ms=service.targets[0] * 1000,
        target_tpot_ms=service.targets[1] * 1000,
        arrival_ms=round(service.arrival_s * 1000, 6),
        ideal_per_replica=round(ideal, 6),
        headroom=round(headroom, 6),
    )


def lengths_of(asked: Question, day: FactoryDay, alias: int) -> Lengths:
    """Of all requests of a deployment in the first minutes that have any."""
    at_s = 0.0
    while True:
        made = [one.window(day.seed, at_s, at_s + SAMPLE_S) for one in day.demands if one.alias == alias]
        found = [day.admitted(alias, part) for part in made]
        full = [part for part in found if len(part)]
        if full:
            return Lengths.of(np.concatenate(full))
        at_s += SAMPLE_S
        if at_s > asked.traffic.duration / 1e6:
            return Lengths(1.0, 1.0, 1.0, 1.0)


def _headroom(asked: Question, day: FactoryDay, alias: int) -> tuple[float, float]:
    """The ideal rate of a replica, and what all that may start make, by the busiest minute's offer."""
    lengths = lengths_of(asked, day, alias)
    ideal = rate(day.engines[alias][0], lengths, asked.services[alias].targets[1])
    deployment = asked.factory.deployments[alias]
    most = max(deployment.replicas, deployment.max_replicas)
    spans = _spans(day)
    whole = [row for row, span_s in zip(day.series, spans, strict=True) if span_s == max(spans)]
    busiest = max(row.aliases[alias].offered_per_s for row in whole) * lengths.outputs
    return ideal, most * ideal / busiest if busiest else 1.0


def _spans(day: FactoryDay) -> list[float]:
    """Seconds of each row of the series; the last may be short of a minute."""
    return [end_s - start_s for start_s, end_s in pairwise((0.0, *(row.at_s for row in day.series)))]


def _oee(asked: Question, day: FactoryDay, services: tuple[ServiceOutlook, ...]) -> Oee:
    minutes = list(zip(day.series, _spans(day), strict=True))
    lost_s = math.fsum(row.nodes_lost * span_s for row, span_s in minutes)
    ideal = math.fsum(
        span_s * row.aliases[alias].ready * one.ideal_per_replica
        for row, span_s in minutes
        for alias, one in enumerate(services)
    )
    made = sum(one.output_tokens for one in services)
    good = sum(one.good_tokens for one in services)
    return Oee(
        availability=round(1 - lost_s / day.series[-1].at_s / len(asked.factory.nodes), 6),
        performance=round(made / ideal, 6) if ideal else 0.0,
        quality=round(good / made, 6) if made else 0.0,
    )


def _training(day: FactoryDay) -> TrainingOutlook:
    hours = {job.id: job.spec.workers * job.spec.resources.accelerators / 3600 for job in day.jobs}
    trained = [(hours[name], day.world.training[name]) for name in sorted(hours)]
    states = day.world.state.jobs
    done = sum(1 for name in hours if name in states and states[name].status == "succeeded")
    return TrainingOutlook(
        jobs=len(day.jobs),
        done=done,
        failures=sum(one.failures for _, one in trained),
        kept_h=round(math.fsum(h * one.saved_s for h, one in trained), 3),
        lost_h=round(math.fsum(h * one.lost_s for h, one in trained), 3),
        checkpoint_h=round(math.fsum(h * one.saving_s for h, one in trained), 3),
    )


def _never_up(asked: Question, day: FactoryDay) -> list[str]:
    """Of services that had no replica in all the time, what the control plane says of it."""
    found = []
    for alias, deployment in enumerate(asked.factory.deployments):
        if not any(row.aliases[alias].ready for row in day.series):
            reasons = why(day.world.state, deployment.name, day.world.now_us).reasons
            found.append(
                f"{deployment.name} never had a replica: {'; '.join(reasons) or 'none was asked for'}."
            )
    return found


def _price(prices: tuple[Price, ...]) -> Price | None:
    """The price that is counted with; None unless it has energy and accelerators."""
    return price_ahead([price for price in prices if price.kwh_micros and price.hours_cost])


def _sum(parts: list[Estimate]) -> Estimate:
    """Errors of services are taken to go the same way."""
    value = math.fsum(part.value for part in parts)
    if not parts or any(part.error is None for part in parts):
        return Estimate(round(value, 6))
    error = math.fsum(part.value * (part.error or 0.0) for part in parts) / value if value else 0.0
    return Estimate(round(value, 6), round(error, 6), parts[0].basis)


def _assumptions(asked: Question, day: FactoryDay) -> tuple[str, ...]:
    said = [
        "Errors are those within which nine of ten measured rows stayed that the fit had not seen.",
        "Power follows work by a fit to H100 and B200: a GPU within 19% on average, a B200 server within 2%.",
        "Starting and loading times, repair times and rates of shared parts are assumed.",
        "Cost counts all accelerators of the factory all the time, whether they serve, train or wait.",
    ]
    if asked.profile.source != profile().source:
        said.append(f"Engines are foretold by a profile fitted to {asked.profile.source}.")
    said += _never_up(asked, day)
    if asked.left_out:
        said.append(f"Without traffic, and left out: {', '.join(asked.left_out)}.")
    if len(asked.factory.sites) > 1:
        said.append("Sites have one power cap together, and the highest PUE of them.")
    if any(not node.idle_mw for node in asked.factory.nodes):
        said.append("Nodes that state a size and no power draw what their accelerators do, and nothing else.")
    if day.power.cap_w == 0:
        capped = [site.name for site in asked.factory.sites if site.power_cap_mw]
        only = f"Only {', '.join(capped)} states a power cap: work keeps to it, clocks keep to none."
        said.append(only if capped else "No power cap is stated.")
    return tuple(said)
