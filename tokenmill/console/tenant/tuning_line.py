"""From the body of ``POST /v1/fine_tuning/jobs`` to a line and a model name of the tenant's own.

Reads and checks what the client asked for; what cannot be honoured is refused by name, never dropped. It
starts nothing.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenmill.console.tenant.answers import ApiRefusedError, bad, metadata_of
from tokenmill.control.releases import remote
from tokenmill.control.state import State
from tokenmill.domain.factory import Deployment, Line
from tokenmill.domain.stations import TuneParams, station_params
from tokenmill.domain.tenancy import Owner
from tokenmill.domain.work import Tuning
from tokenmill.spec import build
from tokenmill.spec.documents import DeploymentDocument, LineDocument

KNOWN = (
    *("model", "training_file", "validation_file", "hyperparameters", "method", "suffix", "seed"),
    *("integrations", "metadata"),
)
HYPERPARAMETERS = ("n_epochs", "batch_size", "learning_rate_multiplier")
SUFFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}[A-Za-z0-9]|[A-Za-z0-9]")
SEEDS = 2**31 - 1
CPU_SHARE = 4
"""A tenant's own model asks for a quarter of the cores that its base's deployment has: it is mostly idle."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A body that can be honoured. Hyperparameters that are not in ``chosen`` are ours to choose."""

    model: str
    training_file: str
    validation_file: str
    chosen: Mapping[str, float]
    suffix: str
    seed: int
    metadata: Mapping[str, str]


def read_asked(body: Mapping[str, Any]) -> Asked:
    """Raises ``ApiRefusedError`` that names the parameter."""
    unknown = sorted(set(body) - set(KNOWN))
    if unknown:
        raise bad(f"Unknown parameter: '{unknown[0]}'.", unknown[0], "unknown_parameter")
    if body.get("integrations"):
        raise bad(
            "'integrations' are not available: nothing is sent to services elsewhere. Read the job's events "
            "and metrics, or have the operator set TOKENMILL_OPENLINEAGE.",
            "integrations",
            "unsupported_parameter",
        )
    suffix = body.get("suffix") or ""
    if not isinstance(suffix, str) or (suffix and not SUFFIX.fullmatch(suffix)):
        raise bad("'suffix' must be 1 to 64 letters, digits and hyphens.", "suffix")
    seed = body.get("seed")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= SEEDS):
        raise bad(f"'seed' must be a whole number from 0 to {SEEDS}.", "seed")
    return Asked(
        _text(body, "model"),
        _text(body, "training_file"),
        _text(body, "validation_file") if body.get("validation_file") is not None else "",
        _chosen(body),
        suffix.lower(),
        secrets.randbelow(SEEDS) if seed is None else seed,
        metadata_of(body.get("metadata")),
    )


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not 1 <= len(value) <= 200:
        raise bad(
            f"'{name}' must be a text.",
            name,
            "missing_required_parameter" if value is None else "invalid_value",
        )
    return value


def _chosen(body: Mapping[str, Any]) -> dict[str, float]:
    """Hyperparameters from ``method``, or from the older field of that name."""
    given, where = body.get("hyperparameters"), "hyperparameters"
    method = body.get("method")
    if method is not None:
        kind = method.get("type") if isinstance(method, Mapping) else None
        if kind != "supervised":
            raise bad(
                f"'method.type' {kind!r} is not available by this API; supervised is. A line in the factory "
                "file may have other methods.",
                "method",
                "unsupported_parameter",
            )
        inner = method.get("supervised") or {}
        if isinstance(inner, Mapping) and inner.get("hyperparameters") is not None:
            given, where = inner["hyperparameters"], "method.supervised.hyperparameters"
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise bad(f"'{where}' must be an object.", where)
    chosen: dict[str, float] = {}
    for name, value in given.items():
        if name not in HYPERPARAMETERS:
            raise bad(f"Unknown parameter: '{where}.{name}'.", f"{where}.{name}", "unknown_parameter")
        if value == "auto":
            continue
        whole = name != "learning_rate_multiplier"
        most = {"n_epochs": 50, "batch_size": 256, "learning_rate_multiplier": 100}[name]
        fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not fits or not 0 < value <= most:
            kind = "a whole number from 1" if whole else "a number above 0,"
            raise bad(f"'{where}.{name}' must be {kind} up to {most}, or 'auto'.", f"{where}.{name}")
        chosen[name] = value
    return chosen


def base_of(state: State, name: str, owner: Owner) -> tuple[str, Deployment | None]:
    """The model of the factory that ``name`` means to this tenant, and a deployment that serves it here."""
    known = {model.name: model for model in state.factory.models}
    visible = [d for d in state.factory.deployments if not d.tenants or owner.tenant in d.tenants]
    named = next((d for d in visible if d.name == name), None)
    if named is not None:
        line = state.index.lines.get(named.line)
        base = named.model or (line.base if line else "")
    else:
        base = name if any(d.model == name for d in visible) else ""
    own = [t for t in state.tunings.values() if t.deployment.name == name and t.line.tenant == owner.tenant]
    if own:
        raise bad("A fine-tuned model cannot be tuned further here: begin at its base.", "model")
    if base not in known:
        raise ApiRefusedError(404, "model_not_found", f"The model '{name}' does not exist.", "model")
    here = next((d for d in visible if d.model == base and not remote(d)), None)
    if known[base].kind != "chat" or (here is None and any(d.model == base for d in visible)):
        raise bad(
            f"The model '{name}' cannot be fine-tuned: its weights are not here, or it is no chat model.",
            "model",
        )
    return base, here


def tuning_of(
    state: State, asked: Asked, owner: Owner, train: Path, validation: Path | None, now_us: int
) -> Tuning:
    """The tuning that ``asked`` describes. Raises ``ApiRefusedError`` for a model that cannot be tuned."""
    base, serving = base_of(state, asked.model, owner)
    name = f"ftjob-{secrets.token_hex(12)}"
    model = f"ft:{base}:{owner.project}:{asked.suffix}:{name[-8:]}"
    line = build.line(
        LineDocument(
            kind="line",
            name=name,
            tenant=owner.tenant,
            project=owner.project,
            base=base,
            data={"path": str(train), "format": "jsonl"},
            curate=_curate(asked, validation),
            tune=tune_params(asked),
            evaluate={"max_items": 32, "max_tokens": 64, "seed": asked.seed % 1000},
            gate={"against": "base", "min_items": 1, "rule": "not_clearly_worse"},
            pack={"title": model},
        )
    )
    return Tuning(name, line, _deployment(model, line, serving, owner), now_us, asked=_plain(asked))


def tune_params(asked: Asked) -> dict[str, Any]:
    """The parameters of the tune station; what was not chosen is the station's own default."""
    usual = station_params("tune", {})
    assert isinstance(usual, TuneParams)
    params: dict[str, Any] = {"seed": asked.seed, "epochs": float(asked.chosen.get("n_epochs", 3))}
    if "batch_size" in asked.chosen:
        params["batch"] = int(asked.chosen["batch_size"])
    if "learning_rate_multiplier" in asked.chosen:
        params["lr"] = min(1.0, usual.lr * asked.chosen["learning_rate_multiplier"])
    return params


def _curate(asked: Asked, validation: Path | None) -> dict[str, Any]:
    params: dict[str, Any] = {"near_duplicates": "keep", "conflicts": "keep", "seed": asked.seed % 1000}
    if validation is not None:
        return params | {
            "test_path": str(validation),
            "split": {"train": 1.0, "validation": 0.0, "test": 0.0},
        }
    return params | {"split": {"train": 0.8, "validation": 0.0, "test": 0.2}}


def _deployment(model: str, line: Line, serving: Deployment | None, owner: Owner) -> Deployment:
    usual = serving or build.deployment(DeploymentDocument(kind="deployment", name="usual", line=line.name))
    resources = replace(usual.resources, cpu_millis=usual.resources.cpu_millis // CPU_SHARE)
    return replace(
        usual,
        name=model,
        model="",
        line=line.name,
        replicas=1,
        max_replicas=1,
        resources=resources,
        tenants=(owner.tenant,),
        canary=None,
    )


def _plain(asked: Asked) -> dict[str, Any]:
    return {
        "model": asked.model,
        "training_file": asked.training_file,
        "validation_file": asked.validation_file,
        "chosen": dict(asked.chosen),
        "suffix": asked.suffix,
        "seed": asked.seed,
        "metadata": dict(asked.metadata),
    }
