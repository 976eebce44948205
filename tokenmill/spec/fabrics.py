"""Checks of the fabrics that sites state: each name once, and switches that the catalogue knows."""

from __future__ import annotations

from collections.abc import Sequence

from tokenmill.domain.catalogue import Catalogue
from tokenmill.domain.units import did_you_mean
from tokenmill.spec import documents as docs
from tokenmill.spec.source import Found
from tokenmill.spec.validate import Entry


def check_fabrics(entries: Sequence[Entry], types: Catalogue) -> list[Found]:
    """Everything wrong with fabrics beyond their single fields."""
    switches = sorted(types.switches)
    found: list[Found] = []
    seen: dict[str, str] = {}
    for entry in entries:
        for number, fabric in enumerate(
            entry.model.fabrics if isinstance(entry.model, docs.SiteDocument) else []
        ):
            if fabric.name in seen:
                message = f"the fabric {fabric.name!r} is already in site {seen[fabric.name]}"
                found.append(entry.found(("fabrics", number, "name"), message, "each name once"))
            seen.setdefault(fabric.name, entry.name)
            if fabric.switch is not None and fabric.switch not in switches:
                message = f"the catalogue has no switch {fabric.switch!r}"
                fix = did_you_mean(fabric.switch, switches)
                path = ("fabrics", number, "switch")
                found.append(entry.found(path, message, f"one of {', '.join(switches)}", fix))
    return found
