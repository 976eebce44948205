"""The parameters of each kind of station: one typed, documented dataclass per kind, with bounds.

``domain.stations`` checks and builds them; the reference page is made from them. Nothing is looked up here.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any


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
    """Reads data files into normalised rows. Templates use the file's columns: ``"{subject}: {text}"``."""

    path: str = _param(
        doc="Data file, folder or glob beside the factory file; `s3://`, `hf://`, `artifact:DIGEST`; or "
        "`capture:ALIAS`, the project's own captured traffic."
    )
    opinion: str = _param(
        "not_bad",
        doc="Which captured answers are read, by what clients said of them: with a good opinion only, all "
        "without a bad one, or any.",
        choices=("good", "not_bad", "any"),
    )
    format: str = _param(
        "auto", doc="File format; auto goes by the name.", choices=("auto", "jsonl", "csv", "parquet")
    )
    id: str = _param("", doc="Column that names a row; a second row of the same name is quarantined.")
    prompt: str = _param("", doc="Template of the user's text, for rows of plain columns.")
    completion: str = _param("", doc="Template of the wanted answer, for rows of plain columns.")
    system: str = _param("", doc="System text of every row which brings none.")
    encoding: str = _param("utf-8", doc="Text encoding of the file.", choices=("utf-8", "latin-1", "cp1252"))
    delimiter: str = _param(",", doc="Column separator of a CSV file, one character.")
    max_rows: int = _param(10_000_000, doc="Refuse files with more rows.", least=1, most=100_000_000)
    max_bytes: int = _param(8 << 30, doc="Refuse files with more bytes (unpacked).", least=1, most=1 << 40)
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
    languages: tuple[str, ...] = _param(
        (), doc="ISO 639-1 codes; rows in other languages are dropped. Empty takes all."
    )
    redact_pii: bool = _param(
        False, doc="Replace e-mail and IP addresses, telephone, card, IBAN and US social security numbers."
    )
    max_rows: int = _param(
        0, doc="Keep at most this many training rows, chosen by seed; 0 keeps all.", least=0
    )
    seed: int = _param(0, doc="Seed of the split and of the choice of rows.", least=0)


@dataclass(frozen=True, slots=True)
class TuneParams:
    """Tunes the line's base model: an adapter on it, all of its weights, or an adapter from preferences."""

    method: str = _param(
        "lora",
        doc="An adapter, all weights, or an adapter from preferences.",
        choices=("lora", "full", "dpo"),
    )
    learn: str = _param("last", doc="Which of the assistant's messages are learnt.", choices=("last", "all"))
    beta: float = _param(0.1, doc="DPO: how strongly the model is held to its base.", least=0.001, most=10)
    workers: int = _param(
        1, doc="Processes of the gang; each takes its share of the batch.", least=1, most=4096
    )
    rank: int = _param(16, doc="Rank of the adapter.", least=1, most=512)
    alpha: int = _param(
        32, doc="Scale of the adapter; its output is multiplied by alpha / rank.", least=1, most=1024
    )
    epochs: float = _param(1.0, doc="Passes over the training rows.", least=0.001, most=1000)
    max_seconds: int = _param(
        0,
        doc="Stop training after this many seconds; 0 is no limit. The learning rate falls with the clock "
        "where that ends first, so what is learnt then depends on the machine's speed.",
        least=0,
    )
    batch: int = _param(16, doc="Rows per optimiser step, over all workers.", least=1, most=4096)
    micro_batch: int = _param(
        0, doc="Rows computed at a time; 0 is a worker's whole share. Halved when memory is short.", least=0
    )
    recompute: bool = _param(False, doc="Recompute activations: less memory, about a third more time.")
    patience: int = _param(
        0,
        doc="Stop after so many validations without a better loss, keep the best weights; 0 never.",
        least=0,
    )
    validate_every: int = _param(0, doc="Steps between validations; 0 is a tenth of the training.", least=0)
    lr: float = _param(5e-4, doc="Peak learning rate.", least=1e-8, most=1.0)
    max_tokens: int = _param(256, doc="Leave out and count rows with more tokens.", least=8, most=1_048_576)
    checkpoint_seconds: int = _param(
        0,
        doc="Time between checkpoints; 0 follows how often jobs and nodes fail and how long a save takes.",
        least=0,
        most=86_400,
    )
    threads: int = _param(0, doc="CPU threads; 0 uses what the job may use.", least=0, most=1024)
    seed: int = _param(0, doc="Seed of initial adapter weights and of the row order.", least=0)


METRICS = (
    "exact_match",
    "json_fields",
    "classification",
    "f1",
    "regex",
    "json_schema",
    "log_likelihood",
    "judge",
    "lm_eval",
)


@dataclass(frozen=True, slots=True)
class EvaluateParams:
    """Asks base, champion and candidate the same held-out questions through the serving engine."""

    metric: str = _param(
        "exact_match",
        doc="How an answer is judged; the gate's test is on this one.",
        choices=METRICS,
    )
    also: tuple[str, ...] = _param((), doc="More metrics that are reported, for the gate's bounds.")
    pattern: str = _param(
        "", doc="regex: the answer's first group (or match) must equal the wanted answer's."
    )
    json_schema: str = _param("", doc="json_schema: file with the schema, relative to the factory file.")
    judge_model: str = _param("", doc="judge: deployment that grades the answers.")
    judge_url: str = _param("", doc="judge: OpenAI base URL; empty takes TOKENMILL_URL.")
    judge_key: str = _param("", doc="judge: secret://env/NAME of the key.")
    rubric: str = _param(
        "", doc="judge: what a good answer is, in words; empty compares with the wanted one."
    )
    lm_eval_tasks: tuple[str, ...] = _param(
        (), doc="lm_eval: task files (YAML) with local data, relative to the factory file."
    )
    lm_eval_metric: str = _param("", doc="lm_eval: metric of the tasks; empty takes each task's first.")
    safety: bool = _param(False, doc="Put a few fixed probes to each model and report the share passed.")
    max_items: int = _param(200, doc="Held-out rows that are asked, chosen by seed.", least=1, most=1_000_000)
    max_tokens: int = _param(64, doc="Longest answer, in tokens.", least=1, most=32_768)
    slots: int = _param(8, doc="Requests decoded together.", least=1, most=256)
    threads: int = _param(0, doc="CPU threads; 0 uses what the job may use.", least=0, most=1024)
    seed: int = _param(0, doc="Seed of the choice of rows and of the bootstrap.", least=0)


@dataclass(frozen=True, slots=True)
class GateParams:
    """Decides whether the candidate may be released. Control reads these; no job runs."""

    against: str = _param("both", doc="Whom the candidate must beat.", choices=("base", "champion", "both"))
    rule: str = _param(
        "better",
        doc="What it must show: to be better beyond luck, or only not to be worse beyond luck.",
        choices=("better", "not_clearly_worse"),
    )
    min_items: int = _param(50, doc="Fewer judged items than this is a no.", least=1)
    alpha: float = _param(0.05, doc="Significance level of the paired test.", least=0.0001, most=0.5)
    max_ungraded: float = _param(
        0.05, doc="judge: a larger part of the items without a grade is a no.", least=0.0, most=1.0
    )
    min_difference_milli: int = _param(
        0,
        doc="Thousandths of the metric by which the candidate must at least be better.",
        least=-1000,
        most=1000,
    )
    bounds: tuple[str, ...] = _param(
        (),
        doc="Bounds on other figures, such as `safety_milli >= 900` or `ttft_ms_p95 <= 1.5 x base`.",
    )


@dataclass(frozen=True, slots=True)
class PackParams:
    """Puts the release together: manifest, bill of materials, provenance, model card, evidence."""

    title: str = _param("", doc="Title of the model card; empty uses the line's name.")
    license: str = _param("", doc="SPDX licence expression of the adapter; empty states none.")
    notes: str = _param("", doc="Text for the model card: intended use and limits.")


@dataclass(frozen=True, slots=True)
class CommandParams:
    """A station of your own: a command that reads inputs and writes outputs as files."""

    command: tuple[str, ...] = _param(
        doc="Program and arguments; `{in:NAME}`, `{out:NAME}`, `{work}`, `{factory}` are paths."
    )
    outputs: tuple[str, ...] = _param((), doc="Names of the files or folders that it writes.")


@dataclass(frozen=True, slots=True)
class PythonParams:
    """A station of your own: a Python function `run(station) -> mapping of outputs to paths`."""

    entry: str = _param(doc="`module:function`; the module is looked for beside the factory file first.")
    settings: str = _param("", doc="JSON object that the function finds in `station.settings`.")


StationParams = (
    IntakeParams
    | CurateParams
    | TuneParams
    | EvaluateParams
    | GateParams
    | PackParams
    | CommandParams
    | PythonParams
)

STATION_KINDS: dict[str, type] = {
    "intake": IntakeParams,
    "curate": CurateParams,
    "tune": TuneParams,
    "evaluate": EvaluateParams,
    "gate": GateParams,
    "pack": PackParams,
    "command": CommandParams,
    "python": PythonParams,
}
FREE_KINDS = ("command", "python")
"""Kinds that a line has only where its long form names them."""
