"""Makes this example's data from BANKING77 (Casanueva et al., NLP for ConvAI 2020; CC BY 4.0).

    python examples/banking77/prepare.py PATH [--test FILE] [--out FILE]

PATH is ``train.csv.gz`` (columns text and category), or a folder that holds it; without it the variable
TOKENMILL_SHARED_DATA names the folder. Kept are twelve intents about cards. FILE is the set's own test part
in the same form (plain or gzip); what is found in it is held out. Without it every fifth row of the training
part is held out, chosen by the digest of its text, and figures are not figures on the set's test part.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

INTENTS = (
    "activate_my_card",
    "card_about_to_expire",
    "card_arrival",
    "card_linking",
    "card_not_working",
    "card_swallowed",
    "change_pin",
    "compromised_card",
    "contactless_not_working",
    "getting_spare_card",
    "lost_or_stolen_card",
    "pin_blocked",
)
NAMES = ("train.csv.gz", "ds_banking77/train.csv.gz")


def found(path: Path) -> Path:
    """The data file itself, when ``path`` is a folder that holds it."""
    places = [path, *(path / name for name in NAMES)]
    for place in places:
        if place.is_file():
            return place
    sys.exit(f"no data in {path}: expected one of {', '.join(str(p) for p in places)}")


def kept(path: Path) -> Iterator[dict[str, str]]:
    """Text and label of the rows with one of our intents."""
    with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as lines:
        for row in csv.DictReader(lines):
            if row["category"] in INTENTS:
                yield {"text": row["text"], "label": row["category"].replace("_", " ")}


def fifth(text: str) -> bool:
    """Whether a row is one of those held out; the same answer on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 5 == 0


def main() -> None:
    """Write one row per kept utterance: text, label and split."""
    parser = argparse.ArgumentParser(description="BANKING77 to the rows of this example")
    parser.add_argument("path", type=Path, nargs="?", default=os.environ.get("TOKENMILL_SHARED_DATA"))
    parser.add_argument("--test", type=Path, default=None, help="the set's own test part")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data" / "intents.jsonl")
    options = parser.parse_args()
    if options.path is None:
        parser.error("name the data file, or set TOKENMILL_SHARED_DATA")
    own = list(kept(found(Path(options.path))))
    rows = [
        {**row, "split": "test" if options.test is None and fifth(row["text"]) else "train"} for row in own
    ]
    if options.test is not None:
        rows += [{**row, "split": "test"} for row in kept(options.test)]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    held = sum(row["split"] == "test" for row in rows)
    print(f"{len(rows)} rows in {options.out}, {held} of them held out")


if __name__ == "__main__":
    main()
