"""Numbers as people read them: durations, bytes, energy, money, shares. Used by the pages and the CLI.

Reads no clock and no locale. Times come in microseconds, energy in millijoules, money in millionths.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from tokenmill.control.keys import LATEST_US

MISSING = "–"
_MARKS = {
    "ready": ("ok", "●"), "serving": ("ok", "●"), "alive": ("ok", "●"),
    "running": ("busy", "◐"), "starting": ("busy", "◐"), "importing": ("busy", "◐"),
    "pending": ("wait", "○"), "waiting": ("wait", "○"), "draining": ("wait", "◌"), "stopping": ("wait", "◌"),
    "done": ("ok", "✓"), "succeeded": ("ok", "✓"), "reused": ("ok", "↺"), "passed": ("ok", "✓"),
    "failed": ("bad", "✕"), "rejected": ("warn", "◆"), "cancelled": ("off", "–"), "skipped": ("off", "–"),
    "stopped": ("off", "–"), "disabled": ("off", "–"), "cordoned": ("warn", "◆"), "lost": ("bad", "✕"),
    "degraded": ("warn", "▼"), "asleep": ("wait", "◌"),
}  # fmt: skip
_CURRENCY_SIGNS = {"USD": "$", "EUR": "€", "GBP": "£"}


def duration(us: float) -> str:
    """``850 ms``, ``12.4 s``, ``3 min 20 s``, ``2 h 05 min``, ``3 d 4 h``."""
    seconds = max(0.0, us / 1e6)
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def ago(at_us: int, now_us: int) -> str:
    """``12 s ago``; the dash for a time that is not set."""
    return f"{duration(now_us - at_us)} ago" if at_us else MISSING


def clock(at_us: int) -> str:
    """UTC, to the second, in ISO 8601."""
    if not at_us:
        return MISSING
    if at_us > LATEST_US:
        return "after 9999"
    return datetime.fromtimestamp(at_us / 1e6, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def time_of_day(at_us: int) -> str:
    """``14:03:59``, UTC."""
    return clock(at_us)[11:19] if at_us else MISSING


def size(count: float) -> str:
    """Bytes in powers of 1024: ``312 MiB``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return MISSING


def number(value: float) -> str:
    """``1,234`` for what fits, ``12.3 M`` for what does not; three digits that matter below 100."""
    if abs(value) >= 1e10:
        return f"{value / 1e9:,.1f} G"
    if abs(value) >= 1e7:
        return f"{value / 1e6:,.1f} M"
    if float(value).is_integer():
        return f"{int(value):,}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 1 else f"{value:.3g}"


def energy(mj: float) -> str:
    """Millijoules as ``12.3 J``, ``4.1 kJ``, ``0.82 kWh``."""
    joules = mj / 1000
    if joules < 1000:
        return f"{joules:.1f} J"
    if joules < 360_000:
        return f"{joules / 1000:.1f} kJ"
    return f"{joules / 3_600_000:.2f} kWh"


def money(micros: float, currency: str = "USD") -> str:
    """Millionths of a currency as ``$1.23``; with six decimals when it is less than a cent."""
    value = micros / 1e6
    sign = _CURRENCY_SIGNS.get(currency, f"{currency} ")
    digits = 2 if value == 0 or abs(value) >= 1 else 4 if abs(value) >= 0.01 else 6
    return f"{sign}{value:,.{digits}f}"


def percent(milli: float) -> str:
    """Thousandths as ``87.3 %``."""
    return f"{milli / 10:.1f} %"


def points(milli: float) -> str:
    """A difference of shares in thousandths as ``+12.5`` percentage points."""
    return f"{milli / 10:+.1f}"


def short_digest(digest: str) -> str:
    """``sha256:1f2e…`` as its first twelve hex characters."""
    return digest.removeprefix("sha256:")[:12] if digest else MISSING


def all_money(micros: Mapping[str, int]) -> str:
    """Sums by currency, side by side."""
    return " + ".join(money(value, currency) for currency, value in sorted(micros.items())) or MISSING


def mark(status: str) -> tuple[str, str]:
    """``(kind, shape)`` of a status. The kind becomes a colour; the shape is there for those who see none."""
    return _MARKS.get(status, ("wait", "○"))
