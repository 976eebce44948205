"""Secrets by reference: ``secret://env/NAME`` or ``secret://file/PATH``, kept for a short while.

PATH is from the root: ``secret://file/run/secrets/b`` is ``/run/secrets/b``. The reference is what tables and
logs hold; the value is never written anywhere.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

KEPT_S = 30.0
_REFERENCE = re.compile(r"secret://(env|file)/(.+)")
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
        said = _REFERENCE.fullmatch(reference)
        if said is None:
            raise OSError(f"{reference!r} is neither secret://env/NAME nor secret://file/PATH")
        scheme, name = said.groups()
        if scheme == "env":
            value = os.environ.get(name, "").strip().encode()
        else:
            value = Path("/", name).read_bytes().strip()
        if not _SAFE.fullmatch(value):
            missing = scheme == "env" and not value
            raise OSError(f"{reference} is not set" if missing else f"{reference} holds no usable secret")
        self._kept[reference] = (now, value)
        return value
