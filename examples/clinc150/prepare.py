"""Makes this example's data from CLINC150 (Larson et al., EMNLP 2019; CC BY 3.0).

    python examples/clinc150/prepare.py PATH [--out FILE]

PATH is ``train_val.jsonl.gz`` (rows of text, intent, domain and split), or a folder that holds it; without
it the variable TOKENMILL_SHARED_DATA names the folder. Kept are the 15 intents of the banking domain. The
set's own training part trains and its own validation part is held out; its test part is not used.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
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
SPLITS = {"train": "train", "val": "test"}
NAMES = ("train_val.jsonl.gz", "ds_clinc150/train_val.jsonl.gz")


def found(path: Path) -> Path:
    """The data file itself, when ``path`` is a folder that holds it."""
    places = [path, *(path / name for name in NAMES)]
    for place in places:
        if place.is_file():
            return place
    sys.exit(f"no data in {path}: expected one of {', '.join(str(p) for p in places)}")


def main() -> None:
    """Write one row per kept utterance: text, label and split."""
    parser = argparse.ArgumentParser(description="CLINC150 to the rows of this example")
    parser.add_argument("path", type=Path, nargs="?", default=os.environ.get("TOKENMILL_SHARED_DATA"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data" / "intents.jsonl")
    options = parser.parse_args()
    if options.path is None:
        parser.error("name the data file, or set TOKENMILL_SHARED_DATA")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    kept = 0
    with gzip.open(found(Path(options.path)), "rt", encoding="utf-8") as lines, options.out.open("w") as out:
        for line in lines:
            row = json.loads(line)
            if row["intent"] in INTENTS and row["split"] in SPLITS:
                label = row["intent"].replace("_", " ")
                said = {"text": row["text"], "label": label, "split": SPLITS[row["split"]]}
                out.write(json.dumps(said) + "\n")
                kept += 1
    print(f"{kept} rows in {options.out}")


if __name__ == "__main__":
    main()
