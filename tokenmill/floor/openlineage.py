"""Tells other tools of runs and their data: OpenLineage events, to a file or over HTTP. Off by default.

Format: RunEvent of OpenLineage (openlineage.io/spec/2-0-2/OpenLineage.json), one per start and end of a run
and of each of its stations. It looks at what changed in the state and changes nothing. A receiver that is
away costs events, which are counted, never the factory's time.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec

from tokenmill import __version__
from tokenmill.control.state import State
from tokenmill.domain.work import Run, RunStatus, StationState, StationStatus

SCHEMA = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"
PARENT = "https://openlineage.io/spec/facets/1-0-1/ParentRunFacet.json#/$defs/ParentRunFacet"
FAILED = "https://openlineage.io/spec/facets/1-0-1/ErrorMessageRunFacet.json#/$defs/ErrorMessageRunFacet"
PRODUCER = f"https://tokenmill.example/{__version__}"
NAMES = uuid.UUID("0c7d9f3a-4f5e-5d0e-9a3b-1d6f2b8c4e70")
WAITING_MOST = 1000
TRIES = 3
FILE_BYTES = 64 * 1024 * 1024
RUN_END = {
    RunStatus.SUCCEEDED: "COMPLETE",
    RunStatus.REJECTED: "COMPLETE",
    RunStatus.FAILED: "FAIL",
    RunStatus.CANCELLED: "ABORT",
}
STATION_END = {
    StationStatus.DONE: "COMPLETE",
    StationStatus.REUSED: "COMPLETE",
    StationStatus.FAILED: "FAIL",
    StationStatus.SKIPPED: "ABORT",
}


def lineage_events(before: State, after: State, now_us: int) -> list[dict[str, Any]]:
    """What happened to runs between two states, oldest station first."""
    if before.runs is after.runs:
        return []
    found: list[dict[str, Any]] = []
    for name in sorted({*before.index.open_runs, *after.index.open_runs}):
        old, new = before.runs.get(name), after.runs.get(name)
        if new is None or old is new:
            continue
        teller = _Teller(after.factory.name, new, now_us)
        if old is None:
            found.append(teller.event("START"))
        known = {s.name: s for s in old.stations} if old is not None else {}
        for station in new.stations:
            was = known.get(station.name)
            if station.status is StationStatus.RUNNING and (was is None or was.status is not station.status):
                found.append(teller.event("START", station))
            end = STATION_END.get(station.status)
            if (
                end
                and (was is None or was.status is not station.status)
                and station.job + station.input_digest
            ):
                found.append(teller.event(end, station))
        if new.status.ended and (old is None or not old.status.ended):
            found.append(teller.event(RUN_END[new.status]))
    return found


class _Teller:
    """Makes the events of one run."""

    def __init__(self, factory: str, run: Run, now_us: int) -> None:
        self.namespace = f"tokenmill://{factory}"
        self.run = run
        self.now_us = now_us

    def event(self, kind: str, station: StationState | None = None) -> dict[str, Any]:
        run, name = self.run, self.run.line
        facets: dict[str, Any] = {}
        reason = run.reason if station is None else station.reason
        if station is not None:
            name = f"{run.line}.{station.name}"
            parent = {"run": {"runId": self._id("")}, "job": {"namespace": self.namespace, "name": run.line}}
            facets["parent"] = {"_producer": PRODUCER, "_schemaURL": PARENT, **parent}
        if kind == "FAIL" and reason:
            message = {"message": reason, "programmingLanguage": "Python"}
            facets["errorMessage"] = {"_producer": PRODUCER, "_schemaURL": FAILED, **message}
        done = station is not None and kind == "COMPLETE" and station.result is not None
        outputs: Mapping[str, str] = station.result.outputs if done and station and station.result else {}
        return {
            "eventType": kind,
            "eventTime": datetime.fromtimestamp(self.now_us / 1e6, UTC).isoformat(),
            "producer": PRODUCER,
            "schemaURL": SCHEMA,
            "run": {"runId": self._id(station.name if station else ""), "facets": facets},
            "job": {"namespace": self.namespace, "name": name, "facets": {}},
            "inputs": self._data(self._before(station)),
            "outputs": self._data(outputs),
        }

    def _before(self, station: StationState | None) -> dict[str, str]:
        """What the stations before this one made: its inputs, and perhaps a little more."""
        found: dict[str, str] = {}
        for other in self.run.stations if station is not None else ():
            if station is not None and other.name == station.name:
                break
            if other.result is not None:
                found |= {f"{other.name}/{name}": digest for name, digest in other.result.outputs.items()}
        return found

    def _data(self, named: Mapping[str, str]) -> list[dict[str, Any]]:
        return [
            {"namespace": self.namespace, "name": digest, "facets": {}}
            for digest in sorted(set(named.values()))
        ]

    def _id(self, station: str) -> str:
        return str(uuid.uuid5(NAMES, f"{self.namespace}/{self.run.id}/{station}"))


class LineageSink:
    """Sends events to ``target``: ``file:PATH`` or an http(s) URL; "" is nowhere."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.lost = 0
        self.problem = ""
        self._waiting: deque[dict[str, Any]] = deque()
        self._more = asyncio.Event()

    def observe(self, before: State, after: State, now_us: int) -> None:
        """Take note of what changed; costs nothing while it is off."""
        if not self.target:
            return
        for event in lineage_events(before, after, now_us):
            if len(self._waiting) >= WAITING_MOST:
                self._waiting.popleft()
                self.lost += 1
            self._waiting.append(event)
        self._more.set()

    async def send_forever(self) -> None:
        """Send what waits, in order, until cancelled."""
        async with httpx.AsyncClient(timeout=5.0) as client:
            while True:
                await self._more.wait()
                self._more.clear()
                while self._waiting:
                    await self._send(client, self._waiting.popleft())

    async def _send(self, client: httpx.AsyncClient, event: dict[str, Any]) -> None:
        for attempt in range(TRIES):
            try:
                if self.target.startswith("file:"):
                    await asyncio.to_thread(_append, Path(self.target.removeprefix("file:")), event)
                else:
                    answer = await client.post(self.target, json=event)
                    answer.raise_for_status()
            except (OSError, httpx.HTTPError) as error:
                self.problem = f"{self.target}: {error}"
                await asyncio.sleep(0.5 * 2**attempt)
            else:
                self.problem = ""
                return
        self.lost += 1


def _append(path: Path, event: dict[str, Any]) -> None:
    if path.exists() and path.stat().st_size > FILE_BYTES:
        path.replace(path.with_name(path.name + ".old"))
    with path.open("ab") as file:
        file.write(msgspec.json.encode(event) + b"\n")
