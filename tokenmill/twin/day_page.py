"""The outlook of a day as one page: numbers, plots, table, assumptions. No script, and nothing loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape
from importlib.resources import files

from tokenmill.domain.units import format_money
from tokenmill.twin.day_series import AliasMinute, Minute
from tokenmill.twin.forecast import Estimate
from tokenmill.twin.outlook import Outlook, ServiceOutlook
from tokenmill.twin.plots import (
    HATCHES,
    Limit,
    Line,
    Part,
    line_plot,
    meters,
    short,
    stacked_bars,
    thinned,
)


def to_html(found: Outlook) -> str:
    """The whole page."""
    style = files("tokenmill.twin").joinpath("day_page.css").read_text(encoding="utf-8")
    hours = found.seconds / 3600
    title = f"{found.factory}: {found.traffic}"
    lead = (
        f"{found.lasts} of traffic rehearsed on the twin, seed {found.seed}. "
        f"{_services(found)}, {sum(one.offered for one in found.services):,} requests."
    )
    cards = "".join(_cards(found, hours))
    said = "".join(f"<li>{escape(line)}</li>" for line in found.assumptions)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body>{HATCHES}"
        "<header><p class=eyebrow>Forecast of the twin</p>"
        f"<h1>{escape(title)}</h1><p>{escape(lead)}</p></header>"
        f"<main><section class=tiles>{''.join(_tiles(found))}</section>"
        f"<section class=grid>{cards}</section>"
        f"<section class=wide><h2>Services</h2>{_table(found)}</section>"
        f"<section class=wide><h2>What this rests on</h2><ul>{said}</ul></section></main>"
        f"<footer>digest <code>{escape(found.digest)}</code></footer></body></html>\n"
    )


def _tiles(found: Outlook) -> Iterator[str]:
    cost = found.cost_micros_per_mtok
    yield _tile("Output", f"{short(found.tokens_per_s.value)}", "tokens/s", error(found.tokens_per_s))
    good = found.good_per_s.value / found.tokens_per_s.value if found.tokens_per_s.value else 0.0
    yield _tile("Goodput", f"{short(found.good_per_s.value)}", "tokens/s", f"{good:.1%} of it within targets")
    limit = f"of {watts(found.cap_w)} at the peak" if found.cap_w else "at the peak; no cap is stated"
    value, unit = watts(found.peak_w).split()
    yield _tile("Power", value, unit, limit)
    each = found.joules_per_token
    joules = f"{each.value:.3g}" if each is not None else "-"
    yield _tile("Energy", joules, "J/token", f"{watt_hours(found.energy_j)} in all")
    if cost is not None:
        energy = format_money(_cents(found.energy_micros_per_mtok or 0), found.currency)
        yield _tile(
            "Cost", format_money(_cents(cost), ""), f"{found.currency}/M tokens", f"{energy} of it energy"
        )
    yield _tile("OEE", f"{found.oee.oee:.1%}", "", "availability × performance × quality")


def _services(found: Outlook) -> str:
    return "1 service" if len(found.services) == 1 else f"{len(found.services)} services"


def _tile(name: str, value: str, unit: str, note: str) -> str:
    return (
        f"<div class=tile><h2>{escape(name)}</h2><p class=value>{escape(value.strip())}"
        f"<span>{escape(unit)}</span></p><p class=note>{escape(note)}</p></div>"
    )


def _cents(micros: int) -> int:
    return round(micros / 10_000) * 10_000


def _card(title: str, note: str, plot: str) -> str:
    return f"<figure><figcaption><h2>{escape(title)}</h2><p>{escape(note)}</p></figcaption>{plot}</figure>"


def _cards(found: Outlook, hours: float) -> Iterator[str]:
    rows = found.series
    names = [one.name for one in found.services]

    def each(value: Callable[[AliasMinute], float], *, most: bool = False) -> list[Line]:
        return [
            Line(name, thinned([value(row.aliases[alias]) for row in rows], most=most), alias)
            for alias, name in enumerate(names)
        ]

    whole = Line("all", thinned([row.output_per_s for row in rows]), 5, area=True)
    lines = [whole, *each(lambda minute: minute.output_per_s)] if len(names) > 1 else [whole]
    yield _card(
        "Throughput", "Output tokens per second of answers that ended", line_plot("throughput", hours, lines)
    )
    yield _losses(found)
    for alias, one in enumerate(found.services):
        yield _latency(one, alias, rows, hours)
    yield _card(
        "Queue",
        "Requests that wait for their first token, the most of each minute",
        line_plot("waiting requests", hours, each(lambda minute: float(minute.waiting), most=True)),
    )
    large = max(found.cap_w, found.peak_w) >= 1e6
    unit, unit_w = ("Megawatts", 1e6) if large else ("Kilowatts", 1e3)
    drawn = [Line("drawn", thinned([row.watts / unit_w for row in rows], most=True), 0, area=True)]
    cap = [Limit("limit", found.cap_w / unit_w)] if found.cap_w else []
    yield _card(
        "Power against limit", f"{unit} of the site, PUE included", line_plot("power", hours, drawn, cap)
    )
    yield from _per_token(found, hours)
    yield _oee(found)
    yield _floor(found, names, hours)


def _latency(one: ServiceOutlook, alias: int, rows: Sequence[Minute], hours: float) -> str:
    """TTFT and TPOT of a service in one plot each, on a logarithmic axis in milliseconds."""
    mine = [row.aliases[alias] for row in rows]
    first = [
        Line("p99", thinned([m.ttft_p99_s * 1000 + one.arrival_ms for m in mine], most=True), 1),
        Line("p50", thinned([m.ttft_p50_s * 1000 + one.arrival_ms for m in mine]), 0),
    ]
    later = [
        Line("p99", thinned([m.tpot_p99_s * 1000 for m in mine], most=True), 1),
        Line("p50", thinned([m.tpot_p50_s * 1000 for m in mine]), 0),
    ]
    plots = (
        ("TTFT", "to the first token", first, one.target_ttft_ms, one.ttft_p99_ms),
        ("TPOT", "per token after it", later, one.target_tpot_ms, one.tpot_p99_ms),
    )
    return "".join(
        _card(
            f"{one.name}: {measure}",
            f"Milliseconds {what}; p99 {milliseconds(p99.value)}{error(p99)}",
            line_plot(f"{measure} of {one.name}", hours, lines, [Limit("target", target)], log=True),
        )
        for measure, what, lines, target, p99 in plots
        if p99 is not None
    )


def _per_token(found: Outlook, hours: float) -> Iterator[str]:
    rows = [row for row in found.series if row.output_per_s > 0]
    joules = thinned([row.watts / row.output_per_s for row in rows])
    yield _card(
        "Energy per token",
        "Joules of the whole site for one output token",
        line_plot("energy per token", hours, [Line("all", joules, 0)]),
    )
    made = math.fsum(one.output_tokens for one in found.services)
    if found.energy_micros_per_mtok is None or found.accelerator_micros_per_mtok is None or not made:
        return
    per_joule = found.energy_micros_per_mtok / 1e6 * made / found.energy_j
    per_second = found.accelerator_micros_per_mtok / 1e6 * made / found.seconds
    energy = thinned([row.watts * per_joule / row.output_per_s for row in rows])
    whole = thinned([(row.watts * per_joule + per_second) / row.output_per_s for row in rows])
    lines = [Line("all", whole, 1), Line("energy", energy, 0, area=True)]
    yield _card(
        "Cost per million tokens",
        f"{found.currency} for a million output tokens: all, with accelerators, and energy alone",
        line_plot("cost", hours, lines),
    )


def _losses(found: Outlook) -> str:
    rows = []
    for one in found.services:
        rest = max(0, one.offered - one.ended - one.refused - one.too_long)
        parts = [
            Part("good", one.good, 0),
            Part("late first token", one.late, 1),
            Part("slow tokens", one.slow, 2),
            Part("refused", one.refused, 3),
            Part("not ended", rest, 4),
            Part("longer than the context", one.too_long, 5),
        ]
        rows.append((one.name, parts))
    training = found.training
    said = "Requests by what became of them"
    if found.broken:
        said += f"; of those not ended, {found.broken:,} broke with a lost replica"
    if training.kept_h + training.lost_h + training.checkpoint_h > 0:
        parts = [
            Part("kept", training.kept_h, 0),
            Part("lost after failures", training.lost_h, 1),
            Part("checkpoints", training.checkpoint_h, 2),
        ]
        rows.append(("training", parts))
        said += ". Training: accelerator-hours"
    return _card(
        "Goodput and losses by cause", said, stacked_bars("goodput losses", rows, "") + _loss_table(rows)
    )


def _loss_table(rows: Sequence[tuple[str, Sequence[Part]]]) -> str:
    lines = []
    for name, parts in rows:
        whole = math.fsum(part.value for part in parts) or 1.0
        lost = [f"{p.name} {p.value / whole:.2%}" for p in parts if p.kind and p.value > 0]
        lines.append(f"<li><b>{escape(name)}</b> {escape(', '.join(lost) or 'nothing lost')}</li>")
    return f"<ul class=losses>{''.join(lines)}</ul>"


def _oee(found: Outlook) -> str:
    one = found.oee
    rows = [
        ("Availability", one.availability, "nodes that were not lost"),
        (
            "Performance",
            one.performance,
            "tokens made, of what ready replicas make at their best within targets",
        ),
        ("Quality", one.quality, "tokens of answers within both targets"),
        ("OEE", one.oee, "the product of the three"),
    ]
    return _card("Overall equipment effectiveness", "As a plant counts it", meters("OEE", rows))


def _floor(found: Outlook, names: Sequence[str], hours: float) -> str:
    lines = [
        Line(name, thinned([float(row.aliases[alias].ready) for row in found.series]), alias)
        for alias, name in enumerate(names)
    ]
    training = [float(row.training_accelerators) for row in found.series]
    if any(training):
        lines.append(Line("training GPUs", thinned(training), 4))
    lost = [float(row.nodes_lost) for row in found.series]
    if any(lost):
        lines.append(Line("nodes lost", thinned(lost, most=True), 3))
    return _card(
        "The floor",
        "Replicas that are ready, accelerators that train, nodes lost",
        line_plot("floor", hours, lines),
    )


def _table(found: Outlook) -> str:
    head = (
        "service", "served by", "replicas", "requests", "tokens/s", "good tokens/s", "TTFT p50/p99",
        "TPOT p50/p99", "head-room",
    )  # fmt: skip
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in service_row(one)) + "</tr>"
        for one in found.services
    )
    names = "".join(f"<th scope=col>{name}</th>" for name in head)
    return f"<div class=scroll><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>"


def service_row(one: ServiceOutlook) -> tuple[str, ...]:
    """The cells of one service, as the page and the command line show them."""
    low, high = one.replicas
    return (
        one.name,
        one.configuration,
        f"{low}" if low == high else f"{low} to {high}",
        f"{one.offered:,}",
        f"{short(one.tokens_per_s.value)}{error(one.tokens_per_s)}",
        short(one.good_per_s.value),
        _pair(one.ttft_p50_ms, one.ttft_p99_ms),
        _pair(one.tpot_p50_ms, one.tpot_p99_ms),
        f"{one.headroom:.2f} x",
    )


def _pair(low: Estimate | None, high: Estimate | None) -> str:
    if low is None or high is None:
        return "-"
    return f"{milliseconds(low.value)} / {milliseconds(high.value)}{error(high)}"


def watts(value: float) -> str:
    """With its unit: megawatts from one on."""
    return f"{value / 1e6:.3g} MW" if value >= 1e6 else f"{value / 1e3:.3g} kW"


def watt_hours(joules: float) -> str:
    """Energy with its unit: megawatt-hours from one on."""
    return f"{joules / 3.6e9:.4g} MWh" if joules >= 3.6e9 else f"{joules / 3.6e6:.4g} kWh"


def milliseconds(value: float) -> str:
    """With its unit; seconds from one second on."""
    return f"{value / 1000:.3g} s" if value >= 1000 else f"{value:.3g} ms"


def error(one: Estimate) -> str:
    """The stated error; that there is none is said too."""
    if one.error is None:
        return " (no interval)"
    return f" ±{one.error:.0%}" if one.error else ""
