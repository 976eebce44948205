"""Documents to the nouns of ``domain``: defaults by engine, racks to nodes, short lines to stations."""

from __future__ import annotations

from typing import Any

from tokenmill.domain import factory as nouns
from tokenmill.domain.catalogue import AcceleratorType, Catalogue, NodeType
from tokenmill.domain.trigger import Trigger
from tokenmill.spec import documents as docs

EMBEDDED_CPU_MILLIS = 250
ENGINE_CPU_MILLIS = 1000
STATION_CPU_MILLIS = 1000
JOB_CPU_MILLIS = 1000

# What each station of a short line reads. The gate has no job: control decides on what evaluate found.
CHAIN: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("intake", ()),
    ("curate", ("intake",)),
    ("tune", ("curate",)),
    ("evaluate", ("curate", "tune")),
    ("gate", ("evaluate",)),
    ("pack", ("intake", "curate", "tune", "evaluate", "gate")),
)


def quota(fields: docs.QuotaFields) -> nouns.Quota:
    """The bounds; money without its currency, which ``references`` has compared with the prices'."""
    return nouns.Quota(
        requests_per_minute=fields.requests_per_minute,
        tokens_per_minute=fields.tokens_per_minute,
        tokens_per_day=fields.tokens_per_day,
        concurrent_requests=fields.concurrent_requests,
        micros_per_day=fields.money_per_day[0] if fields.money_per_day else None,
        micros_per_month=fields.money_per_month[0] if fields.money_per_month else None,
        warn=fields.over_budget == "warn",
    )


def model_quota(document: docs.QuotaDocument) -> nouns.ModelQuota:
    return nouns.ModelQuota(document.tenant, document.project or "", document.model, quota(document))


def resources(
    fields: docs.ResourceFields, cpu_millis: int, accelerators: int = 0, kind: str = ""
) -> nouns.Resources:
    """What was written, else the defaults given here."""
    return nouns.Resources(
        cpu_millis=cpu_millis if fields.cpu is None else fields.cpu,
        memory_bytes=fields.memory or 0,
        accelerators=accelerators if fields.accelerators is None else fields.accelerators,
        accelerator_kind=fields.accelerator or kind,
    )


def tenant(document: docs.TenantDocument) -> nouns.Tenant:
    return nouns.Tenant(
        name=document.name,
        projects=tuple(nouns.Project(p.name, quota(p.quota), capture(p.capture)) for p in document.projects),
        quota=quota(document.quota),
        jurisdictions=tuple(document.jurisdictions),
        priority=document.priority,
        share=document.share,
        parent=document.parent or "",
        guarantee=document.guarantee,
        reserve=document.reserve,
        limit=document.limit,
    )


def capture(fields: docs.CaptureFields | None) -> nouns.Capture | None:
    if fields is None:
        return None
    aliases = tuple(fields.aliases)
    return nouns.Capture(aliases, fields.consent, fields.keep, fields.share, fields.max_size)


def currencies(document: docs.PriceDocument) -> tuple[str, ...]:
    """Every currency that a price names, in the order of its fields."""
    amounts = (
        *(document.input, document.cached, document.output, document.reasoning),
        *(*document.accelerator_hour.values(), document.kwh),
    )
    named = [amount[1] for amount in amounts if amount is not None and amount[1]]
    return tuple(dict.fromkeys([*named, *([document.currency] if document.currency else [])]))


def price(document: docs.PriceDocument) -> nouns.Price:
    return nouns.Price(
        model=document.model,
        input_micros_per_mtok=document.input[0],
        cached_micros_per_mtok=(document.cached or document.input)[0],
        output_micros_per_mtok=document.output[0],
        accelerator_hour_micros=document.accelerator_hour.get("*", (0, ""))[0],
        kwh_micros=document.kwh[0],
        currency=next(iter(currencies(document)), "USD"),
        from_us=document.valid_from,
        reasoning_micros_per_mtok=document.reasoning[0] if document.reasoning else None,
        type_hour_micros=tuple(
            sorted((kind, money[0]) for kind, money in document.accelerator_hour.items() if kind != "*")
        ),
    )


def model(document: docs.ModelDocument) -> nouns.Model:
    return nouns.Model(document.name, document.source, document.type, document.digest or "")


def deployment(document: docs.DeploymentDocument) -> nouns.Deployment:
    cpu, accelerators = {
        "embedded": (EMBEDDED_CPU_MILLIS, 0),
        "openai": (0, 0),
    }.get(document.engine, (ENGINE_CPU_MILLIS, 1))
    return nouns.Deployment(
        name=document.name,
        engine=document.engine,
        model=document.model or "",
        line=document.line or "",
        replicas=document.replicas.min,
        max_replicas=document.replicas.max,
        context_tokens=document.context,
        slots=document.slots,
        resources=resources(document.resources, cpu, accelerators),
        tenants=tuple(document.tenants),
        engine_args=tuple(document.engine_args),
        url=document.url or "",
        canary=canary(document.canary) if document.canary is not None else None,
        priority=document.priority,
        spread=document.spread,
        wait_target_us=document.wait_target,
        slo=objective(document.slo) if document.slo is not None else None,
        idle_after_us=document.idle_after,
    )


def objective(fields: docs.ObjectiveFields) -> nouns.Objective:
    return nouns.Objective(fields.ttft or 0, fields.tpot or 0, fields.attainment)


def canary(fields: docs.CanaryFields) -> nouns.CanaryPlan:
    return nouns.CanaryPlan(
        steps=tuple(
            nouns.CanaryStep(step.weight or step.shadow or 0, step.hold, step.shadow is not None)
            for step in fields.steps
        ),
        min_requests=fields.min_requests,
        error_milli=fields.error_rate,
        latency_milli=fields.latency,
        feedback_milli=-1 if fields.feedback is None else fields.feedback,
        min_feedback=fields.min_feedback,
        patience_us=fields.patience,
    )


def short_params(document: docs.LineDocument, kind: str) -> dict[str, Any]:
    """Parameters of a station in the short form; ``data`` is the intake's path, or its parameters."""
    params: dict[str, Any] = dict(getattr(document, kind))
    if kind == "intake":
        data = document.data if isinstance(document.data, dict) else {"path": document.data}
        params = {**({} if document.data is None else data), **params}
    return params


def line(document: docs.LineDocument) -> nouns.Line:
    usual = document.resources
    if document.stations:
        stations = tuple(
            nouns.Station(
                name=station.name,
                kind=station.kind,
                needs=tuple(station.needs),
                params=station.params,
                resources=resources(_over(usual, station.resources), _station_cpu(station.kind)),
                timeout_us=station.timeout or document.timeout,
            )
            for station in document.stations
        )
    else:
        stations = tuple(
            nouns.Station(
                name=kind,
                kind=kind,
                needs=needs,
                params=short_params(document, kind),
                resources=resources(usual, _station_cpu(kind)) if kind != "gate" else nouns.Resources(),
                timeout_us=document.timeout,
            )
            for kind, needs in CHAIN
        )
    return nouns.Line(
        name=document.name,
        tenant=document.tenant,
        project=document.project,
        base=document.base,
        stations=stations,
        priority=document.priority,
        trigger=trigger(document.trigger),
    )


def trigger(fields: docs.TriggerFields | None) -> Trigger | None:
    if fields is None:
        return None
    return Trigger(
        fields.cron or "",
        fields.new_rows or 0,
        fields.drift or 0,
        fields.words_drift or 0,
        fields.quality or 0,
    )


def job(document: docs.JobDocument) -> nouns.JobTemplate:
    return nouns.JobTemplate(
        name=document.name,
        tenant=document.tenant,
        project=document.project,
        command=tuple(document.command),
        resources=resources(document.resources, JOB_CPU_MILLIS),
        workers=document.workers,
        priority=document.priority,
        timeout_us=document.timeout,
        runtime_us=document.runtime or 0,
        min_run_us=document.min_run or 0,
        preemptible=document.preemptible,
    )


def peer(document: docs.PeerDocument) -> nouns.Peer:
    return nouns.Peer(
        document.name, document.url, document.jurisdiction, document.key, tuple(document.aliases)
    )


def site(document: docs.SiteDocument) -> nouns.Site:
    return nouns.Site(
        name=document.name,
        jurisdiction=document.jurisdiction or "",
        power_cap_mw=document.power_cap or 0,
        pue_milli=document.pue,
        acceptance=tuple(document.acceptance),
        ramp_mw=document.power_ramp[0] if document.power_ramp else 0,
        ramp_us=document.power_ramp[1] if document.power_ramp else 0,
    )


def fabrics(document: docs.SiteDocument) -> tuple[nouns.Fabric, ...]:
    return tuple(
        nouns.Fabric(
            name=f.name,
            kind=f.type,
            site=document.name,
            gbit_s=max(1, f.bandwidth // 10**9),
            latency_ns=f.latency * 1000,
            switch=f.switch or "",
            rails=f.rails or 0,
            planes=f.planes,
        )
        for f in document.fabrics
    )


def racks(document: docs.SiteDocument, known: Catalogue) -> tuple[nouns.Rack, ...]:
    """The bounds of those racks that have any."""
    return tuple(
        nouns.Rack(
            rack_name(document, stated, number),
            document.name,
            stated.power_cap or 0,
            stated.schedulable or 0,
            *(stated.power_ramp or (0, 0)),
        )
        for stated in document.racks
        if (stated.schedulable or stated.power_cap or stated.power_ramp) and stated.type in known.racks
        for number in range(stated.count)
    )


def rack_name(document: docs.SiteDocument, stated: docs.RackFields, number: int) -> str:
    """The name of one rack of several, counted from 0."""
    return f"{document.name}/{stated.name}-{number + 1:03d}"


def nodes(document: docs.SiteDocument, known: Catalogue) -> tuple[nouns.Node, ...]:
    """Every node of the site; unknown types, which ``references`` reports, give none."""
    result: list[nouns.Node] = []
    for racks in document.racks:
        rack_type = known.racks.get(racks.type)
        for number in range(racks.count if rack_type else 0):
            rack = rack_name(document, racks, number)
            assert rack_type is not None
            for slot in range(rack_type.nodes):
                node_id = f"{rack}/node-{slot + 1:02d}"
                node_type = known.nodes[rack_type.node]
                result.append(_typed_node(node_type, node_id, document.name, rack, racks, known))
    for stated in [] if isinstance(document.nodes, str) else document.nodes:
        for number in range(stated.count):
            name = stated.name if stated.count == 1 else f"{stated.name}-{number + 1:03d}"
            result.append(_stated_node(stated, f"{document.name}/{name}", document.name, known))
    return tuple(result)


def _typed_node(
    node_type: NodeType,
    node_id: str,
    site_name: str,
    rack: str,
    stated: docs.NodeFields | docs.RackFields,
    known: Catalogue,
) -> nouns.Node:
    domain = {"rack": rack, "node": node_id}.get(node_type.nvlink, "")
    if isinstance(stated, docs.NodeFields) and stated.domain:
        domain = f"{site_name}/{stated.domain}"
    gpu = known.accelerators.get(node_type.accelerator)
    return nouns.Node(
        id=node_id,
        site=site_name,
        rack=rack,
        domain=domain,
        cpu_millis=node_type.cpu * 1000,
        memory_bytes=node_type.memory_gb * 10**9,
        accelerators=_accelerators(
            node_id, known.accelerators.get(node_type.accelerator), node_type.accelerators
        ),
        leaf=stated.leaf or "",
        rail=stated.rail or "",
        row=stated.row or "",
        idle_mw=round(node_type.idle_w(gpu) * 1000),
        power_mw=(node_type.overhead_w + (node_type.accelerators * gpu.max_w if gpu else 0)) * 1000,
    )


def _stated_node(stated: docs.NodeFields, node_id: str, site_name: str, known: Catalogue) -> nouns.Node:
    rack = f"{site_name}/{stated.rack}" if stated.rack else ""
    if stated.type is not None:
        node_type = known.nodes.get(stated.type)
        return (
            _typed_node(node_type, node_id, site_name, rack, stated, known)
            if node_type
            else nouns.Node(node_id, site_name)
        )
    return nouns.Node(
        id=node_id,
        site=site_name,
        rack=rack,
        domain=f"{site_name}/{stated.domain}" if stated.domain else "",
        cpu_millis=stated.cpu or 0,
        memory_bytes=stated.memory or 0,
        accelerators=_accelerators(
            node_id, known.accelerators.get(stated.accelerator or ""), stated.accelerators or 0
        ),
        leaf=stated.leaf or "",
        rail=stated.rail or "",
        row=stated.row or "",
        idle_mw=stated.idle_power or 0,
        power_mw=stated.max_power or 0,
    )


def _accelerators(node_id: str, kind: AcceleratorType | None, count: int) -> tuple[nouns.Accelerator, ...]:
    if kind is None:
        return ()
    memory = kind.memory_gb * 10**9
    return tuple(nouns.Accelerator(f"{node_id}/gpu-{i}", kind.id, memory) for i in range(count))


def _over(usual: docs.ResourceFields, own: docs.ResourceFields) -> docs.ResourceFields:
    written = {k: v for k, v in own.model_dump().items() if v is not None}
    return usual.model_copy(update=written)


def _station_cpu(kind: str) -> int:
    return 0 if kind == "gate" else STATION_CPU_MILLIS
