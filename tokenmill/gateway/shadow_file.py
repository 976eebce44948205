"""Where the answers to copies of requests are kept: one file of bounded size, readable by its owner only."""

from __future__ import annotations

import os
from pathlib import Path

import orjson

FILE_BYTES = 16 * 1024 * 1024
"""The file is begun anew at this size, and one old one is kept."""


class Shadows:
    """The copies of one gateway: how many run and where their answers are kept."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.running = 0
        self.skipped = 0
        self.at: dict[str, int] = {}  # replica -> copies on it now
        self.problem = ""

    def keep(self, line: dict[str, object]) -> None:
        """Append an answer. A disk that takes none loses answers, never requests."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self.file.exists() and self.file.stat().st_size > FILE_BYTES:
                self.file.replace(self.file.with_suffix(".old.jsonl"))
            fd = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(fd, orjson.dumps(line) + b"\n")
            finally:
                os.close(fd)
            self.problem = ""
        except OSError as error:
            self.problem = f"{self.file} takes no answers: {error.strerror}"
