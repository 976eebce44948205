"""Curate: drops what would spoil training or the judgement, splits without leaks, and says why for each row.

Every row that comes in goes to exactly one of train, validation, test or the quarantine file with its reason.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing

from tokenmill.domain.errors import DataError
from tokenmill.domain.stations import CurateParams, IntakeParams, SplitParams, station_params
from tokenmill.domain.work import JobResult
from tokenmill.line.card import card_of, write_card
from tokenmill.line.curated import SPLITS, Curated, Picked
from tokenmill.line.duplicates import Groups, near_pairs
from tokenmill.line.faults import fault_of
from tokenmill.line.files import Source
from tokenmill.line.intake import read_source
from tokenmill.line.job import StationJob
from tokenmill.line.kept import Kept, Prepared, Prompts, key_of
from tokenmill.line.language import UNKNOWN, classifier
from tokenmill.line.rows import (
    Refused,
    Row,
    RowFile,
    in_group,
    normalised,
    write_jsonl,
)

SPLIT_NAMES = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation"}
SPLIT_NAMES |= {"dev": "validation", "test": "test", "heldout": "test", "held_out": "test"}


def run(job: StationJob) -> JobResult:
    """Curate the rows of the intake station. Raises ``DataError`` when a split would be empty."""
    params = job.params
    assert isinstance(params, CurateParams)
    with closing(RowFile(job.input_path("rows"))) as rows:
        return _run(job, params, rows)


def _run(job: StationJob, params: CurateParams, rows: RowFile) -> JobResult:
    held_out = _held_out(job, params)
    job.report(0, len(rows) + 1, "rows", "curating")
    result = curate(rows, params, held_out, lambda n: job.report(n, len(rows) + 1, "rows", "checking"))
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


def curate(
    rows: Sequence[Row],
    params: CurateParams,
    held_out: Sequence[Row] = (),
    say: Callable[[int], None] = lambda _: None,
) -> Curated:
    """Check, clean and split ``rows``; ``held_out`` rows (of a file of their own) all go to test.

    ``rows_in`` of the result counts both, and equals what was kept and dropped together. ``rows`` may be read
    lazily: it is gone through four times, and only short keys of a row are held.
    """
    result = Curated(rows_in=len(rows) + len(held_out))
    prepared = Prepared(held_out, rows, params)
    kept = _checked(prepared, len(held_out), params, result, say)
    kept = kept.without(_repeats(kept, prepared, result))
    kept = kept.without(_conflicts(kept, prepared, params, result))
    groups = _grouped(kept, prepared, params)
    near = _near_duplicates(kept, prepared, groups, params)
    wanted = [
        "test" if at < kept.held else _split_of(prepared, place, groups.name(at).hex(), params, kept.held > 0)
        for at, place in enumerate(kept.places)
    ]
    chosen = _split(kept, prepared, groups, near, wanted, result)
    chosen["train"] = _capped(chosen["train"], kept, prepared, params, result)
    names = {kept.places[at]: groups.name(at).hex() for split in chosen.values() for at in split}

    def make(place: int) -> Row:
        return in_group(prepared[place], names[place])

    result.splits = {name: Picked(make, [kept.places[at] for at in ats]) for name, ats in chosen.items()}
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


def _checked(
    rows: Prepared, held: int, params: CurateParams, result: Curated, say: Callable[[int], None]
) -> Kept:
    """The rows that are good by themselves."""
    told = classifier(params.languages) if params.languages else None
    kept = Kept()
    for at in range(len(rows)):
        row, found = rows.pair(at)
        result.redactions += found
        kind, detail = fault_of(row, params)
        if not kind and told is not None:
            language = told(row.prompt)
            result.languages[language] += 1
            if language not in (*params.languages, UNKNOWN):
                kind, detail = "other language", language
        if kind:
            result.drop(row, kind, detail)
            continue
        kept.places.append(at)
        kept.prompts.append(key_of(normalised(row.prompt)))
        kept.answers.append(key_of(f"{row.completion.strip()}\x00{row.rejected.strip()}"))
        kept.held += at < held
        if at % 1000 == 0:
            say(at)
    return kept


def _repeats(kept: Kept, rows: Prepared, result: Curated) -> set[int]:
    """Indexes of rows that were there before. Held-out rows and others are compared among themselves."""
    first: dict[tuple[bool, bytes, bytes], int] = {}
    bad: set[int] = set()
    for at, place in enumerate(kept.places):
        key = (at < kept.held, kept.prompts[at], kept.answers[at])
        earlier = first.setdefault(key, place)
        if earlier != place:
            result.drop(rows[place], "exact duplicate", f"of row {rows[earlier].n}")
            bad.add(at)
    return bad


def _conflicts(kept: Kept, rows: Prepared, params: CurateParams, result: Curated) -> set[int]:
    """Indexes of rows whose prompt has another answer elsewhere. A held-out file is left as it is."""
    counts = Counter(kept.prompts[kept.held :])
    by_prompt: dict[bytes, list[int]] = {}
    for at in range(kept.held, len(kept.places)):
        if counts[kept.prompts[at]] > 1:
            by_prompt.setdefault(kept.prompts[at], []).append(at)
    bad: set[int] = set()
    for ats in by_prompt.values():
        same = [rows[kept.places[at]] for at in ats]
        answers = [row.completion[:200] for row in same]
        result.conflicts.append(
            {"rows": [row.n for row in same], "prompt": same[0].prompt[:200], "answers": answers}
        )
        bad.update(ats)
    if params.conflicts == "keep":
        return set()
    for at in sorted(bad):
        detail = "the same prompt has another answer elsewhere"
        result.drop(rows[kept.places[at]], "conflicting answers", detail)
    return bad


def _grouped(kept: Kept, rows: Prepared, params: CurateParams) -> Groups:
    """Rows that must not be parted: equal group column, and equal prompts in any case."""
    if not params.group_by:
        return Groups(kept.prompts)
    keys = []
    for place in kept.places:
        row = rows[place]
        value = row.columns.get(params.group_by)
        if value is None:
            raise DataError(
                f"row {row.n} (line {row.line}) has no column {params.group_by!r} to group by",
                expected=f"the column in every row; this one has {sorted(row.columns) or 'none'}",
                fix="Correct group_by of the curate station, or add the column.",
            )
        keys.append(key_of(str(value)))
    groups = Groups(keys)
    first: dict[bytes, int] = {}
    for at, prompt in enumerate(kept.prompts):
        groups.join(first.setdefault(prompt, at), at)
    return groups


def _near_duplicates(kept: Kept, rows: Prepared, groups: Groups, params: CurateParams) -> dict[int, int]:
    """Later index -> earlier index that says nearly the same, same answer. Joins the groups of all pairs."""
    if params.near_duplicates == "keep":
        return {}
    near: dict[int, int] = {}
    prompts = Prompts(rows, kept.places)
    for earlier, later, _ in near_pairs(prompts, params.near_duplicate_similarity):
        groups.join(earlier, later)
        same_answer = kept.answers[earlier] == kept.answers[later]
        if same_answer and earlier not in near and params.near_duplicates == "drop":
            near.setdefault(later, earlier)
    return near


def _split_of(rows: Prepared, place: int, group: str, params: CurateParams, own_test: bool) -> str:
    """Which split a row is meant for: what its column says, else by the hash of its group."""
    if params.split_by:
        row = rows[place]
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
    kept: Kept,
    rows: Prepared,
    groups: Groups,
    near: dict[int, int],
    wanted: Sequence[str],
    result: Curated,
) -> dict[str, list[int]]:
    """Indexes by split. Where a group would cross, its held-out rows stay and the others are dropped."""
    owner: dict[int, str] = {}
    for name in ("test", "validation", "train"):
        for at, split in enumerate(wanted):
            if split == name:
                owner.setdefault(groups.find(at), name)
    chosen: dict[str, list[int]] = {name: [] for name in SPLITS}
    for at, place in enumerate(kept.places):
        held_by = owner[groups.find(at)]
        earlier = near.get(at)
        if held_by != wanted[at]:
            result.drop(rows[place], "leaks into held-out rows", f"its group is in {held_by}")
        elif earlier is not None and wanted[earlier] == held_by:
            result.drop(rows[place], "near duplicate", f"of row {rows[kept.places[earlier]].n}")
        else:
            chosen[held_by].append(at)
    return chosen


def _capped(train: list[int], kept: Kept, rows: Prepared, params: CurateParams, result: Curated) -> list[int]:
    """At most ``max_rows`` of ``train``, chosen by a hash that does not depend on their order."""
    if not params.max_rows or len(train) <= params.max_rows:
        return train

    def drawn(at: int) -> tuple[str, int]:
        row = rows[kept.places[at]]
        return hashlib.sha256(f"{params.seed}:{row.digest}".encode()).hexdigest(), row.n

    ordered = sorted(train, key=drawn)
    for at in ordered[params.max_rows :]:
        result.drop(rows[kept.places[at]], "beyond max_rows")
    return sorted(ordered[: params.max_rows])


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
