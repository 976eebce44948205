"""Captured traffic as a data file: the rows of one alias, filtered by what clients said of the answers.

Reads what gateways of this factory wrote for the line's own project, at one moment. Redaction and consent
were the gateway's business; a person's erasure is seen by the next run. Opinions come later than the rows, so
what is new since a run is told from all rows of the alias, not from those that were chosen.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from tokenmill.domain.errors import DataError, ResourceError
from tokenmill.domain.profile import Profile
from tokenmill.domain.stations import IntakeParams
from tokenmill.spec.capture_files import CAPTURE, CaptureFiles


@dataclass(slots=True)
class Seen:
    """All rows of the alias, chosen or not: what they are like, and when the newest answer was given."""

    profile: Profile = field(default_factory=Profile)
    until_us: int = 0


def captured_file(files: CaptureFiles, params: IntakeParams, into: Path) -> tuple[Path, Seen]:
    """Write ``into/captured.jsonl``; with it what was seen. Raises ``DataError`` when there is nothing to
    learn from.
    """
    alias = params.path.removeprefix(CAPTURE)
    said = files.opinions()
    seen = Seen()
    kept = size = 0
    into.mkdir(parents=True, exist_ok=True)
    target = into / "captured.jsonl"
    with target.open("wb") as file:
        for row in files.rows():
            if row.get("alias") != alias:
                continue
            line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
            seen.profile.add(line, len(line))
            seen.until_us = max(seen.until_us, int(row.get("at_us") or 0))
            good = said.get(str(row.get("request")))
            if (good is False and params.opinion != "any") or (good is None and params.opinion == "good"):
                continue
            size += len(line)
            if size > params.max_bytes:
                raise ResourceError(
                    "the captured traffic has more bytes than max_bytes allows",
                    where=params.path,
                    fix="Raise max_bytes of the intake station, or lower keep of the project's capture.",
                )
            file.write(line)
            kept += 1
    if not kept:
        answers = sum(seen.profile.lengths)
        raise DataError(
            f"{answers:,} answers of {alias} are kept, and none of them has the opinion {params.opinion!r}"
            if answers
            else f"no answer of {alias} has been kept for {files.tenant}/{files.project} yet",
            where=params.path,
            expected="answers that the gateway captured for this project",
            fix="Send traffic to it with a key of this project; `tokenmill captures` shows what is kept.",
        )
    return target, seen
