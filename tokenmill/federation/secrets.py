"""Secrets by reference: ``env:NAME`` or ``file:PATH``, read when needed and kept for a short while.

The reference is what tables and logs hold; the value is never written anywhere.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

KEPT_S = 30.0
_SAFE = re.compile(rb"[!-~]{1,4096}")


class Secrets:
    """Resolves references. Raises ``OSError`` when one has no usable value."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[float, bytes]] = {}

    def read(self, reference: str) -> bytes:
        """The secret's bytes, without surrounding blanks; only visible ASCII, so that it fits a header."""
        now = time.monotonic()
        found = self._kept.get(reference)
        if found is not None and now - found[0] < KEPT_S:
            return found[1]
        scheme, _, name = reference.partition(":")
        if scheme == "env":
            value = os.environ.get(name, "").strip().encode()
        elif scheme == "file":
            value = Path(name).read_bytes().strip()
        else:
            raise OSError(f"{reference!r} is neither env:NAME nor file:PATH")
        if not _SAFE.fullmatch(value):
            raise OSError(f"{scheme}:{name} holds no usable secret")
        self._kept[reference] = (now, value)
        return value
