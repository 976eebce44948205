"""Compiles the twin's core with Numba where that is installed, and leaves it as it is where it is not.

The same functions run either way and give the same results; compiled they are some hundred times faster.
The modules named ``*_kernel`` import this one, and nothing else imports them but ``fleet``, when it is
first used: Numba takes a second to import. Compiled code is kept in the user's cache folder, by a digest
of all kernels, because Numba by itself would not notice that a function in another file has changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

try:
    import numba
except ImportError:  # the extra [twin] is not installed
    numba = None

Kernel = TypeVar("Kernel", bound=Callable[..., object])

COMPILED = numba is not None


def compiled(function: Kernel) -> Kernel:
    """A function of arrays that is compiled for the types of its first call, or cached from an earlier
    run."""
    return _jit(function, inline="never")


def inlined(function: Kernel) -> Kernel:
    """A small part of a kernel, compiled into its callers."""
    return _jit(function, inline="always")


def _jit(function: Kernel, *, inline: str) -> Kernel:
    if numba is None:
        return function
    kept = numba.config.CACHE_DIR
    if not kept:
        numba.config.CACHE_DIR = str(_cache_folder())
    try:
        # No kernel allocates, so arrays need no reference counts; with them all is six times slower.
        options = {"nogil": True, "error_model": "numpy", "inline": inline, "_nrt": False}
        made: Kernel = numba.njit(cache=inline == "never", **options)(function)
    finally:
        numba.config.CACHE_DIR = kept
    return made


def _cache_folder() -> Path:
    here = Path(__file__)
    sources = [here, here.with_name("floor_arrays.py"), *sorted(here.parent.glob("*_kernel.py"))]
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()
    return Path.home() / ".cache" / "tokenmill" / "numba" / digest[:16]
