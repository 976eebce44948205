"""How long a new factory takes to its first token, and what it costs while idle.

    python bench/start.py [--rounds 3] [--json]

Each round makes a factory in an empty folder with ``tokenmill init`` and ``tokenmill up`` (weights come in by
digest, engines start), asks for one streamed answer through the gateway, waits for the factory to be idle
and reads the resident memory of controller and gateway. Targets: 20 s to the first token, 250 MB for both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

COMMAND = [str(Path(sys.executable).with_name("tokenmill"))]
IDLE_S = 10.0


def call(folder: Path, *words: str) -> dict[str, Any]:
    """Run one verb with ``--json`` and return what it printed."""
    environ = {**os.environ, "TOKENMILL_PORT": "0"}
    done = subprocess.run(
        [*COMMAND, *words, "--json"], cwd=folder, env=environ, stdout=subprocess.PIPE, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout or b"{}")
    return found


def first_token_s(url: str, key: str) -> float:
    """Seconds from asking to the first streamed token."""
    began = time.perf_counter()
    body = {
        "model": "smol",
        "stream": True,
        "max_tokens": 8,
        "messages": [{"role": "user", "content": "Hello"}],
    }
    with httpx.stream(
        "POST",
        f"{url}/v1/chat/completions",
        json=body,
        timeout=60,
        headers={"authorization": f"Bearer {key}"},
    ) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if '"content":"' in line:
                return time.perf_counter() - began
    raise SystemExit("no token came")


def one_round() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([*COMMAND, "init"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        began = time.perf_counter()
        up = call(folder, "up", "--timeout", "120")
        ready_s = time.perf_counter() - began
        try:
            ttft_s = first_token_s(up["url"], up["key"]["secret"])
            to_token_s = time.perf_counter() - began
            time.sleep(IDLE_S)
            memory = call(folder, "status")["memory"]
        finally:
            call(folder, "down")
    return {
        "ready_s": ready_s,
        "first_token_s": to_token_s,
        "ttft_s": ttft_s,
        "control_mb": memory["control_bytes"] / 1e6,
        "gateway_mb": memory["gateway_bytes"] / 1e6,
        "together_mb": (memory["control_bytes"] + memory["gateway_bytes"]) / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rounds = [one_round() for _ in range(options.rounds)]
    medians = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    if options.json:
        print(json.dumps({"rounds": rounds, "median": medians}))
        return
    print(f"{'':24}{'min':>9}{'median':>9}{'max':>9}")
    for name, median in medians.items():
        values = [r[name] for r in rounds]
        print(f"{name:24}{min(values):9.2f}{median:9.2f}{max(values):9.2f}")


if __name__ == "__main__":
    main()
