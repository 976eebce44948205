"""Fitted efficiencies: a base and named offsets, which a configuration adds up to its own.

A value is that of base + sum of offsets over the names that a configuration belongs to: its kind (dense or
mixture of experts), engine, that engine's version, accelerator, precision, model, and its group: this engine
on this generation of accelerators. The sum is a logarithm, or the logit of a ``SHARES``. Each name is of one
kind, so that the two kinds share nothing. What no measured row had adds nothing; no offset is of one sweep.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from pathlib import Path

from tokenmill.domain.errors import DataError
from tokenmill.spec.catalogue import catalogue
from tokenmill.twin.iteration import Efficiency
from tokenmill.twin.steady import Protocol

EFFICIENCIES = tuple(one.name for one in fields(Efficiency))
PROTOCOL = tuple(one.name for one in fields(Protocol))
SHARES = frozenset(("compute", "memory", "expert_compute", "expert_memory", "attention", "prefill_attention",
                    "link", "interference", "wave"))  # fmt: skip
"""Of a data sheet's rate, or of a time: never above 1, however offsets add up."""

ELSEWHERE = "elsewhere_"
"""Before a quantity: errors on rows of an accelerator of which the fit had seen no row at all."""

WRITTEN_BY = "a file that `tokenmill calibrate --out` wrote"


@dataclass(frozen=True, slots=True)
class Profile:
    """``residuals``: quantity to sorted absolute relative errors of rows that the fit had not seen."""

    base: Mapping[str, float]
    offsets: Mapping[str, Mapping[str, float]]
    residuals: Mapping[str, tuple[float, ...]]
    rows: int = 0
    source: str = ""

    def values(self, names: tuple[str, ...]) -> dict[str, float]:
        total = dict(self.base)
        for name in names:
            for knob, offset in self.offsets.get(name, {}).items():
                total[knob] = total.get(knob, 0.0) + offset
        return {knob: value_of(knob, total[knob]) for knob in total}

    def efficiency(self, names: tuple[str, ...]) -> Efficiency:
        found = self.values(names)
        return Efficiency(**{name: found[name] for name in EFFICIENCIES if name in found})

    def protocol(self, names: tuple[str, ...]) -> Protocol:
        found = self.values(names)
        return Protocol(**{name: found[name] for name in PROTOCOL if name in found})

    def measured(self, engine: str, accelerator: str, kind: str) -> bool:
        """Whether the fit has seen this engine on this very type with models of ``kind``: dense or moe."""
        needed = (f"accelerator:{accelerator}|{kind}", group_of(engine, accelerator, kind))
        return all(name in self.offsets for name in needed)

    def errors_of(self, quantity: str, *, measured: bool) -> tuple[float, ...]:
        """Of rows that the fit had not seen; of what was not ``measured``, of accelerators left out of it."""
        return self.residuals.get(quantity if measured else ELSEWHERE + quantity, ())

    def error_at(self, quantity: str, share: float, *, measured: bool) -> float | None:
        """The relative error that ``share`` of those rows stayed within; None when there are none."""
        errors = self.errors_of(quantity, measured=measured)
        return within(errors, share) if errors else None


def value_of(knob: str, total: float) -> float:
    """A knob's value from its base and offsets."""
    return 1 / (1 + math.exp(-total)) if knob in SHARES else math.exp(total)


def total_of(knob: str, value: float) -> float:
    """The inverse of ``value_of``."""
    return math.log(value / (1 - value)) if knob in SHARES else math.log(value)


def within(errors: Sequence[float], share: float) -> float:
    """What ``share`` of sorted errors, at least one, stayed within."""
    return errors[min(len(errors) - 1, int(share * len(errors)))]


def names_of(engine: str, version: str, accelerator: str, precision: str, model: str) -> tuple[str, ...]:
    """The names whose offsets a configuration adds up, from general to special."""
    chip = accelerator.split("-")[0]
    kind = "moe" if catalogue().models[model].experts else "dense"
    return (
        f"kind:{kind}",
        f"engine:{engine}|{kind}",
        f"version:{engine}-{version}|{kind}",
        f"accelerator:{accelerator}|{kind}",
        f"precision:{chip}-{precision}|{kind}",
        f"model:{model}",
        group_of(engine, accelerator, kind),
    )


def group_of(engine: str, accelerator: str, kind: str) -> str:
    return f"group:{engine}|{accelerator.split('-')[0]}|{kind}"


def to_json(profile: Profile) -> str:
    """The text of a profile's file: one line for each name, so that two fits can be compared."""
    head = {"source": profile.source, "rows": profile.rows}
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    for key in ("base", "offsets", "residuals"):
        table = getattr(profile, key)
        inner = [f"  {json.dumps(name)}: {json.dumps(table[name], sort_keys=True)}" for name in sorted(table)]
        lines.append(f"{json.dumps(key)}: {{\n" + ",\n".join(inner) + "\n}")
    return "{" + ",\n".join(lines) + "}\n"


def from_json(text: str, name: str) -> Profile:
    """Raises ``DataError`` when ``text`` of the file ``name`` is no profile."""
    try:
        plain = json.loads(text)
        residuals = {key: tuple(float(v) for v in values) for key, values in plain["residuals"].items()}
        base = {key: float(value) for key, value in plain["base"].items()}
        missing = sorted({*EFFICIENCIES, *PROTOCOL} - set(base))
        offsets = {key: {k: float(v) for k, v in row.items()} for key, row in plain["offsets"].items()}
        made = Profile(base, offsets, residuals, int(plain["rows"]), str(plain["source"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{name} is no fitted profile: {error!r}", expected=WRITTEN_BY) from None
    finite = all(math.isfinite(v) for row in (base, *offsets.values()) for v in row.values())
    if missing or not finite:
        what = f"lacks {', '.join(missing)}" if missing else "has a value that is not finite"
        raise DataError(f"{name} {what}", expected=WRITTEN_BY)
    return made


def read_profile(path: Path | None) -> Profile:
    """The one that ``tokenmill calibrate`` wrote into a file, the shipped one for None."""
    if path is None:
        return profile()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", expected=WRITTEN_BY) from None
    return from_json(text, str(path))


@cache
def profile() -> Profile:
    """The profile that is shipped."""
    return from_json(
        files("tokenmill.twin").joinpath("profile.json").read_text(encoding="utf-8"), "profile.json"
    )
