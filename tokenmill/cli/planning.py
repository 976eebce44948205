"""``tokenmill plan --traffic``: a whole factory under its traffic, as a table, JSON or a report."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from tokenmill.cli.output import add_rows, print_json, stdout, table
from tokenmill.cli.progress import bar
from tokenmill.domain.codec import to_plain
from tokenmill.domain.errors import UsageError
from tokenmill.domain.factory import Factory
from tokenmill.domain.units import format_money, parse_duration
from tokenmill.spec.factory_file import load, written_at
from tokenmill.spec.files import write_atomically
from tokenmill.spec.override import Override
from tokenmill.spec.traffic import TargetFields, Traffic, load_traffic, of_trace
from tokenmill.twin.day_page import error, service_row, to_html, watt_hours, watts
from tokenmill.twin.outlook import Outlook
from tokenmill.twin.plots import short
from tokenmill.twin.profiles import read_profile
from tokenmill.twin.question import ask
from tokenmill.twin.rehearse_day import rehearse_day

TRACE_US = 3_600_000_000
SLO = re.compile(r"(ttft|tpot)(?:_p99)?\s*<=?\s*(\S+)")
FORMAT = "tokenmill.outlook/1"


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line says: the files, and how long and at which targets a bare trace is replayed."""

    file: Path
    traffic: Path
    seed: int
    slo: str | None = None
    deployment: str | None = None
    duration: str | None = None
    profile: Path | None = None

    def load(self, overrides: Sequence[Override] = ()) -> tuple[Factory, Traffic]:
        """Both files. Raises ``SpecError`` with every problem."""
        factory = load([self.file], os.environ, overrides=[one for one in overrides if not one.of_traffic])
        mine = [one for one in overrides if one.of_traffic]
        if self.traffic.suffix in (".yaml", ".yml"):
            if self.slo or self.deployment:
                raise UsageError(
                    "--slo and --deployment are for a trace", fix="Write them into the traffic file."
                )
            if self.duration:
                mine.append(Override("traffic.duration", self.duration))
            return factory, load_traffic(self.traffic, os.environ, mine)
        if mine:
            raise UsageError("a trace has no fields to sweep", fix="Write a traffic file with `trace: FILE`.")
        duration_us = parse_duration(self.duration) if self.duration else TRACE_US
        if duration_us <= 0:
            raise UsageError(f"--duration is {self.duration}", expected="more than 0, for example 1h")
        return factory, of_trace(self.traffic, self._deployment(factory), targets_of(self.slo), duration_us)

    def layout_of(self, deployment: str) -> str:
        """Where the factory file says how a deployment is laid out."""
        return written_at([self.file], os.environ, "deployment", deployment, "engine_args")

    def _deployment(self, factory: Factory) -> str:
        names = [deployment.name for deployment in factory.deployments]
        if self.deployment is None and len(names) == 1:
            return names[0]
        if self.deployment is None:
            raise UsageError(
                "the trace does not say to which deployment it goes",
                expected=f"--deployment, one of {', '.join(names)}",
            )
        return self.deployment


def targets_of(text: str | None) -> TargetFields | None:
    """``ttft_p99<2s,tpot_p99<80ms`` as targets; None when nothing is written."""
    if text is None:
        return None
    found: dict[str, str] = {}
    for part in text.split(","):
        match = SLO.fullmatch(part.strip())
        if match is None:
            raise UsageError(f"{part.strip()!r} is no target", expected="ttft_p99<2s,tpot_p99<80ms")
        found[match[1]] = match[2]
    if set(found) != {"ttft", "tpot"}:
        raise UsageError(f"{text!r} names not both targets", expected="ttft_p99<2s,tpot_p99<80ms")
    try:
        return TargetFields.model_validate(found)
    except ValidationError:
        raise UsageError(
            f"{text!r} has a limit that is no time", expected="ttft_p99<2s,tpot_p99<80ms"
        ) from None


def outlook_of(
    asked: Asked, overrides: Sequence[Override], progress: Callable[[float, float], None]
) -> Outlook:
    factory, traffic = asked.load(overrides)
    question = ask(factory, traffic, asked.seed, read_profile(asked.profile), asked.layout_of)
    return rehearse_day(question, asked.seed, progress)


def plan_traffic(asked: Asked, report: Path | None, *, as_json: bool) -> None:
    """One rehearsal: the table, or JSON, and the report if it is asked for."""
    with bar("rehearsing") as progress:
        found = outlook_of(asked, (), progress)
    if report is not None:
        write_atomically(report, to_html(found).encode())
    if as_json:
        print_json(plain(found))
        return
    show(stdout(), found)
    if report is not None:
        stdout().print(f"Report: {escape(str(report))}")


def plain(found: Outlook) -> dict[str, Any]:
    """The outlook as JSON values, with what is derived from them."""
    made: dict[str, Any] = to_plain(found)
    made["oee"]["oee"] = found.oee.oee
    return {
        "format": FORMAT,
        "digest": found.digest,
        "cost_micros_per_mtok": found.cost_micros_per_mtok,
        **made,
    }


def show(console: Console, found: Outlook) -> None:
    """The forecast table and the totals, with what was assumed."""
    console.print(
        f"[bold]{escape(found.factory)}[/bold] under {escape(found.traffic)}: "
        f"{found.lasts}, seed {found.seed}\n"
    )
    columns = (
        "replicas",
        ">requests",
        ">tokens/s",
        ">good tokens/s",
        ">TTFT p50/p99",
        ">TPOT p50/p99",
        ">head-room",
    )
    made = table("service", *columns)
    cells = [service_row(one) for one in found.services]
    console.print(add_rows(made, [(row[0], *row[2:]) for row in cells], "no service"))
    for one in found.services:
        console.print(f"  [dim]{escape(one.name)}: {escape(one.configuration)}; {escape(one.basis)}[/dim]")
    console.print()
    for line in totals(found):
        console.print(escape(line))
    console.print()
    for said in found.assumptions:
        console.print(f"[dim]- {escape(said)}[/dim]")
    console.print(f"[dim]digest {found.digest}[/dim]")


def totals(found: Outlook) -> list[str]:
    """What the whole factory made, in lines."""
    one, training = found.oee, found.training
    made, good, each = found.tokens_per_s, found.good_per_s.value, found.joules_per_token
    cap = f" of {watts(found.cap_w)}" if found.cap_w else ""
    late, slow = sum(s.late for s in found.services), sum(s.slow for s in found.services)
    refused = sum(s.refused for s in found.services)
    long = sum(s.too_long for s in found.services)
    within = good / made.value if made.value else 0.0
    lines = [f"Output {short(made.value)} tokens/s{error(made)}, {within:.1%} of it within its targets"]
    lines.append(
        f"Power {watts(found.peak_w)} at the peak{cap}; {watt_hours(found.energy_j)}"
        + (f"; {short(each.value)} J per output token" if each is not None else "")
    )
    if found.cost_micros_per_mtok is not None:
        energy = format_money(cents(found.energy_micros_per_mtok or 0), found.currency)
        cost = format_money(cents(found.cost_micros_per_mtok), found.currency)
        lines.append(f"Cost {cost} per million output tokens, {energy} of it energy")
    lines.append(
        f"Goodput lost: {late:,} requests late, {slow:,} slow, {refused:,} refused, {found.broken:,} broken"
        + (f", {long:,} longer than the context" if long else "")
    )
    if training.jobs:
        hours = (training.kept_h, training.lost_h, training.checkpoint_h)
        kept, lost, saving = (f"{value:,.0f}" if value >= 100 else short(value) for value in hours)
        lines.append(
            f"Training: {training.done} of {training.jobs} jobs done, {training.failures} failures; "
            f"accelerator-hours {kept} kept, {lost} lost, {saving} for checkpoints"
        )
    lines.append(
        f"OEE {one.oee:.1%} = availability {one.availability:.2%} x performance {one.performance:.1%} "
        f"x quality {one.quality:.1%}"
    )
    return lines


def cents(micros: int) -> int:
    return round(micros / 10_000) * 10_000
