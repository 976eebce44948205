"""Makes this example's data from CLINC150 (Larson et al., EMNLP 2019; CC BY 3.0).

    python examples/clinc150/prepare.py PATH [--test FILE] [--out FILE]

PATH is ``train_val.jsonl.gz`` (rows of text, intent, domain and split), or a folder that holds it; without
it the variable TOKENMILL_SHARED_DATA names the folder. Kept are the 15 intents of the banking domain. The
set's own training part trains. FILE is its own test part, as rows of the same form (plain or gzip), and is
held out; without it the validation part is, and figures are not figures on the set's test part.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

INTENTS = (
    "account_blocked",
    "balance",
    "bill_balance",
    "bill_due",
    "freeze_account",
    "interest_rate",
    "min_payment",
    "order_checks",
    "pay_bill",
    "pin_change",
    "report_fraud",
    "routing",
    "spending_history",
    "transactions",
    "transfer",
)
NAMES = ("train_val.jsonl.gz", "ds_clinc150/train_val.jsonl.gz")


def found(path: Path) -> Path:
    """The data file itself, when ``path`` is a folder that holds it."""
    places = [path, *(path / name for name in NAMES)]
    for place in places:
        if place.is_file():
            return place
    sys.exit(f"no data in {path}: expected one of {', '.join(str(p) for p in places)}")


def kept(path: Path, part: str) -> Iterator[dict[str, str]]:
    """Text and label of one part's rows with one of our intents."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        for line in lines:
            row = json.loads(line)
            if row["intent"] in INTENTS and row["split"] == part:
                yield {"text": row["text"], "label": row["intent"].replace("_", " ")}


def main() -> None:
    """Write one row per kept utterance: text, label and split."""
    parser = argparse.ArgumentParser(description="CLINC150 to the rows of this example")
    parser.add_argument("path", type=Path, nargs="?", default=os.environ.get("TOKENMILL_SHARED_DATA"))
    parser.add_argument("--test", type=Path, default=None, help="the set's own test part")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data" / "intents.jsonl")
    options = parser.parse_args()
    if options.path is None:
        parser.error("name the data file, or set TOKENMILL_SHARED_DATA")
    path = found(Path(options.path))
    held = list(kept(options.test, "test") if options.test is not None else kept(path, "val"))
    rows = [{**row, "split": "train"} for row in kept(path, "train")]
    rows += [{**row, "split": "test"} for row in held]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} rows in {options.out}, {len(held)} of them held out")


if __name__ == "__main__":
    main()
