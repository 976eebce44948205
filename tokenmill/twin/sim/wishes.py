"""The factory files that people of a simulated world write, drawn at random. Decides nothing about when."""

from __future__ import annotations

import random

from tokenmill.domain.codec import digest_of as sha
from tokenmill.domain.factory import (
    CanaryPlan,
    CanaryStep,
    Deployment,
    Factory,
    JobTemplate,
    Line,
    Model,
    Peer,
    Project,
    Quota,
    Rack,
    Resources,
    Site,
    Station,
    Tenant,
)
from tokenmill.domain.trigger import Trigger
from tokenmill.domain.value import replace
from tokenmill.twin.sim.floor import SECOND

GB = 1 << 30


class Wishes:
    """What may be asked for, out of the world's random stream."""

    rng: random.Random

    def factory(self) -> Factory:
        rng = self.rng
        small = Resources(cpu_millis=1000, memory_bytes=2 * GB)
        gpu = Resources(cpu_millis=500, memory_bytes=2 * GB, accelerators=1)
        chat = Deployment(
            "chat",
            model=rng.choice(("small", "other")),
            replicas=rng.choice((0, 1, 2)),
            max_replicas=rng.choice((1, 3)),
            slots=rng.choice((2, 4)),
            spread=rng.choice(("node", "rack", "none")),
            context_tokens=rng.choice((2048, 4096)),
            resources=rng.choice((small, gpu)),
        )
        tuned = Deployment("tuned", line="tickets", replicas=rng.choice((1, 2)), resources=small)
        plan = CanaryPlan(
            (CanaryStep(100, 20 * SECOND, shadow=True), CanaryStep(100, 30 * SECOND)),
            min_requests=20,
            patience_us=120 * SECOND,
        )
        chat, tuned = (replace(d, canary=rng.choice((None, plan))) for d in (chat, tuned))
        away = Deployment("away", model="giant", engine="openai", url="https://far.example:8443/v1")
        deployments = [d for d in (chat, tuned, away) if rng.random() < 0.9]
        stations = (
            Station("intake", "intake", params={"path": "rows.jsonl"}, resources=small),
            Station("curate", "curate", ("intake",), {"max_rows": rng.choice((100, 200))}, small),
            Station("tune", "tune", ("curate",), {"rank": 8}, rng.choice((small, gpu))),
            Station("evaluate", "evaluate", ("tune", "curate"), {"metric": "exact_match"}, small),
            Station("gate", "gate", ("evaluate",), {"against": "both", "min_items": 30}),
            Station("pack", "pack", ("gate",), {}, small),
        )
        here = Site("here", "EU", rng.choice((0, 0, 3_000_000)), 1200, rng.choice(((), ("dcgmi", "diag"))))
        if rng.random() < 0.3:
            here = replace(
                here, ramp_mw=rng.choice((800_000, 2_000_000)), ramp_us=rng.choice((1, 60)) * SECOND
            )
        return Factory(
            name="sim",
            sites=(here, Site("there", "US")),
            tenants=self.tenants(),
            racks=(Rack("rack0", "here", schedulable_nodes=1),) if rng.random() < 0.2 else (),
            models=(
                Model("small", rng.choice(("package:a", "package:b"))),
                Model("other", "hf://o/other", digest=sha("hf://o/other")),
                Model("giant", "hf://g/giant"),
            ),
            deployments=tuple(deployments),
            lines=(Line("tickets", "alpha", "main", "small", stations, trigger=Trigger(new_rows=100)),),
            jobs=tuple(
                JobTemplate(f"burn{i}", "beta", "main", ("true",), gpu, workers=2)
                for i in range(rng.randrange(2))
            ),
            peers=(Peer("neighbour", "https://peer.example", "EU", "secret://env/KEY", ("chat", "far")),),
        )

    def tenants(self) -> tuple[Tenant, ...]:
        rng = self.rng
        return (
            Tenant(
                "alpha",
                (Project("main"),),
                Quota(requests_per_minute=60),
                priority=rng.choice((0, 1)),
                guarantee=rng.choice((0, 4)),
                reserve=rng.choice((0, 0, 1)),
            ),
            Tenant(
                "beta",
                (Project("main"),),
                jurisdictions=("EU",) if rng.random() < 0.5 else (),
                share=2,
                limit=rng.choice((None, None, 3)),
            ),
        )
