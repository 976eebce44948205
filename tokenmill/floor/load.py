"""What the gateway says about load and outcomes, as events: read from its files of every second."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from tokenmill.domain.events import LoadReported, OutcomesReported
from tokenmill.domain.outcomes import NOTHING_SEEN, Answers, Outcomes

STALE_US = 10_000_000
REPEAT_US = 10_000_000
SILENT_US = 5_000_000  # it writes every second

Pair = tuple[str, str]  # alias, release


@dataclass(frozen=True, slots=True)
class Counts:
    """One deployment's load. ``refused_full`` and ``asleep``, and the answers that ``met`` and ``missed`` its
    objective, count since the gateway's start, or a report."""

    in_flight: int = 0
    refused_full: int = 0
    asleep: int = 0
    wait_us: int = 0
    met: int = 0
    missed: int = 0


AT_REST = Counts()


@dataclass(slots=True)
class LoadWatch:
    """Turns the state files in ``folder`` into ``LoadReported``: for a deployment whose load changed, and for
    every one now and then, so that one that is idle is seen to be."""

    folder: Path
    _last: dict[str, Counts] = field(default_factory=dict)
    _totals: dict[str, Counts] = field(default_factory=dict)
    _reported_us: dict[str, int] = field(default_factory=dict)
    _answers: dict[str, Answers] = field(default_factory=dict)

    def answers(self) -> dict[str, tuple[int, int]]:
        """By deployment: answers of the last minute that met its objective, and that missed it."""
        return {name: (found.met, found.missed) for name, found in list(self._answers.items())}

    def look(self, now_us: int) -> list[LoadReported]:
        """Return what is new. Blocks for a moment; runs in a thread."""
        events = []
        for name, total in sorted(read_load(self.folder, now_us).items()):
            before = self._totals.get(name, total)
            self._totals[name] = total
            refused = max(0, total.refused_full - before.refused_full)
            asleep = max(0, total.asleep - before.asleep)
            answers = self._answers.setdefault(name, Answers())
            answers.add(now_us, max(0, total.met - before.met), max(0, total.missed - before.missed))
            counts = Counts(total.in_flight, refused, asleep, total.wait_us, answers.met, answers.missed)
            recent = now_us - self._reported_us.setdefault(name, now_us) < REPEAT_US
            if recent and self._last.get(name, AT_REST) == counts:
                continue
            self._last[name] = counts
            self._reported_us[name] = now_us
            events.append(
                LoadReported(now_us, name, counts.in_flight, refused, asleep, counts.wait_us, *answers.counts)
            )
        return events


@dataclass(slots=True)
class OutcomeWatch:
    """Turns the gateway's counts per release into ``OutcomesReported`` about what is new.

    What a process counted before this watch began is only noted: it was reported then, or is lost.
    """

    folder: Path
    _began_us: int = -1
    _last: dict[int, tuple[int, dict[Pair, Outcomes]]] = field(
        default_factory=dict
    )  # by index: start, counts

    def look(self, now_us: int) -> list[OutcomesReported]:
        """Return what is new. Blocks for a moment; runs in a thread."""
        if self._began_us < 0:
            self._began_us = now_us
        new: dict[Pair, Outcomes] = {}
        for found in read_states(self.folder, now_us, STALE_US):
            index, started_us = int(found.get("index", 0)), int(found.get("started_us", 0))
            seen, (known_us, last) = _outcomes(found), self._last.get(index, (-1, {}))
            self._last[index] = (started_us, seen)
            if known_us != started_us:
                if started_us < self._began_us:
                    continue
                last = {}
            for pair, counts in seen.items():
                more = counts.minus(last.get(pair, NOTHING_SEEN))
                new[pair] = new.get(pair, NOTHING_SEEN).plus(more)
        return [
            OutcomesReported(now_us, *pair, counts)
            for pair, counts in sorted(new.items())
            if counts != NOTHING_SEEN
        ]


def _outcomes(found: dict[str, Any]) -> dict[Pair, Outcomes]:
    return {
        (str(alias), str(release)): Outcomes(
            int(counts.get("requests", 0)),
            int(counts.get("errors", 0)),
            tuple((int(bucket), int(count)) for bucket, count in counts.get("latency", ())),
        )
        for alias, releases in dict(found.get("outcomes", {})).items()
        for release, counts in dict(releases).items()
    }


def read_load(folder: Path, now_us: int) -> dict[str, Counts]:
    """Return alias -> its load over all processes as they last wrote it; nothing when that is old."""
    sums: dict[str, Counts] = {}
    for found in read_states(folder, now_us, STALE_US):
        for alias, load in dict(found.get("deployments", {})).items():
            sums[str(alias)] = _sum(sums.get(str(alias), AT_REST), dict(load))
    return sums


def _sum(counts: Counts, load: dict[str, Any]) -> Counts:
    return Counts(
        counts.in_flight + int(load.get("in_flight", 0)),
        counts.refused_full + int(load.get("refused_full", 0)),
        counts.asleep + int(load.get("asleep", 0)),
        max(counts.wait_us, int(load.get("wait_us", 0))),
        counts.met + int(load.get("met", 0)),
        counts.missed + int(load.get("missed", 0)),
    )


def drained(folder: Path, replica: str, table_version: int, now_us: int) -> bool | None:
    """Whether no gateway process has an open request on a replica and all, knowing the table that takes it
    out, will give it none. ``None`` when no process says anything now."""
    states = read_states(folder, now_us, SILENT_US)
    if not states:
        return None
    return all(
        int(found.get("table_version", -1)) >= table_version
        and not int(dict(found.get("endpoints", {})).get(replica, {}).get("in_flight", 0))
        for found in states
    )


def all_know(folder: Path, table_version: int, now_us: int) -> bool:
    """Whether every gateway process that says anything now decides by this table or a newer one."""
    states = read_states(folder, now_us, SILENT_US)
    return all(int(found.get("table_version", -1)) >= table_version for found in states)


def gateway_url(folder: Path, now_us: int) -> str:
    """Where clients reach the gateway, from its processes' own files; empty while none is up."""
    states = read_states(folder, now_us, STALE_US)
    found = next((one for one in states if one.get("port")), None)
    if found is None:
        return ""
    return url_of(str(found.get("host") or ""), int(found["port"]), tls=bool(found.get("tls")))


def peers_seen(folder: Path, now_us: int) -> dict[str, dict[str, Any]]:
    """What a gateway found of each peer when it last asked, by the peer's name."""
    for found in read_states(folder, now_us, STALE_US):
        peers = found.get("peers")
        if isinstance(peers, dict) and peers:
            return {str(name): one for name, one in peers.items() if isinstance(one, dict)}
    return {}


def url_of(host: str, port: int, *, tls: bool) -> str:
    """Where clients reach what listens at ``host``; any address of this machine is shown as loopback."""
    shown = "127.0.0.1" if host in ("", "0.0.0.0", "::") else host  # noqa: S104 (compared, not bound)
    return f"http{'s' if tls else ''}://{shown}:{port}"


def read_states(folder: Path, now_us: int, oldest_us: int) -> list[dict[str, Any]]:
    """What each gateway process says of itself, of those that wrote it not longer ago than ``oldest_us``."""
    found = _read(sorted(folder.glob("gateway*.json")))
    return [one for one in found if now_us - int(one.get("heartbeat_us", 0)) <= oldest_us]


def _read(paths: Iterable[Path]) -> list[dict[str, Any]]:
    states = []
    for path in paths:
        try:
            found = msgspec.json.decode(path.read_bytes())
        except (OSError, msgspec.DecodeError):
            continue
        if isinstance(found, dict):
            states.append(found)
    return states
