"""A GGUF model as the Hugging Face directory that trainers, vLLM and SGLang read: made once, then kept.

``python -m tokenmill.engine.unpacked GGUF PLACE -- PROGRAM ...`` makes it, about 20 s for 135 M parameters,
and becomes PROGRAM. Whoever else wants the same PLACE waits; what a killed conversion left is made anew.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tokenmill.domain.errors import TokenmillError
from tokenmill.engine.convert import gguf_to_safetensors


def place_of(data: Path, digest: str) -> Path:
    """Where the factory in ``data`` keeps the directory of the weights with this digest."""
    return data / "cache" / "tunable" / digest.replace(":", "-")


def unpack(gguf: Path, place: Path, begin: Callable[[], object] = lambda: None) -> Path:
    """Return ``place``; call ``begin`` and convert ``gguf`` to it first unless it is there.

    Raises what ``convert.gguf_to_safetensors`` raises.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    with locked(place.with_name(place.name + ".lock")):
        if not (place / "config.json").is_file():
            begin()
            making = place.with_name(place.name + ".making")
            shutil.rmtree(making, ignore_errors=True)
            gguf_to_safetensors(_named_gguf(gguf, place), making)
            making.rename(place)
    return place


def _named_gguf(path: Path, place: Path) -> Path:
    """``path`` under a name that ends in .gguf, which libraries go by."""
    link = place.with_name(place.name + ".gguf")
    link.unlink(missing_ok=True)
    link.symlink_to(path.resolve())
    return link


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``, waiting for whoever holds it. The kernel frees it when a holder dies."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(argv: Sequence[str]) -> int:
    """Unpack, then replace this process by the program. Returns only when something failed."""
    gguf, place, _, *program = argv
    try:
        unpack(Path(gguf), Path(place), lambda: sys.stderr.write(f"converting {gguf} to {place}\n"))
        os.execvp(program[0], program)  # noqa: S606 - no shell is wanted
    except TokenmillError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
