"""Curate: drops what would spoil training or the judgement, splits without leaks, and says why for each row.

Every row that comes in goes to exactly one of train, validation, test or the quarantine file with its reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from tokenmill.domain.errors import DataError
from tokenmill.domain.stations import CurateParams, IntakeParams, SplitParams, station_params
from tokenmill.domain.work import JobResult
from tokenmill.line.answers import AnswerError, parse_object
from tokenmill.line.card import card_of, write_card
from tokenmill.line.curated import SPLITS, Curated
from tokenmill.line.duplicates import Groups, near_pairs
from tokenmill.line.files import Source
from tokenmill.line.intake import read_source
from tokenmill.line.job import StationJob
from tokenmill.line.redact import redacted_row
from tokenmill.line.rows import (
    Refused,
    Row,
    estimated_tokens,
    in_group,
    normalised,
    read_rows,
    write_jsonl,
)

SPLIT_NAMES = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation"}
SPLIT_NAMES |= {"dev": "validation", "test": "test", "heldout": "test", "held_out": "test"}


def run(job: StationJob) -> JobResult:
    """Curate the rows of the intake station. Raises ``DataError`` when a split would be empty."""
    params = job.params
    assert isinstance(params, CurateParams)
    rows = list(read_rows(job.input_path("rows")))
    held_out = _held_out(job, params)
    job.report(0, len(rows) + 1, "rows", "curating")
    result = curate(rows, params, held_out)
    _check_splits(result, params)
    job.report(len(rows), len(rows) + 1, "rows", "writing")
    outputs = {}
    for name in SPLITS:
        path = job.work / f"{name}.jsonl"
        write_jsonl(path, result.splits[name])
        outputs[name] = job.artifacts.put_file(path, move=True)
    quarantine = job.work / "quarantine.jsonl"
    write_jsonl(quarantine, sorted(result.dropped, key=lambda r: (r.n, r.reason)))
    outputs["quarantine"] = job.artifacts.put_file(quarantine, move=True)
    card = card_of(job, params, result, outputs)
    outputs["card"] = job.artifacts.put_tree(write_card(card, job.work / "card"))
    job.report(len(rows) + 1, len(rows) + 1, "rows", f"{result.kept} kept, {len(result.dropped)} dropped")
    metrics = {
        "rows_in": result.rows_in,
        "kept": result.kept,
        "dropped": len(result.dropped),
        "dropped_by_reason": dict(sorted(result.reasons.items())),
        **{f"{name}_rows": len(result.splits[name]) for name in SPLITS},
    }
    return JobResult(outputs=outputs, metrics=metrics, evidence={"counts": metrics})


def curate(rows: Sequence[Row], params: CurateParams, held_out: Sequence[Row] = ()) -> Curated:
    """Check, clean and split ``rows``; ``held_out`` rows (of a file of their own) all go to test.

    ``rows_in`` of the result counts both, and equals what was kept and dropped together.
    """
    result = Curated(rows_in=len(rows) + len(held_out))
    tests = _without_repeats(_checked(held_out, params, result), result)
    own = _without_repeats(_checked(rows, params, result), result)
    own = _without_conflicts(own, params, result)
    everything = [*tests, *own]
    groups = _grouped(everything, params)
    near = _near_duplicates(everything, groups, params)
    wanted = [
        "test" if at < len(tests) else _split_of(row, groups.name(at), params, bool(tests))
        for at, row in enumerate(everything)
    ]
    _split(everything, groups, near, wanted, result)
    _cap(params, result)
    return result


def _held_out(job: StationJob, params: CurateParams) -> list[Row]:
    """Rows of ``test_path``, read with the settings that intake used for its own file."""
    if not params.test_path:
        return []
    intake = next((e for e in job.trail() if e["kind"] == "intake"), None)
    settings = dict(intake["settings"]) if intake else {}
    reading = station_params("intake", {**settings, "path": params.test_path, "format": "auto"})
    assert isinstance(reading, IntakeParams)
    source = Source(job.factory_dir / params.test_path, reading)
    rows = []
    for item in read_source(source):
        if isinstance(item, Refused):
            raise DataError(
                f"a held-out row cannot be read: {item.reason}",
                where=f"{source.path}:{item.line}",
                expected="a held-out file without broken rows",
                fix="Correct the row, or take it out.",
            )
        rows.append(item)
    return rows


def _checked(rows: Sequence[Row], params: CurateParams, result: Curated) -> list[Row]:
    kept = []
    for given in rows:
        row = given
        if params.redact_pii:
            row, found = redacted_row(row)
            result.redactions += found
        kind, detail = _fault(row, params)
        if kind:
            result.drop(row, kind, detail)
        else:
            kept.append(row)
    return kept


def _fault(row: Row, params: CurateParams) -> tuple[str, str]:
    """Kind and detail of what is wrong with ``row`` alone; two empty texts when nothing is."""
    prompt, completion = row.prompt, row.completion
    if not prompt.strip() or not completion.strip():
        return ("empty completion" if prompt.strip() else "empty prompt"), ""
    if len(prompt) < params.min_prompt_characters:
        return "prompt too short", f"{len(prompt)} characters"
    if len(prompt) > params.max_prompt_characters:
        return "prompt too long", f"{len(prompt):,} characters"
    if len(completion) > params.max_completion_characters:
        return "completion too long", f"{len(completion):,} characters"
    if (tokens := estimated_tokens(row)) > params.max_tokens:
        return "too many tokens", f"about {tokens:,}"
    return _answer_fault(completion, params)


def _answer_fault(completion: str, params: CurateParams) -> tuple[str, str]:
    if params.answer == "json":
        try:
            answer = parse_object(completion)
        except AnswerError as error:
            return "completion is not a JSON object", str(error)
        if params.fields and set(answer) != set(params.fields):
            return "completion has other fields", ", ".join(sorted(answer)) or "none"
    if params.labels and completion.strip() not in params.labels:
        return "label not allowed", completion.strip()[:80]
    return "", ""


def _without_repeats(rows: Sequence[Row], result: Curated) -> list[Row]:
    first: dict[tuple[str, str], int] = {}
    kept = []
    for row in rows:
        key = (normalised(row.prompt), row.completion.strip())
        if key in first:
            result.drop(row, "exact duplicate", f"of row {first[key]}")
        else:
            first[key] = row.n
            kept.append(row)
    return kept


def _without_conflicts(rows: Sequence[Row], params: CurateParams, result: Curated) -> list[Row]:
    by_prompt: dict[str, list[Row]] = {}
    for row in rows:
        by_prompt.setdefault(normalised(row.prompt), []).append(row)
    bad: set[int] = set()
    for same in by_prompt.values():
        if len(same) > 1:
            numbers = [row.n for row in same]
            result.conflicts.append(
                {
                    "rows": numbers,
                    "prompt": same[0].prompt[:200],
                    "answers": [r.completion[:200] for r in same],
                }
            )
            bad.update(numbers)
    if params.conflicts == "keep":
        return list(rows)
    for row in rows:
        if row.n in bad:
            result.drop(row, "conflicting answers", "the same prompt has another answer elsewhere")
    return [row for row in rows if row.n not in bad]


def _grouped(rows: Sequence[Row], params: CurateParams) -> Groups:
    """Rows that must not be parted: equal group column, and equal prompts in any case."""
    for row in rows if params.group_by else ():
        if row.columns.get(params.group_by) is None:
            raise DataError(
                f"row {row.n} (line {row.line}) has no column {params.group_by!r} to group by",
                expected=f"the column in every row; this one has {sorted(row.columns) or 'none'}",
                fix="Correct group_by of the curate station, or add the column.",
            )
    prompts = [normalised(row.prompt) for row in rows]
    groups = Groups([str(row.columns[params.group_by]) for row in rows] if params.group_by else prompts)
    first: dict[str, int] = {}
    for at, prompt in enumerate(prompts):
        groups.join(first.setdefault(prompt, at), at)
    return groups


def _near_duplicates(rows: Sequence[Row], groups: Groups, params: CurateParams) -> dict[int, int]:
    """Later row -> earlier row that says nearly the same, same answer. Joins the groups of all pairs."""
    if params.near_duplicates == "keep":
        return {}
    prompts = [normalised(row.prompt) for row in rows]
    near: dict[int, int] = {}
    for earlier, later, _ in near_pairs(prompts, params.near_duplicate_similarity):
        groups.join(earlier, later)
        same_answer = rows[earlier].completion.strip() == rows[later].completion.strip()
        if same_answer and earlier not in near and params.near_duplicates == "drop":
            near.setdefault(later, earlier)
    return near


def _split_of(row: Row, group: str, params: CurateParams, own_test: bool) -> str:
    """Which split ``row`` is meant for: what its column says, else by the hash of its group."""
    if params.split_by:
        said = str(row.columns.get(params.split_by, "")).strip().lower()
        if said not in SPLIT_NAMES:
            raise DataError(
                f"row {row.n} (line {row.line}) has the split {said!r} in column {params.split_by!r}",
                expected=f"one of {', '.join(sorted(SPLIT_NAMES))}",
                fix="Correct split_by of the curate station, or the column.",
            )
        return SPLIT_NAMES[said]
    return split_for(group, params.split, params.seed, own_test)


def split_for(group: str, split: SplitParams, seed: int, own_test: bool = False) -> str:
    """The split of ``group``: a hash, so that it stays where it is when other rows come or go.

    With ``own_test``, test rows come from elsewhere and the test part goes to train.
    """
    drawn = int.from_bytes(hashlib.sha256(f"{seed}:{group}".encode()).digest()[:8], "big") / 2**64
    if drawn < split.validation:
        return "validation"
    return "test" if drawn < split.validation + split.test and not own_test else "train"


def _split(
    rows: Sequence[Row],
    groups: Groups,
    near: dict[int, int],
    wanted: Sequence[str],
    result: Curated,
) -> None:
    """Put rows into splits. Where a group would cross, its held-out rows stay and the others are dropped."""
    order = ("test", "validation", "train")
    owner: dict[int, str] = {}
    for name in order:
        for at, split in enumerate(wanted):
            if split == name:
                owner.setdefault(groups.find(at), name)
    for at, row in enumerate(rows):
        held_by = owner[groups.find(at)]
        earlier = near.get(at)
        if held_by != wanted[at]:
            result.drop(row, "leaks into held-out rows", f"its group is in {held_by}")
        elif earlier is not None and wanted[earlier] == held_by:
            result.drop(row, "near duplicate", f"of row {rows[earlier].n}")
        else:
            result.splits[held_by].append(in_group(row, _group_name(groups.name(at))))


def _group_name(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _cap(params: CurateParams, result: Curated) -> None:
    train = result.splits["train"]
    if not params.max_rows or len(train) <= params.max_rows:
        return
    drawn = sorted(
        train, key=lambda r: (hashlib.sha256(f"{params.seed}:{r.digest}".encode()).hexdigest(), r.n)
    )
    chosen = {row.n for row in drawn[: params.max_rows]}
    for row in drawn[params.max_rows :]:
        result.drop(row, "beyond max_rows")
    result.splits["train"] = [row for row in train if row.n in chosen]


def _check_splits(result: Curated, params: CurateParams) -> None:
    for name in ("train", "test"):
        if not result.splits[name]:
            reasons = ", ".join(f"{count} {reason}" for reason, count in result.reasons.most_common(5))
            raise DataError(
                f"no row is left for {name}: of {result.rows_in:,} rows {len(result.dropped):,} were dropped"
                + (f" ({reasons})" if reasons else ""),
                expected="at least one row in train and in test",
                fix="Add rows, loosen the curate station's limits, or change its split or seed.",
            )
