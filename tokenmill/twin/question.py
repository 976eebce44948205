"""What a forecast of throughput is asked of: services, traffic, latency targets; refused while one lacks.

A rate of tokens without model, precision, lengths and targets means nothing: every missing part of every
deployment is listed at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tokenmill.domain.errors import DataError, Problem, SpecError
from tokenmill.domain.factory import Deployment, Factory
from tokenmill.spec.traffic import StreamFields, Traffic, TrafficDocument
from tokenmill.twin.capacity import need_fit
from tokenmill.twin.configuration import Configuration, configuration
from tokenmill.twin.demand import Demand
from tokenmill.twin.engine_tables import arrival_s
from tokenmill.twin.factory_day import Arrivals
from tokenmill.twin.floor_arrays import Array
from tokenmill.twin.profiles import Profile
from tokenmill.twin.replay import Replay, at_rate, read_trace
from tokenmill.twin.traffic import Lengths


@dataclass(frozen=True, slots=True)
class Service:
    """One deployment that gets traffic. Targets are (TTFT, TPOT) in seconds.

    ``arrival_s`` is what a request spends beside the engine's iterations until its first token is out.
    """

    asked: Configuration
    targets: tuple[float, float]
    prefixes: bool
    arrival_s: float


@dataclass(frozen=True, slots=True)
class Question:
    factory: Factory
    traffic: TrafficDocument
    services: tuple[Service, ...]
    arrivals: tuple[Arrivals, ...]
    units: Array | None
    left_out: tuple[str, ...]
    profile: Profile


def ask(
    factory: Factory,
    traffic: Traffic,
    seed: int,
    fitted: Profile,
    place: Callable[[str], str] = lambda _: "",
) -> Question:
    """The question that factory and traffic put together; deployments without traffic are left out.

    ``fitted`` answers for the engines; ``place`` says where a deployment's layout is written. Raises
    ``SpecError`` with every missing, unknown or unfit part; a broken trace raises ``DataError``.
    """
    streams = traffic.model.streams
    named = {stream.deployment for stream in streams}
    left_out = tuple(d.name for d in factory.deployments if d.name not in named)
    factory = replace(factory, deployments=tuple(d for d in factory.deployments if d.name in named))
    problems = [
        one for number in range(len(traffic.model.training)) for one in _of_training(factory, traffic, number)
    ]
    services: dict[int, Service] = {}
    arrivals: list[Arrivals] = []
    units: list[Array] = []
    aliases = {d.name: number for number, d in enumerate(factory.deployments)}
    for number, stream in enumerate(streams):
        where = traffic.where("streams", number)
        targets = _targets(stream, factory)
        problems += _of_stream(stream, where, number, targets)
        if stream.deployment not in aliases:
            expected = f"one of {', '.join(aliases)}" if aliases else "a deployment in the factory file"
            message = f"there is no deployment {stream.deployment!r}"
            problems.append(Problem(message, traffic.where("streams", number, "deployment"), "", expected))
            continue
        alias = aliases[stream.deployment]
        try:
            asked, missing = _fitting(factory, factory.deployments[alias])
        except DataError as error:
            wrong = error.problem
            field = f"deployment {stream.deployment}: engine_args"
            problems.append(replace(wrong, where=place(stream.deployment), field=field))
            continue
        said = {problem.message for problem in problems}
        unsaid = (f"deployment {stream.deployment} does not say its {text}" for text in missing)
        problems += [Problem(m, place(stream.deployment) or where) for m in unsaid if m not in said]
        if asked is None or targets is None or problems:
            continue
        one = _arrivals(stream, traffic.file.parent, alias, seed, sum(len(part) for part in units))
        if isinstance(one, Replay):
            units.append(one.units)
        arrivals.append(one)
        prefixes = bool(stream.sessions) or (isinstance(one, Replay) and len(one.units) > 1)
        services.setdefault(alias, Service(asked, targets, prefixes, arrival_s(asked, fitted)))
    if problems:
        raise SpecError(tuple(problems), "traffic file, or in the factory file that it is put to")
    return Question(
        factory, traffic.model, tuple(services[alias] for alias in sorted(services)), tuple(arrivals),
        np.concatenate(units) if any(one.prefixes for one in services.values()) and units else None,
        left_out, fitted,
    )  # fmt: skip


def _fitting(factory: Factory, deployment: Deployment) -> tuple[Configuration | None, list[str]]:
    """What serves a deployment; raises ``DataError`` for a layout that its accelerators cannot hold."""
    asked, missing = configuration(factory, deployment)
    if asked is not None:
        need_fit(asked.model, asked.accelerator, asked.layout, asked.precision, asked.context)
    return asked, missing


def _targets(stream: StreamFields, factory: Factory) -> tuple[float, float] | None:
    """Seconds of TTFT and TPOT that count as good: the stream's, else those that its deployment promises."""
    if stream.targets is not None:
        return stream.targets.ttft / 1e6, stream.targets.tpot / 1e6
    slo = next((d.slo for d in factory.deployments if d.name == stream.deployment), None)
    return (slo.ttft_us / 1e6, slo.tpot_us / 1e6) if slo and slo.ttft_us and slo.tpot_us else None


def _of_stream(
    stream: StreamFields, where: str, number: int, targets: tuple[float, float] | None
) -> list[Problem]:
    """What a stream leaves open; ``where`` it stands."""
    asked = {
        "requests_per_second": stream.requests_per_second is None and stream.trace is None,
        "input": stream.input is None and stream.trace is None,
        "output": stream.output is None and stream.trace is None,
        "targets": targets is None,
    }
    hints = {
        "requests_per_second": "requests_per_second: 40, or trace: FILE",
        "input": "tokens of a prompt, for example input: {mean: 2000, sigma: 1.0}, or trace: FILE",
        "output": "tokens of an answer, for example output: {mean: 400, sigma: 0.9}, or trace: FILE",
        "targets": "latency that counts as good, such as targets: {ttft: 2s, tpot: 80ms}, or such an slo of "
        "the deployment",
    }
    return [
        Problem(
            "is missing: without it a throughput means nothing",
            where,
            f"streams[{number}].{name}",
            hints[name],
        )
        for name, open_ in asked.items()
        if open_
    ]


def _of_training(factory: Factory, traffic: Traffic, number: int) -> list[Problem]:
    """What of one entry of ``training`` could never start: its jobs would wait for all the time."""
    one = traffic.model.training[number]
    held = [len(node.accelerators) for node in factory.nodes]
    tenants = {tenant.name: [project.name for project in tenant.projects] for tenant in factory.tenants}
    room = sum(count // one.accelerators for count in held) if one.accelerators else max(one.workers)
    wrong: list[tuple[str, str, str]] = []
    if one.tenant not in tenants:
        wrong.append(("tenant", f"there is no tenant {one.tenant!r}", ", ".join(sorted(tenants))))
    elif one.project not in tenants[one.tenant]:
        names = ", ".join(tenants[one.tenant])
        wrong.append(("project", f"tenant {one.tenant} has no project {one.project!r}", names))
    if one.accelerators > max(held, default=0):
        most = f"at most {max(held, default=0)}"
        wrong.append(("accelerators", f"no node has {one.accelerators} accelerators for a worker", most))
    elif max(one.workers) > room:
        what = f"{max(one.workers)} workers of {one.accelerators} accelerators never fit"
        wrong.append(("workers", what, f"at most {room} on this factory"))
    return [
        Problem(message, traffic.where("training", number, field), f"training[{number}].{field}", expected)
        for field, message, expected in wrong
    ]


def _arrivals(stream: StreamFields, folder: Path, alias: int, seed: int, offset: int) -> Arrivals:
    if stream.trace is not None:
        replay = Replay(read_trace(folder / stream.trace), seed, alias, offset=offset)
        rate = stream.requests_per_second
        return replay if rate is None else at_rate(replay, rate)
    assert stream.requests_per_second is not None
    assert stream.input is not None
    assert stream.output is not None
    return Demand(
        per_second=stream.requests_per_second,
        inputs=Lengths(stream.input.mean, stream.input.sigma),
        outputs=Lengths(stream.output.mean, stream.output.sigma),
        alias=alias,
        swing=stream.swing,
        quiet_hour=stream.quiet_hour,
        burstiness=stream.burstiness,
        sessions=stream.sessions or 0,
        shared_share=stream.shared / 1000,
    )
