"""Makes this example's data from BANKING77 (Casanueva et al., NLP for ConvAI 2020; CC BY 4.0).

    python examples/banking77/prepare.py PATH [--out FILE]

PATH is ``train.csv.gz`` (columns text and category), or a folder that holds it; without it the variable
TOKENMILL_SHARED_DATA names the folder. Kept are twelve intents about cards. Only the set's training part is
read, so the curate station makes a split of its own; figures on it are not figures on the set's test part.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import sys
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


def main() -> None:
    """Write one row per kept utterance: text and label."""
    parser = argparse.ArgumentParser(description="BANKING77 to the rows of this example")
    parser.add_argument("path", type=Path, nargs="?", default=os.environ.get("TOKENMILL_SHARED_DATA"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data" / "intents.jsonl")
    options = parser.parse_args()
    if options.path is None:
        parser.error("name the data file, or set TOKENMILL_SHARED_DATA")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    kept = 0
    path = found(Path(options.path))
    with gzip.open(path, "rt", newline="") as lines, options.out.open("w") as out:
        for row in csv.DictReader(lines):
            if row["category"] in INTENTS:
                said = {"text": row["text"], "label": row["category"].replace("_", " ")}
                out.write(json.dumps(said) + "\n")
                kept += 1
    print(f"{kept} rows in {options.out}")


if __name__ == "__main__":
    main()
