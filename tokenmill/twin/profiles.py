"""Fitted efficiencies: a base and named offsets, which a configuration adds up to its own.

A value is that of base + sum of offsets over the names that a configuration belongs to: its kind (dense or
mixture of experts), engine, that engine's version, architecture, accelerator, precision on this architecture,
model, and its group: this engine on this chip. The sum is a logarithm, or the logit of a ``SHARES``. Engine,
version, architecture and accelerator are twice there: what both kinds of model share, and what one kind
differs by. What no measured row had adds nothing; no offset is of one sweep.
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
from tokenmill.spec.catalogue import AcceleratorType, ModelType, catalogue
from tokenmill.spec.files import unreadable
from tokenmill.twin.iteration import Efficiency
from tokenmill.twin.steady import Protocol

EFFICIENCIES = tuple(one.name for one in fields(Efficiency))
PROTOCOL = tuple(one.name for one in fields(Protocol))
SHARES = frozenset(("compute", "memory", "expert_compute", "expert_memory", "attention", "prefill_attention",
                    "link", "interference", "wave"))  # fmt: skip
"""Of a data sheet's rate, or of a time: never above 1, however offsets add up."""

ALL = "all"
"""The name that every configuration belongs to."""

ELSEWHERE, OTHER_MODEL = "elsewhere_", "other_model_"
"""Before a quantity: errors on rows of an accelerator, or of a model, of which the fit had seen no row."""

ROWS_OF = {
    "": "that the fit had not seen",
    ELSEWHERE: "of accelerators left out of the fit",
    OTHER_MODEL: "of models left out of the fit",
}
"""Which measured rows stated errors are of, in words."""

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

    def beyond(self, engine: str, accelerator: str, model: ModelType) -> tuple[str, ...]:
        """In what a question goes beyond the fitted rows: ``ELSEWHERE`` where none is of this engine on this
        very type with models of that kind, ``OTHER_MODEL`` where none is of that model."""
        place = (f"accelerator:{accelerator}", _group(engine, accelerator))
        seen_here = all(of_kind(name, kind_of(model)) in self.offsets for name in place)
        seen_model = f"model:{model.id}" in self.offsets
        return (() if seen_here else (ELSEWHERE,)) + (() if seen_model else (OTHER_MODEL,))

    def stated(self, quantity: str, beyond: tuple[str, ...] = ()) -> Stated:
        """The errors of rows that lay as far beyond their fit; the wider ones where both are."""
        known = [
            Stated(self.residuals[of + quantity], of)
            for of in beyond or ("",)
            if of + quantity in self.residuals
        ]
        return max(known, key=lambda one: one.at(0.9) or 0.0, default=Stated((), (beyond or ("",))[0]))


@dataclass(frozen=True, slots=True)
class Stated:
    """Sorted absolute relative errors, and a key of ``ROWS_OF``: which measured rows they are of."""

    errors: tuple[float, ...]
    of: str

    def at(self, share: float) -> float | None:
        """The error that ``share`` of those rows stayed within; None when there are none."""
        return within(self.errors, share) if self.errors else None


def value_of(knob: str, total: float) -> float:
    """A knob's value from its base and offsets."""
    return 1 / (1 + math.exp(-total)) if knob in SHARES else math.exp(total)


def total_of(knob: str, value: float) -> float:
    """The inverse of ``value_of``."""
    return math.log(value / (1 - value)) if knob in SHARES else math.log(value)


def within(errors: Sequence[float], share: float) -> float:
    """What ``share`` of sorted errors, at least one, stayed within."""
    return errors[min(len(errors) - 1, int(share * len(errors)))]


def names_with(
    engine: str, version: str, chip: AcceleratorType, precision: str, model: ModelType
) -> tuple[str, ...]:
    """The names whose offsets a configuration adds up, from general to special."""
    kind, architecture, accelerator = kind_of(model), chip.architecture, chip.id
    shared = (
        f"engine:{engine}",
        f"version:{engine}-{version}",
        f"architecture:{architecture}",
        f"accelerator:{accelerator}",
    )
    own = (*shared, f"precision:{architecture}-{precision}", _group(engine, accelerator))
    return (ALL, *shared, f"kind:{kind}", *(of_kind(name, kind) for name in own), f"model:{model.id}")


def kind_of(model: ModelType) -> str:
    """``moe`` for a mixture of experts, else ``dense``."""
    return "moe" if model.experts else "dense"


def of_kind(name: str, kind: str) -> str:
    """The name of what one kind of model, dense or moe, differs by from what both share under ``name``."""
    return f"{name}|{kind}"


def _group(engine: str, accelerator: str) -> str:
    """A chip is called by the first word of its id; a type of another chip is a group of its own."""
    chip = accelerator.split("-")[0]
    shipped = {name.split("-")[0] for name in catalogue().accelerators}
    return f"group:{engine}|{chip if chip in shipped else accelerator}"


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
    if ALL not in offsets:
        raise DataError(f"{name} is of a form that this version does not read", expected=WRITTEN_BY,
                        fix="Run it again on the same rows.")  # fmt: skip
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
        raise DataError(f"{path} cannot be read: {unreadable(error)}", expected=WRITTEN_BY) from None
    return from_json(text, str(path))


@cache
def profile() -> Profile:
    """The profile that is shipped."""
    return from_json(
        files("tokenmill.twin").joinpath("profile.json").read_text(encoding="utf-8"), "profile.json"
    )
