"""Writing a file so that nobody ever sees half of it."""

from __future__ import annotations

import errno
import os
import zlib
from pathlib import Path

DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What an ``OSError`` says that had no room to write."""


def unreadable(error: OSError | EOFError | UnicodeDecodeError | zlib.error) -> str:
    """Why a file could not be read, in words."""
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 text (byte {error.start})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return f"it was packed wrongly or cut off ({error})"


def write_atomically(path: Path, body: bytes, *, private: bool = False) -> None:
    """Replace a file so that a reader, or a crash, sees the old one or the new one. Durable on return.

    A ``private`` file can be read by this user only, from its first byte on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        if private:
            os.fchmod(file.fileno(), 0o600)
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
