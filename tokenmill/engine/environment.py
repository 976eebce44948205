"""Environment variables that keep machine learning libraries quiet, offline and polite to their neighbours.

Libraries read them when they are first loaded, so ``prepare`` comes before the first import of torch or
xllamacpp.
"""

from __future__ import annotations

import os

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Threads that wait for others sleep instead of spinning. Where engines and jobs share cores, spinning
    # ones hold up the very thread that they wait for: beside three jobs on two cores, llama.cpp gave 4 tokens
    # a second without this and 28 to 40 with it, and the trainer was ten times as fast.
    "OMP_WAIT_POLICY": "passive",
}


def prepare() -> None:
    """Set what the operator has not set."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
