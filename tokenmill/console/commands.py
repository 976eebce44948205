"""What the admin API lets a person change: each becomes an event that ``control`` checks.

Each function takes a plain body and who asks, and returns the plain answer. An identifier that the event must
carry is taken under a lock, so that two requests at once never get the same one.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from tokenmill.console.context import ApiContext
from tokenmill.console.requests import flag_of, number_of, record_of, text_of
from tokenmill.control.core import check
from tokenmill.control.plan import diff
from tokenmill.control.specs import check_sound
from tokenmill.control.state import State
from tokenmill.domain import events
from tokenmill.domain.codec import to_plain
from tokenmill.domain.errors import NotFoundError, UsageError
from tokenmill.domain.factory import Factory
from tokenmill.domain.outcomes import Outcomes
from tokenmill.domain.work import Alias, JobSpec, Key, Tuning
from tokenmill.floor.load import all_know
from tokenmill.twin.profiles import from_json

SCOPES = ("inference", "admin")
NOTHING: Mapping[str, Any] = MappingProxyType({})

TOLD_WITHIN_S = 3.0
"""Gateways look for a new table ten times a second. One that has not taken it by then is not waited for."""


@dataclass(slots=True)
class Commands:
    """The write side of one controller."""

    context: ApiContext
    _naming: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def submit(self, event: events.Event) -> None:
        """Return when the event is journalled; the runtime refuses what ``control`` would ignore."""
        await self.context.runtime.submit(event)

    async def change(self, body: Mapping[str, Any], event: events.Event) -> bool:
        """Submit ``event``; with ``dry_run`` only say by an error, or none, whether it would be taken now."""
        if flag_of(body, "dry_run"):
            check(self.context.state, event)
            return False
        await self.submit(event)
        return True

    async def create_key(self, body: dict[str, Any]) -> dict[str, Any]:
        """A new key, which opens the gateway from now on. Its secret is in this answer and nowhere else."""
        factory = self.context.state.factory
        tenant = text_of(body, "tenant") or (factory.tenants[0].name if factory.tenants else "")
        found = next((t for t in factory.tenants if t.name == tenant), None)
        if found is None:
            names = [t.name for t in factory.tenants]
            raise NotFoundError(
                f"there is no tenant {tenant!r}", expected=f"one of {', '.join(names)}" if names else ""
            )
        project = text_of(body, "project") or (found.projects[0].name if found.projects else "default")
        scope = text_of(body, "scope", "inference")
        if scope not in SCOPES:
            raise UsageError(f"scope is {scope!r}", expected="inference or admin")
        secret = "tm-" + secrets.token_urlsafe(30)  # 240 bits in 40 characters
        now_us = self.context.now_us()
        key = Key(
            id=f"key-{secrets.token_hex(4)}",
            digest=hashlib.sha256(secret.encode()).hexdigest(),
            tenant=tenant,
            project=project,
            scope=scope,
            hint=secret[-4:],
            created_us=now_us,
            expires_us=number_of(body, "expires_us"),
        )
        await self.submit(events.KeyCreated(now_us, key))
        return {**key_view(key), "secret": secret, "effective": await self._told()}

    async def disable_key(self, key: str, by: str) -> dict[str, Any]:
        if key not in self.context.state.keys:
            raise NotFoundError(f"there is no key {key!r}", fix="tokenmill keys list")
        await self.submit(events.KeyDisabled(self.context.now_us(), key, by))
        return {"id": key, "disabled": True, "effective": await self._told()}

    async def _told(self) -> bool:
        """Wait until every gateway process decides by the present table; False where one is late."""
        version, folder = self.context.state.table_version, self.context.paths.run
        deadline = time.monotonic() + TOLD_WITHIN_S
        while not await asyncio.to_thread(all_know, folder, version, self.context.now_us()):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.02)
        return True

    async def start_run(self, body: dict[str, Any], by: str) -> dict[str, Any]:
        async with self._naming:
            run = _next_name("run", self.context.state.runs)
            line, force, parent = (text_of(body, name) for name in ("line", "force", "parent"))
            await self.submit(events.RunSubmitted(self.context.now_us(), run, line, by, force, parent))
        return {"run": run, "line": line}

    async def cancel_run(self, run: str, by: str, body: Mapping[str, Any] = NOTHING) -> dict[str, Any]:
        done = await self.change(body, events.RunCancelled(self.context.now_us(), run, by))
        return {"run": run, "cancelled": done}

    async def tune(self, tuning: Tuning, by: str) -> str:
        """A tenant's own model begins; returns its run."""
        async with self._naming:
            run = _next_name("run", self.context.state.runs)
            await self.submit(events.TuningRequested(self.context.now_us(), tuning, run, by))
        return run

    async def pause_run(self, run: str, by: str) -> dict[str, Any]:
        await self.submit(events.RunPaused(self.context.now_us(), run, by))
        return {"run": run, "paused": True}

    async def resume_run(self, run: str, by: str) -> dict[str, Any]:
        await self.submit(events.RunResumed(self.context.now_us(), run, by))
        return {"run": run, "paused": False}

    async def start_job(self, body: dict[str, Any], by: str) -> dict[str, Any]:
        """A command job. Stations are started by runs only."""
        spec = record_of({"kind": "command", **body}, JobSpec, "the job")
        if spec.kind != "command" or not spec.command:
            raise UsageError(
                "this is not a command job", expected="kind command, and a command of one word or more"
            )
        if spec.run or spec.station or spec.params:
            raise UsageError(
                "run, station and params are a station's", expected="a command job", fix="Leave them out."
            )
        if not spec.timeout_us:
            raise UsageError("the job has a timeout of 0", expected="the longest time that it may run")
        async with self._naming:
            job = _next_name("job", self.context.state.jobs)
            await self.submit(events.JobSubmitted(self.context.now_us(), job, spec, by))
        return {"job": job}

    async def cancel_job(self, job: str, by: str, body: Mapping[str, Any] = NOTHING) -> dict[str, Any]:
        done = await self.change(body, events.JobCancelled(self.context.now_us(), job, by))
        return {"job": job, "cancelled": done}

    async def request_lease(self, body: dict[str, Any]) -> dict[str, Any]:
        """Whole resources of a node for a time. Raises ``RefusedError`` with reasons when nothing fits."""
        async with self._naming:
            lease = _next_name("lease", (held.owner for held in self.context.state.leases.values()))
            event = events.LeaseRequested(
                self.context.now_us(),
                lease,
                text_of(body, "tenant"),
                text_of(body, "project"),
                number_of(body, "cpu_millis"),
                number_of(body, "memory_bytes"),
                number_of(body, "accelerators"),
                number_of(body, "duration_us", 3_600_000_000),
            )
            await self.submit(event)
        return {"lease": lease}

    async def release_lease(self, lease: str, by: str) -> dict[str, Any]:
        await self.submit(events.LeaseReleased(self.context.now_us(), lease, by))
        return {"lease": lease, "released": True}

    def plan(self, body: dict[str, Any]) -> dict[str, Any]:
        """What applying this factory would change, and what the twin says would come of it.

        A ``profile`` is what ``tokenmill calibrate`` writes into a file.
        """
        factory = record_of(body.get("factory"), Factory, "the factory")
        check_sound(factory)
        state = self.context.state
        shown: dict[str, Any] = to_plain(diff(state, factory))
        known = from_json(json.dumps(body["profile"]), "the request's profile") if "profile" in body else None
        shown["forecast"] = dict(self.context.forecast(state, factory, known))
        return shown

    async def apply(self, body: dict[str, Any], by: str) -> dict[str, Any]:
        factory = record_of(body.get("factory"), Factory, "the factory")
        base = number_of(body, "base_version")
        await self.change(body, events.SpecApplied(self.context.now_us(), base, factory, by))
        return {"version": self.context.state.version}

    async def roll_back(self, body: dict[str, Any], by: str) -> dict[str, Any]:
        alias, to = text_of(body, "alias"), text_of(body, "to")
        before = self.context.state.aliases.get(alias)
        await self.change(body, events.RollbackRequested(self.context.now_us(), alias, to, by))
        after = self.context.state.aliases.get(alias)
        return {
            "alias": alias,
            "from": before.desired if before else "",
            "to": after.desired if after else "",
        }

    async def steer(self, body: dict[str, Any], by: str) -> dict[str, Any]:
        """Hold, resume or promote an alias."""
        alias, action, release = text_of(body, "alias"), text_of(body, "action"), text_of(body, "release")
        await self.change(body, events.AliasSteered(self.context.now_us(), alias, action, release, by))
        return {"alias": alias, "action": action, **promotion_view(self.context.state.aliases[alias])}

    async def cordon(self, body: dict[str, Any], by: str) -> dict[str, Any]:
        """Take a node out of use, or with ``undo`` into use again."""
        node, undo, now_us = text_of(body, "node"), flag_of(body, "undo"), self.context.now_us()
        cordoned = events.NodeCordoned(now_us, node, text_of(body, "reason"), by)
        there = {"moves": [], "elsewhere": True} if undo else held_by(self.context.state, node)
        await self.change(body, events.NodeTrusted(now_us, node, by) if undo else cordoned)
        return {"node": node, "cordoned": not undo, **there}

    async def recall(self, body: dict[str, Any], by: str) -> dict[str, Any]:
        """Forbid a release; the answer lists whom it served."""
        release, reason = text_of(body, "release"), text_of(body, "reason")
        known = self.context.state.releases.get(release)
        if not await self.change(body, events.ReleaseRecalled(self.context.now_us(), release, by, reason)):
            return {"release": release, "reason": reason, "aliases": {}, "served": []}
        served = await asyncio.to_thread(
            self.context.store.ledger.served_by, release, known.created_us if known else 0
        )
        state = self.context.state
        aliases = {
            name: alias.desired
            for name, alias in sorted(state.aliases.items())
            if alias.reason.startswith(f"{release} was recalled")
        }
        return {"release": release, "reason": reason, "aliases": aliases, "served": to_plain(served)}


def held_by(state: State, node: str) -> dict[str, Any]:
    """What has to leave a node that is taken out of use, and whether another one takes work."""
    owners = {lease.owner for lease in state.leases.values() if lease.node == node}
    moves = [state.replicas[name].deployment if name in state.replicas else name for name in owners]
    others = (known for name, known in state.nodes.items() if name != node)
    elsewhere = any(not (known.lost or known.cordon) for known in others)
    return {"moves": sorted(set(moves)), "elsewhere": elsewhere}


def promotion_view(alias: Alias) -> dict[str, Any]:
    """Where an alias is on its way, for people."""
    found = alias.canary
    return {
        "release": alias.desired,
        "weights": to_plain(alias.targets),
        "hold": alias.hold,
        "waiting": alias.waiting,
        "why": alias.reason,
        "canary": None
        if found is None
        else {
            "candidate": found.candidate,
            "champion": found.champion,
            "step": found.step + 1,
            "since_us": found.since_us,
            "reasons": list(found.reasons),
            "candidate_seen": _seen(found.mine),
            "champion_seen": _seen(found.theirs),
        },
    }


def _seen(seen: Outcomes) -> dict[str, int]:
    return {
        "requests": seen.requests,
        "errors": seen.errors,
        "p95_us": seen.latency_us(950),
        "good": seen.good,
        "bad": seen.bad,
    }


def key_view(key: Key) -> dict[str, Any]:
    """A key without its digest, which nobody needs to see."""
    plain: dict[str, Any] = to_plain(key)
    plain.pop("digest")
    return plain


def _next_name(prefix: str, taken: Iterable[str]) -> str:
    """``run-000012`` when ``run-000011`` is the highest one taken."""
    pattern = re.compile(rf"{prefix}-(\d{{6,}})")
    numbers = [int(match[1]) for name in taken if (match := pattern.fullmatch(name))]
    return f"{prefix}-{max(numbers, default=0) + 1:06d}"
