"""Types that a factory file adds to the catalogue: rows as the shipped ones, each problem at its place.

A row with the name of a shipped type is laid on it, and may change prices, powers and sizes of servers; what
a chip or a model is stays as published, so that fitted errors mean what they say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenmill.domain.catalogue import Catalogue, ModelType, OwnTypes
from tokenmill.domain.codec import parse_json
from tokenmill.domain.errors import DataError
from tokenmill.domain.units import did_you_mean
from tokenmill.spec.catalogue import catalogue
from tokenmill.spec.catalogue.architecture import architecture_of
from tokenmill.spec.catalogue.load import NOUNS
from tokenmill.spec.catalogue.rows import FIELDS, RowProblem, fields_of, read_row
from tokenmill.spec.documents import CatalogueDocument
from tokenmill.spec.files import unreadable
from tokenmill.spec.source import FieldPath, Found
from tokenmill.spec.validate import Entry

MOST_TYPES = 1000
CHANGED = {
    "accelerators": ("source", "hour_price", "idle_power", "max_power"),
    "nodes": ("source", "cpu", "memory", "nics", "dpus", "overhead_power"),
    "racks": ("source", "max_power"),
}
"""What a row may change of a shipped type, by noun."""

Read = Callable[[Path], str]


def own_types(entries: Sequence[Entry], read: Read) -> tuple[OwnTypes, list[Found]]:
    """The types of all documents of kind ``catalogue``, and everything that is wrong with them.

    ``read`` gives the text of a ``config.json`` that a model's row names.
    """
    made: dict[str, dict[str, Any]] = {noun: {} for noun in NOUNS}
    at: dict[tuple[str, str], tuple[Entry, FieldPath]] = {}
    sources: dict[tuple[str, str], str] = {}
    found: list[Found] = []
    for entry in entries:
        if not isinstance(entry.model, CatalogueDocument):
            continue
        for noun in NOUNS:
            for name, row in getattr(entry.model, noun).items():
                path: FieldPath = (noun, name)
                if (noun, name) in at:
                    other = at[noun, name][0].name
                    message = f"{name} is already in the catalogue {other}"
                    found.append(entry.found(path, message, "each type once", key=True))
                    continue
                at[noun, name] = (entry, path)
                one, problems = _row(noun, name, row, sources, entry, read)
                found += [_placed(entry, path, problem) for problem in problems]
                if one is not None:
                    made[noun][name] = one
    if len(at) > MOST_TYPES:
        entry, path = list(at.values())[MOST_TYPES]
        found.append(entry.found(path, f"there are {len(at)} types", f"at most {MOST_TYPES}", key=True))
    own = OwnTypes(
        **{noun: tuple(rows.values()) for noun, rows in made.items()},
        sources=tuple((kind, field, text) for (kind, field), text in sources.items()),
    )
    if found:  # what a bad row would have been is not looked for in others
        return own, found
    known = catalogue(own)
    for (noun, name), (entry, path) in at.items():
        problems = list(_between(noun, getattr(known, noun)[name], known))
        found += [_placed(entry, path, problem) for problem in problems]
    return own, found


def _placed(entry: Entry, path: FieldPath, problem: RowProblem) -> Found:
    whole: FieldPath = (*path, problem.field) if problem.field else path
    unknown = problem.message == "there is no such field"
    return entry.found(
        whole, problem.message, "" if unknown else problem.expected, problem.fix, key=not problem.field
    )


def _row(
    noun: str, name: str, row: dict[str, Any], sources: dict[tuple[str, str], str], entry: Entry, read: Read
) -> tuple[Any, list[RowProblem]]:
    kind = NOUNS[noun][0]
    base = getattr(catalogue(), noun).get(name)
    if base is not None:
        kept = [field for field in row if field in fields_of(kind) and field not in CHANGED.get(noun, ())]
        if kept:
            fix = "Give the type a name of its own."
            return None, [RowProblem(f, f"{name} is a shipped type, whose {f} stays", "", fix) for f in kept]
        for attribute in type(base).__dataclass_fields__:
            sources[name, attribute] = catalogue().source(name, attribute)
        for field in row:
            sources[name, FIELDS.get(field, (field,))[0]] = str(row.get("source"))
    if kind is ModelType and "config" in row:
        row, problems = _configured(row, entry, (noun, name, "config"), read)
        if problems:
            return None, problems
    return read_row(kind, name, row, sources, base)


def _configured(
    row: dict[str, Any], entry: Entry, path: FieldPath, read: Read
) -> tuple[dict[str, Any], list[RowProblem]]:
    """The row with what the ``config.json`` says that it names, from where the row was written."""
    written = row["config"]
    expected = "the path of a model's config.json, from this file"
    if not isinstance(written, str):
        return row, [RowProblem("config", f"is {written!r}", expected)]
    file = Path(entry.document.place(path).file).parent / written
    try:
        plain = parse_json(read(file).encode())
    except (OSError, UnicodeDecodeError) as error:
        return row, [RowProblem("config", f"{file} cannot be read: {unreadable(error)}", expected)]
    except DataError as error:
        return row, [RowProblem("config", f"{file}: {error.problem.message}", expected)]
    if not isinstance(plain, dict):
        return row, [RowProblem("config", f"{file} is no mapping", expected)]
    stated = {name: value for name, value in row.items() if name != "config"}
    found, problems = architecture_of(plain, stated)
    found.setdefault("source", f"config.json: {written}")
    return found, [RowProblem("config", f"{file} {problem}", "") for problem in problems]


def _between(noun: str, one: Any, known: Catalogue) -> Iterable[RowProblem]:
    """What a row says of others, or with one field of another."""
    checks: dict[str, Callable[[Any, Catalogue], Iterable[RowProblem]]] = {
        "accelerators": _accelerator, "nodes": _node, "racks": _rack, "nics": _adapter, "dpus": _adapter,
        "switches": _adapter, "models": _model,
    }  # fmt: skip
    return checks[noun](one, known)


def _accelerator(one: Any, known: Catalogue) -> Iterable[RowProblem]:
    if one.idle_w >= one.max_w:
        yield RowProblem("idle_power", f"{one.idle_w} W is not less than max_power", f"below {one.max_w} W")


def _node(one: Any, known: Catalogue) -> Iterable[RowProblem]:
    if one.accelerators and one.accelerator not in known.accelerators:
        yield _unknown("accelerator", one.accelerator, known.accelerators)
    if one.accelerator and not one.accelerators:
        yield RowProblem("accelerators", "is 0 beside an accelerator", "how many it holds")
    if one.nvlink not in ("", "node", "rack"):
        yield RowProblem("nvlink", f"is {one.nvlink!r}", "node or rack: how far an NVLink domain reaches")
    for field, table in (("nics", known.nics), ("dpus", known.dpus)):
        text = getattr(one, field)
        match = re.fullmatch(r"([1-9]\d{0,2}) x (\S+)", text)
        if text and match is None:
            yield RowProblem(field, f"is {text!r}", f"such as 4 x {next(iter(table))}")
        elif match and match[2] not in table:
            yield _unknown(field, match[2], table)


def _rack(one: Any, known: Catalogue) -> Iterable[RowProblem]:
    if one.node not in known.nodes:
        yield _unknown("node", one.node, known.nodes)
        return
    if not 1 <= one.nodes <= 1000:
        yield RowProblem("nodes", f"is {one.nodes}", "how many nodes it holds, 1 to 1000")
    node = known.nodes[one.node]
    chip = known.accelerators.get(node.accelerator)
    least = one.nodes * node.accelerators * chip.max_w if chip else 0
    if one.max_w < least:
        message = f"{one.max_w / 1000:g} kW is less than what its accelerators alone may draw"
        yield RowProblem("max_power", message, f"at least {least / 1000:g} kW")


def _adapter(one: Any, known: Catalogue) -> Iterable[RowProblem]:
    if one.fabric not in ("infiniband", "ethernet"):
        yield RowProblem("fabric", f"is {one.fabric!r}", "infiniband or ethernet")
    if not 2 <= getattr(one, "ports", 2) <= 4096:
        yield RowProblem("ports", f"is {one.ports}", "2 to 4096")


def _model(one: Any, known: Catalogue) -> Iterable[RowProblem]:
    for field in ("layers", "hidden", "heads", "kv_heads", "head_dim", "vocabulary"):
        if getattr(one, field) < 1:
            yield RowProblem(field, "is 0", "at least 1")
    if one.kv_heads and one.heads % one.kv_heads:
        yield RowProblem("kv_heads", f"{one.kv_heads} do not divide {one.heads} heads", "a divisor of heads")
    for field in ("dense_layers", "full_attention_layers"):
        if getattr(one, field) > one.layers:
            yield RowProblem(field, f"is more than the {one.layers} layers", f"at most {one.layers}")
    if one.experts and not 1 <= one.experts_per_token <= one.experts:
        yield RowProblem("experts_per_token", f"is {one.experts_per_token}", f"1 to {one.experts}")
    if one.experts and not one.expert_intermediate:
        yield RowProblem("expert_intermediate", "is 0", "the width of one expert")
    if not one.intermediate and (not one.experts or one.dense_layers):
        yield RowProblem("intermediate", "is 0", "the width of a layer without experts")


def _unknown(field: str, name: str, known: dict[str, Any]) -> RowProblem:
    message = f"the catalogue has no {name!r}"
    return RowProblem(field, message, f"one of {', '.join(known)}", did_you_mean(name, known))
