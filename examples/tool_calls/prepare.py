"""Makes this example's data from the Schema-Guided Dialogues (Rastogi et al., AAAI 2020; CC BY-SA 4.0).

    python examples/tool_calls/prepare.py PATH [--out FILE]

PATH is a folder with ``train.jsonl.gz`` (dialogues with calls) and ``train_services.jsonl.gz`` (functions),
or one that holds ``ds_sgd_dialogues``; without it the variable TOKENMILL_SHARED_DATA names the folder. A row
is what was said since the last call, the functions of the service, and the call that follows. Kept are four
services. Every fifth dialogue is held out, chosen by the digest of its id: figures on it are not figures on
the set's own test part. What is made from these data stays under their licence.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SERVICES = ("Banks_1", "RideSharing_1", "RideSharing_2", "Weather_1")
MOST_TURNS = 8  # before a call


def found(path: Path) -> Path:
    """The folder with both files."""
    places = [path, path / "ds_sgd_dialogues"]
    for place in places:
        if (place / "train.jsonl.gz").is_file():
            return place
    sys.exit(f"no data in {path}: expected train.jsonl.gz in one of {', '.join(str(p) for p in places)}")


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def functions(service: dict[str, Any]) -> list[dict[str, Any]]:
    """A service's functions in OpenAI's form, with the names of what they take."""
    made = []
    for intent in service["intents"]:
        names = [*intent["required_slots"], *intent["optional_slots"]]
        parameters = {"type": "object", "properties": {name: {"type": "string"} for name in sorted(names)}}
        function = {"name": intent["name"], "description": intent["description"], "parameters": parameters}
        made.append({"type": "function", "function": function})
    return made


def rows_of(dialogue: dict[str, Any], tools: dict[str, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """One row for each call to one of our services, with what was said since the call before it."""
    place = int.from_bytes(hashlib.sha256(dialogue["id"].encode()).digest()[:4], "big")
    split = "test" if place % 5 == 0 else "train"
    said: list[dict[str, Any]] = []
    for message in dialogue["messages"]:
        call = message.get("tool_call")
        if call is not None:
            if call["service"] in tools and 0 < len(said) <= MOST_TURNS and said[0]["role"] == "user":
                arguments = json.dumps(call["parameters"], sort_keys=True)
                made = {"type": "function", "function": {"name": call["method"], "arguments": arguments}}
                yield {
                    "messages": [*said, {"role": "assistant", "content": None, "tool_calls": [made]}],
                    "tools": tools[call["service"]],
                    "dialogue": dialogue["id"],
                    "split": split,
                }
            said = []
        elif message["role"] in ("user", "assistant") and (said or message["role"] == "user"):
            said.append({"role": message["role"], "content": message["content"]})


def main() -> None:
    """Write one row per kept call: messages, tools, dialogue and split."""
    parser = argparse.ArgumentParser(description="Schema-Guided Dialogues to the rows of this example")
    parser.add_argument("path", type=Path, nargs="?", default=os.environ.get("TOKENMILL_SHARED_DATA"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data" / "calls.jsonl")
    options = parser.parse_args()
    if options.path is None:
        parser.error("name the data folder, or set TOKENMILL_SHARED_DATA")
    folder = found(Path(options.path))
    services = lines_of(folder / "train_services.jsonl.gz")
    tools = {s["service_name"]: functions(s) for s in services if s["service_name"] in SERVICES}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    kept = 0
    with options.out.open("w", encoding="utf-8") as out:
        for dialogue in lines_of(folder / "train.jsonl.gz"):
            for row in rows_of(dialogue, tools):
                out.write(json.dumps(row) + "\n")
                kept += 1
    print(f"{kept} rows in {options.out}")


if __name__ == "__main__":
    main()
