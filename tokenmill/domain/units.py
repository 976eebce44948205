"""Quantities that people write ("24GB", "5m", "16 MW", "0.15 USD") to the integers that we keep, and back.

Arithmetic is decimal, so "0.1 USD" is exactly 100000 micros. A quantity with the wrong unit raises
``UsageError`` whose ``expected`` names the units that fit. Nothing is rounded silently: a quantity finer than
the integer that keeps it is refused.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation

from tokenmill.domain.errors import UsageError

SIZES: Mapping[str, int] = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "PB": 10**15,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "PiB": 2**50,
}
DURATIONS: Mapping[str, int] = {  # microseconds
    "us": 1,
    "ms": 10**3,
    "s": 10**6,
    "m": 60 * 10**6,
    "min": 60 * 10**6,
    "h": 3600 * 10**6,
    "d": 86400 * 10**6,
}
POWERS: Mapping[str, int] = {"mW": 1, "W": 10**3, "kW": 10**6, "MW": 10**9, "GW": 10**12}  # milliwatts
BIT_RATES: Mapping[str, int] = {"Mbit/s": 10**6, "Gbit/s": 10**9, "Tbit/s": 10**12}
BYTE_RATES: Mapping[str, int] = {"MB/s": 8 * 10**6, "GB/s": 8 * 10**9, "TB/s": 8 * 10**12}
COUNTS: Mapping[str, int] = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9}
PERIODS: Mapping[str, int] = {
    "s": 1,
    "second": 1,
    "min": 60,
    "minute": 60,
    "h": 3600,
    "hour": 3600,
    "d": 86400,
    "day": 86400,
}

_QUANTITY = re.compile(r"\s*([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([^\d\s].*?)?\s*")
_LIMIT = Decimal(2) ** 63


def parse_size(value: object) -> int:
    """Bytes of "24GB" (decimal) or "24GiB" (binary). A bare number is refused, except 0."""
    return _parse(value, SIZES, "a size", "24GB, 512MiB")


def parse_duration(value: object) -> int:
    """Microseconds of "30s", "5m", "2h", "1d", "250ms", or a sum such as "1h30m"."""
    parts = re.findall(r"[\d._]+\s*[a-z]+", value[:64]) if isinstance(value, str) else []
    if len(parts) > 1 and "".join(parts).replace(" ", "") == str(value).replace(" ", ""):
        return sum(parse_duration(part) for part in parts)
    return _parse(value, DURATIONS, "a duration", "30s, 5m, 2h")


def parse_power(value: object) -> int:
    """Milliwatts of "700W", "142 kW" or "16 MW". Units are case-sensitive: mW is not MW."""
    return _parse(value, POWERS, "a power", "700W, 142kW, 16MW")


def parse_ramp(value: object) -> tuple[int, int]:
    """Milliwatts of rise and the microseconds that they may come in, of "50kW/s" or "2MW/min"."""
    power, _, period = str(value).partition("/")
    seconds = PERIODS.get(period.strip())
    if seconds is None:
        raise UsageError(
            f"{value!r} is not a rise of power",
            expected="a power per period, for example 50kW/s or 2MW/min",
            fix=f"Use one of the periods {', '.join(PERIODS)}.",
        )
    return parse_power(power), int(seconds * 1_000_000)


def parse_bit_rate(value: object) -> int:
    """Bits per second of "800Gbit/s"; "100 GB/s" is eight times as many bits."""
    if isinstance(value, str):
        value = re.sub(r"([MGT])(?:bps|b/s|bit/s|bits/s)\s*$", r"\1bit/s", value)
    return _parse(value, {**BIT_RATES, **BYTE_RATES}, "a bandwidth", "800Gbit/s, 1.8TB/s")


def parse_count(value: object) -> int:
    """A whole number of things: 600, "600", "100k", "1.5M"."""
    return _parse(value, COUNTS, "a whole number", "600, 100k, 1.5M", bare=True)


def parse_cpu(value: object) -> int:
    """Thousandths of a core: 2 is 2000, "1.5" is 1500, "250m" is 250."""
    return _parse(value, {"": 1000, "m": 1}, "an amount of CPU", "2 (cores), 1.5, 250m", bare=True)


def parse_percent(value: object) -> int:
    """Thousandths of "87.3%" (873). A bare number is a fraction: 0.873 is 873 also."""
    return _parse(value, {"": 1000, "%": 10}, "a share", "80%, 0.8", bare=True)


def parse_rate(value: object, per: str = "min") -> int:
    """Whole events per ``per`` of "600/min", "10/s"; a bare count is already per ``per``."""
    if not isinstance(value, str) or "/" not in value:
        return parse_count(value)
    count, _, period = value.partition("/")
    seconds = PERIODS.get(period.strip())
    if seconds is None:
        raise UsageError(
            f"{value!r} is not a rate",
            expected=f"a count per period, for example 600/{per}",
            fix=f"Use one of the periods {', '.join(PERIODS)}.",
        )
    return _whole(Decimal(parse_count(count)) * PERIODS[per] / seconds, value, f"a whole number per {per}")


def parse_money(value: object) -> tuple[int, str]:
    """``(micros, currency)`` of "0.15 USD"; the currency of a bare number is empty."""
    text = str(value).strip() if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
    match = _QUANTITY.fullmatch(text)
    unit = (match[2] or "") if match else "?"
    if match is None or (unit and not re.fullmatch(r"[A-Z]{3}", unit)):
        raise UsageError(
            f"{value!r} is not an amount of money",
            expected="a number and an ISO 4217 currency, for example 0.15 USD",
        )
    return _whole(Decimal(match[1]) * 10**6, value, "an amount of money no finer than 0.000001"), unit


def did_you_mean(written: str, known: Iterable[str], least: float = 0.6) -> str:
    """ "Did you mean X?" for the nearest of ``known``; empty when none is near."""
    names = sorted(set(known))
    folded = {name.lower(): name for name in reversed(names)}
    near = difflib.get_close_matches(written[:200].lower(), folded, 1, least)
    return f"Did you mean {folded[near[0]]}?" if near else ""


def format_size(size_bytes: int) -> str:
    """For people: "24.0 GB"; decimal units, three significant digits."""
    return _format(size_bytes, {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15})


def format_cores(cpu_millis: int) -> str:
    """For people: "1.5 cores", "1 core"."""
    return f"{cpu_millis / 1000:g} core{'' if cpu_millis == 1000 else 's'}"


def format_memory(size_bytes: int) -> str:
    """For people: "23.5 GiB"; the binary units that memory is asked in, three significant digits."""
    return _format(size_bytes, {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50})


def format_accelerators(count: int, kind: str = "") -> str:
    """For people: "8 h200", "1 accelerator", "no accelerator"."""
    return f"{count or 'no'} {kind or ('accelerator' if count <= 1 else 'accelerators')}"


def format_duration(duration_us: int, *, words: bool = False) -> str:
    """For people: "250 ms", "1.5 s", "2 h"; three significant digits. ``words``: "10 minutes", "24 hours"."""
    if words:
        text = _format(duration_us, {"second": 10**6, "minute": 60 * 10**6, "hour": 3600 * 10**6})
        return text if text.startswith("1 ") else f"{text}s"
    return _format(duration_us, {k: v for k, v in DURATIONS.items() if k != "min"})


def format_power(power_mw: int) -> str:
    """For people: "16 MW"; takes milliwatts."""
    return _format(power_mw, POWERS)


def format_count(count: int) -> str:
    """For people: "1.5M"."""
    return _format(count, {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}, space="")


def format_money(micros: int, currency: str = "") -> str:
    """Exact, without trailing zeros beyond cents: "0.15 USD"."""
    whole, part = divmod(abs(micros), 10**6)
    digits = f"{part:06d}".rstrip("0").ljust(2, "0")
    return f"{'-' if micros < 0 else ''}{whole}.{digits}{' ' + currency if currency else ''}"


def format_percent(milli: int) -> str:
    """Thousandths to "87.3%"."""
    return f"{Decimal(milli) / 10:f}%"


def _parse(value: object, units: Mapping[str, int], noun: str, examples: str, *, bare: bool = False) -> int:
    """A quantity that is never negative, times its unit. ``bare`` allows a number without a unit."""
    text = str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
    match = _QUANTITY.fullmatch(text) if len(text) <= 64 else None
    if match is None:
        raise UsageError(f"{value!r} is not {noun}", expected=f"{noun}, for example {examples}")
    unit = match[2] or ""
    number = _decimal(match[1], value, noun)
    if unit not in units:
        if not unit and number == 0:
            return 0
        names = ", ".join(name for name in units if name)
        raise UsageError(
            _wrong_unit(value, unit, noun),
            expected=f"{noun}, for example {examples}",
            fix=_nearest_unit(unit, units) or f"Use one of the units {names}.",
        )
    if number < 0:
        raise UsageError(f"{value!r} is negative", expected=f"{noun} of zero or more")
    return _whole(number * units[unit], value, noun)


def _wrong_unit(value: object, unit: str, noun: str) -> str:
    if not unit:
        return f"{value!r} has no unit"
    if noun.startswith(("a whole", "a share")):
        return f"{value!r} is not {noun}"
    return f"{unit!r} is not a unit of {noun.partition(' ')[2]}"


def _decimal(digits: str, value: object, noun: str) -> Decimal:
    try:
        return Decimal(digits.replace("_", ""))
    except InvalidOperation:
        raise UsageError(f"{value!r} is not {noun}", expected=noun) from None


def _whole(amount: Decimal, value: object, noun: str) -> int:
    if abs(amount) >= _LIMIT:
        raise UsageError(f"{value!r} is too large", expected=f"{noun} that fits 63 bits")
    if amount != amount.to_integral_value():
        raise UsageError(f"{value!r} is finer than we keep", expected=noun, fix="Round it.")
    return int(amount)


def _nearest_unit(unit: str, units: Mapping[str, int]) -> str:
    """The unit that differs only by case, or a hint when bits were written for bytes."""
    if unit in ("Gb", "Mb", "Tb", "kb") and "GB" in units:
        return f"{unit} means bits; for bytes write {unit[0]}B."
    same = [name for name in units if name and name.lower() == unit.lower()]
    return f"Did you mean {' or '.join(same)}?" if same else ""


def _format(amount: int, units: Mapping[str, int], space: str = " ") -> str:
    """The largest unit that leaves at least one, with three significant digits."""
    name, factor = next(iter(units.items()))
    for unit, size in units.items():
        if abs(amount) >= size:
            name, factor = unit, size
    scaled = Decimal(amount) / factor
    digits = max(0, 2 - max(0, scaled.copy_abs().adjusted())) if scaled else 0
    text = f"{scaled:.{digits}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return f"{text}{space if name else ''}{name}"
