"""What applying a factory file would change: additions, changes and removals by noun, fenced by a version.

A plan is data. It is checked again when it is applied: ``SpecApplied`` carries its ``base_version``. It
forecasts nothing; the twin does that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from tokenmill.control.state import State
from tokenmill.domain.calendar import format_moment
from tokenmill.domain.catalogue import OwnTypes
from tokenmill.domain.codec import digest_of
from tokenmill.domain.factory import Factory, Line, ModelQuota, Price
from tokenmill.domain.units import format_duration, format_money, format_power, format_size

NOUNS: tuple[tuple[str, str], ...] = (
    ("site", "sites"),
    ("node", "nodes"),
    ("fabric", "fabrics"),
    ("tenant", "tenants"),
    ("price", "prices"),
    ("quota", "quotas"),
    ("model", "models"),
    ("deployment", "deployments"),
    ("line", "lines"),
    ("job", "jobs"),
    ("peer", "peers"),
)
TYPES = tuple(field.name for field in fields(OwnTypes) if field.name != "sources")
"""Of the catalogue's own types, after the nouns."""

WHAT_FOLLOWS = {
    ("deployment", "model"): "traffic goes to the other model when its replicas are ready",
    ("deployment", "line"): "traffic goes to the other line's newest release when its replicas are ready",
    ("deployment", "engine"): "replicas are replaced",
    ("deployment", "context_tokens"): "replicas are replaced",
    ("deployment", "slots"): "replicas are replaced",
    ("deployment", "resources"): "replicas are replaced",
    ("deployment", "engine_args"): "replicas are replaced",
    ("deployment", "url"): "replicas are replaced",
    ("model", "source"): "the weights are imported again",
    ("model", "digest"): "the weights are checked against it",
}

PARTS_MOST = 12
"""More fields of one noun that change are counted, not listed."""

UNITS: Mapping[str, Callable[[int], str]] = {
    "_us": format_duration,
    "_bytes": format_size,
    "_mw": format_power,
    "_w": lambda watts: format_power(watts * 1000),
    "_micros": lambda micros: format_money(micros, "USD"),  # of the catalogue, whose prices are in USD
}


@dataclass(frozen=True, slots=True)
class Change:
    """One noun that is added, changed or removed. ``detail`` says which fields, from what to what."""

    kind: str  # add, change or remove
    what: str
    name: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """``base_version`` is the version it was made for; ``digest`` that of the factory it leads to."""

    base_version: int
    changes: tuple[Change, ...]
    digest: str


def diff(state: State, factory: Factory) -> Plan:
    """What ``factory`` changes about what is applied now, in the order of ``NOUNS``, names sorted."""
    changes: list[Change] = []
    if state.version and state.factory.name != factory.name:
        changes.append(
            Change("change", "factory", factory.name, f"name: {state.factory.name} -> {factory.name}")
        )
    tables = [(what, getattr(state.factory, field), getattr(factory, field)) for what, field in NOUNS]
    tables += [
        ("catalogue", getattr(state.factory.types, field), getattr(factory.types, field)) for field in TYPES
    ]
    for what, before, after in tables:
        old, new = _by_name(before), _by_name(after)
        for name in sorted({*old, *new}):
            if name not in old:
                changes.append(Change("add", what, name, _summary(what, new[name])))
            elif name not in new:
                changes.append(Change("remove", what, name, _ended(state, old[name], None) or _removal(what)))
            elif old[name] != new[name]:
                ended = _ended(state, old[name], new[name])
                detail = _detail(what, old[name], new[name])
                changes.append(Change("change", what, name, f"{detail}; {ended}" if ended else detail))
    return Plan(state.version, tuple(changes), digest_of(factory))


def _ended(state: State, old: Any, new: Any) -> str:
    """What a change of a line does to its runs that are under way."""
    if not isinstance(old, Line) or (isinstance(new, Line) and old.work == new.work):
        return ""
    runs = sorted(run.id for run in state.runs.values() if run.line == old.name and not run.status.ended)
    return f"{', '.join(runs)} under way end{'s' * (len(runs) == 1)}" if runs else ""


def _by_name(records: tuple[Any, ...]) -> Mapping[str, Any]:
    return {_name(r): r for r in records}


def _name(record: Any) -> str:
    """What a noun is told from its like by."""
    if isinstance(record, Price):
        return f"{record.model} from {format_moment(record.from_us)}" if record.from_us else record.model
    if isinstance(record, ModelQuota):
        return "/".join(part for part in (record.tenant, record.project, record.model) if part)
    return str(getattr(record, "id", None) or record.name)


def _summary(what: str, record: Any) -> str:
    if isinstance(record, Price):
        return ", ".join(f"{name} {amount}" for name, amount in _amounts(record).items())
    if what == "deployment":
        served = f"model {record.model}" if record.model else f"line {record.line}"
        return f"{record.replicas} replica(s) of {served} on {record.engine}"
    if what == "catalogue":
        return str(record.source)
    if what == "model":
        return f"import from {record.source}"
    if what == "job":
        return f"starts once, {record.workers} worker(s)"
    return ""


def _amounts(price: Price) -> dict[str, str]:
    """What a price says, as it is written in the factory file; without what costs nothing."""
    amounts = {
        "input": price.input_micros_per_mtok,
        "cached": price.cached_micros_per_mtok,
        "output": price.output_micros_per_mtok,
        "reasoning": price.reasoning_micros_per_mtok,
        "accelerator_hour": price.accelerator_hour_micros,
        **{f"accelerator_hour of {kind}": micros for kind, micros in price.type_hour_micros},
        "kwh": price.kwh_micros,
    }
    return {name: format_money(micros, price.currency) for name, micros in amounts.items() if micros}


def _removal(what: str) -> str:
    return {
        "deployment": "its replicas drain and stop",
        "tenant": "its keys stop working",
    }.get(what, "")


def _detail(what: str, old: Any, new: Any) -> str:
    parts: list[str] = []
    follows: list[str] = []
    if isinstance(old, Price) and isinstance(new, Price):
        before, after = _amounts(old), _amounts(new)
        changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
        shown = ", ".join(f"{n}: {before.get(n, 'free')} -> {after.get(n, 'free')}" for n in changed)
        return f"{shown}; for requests admitted from now on"
    for field in fields(old):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before == after:
            continue
        parts += _differences(field.name, before, after)
        effect = WHAT_FOLLOWS.get((what, field.name))
        if effect and effect not in follows:
            follows.append(effect)
    if len(parts) > PARTS_MOST:
        parts = [*parts[: PARTS_MOST - 1], f"and {len(parts) - PARTS_MOST + 1} more"]
    return "; ".join([", ".join(parts), *follows])


def _differences(path: str, old: Any, new: Any) -> list[str]:
    """What differs below ``path``: records by field, lists of named ones by name, all else whole."""
    if old == new:
        return []
    found: list[str] = []
    if is_dataclass(old) and type(old) is type(new):
        for one in fields(old):
            found += _differences(f"{path}.{one.name}", getattr(old, one.name), getattr(new, one.name))
        return found
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted({*old, *new}):
            found += _differences(f"{path}.{name}", old.get(name), new.get(name))
        return found
    if _named(old) and _named(new):
        return _differences_by_name(path, _by_name(old), _by_name(new))
    return [_difference(path, old, new)]


def _differences_by_name(path: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    found = [f"{path}: - {name}" for name in old if name not in new]
    for name, record in new.items():
        if name in old:
            found += _differences(f"{path}.{name}", old[name], record)
        else:
            found.append(f"{path}: + {name}")
    return found or [f"{path}: in another order"]


def _difference(path: str, old: Any, new: Any) -> str:
    for ending, form in UNITS.items():
        if path.endswith(ending) and isinstance(old, int) and isinstance(new, int):
            return f"{path.removesuffix(ending)}: {form(old)} -> {form(new)}"
    if _is_short(old) and _is_short(new):
        return f"{path}: {_shown(old)} -> {_shown(new)}"
    return path


def _named(records: Any) -> bool:
    return isinstance(records, tuple) and all(is_dataclass(r) and hasattr(r, "name") for r in records)


def _is_short(found: Any) -> bool:
    if isinstance(found, tuple):
        return len(found) <= 4 and all(isinstance(part, str | int | float) for part in found)
    return found is None or isinstance(found, str | int | float)


def _shown(found: Any) -> str:
    if isinstance(found, tuple):
        return ", ".join(str(part) for part in found) or "none"
    return "not set" if found is None else repr(found)
