"""The machine's clock was set: what runs, waits or is held goes on for as long as it would have.

Times in the past of what has ended, and those of the calendar (a key's end, a trigger), stay as they are.
"""

from __future__ import annotations

from typing import Any

from immutables import Map

from tokenmill.control.draft import Draft
from tokenmill.control.index import HELD_US
from tokenmill.domain.events import ClockSet
from tokenmill.domain.value import replace
from tokenmill.domain.work import Alias

JOB = ("submitted_us", "started_us", "retry_us", "saved_us")
REPLICA = ("since_us", "retry_us")
LEASE = ("since_us", "until_us")
RESERVATION = ("at_us", "since_us")
SCALING = ("busy_since_us", "idle_since_us")
CANARY = ("since_us", "check_us")


def was_set(draft: Draft, event: ClockSet) -> None:
    """Move every time that something is measured from, or ends at, with the clock."""
    by_us = event.by_us
    jobs = {name: _moved(job, JOB, by_us) for name, job in draft.jobs.items() if not job.status.ended}
    draft.jobs = draft.jobs.update(jobs)
    draft.replicas = _all_moved(draft.replicas, REPLICA, by_us)
    draft.leases = _all_moved(draft.leases, LEASE, by_us)
    draft.reservations = _all_moved(draft.reservations, RESERVATION, by_us)
    draft.scaling = _all_moved(draft.scaling, SCALING, by_us)
    draft.aliases = Map({name: _stepping(alias, by_us) for name, alias in draft.aliases.items()})
    draft.uptime = _moved(draft.uptime, ("at_us",), by_us)
    draft.reindex()


def _all_moved(records: Map[str, Any], names: tuple[str, ...], by_us: int) -> Map[str, Any]:
    return Map({key: _moved(record, names, by_us) for key, record in records.items()})


def _moved(record: Any, names: tuple[str, ...], by_us: int) -> Any:
    """``record`` with these times moved. 0 is none, and what somebody holds has no time to wait for."""
    times = {name: getattr(record, name) for name in names}
    moved = {name: at_us + by_us for name, at_us in times.items() if 0 < at_us < HELD_US}
    return replace(record, **moved)


def _stepping(alias: Alias, by_us: int) -> Alias:
    if alias.canary is None:
        return alias
    return replace(alias, canary=_moved(alias.canary, CANARY, by_us))
