"""A forecast for people and programs: a text table, plain JSON values, and one self-contained page.

The page holds no script and loads nothing; its chart is inline SVG.
"""

from __future__ import annotations

from html import escape
from typing import Any

from tokenmill.domain.codec import to_plain
from tokenmill.domain.units import format_count, format_duration, format_money, format_power
from tokenmill.twin.forecast import UNCALIBRATED, DeploymentForecast, Estimate, Forecast

COLUMNS = (
    "deployment",
    "replicas",
    "ready after",
    "tokens in/out",
    "tokens/s",
    "TTFT p50/p99",
    "TPOT p50/p99",
    "load",
)

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}
table{border-collapse:collapse;width:100%}
td,th{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #ddd}
.note{color:#666}@media(prefers-color-scheme:dark){body{background:#14171a;color:#e6e6e6}}
"""


def to_json(forecast: Forecast) -> dict[str, Any]:
    """The forecast as plain values, with its digest."""
    plain: dict[str, Any] = to_plain(forecast)
    return {**plain, "digest": forecast.digest}


def to_text(forecast: Forecast) -> str:
    """A table and the totals, with what was assumed."""
    rows = [list(COLUMNS), *(_row(one) for one in forecast.deployments)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    lines += [f"  {one.name}: {one.note}" for one in forecast.deployments if one.note]
    return "\n".join(
        [*lines, "", *_totals(forecast), "", *(f"- {said}" for said in forecast.assumptions), ""]
    )


def to_html(forecast: Forecast) -> str:
    """One page with the table, a bar per deployment and the assumptions."""
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in COLUMNS)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in _row(one)) + "</tr>"
        for one in forecast.deployments
    )
    notes = "".join(
        f"<p class=note>{escape(one.name)}: {escape(one.note)}</p>"
        for one in forecast.deployments
        if one.note
    )
    totals = "".join(f"<p>{escape(line)}</p>" for line in _totals(forecast))
    said = "".join(f"<li>{escape(line)}</li>" for line in forecast.assumptions)
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Forecast</title>"
        f"<style>{STYLE}</style><h1>Forecast</h1>{totals}<table><tr>{head}</tr>{body}</table>{notes}"
        f"{_bars(forecast)}<h2>Assumed</h2><ul>{said}</ul><p class=note>{forecast.digest}</p></html>\n"
    )


def _totals(forecast: Forecast) -> list[str]:
    state = _after(forecast.converge_us) if forecast.converged else "not all gets ready"
    lines = [f"The change is {state}."] if forecast.converged else [f"With this change, {state}."]
    lines += [f"  {reason}" for reason in forecast.pending]
    lines.append(f"Throughput: {_estimate(forecast.tokens_per_s, format_count)} output tokens/s")
    lines.append(f"Power: {_estimate(forecast.watts, lambda w: format_power(round(w * 1000)))}")
    if forecast.cost_micros_per_mtok is not None:
        cost = _estimate(
            forecast.cost_micros_per_mtok, lambda v: format_money(round(v / 100) * 100, forecast.currency)
        )
        lines.append(f"Cost: {cost} per million output tokens (energy and accelerators)")
    return lines


def _after(ready_us: int) -> str:
    return f"ready after {format_duration(ready_us)}" if ready_us else "ready now"


def _row(one: DeploymentForecast) -> list[str]:
    return [
        one.name,
        f"{one.replicas_ready}/{one.replicas_wanted}",
        _after(one.ready_us).removeprefix("ready ").removeprefix("after ") if one.replicas_ready else "-",
        f"{one.mean_input_tokens:.0f}/{one.mean_output_tokens:.0f}" if one.requests else "-",
        _estimate(one.tokens_per_s, format_count) if one.tokens_per_s else "-",
        _pair(one.ttft_p50_ms, one.ttft_p99_ms),
        _pair(one.tpot_p50_ms, one.tpot_p99_ms),
        f"{one.utilisation * 100:.0f}%" if one.tokens_per_s else "-",
    ]


def _pair(first: Estimate | None, second: Estimate | None) -> str:
    if first is None or second is None:
        return "-"
    return f"{_digits(first.value)}/{_digits(second.value)} ms{_error(second)}"


def _estimate(one: Estimate, show: Any) -> str:
    shown = show(round(one.value)) if show is format_count and one.value >= 100 else None
    text = shown or (_digits(one.value) if show is format_count else show(one.value))
    return f"{text}{_error(one)}"


def _error(one: Estimate) -> str:
    if one.error is not None:
        return f" ±{one.error * 100:.0f}%"
    return f" ({one.basis})" if one.basis == UNCALIBRATED else " (no interval at this load)"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _bars(forecast: Forecast) -> str:
    """Tokens per second of each deployment; a thin line spans the stated error."""
    rows = [(one.name, one.tokens_per_s) for one in forecast.deployments if one.tokens_per_s is not None]
    most = max((estimate.high or estimate.value for _, estimate in rows), default=0)
    if most <= 0:
        return ""
    parts = []
    for number, (name, estimate) in enumerate(rows):
        y, width = 8 + number * 28, round(estimate.value / most * 480, 1)
        parts.append(f'<text x="0" y="{y + 13}">{escape(name[:20])}</text>')
        parts.append(f'<rect x="170" y="{y}" width="{width}" height="18"/>')
        if estimate.low is not None and estimate.high is not None:
            low, high = 170 + estimate.low / most * 480, 170 + estimate.high / most * 480
            parts.append(f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y + 9}" y2="{y + 9}" stroke="#111"/>')
    height = 16 + len(rows) * 28
    label = "Output tokens per second by deployment"
    return (
        f'<svg role="img" aria-label="{label}" viewBox="0 0 660 {height}" width="660" '
        f'fill="#4477aa" font-size="13"><title>{label}</title>{"".join(parts)}</svg>'
    )
