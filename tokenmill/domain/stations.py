"""What may be written under a station in a line: one typed, documented dataclass per kind.

``spec`` validates factory files with these, ``line`` reads its parameters through them and the reference page
is made from them. It does not open files or look whether a path exists.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin, get_type_hints

from tokenmill.domain.errors import DataError, Problem


def _param(
    default: Any = dataclasses.MISSING,
    *,
    doc: str,
    least: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """One parameter: its default (none means that it must be written), what it does and its bounds."""
    metadata = {"doc": doc, "least": least, "most": most, "choices": choices}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class IntakeParams:
    """Reads one data file into normalised rows. Templates use the file's columns: ``"{subject}: {text}"``."""

    path: str = _param(doc="Data file, relative to the factory file; .gz is read as it is.")
    format: str = _param("auto", doc="File format; auto goes by the name.", choices=("auto", "jsonl", "csv"))
    prompt: str = _param("", doc="Template of the user's text, for rows of plain columns.")
    completion: str = _param("", doc="Template of the wanted answer, for rows of plain columns.")
    system: str = _param("", doc="System text of every row which brings none.")
    encoding: str = _param("utf-8", doc="Text encoding of the file.", choices=("utf-8", "latin-1", "cp1252"))
    delimiter: str = _param(",", doc="Column separator of a CSV file, one character.")
    max_rows: int = _param(1_000_000, doc="Refuse files with more rows.", least=1, most=100_000_000)
    max_bytes: int = _param(1 << 30, doc="Refuse files with more bytes (unpacked).", least=1, most=1 << 40)
    max_row_bytes: int = _param(1 << 20, doc="Quarantine longer rows.", least=16, most=1 << 28)
    max_broken_fraction: float = _param(
        0.05, doc="Fail when a larger part of the rows is broken.", least=0.0, most=1.0
    )


@dataclass(frozen=True, slots=True)
class SplitParams:
    """Parts of the groups that go to each split. They sum to 1."""

    train: float = _param(0.8, doc="Part for training.", least=0.0, most=1.0)
    validation: float = _param(0.05, doc="Part for watching the loss while training.", least=0.0, most=1.0)
    test: float = _param(0.15, doc="Part held out for the gate.", least=0.0, most=1.0)


@dataclass(frozen=True, slots=True)
class CurateParams:
    """Drops what would spoil training or the judgement, says why for each row, and splits without leaks."""

    answer: str = _param(
        "text",
        doc="What a completion must be: any text, a JSON object or a label.",
        choices=("text", "json", "label"),
    )
    fields: tuple[str, ...] = _param((), doc="Keys that a JSON completion must have, all and no other.")
    labels: tuple[str, ...] = _param((), doc="Labels that are allowed; empty allows any.")
    min_prompt_characters: int = _param(1, doc="Drop shorter prompts.", least=0)
    max_prompt_characters: int = _param(32_768, doc="Drop longer prompts.", least=1)
    max_completion_characters: int = _param(32_768, doc="Drop longer completions.", least=1)
    max_tokens: int = _param(1024, doc="Drop rows estimated at more tokens, prompt and completion.", least=8)
    near_duplicates: str = _param(
        "drop", doc="What to do with near duplicates.", choices=("drop", "group", "keep")
    )
    near_duplicate_similarity: float = _param(
        0.85,
        doc="Jaccard similarity of word shingles from which two prompts are near duplicates.",
        least=0.5,
        most=1.0,
    )
    conflicts: str = _param(
        "drop", doc="What to do with equal prompts whose completions differ.", choices=("drop", "keep")
    )
    group_by: str = _param("", doc="Column whose equal values stay in one split; empty groups by prompt.")
    split_by: str = _param("", doc="Column that names each row's split (train, validation, test).")
    split: SplitParams = _param(SplitParams(), doc="Parts for each split where no column names it.")
    test_path: str = _param(
        "", doc="Held-out file, read as intake reads its own; train rows equal to it are dropped."
    )
    redact_pii: bool = _param(
        False, doc="Replace e-mail addresses, telephone and card numbers by placeholders."
    )
    max_rows: int = _param(
        0, doc="Keep at most this many training rows, chosen by seed; 0 keeps all.", least=0
    )
    seed: int = _param(0, doc="Seed of the split and of the choice of rows.", least=0)


@dataclass(frozen=True, slots=True)
class TuneParams:
    """Trains a LoRA adapter on the line's base model."""

    method: str = _param("lora", doc="How to tune.", choices=("lora",))
    rank: int = _param(16, doc="Rank of the adapter.", least=1, most=512)
    alpha: int = _param(
        32, doc="Scale of the adapter; its output is multiplied by alpha / rank.", least=1, most=1024
    )
    epochs: float = _param(1.0, doc="Passes over the training rows.", least=0.001, most=1000)
    max_seconds: int = _param(0, doc="Stop training after this many seconds; 0 is no limit.", least=0)
    batch: int = _param(16, doc="Rows per optimiser step.", least=1, most=4096)
    lr: float = _param(5e-4, doc="Peak learning rate.", least=1e-8, most=1.0)
    max_tokens: int = _param(256, doc="Leave out and count rows with more tokens.", least=8, most=1_048_576)
    checkpoint_seconds: int = _param(20, doc="Time between checkpoints.", least=1, most=86_400)
    threads: int = _param(0, doc="CPU threads; 0 uses what the job may use.", least=0, most=1024)
    seed: int = _param(0, doc="Seed of initial adapter weights and of the row order.", least=0)


@dataclass(frozen=True, slots=True)
class EvaluateParams:
    """Asks base, champion and candidate the same held-out questions through the serving engine."""

    metric: str = _param(
        "exact_match",
        doc="How an answer is judged.",
        choices=("exact_match", "json_fields", "classification"),
    )
    max_items: int = _param(200, doc="Held-out rows that are asked, chosen by seed.", least=1, most=1_000_000)
    max_tokens: int = _param(64, doc="Longest answer, in tokens.", least=1, most=32_768)
    slots: int = _param(8, doc="Requests decoded together.", least=1, most=256)
    threads: int = _param(0, doc="CPU threads; 0 uses what the job may use.", least=0, most=1024)
    seed: int = _param(0, doc="Seed of the choice of rows and of the bootstrap.", least=0)


@dataclass(frozen=True, slots=True)
class GateParams:
    """Decides whether the candidate may be released. Control reads these; no job runs."""

    against: str = _param("both", doc="Whom the candidate must beat.", choices=("base", "champion", "both"))
    min_items: int = _param(50, doc="Fewer judged items than this is a no.", least=1)
    alpha: float = _param(0.05, doc="Significance level of the paired test.", least=0.0001, most=0.5)
    min_difference_milli: int = _param(
        0,
        doc="Thousandths of accuracy by which the candidate must at least be better.",
        least=-1000,
        most=1000,
    )


@dataclass(frozen=True, slots=True)
class PackParams:
    """Puts the release together: manifest, bill of materials, provenance, model card, evidence."""

    title: str = _param("", doc="Title of the model card; empty uses the line's name.")
    license: str = _param("", doc="SPDX licence expression of the adapter; empty states none.")
    notes: str = _param("", doc="Text for the model card: intended use and limits.")


StationParams = IntakeParams | CurateParams | TuneParams | EvaluateParams | GateParams | PackParams

STATION_KINDS: dict[str, type] = {
    "intake": IntakeParams,
    "curate": CurateParams,
    "tune": TuneParams,
    "evaluate": EvaluateParams,
    "gate": GateParams,
    "pack": PackParams,
}


def station_problems(kind: str, params: Mapping[str, Any]) -> tuple[Problem, ...]:
    """Everything that is wrong with ``params`` of a station of ``kind``, in written order."""
    params_type = STATION_KINDS.get(kind)
    if params_type is None:
        return (
            Problem(f"no station kind {kind!r}", field="kind", expected=f"one of {', '.join(STATION_KINDS)}"),
        )
    return tuple(_problems(params_type, params, ""))


def station_params(kind: str, params: Mapping[str, Any]) -> StationParams:
    """Read ``params`` as those of a station of ``kind``. Raises ``DataError`` naming the first bad field."""
    problems = station_problems(kind, params)
    if problems:
        first = problems[0]
        named = f"{kind}.{first.field}: " if first.field else f"{kind}: "
        raise DataError(f"{named}{first.message}", expected=first.expected, fix=first.fix, where=first.where)
    built: StationParams = _build(STATION_KINDS[kind], params)
    return built


def _problems(params_type: type, params: Mapping[str, Any], prefix: str) -> list[Problem]:
    hints = get_type_hints(params_type)
    fields = {f.name: f for f in dataclasses.fields(params_type)}
    found: list[Problem] = []
    for name, value in params.items():
        spec = fields.get(name)
        if spec is None:
            found.append(
                Problem("unknown parameter", field=f"{prefix}{name}", expected=f"one of {', '.join(fields)}")
            )
        elif dataclasses.is_dataclass(hints[name]):
            if isinstance(value, Mapping):
                found += _problems(hints[name], value, f"{prefix}{name}.")
            else:
                found.append(Problem("is not a mapping", field=f"{prefix}{name}", expected="named values"))
        else:
            found += _value_problems(hints[name], spec, value, f"{prefix}{name}")
    for name, spec in fields.items():
        if spec.default is dataclasses.MISSING and name not in params:
            found.append(Problem("is missing", field=f"{prefix}{name}", expected=spec.metadata["doc"]))
    return found or _whole_problems(params_type, params, prefix)


def _value_problems(hint: Any, spec: dataclasses.Field[Any], value: Any, where: str) -> list[Problem]:
    expected = _expected(hint, spec)
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        if not isinstance(value, list | tuple) or not all(isinstance(v, item) for v in value):
            return [Problem(f"{value!r} does not fit", field=where, expected=expected)]
        return []
    accepted: tuple[type, ...] = (int, float) if hint is float else (hint,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        return [Problem(f"{value!r} does not fit", field=where, expected=expected)]
    if isinstance(value, int | float) and not isinstance(value, bool):
        least, most = spec.metadata["least"], spec.metadata["most"]
        low = least is not None and value < least
        if low or (most is not None and value > most) or not math.isfinite(value):
            return [Problem(f"{value!r} is out of range", field=where, expected=expected)]
    choices = spec.metadata["choices"]
    if choices and value not in choices:
        return [Problem(f"{value!r} is not a choice", field=where, expected=expected)]
    return []


def _expected(hint: Any, spec: dataclasses.Field[Any]) -> str:
    if spec.metadata["choices"]:
        return "one of " + ", ".join(spec.metadata["choices"])
    if get_origin(hint) is tuple:
        return "a list of texts"
    name = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}[hint]
    least, most = spec.metadata["least"], spec.metadata["most"]
    bounds = [f"at least {least:g}"] if least is not None else []
    bounds += [f"at most {most:g}"] if most is not None else []
    return " ".join([name, *bounds[:1], *(["and"] if len(bounds) == 2 else []), *bounds[1:]])


def _whole_problems(params_type: type, params: Mapping[str, Any], prefix: str) -> list[Problem]:
    """What is wrong with values that are each right alone."""
    if params_type is IntakeParams:
        if bool(params.get("prompt")) != bool(params.get("completion")):
            missing = "completion" if params.get("prompt") else "prompt"
            return [Problem("is missing", field=prefix + missing, expected="both templates, or neither")]
        if len(params.get("delimiter", ",")) != 1:
            return [Problem("is not one character", field=f"{prefix}delimiter", expected="one character")]
    if params_type is SplitParams:
        whole = _build(SplitParams, params)
        total = whole.train + whole.validation + whole.test
        if abs(total - 1) > 1e-6:
            return [
                Problem(
                    f"the parts sum to {total:g}", field=prefix.rstrip("."), expected="parts that sum to 1"
                )
            ]
    return []


def _build(params_type: type, params: Mapping[str, Any]) -> Any:
    hints = get_type_hints(params_type)
    values: dict[str, Any] = {}
    for name, value in params.items():
        if dataclasses.is_dataclass(hints[name]) and isinstance(value, Mapping):
            values[name] = _build(hints[name], value)
        elif get_origin(hints[name]) is tuple:
            values[name] = tuple(value)
        elif hints[name] is float:
            values[name] = float(value)
        else:
            values[name] = value
    return params_type(**values)
