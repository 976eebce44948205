"""Compiles the twin's core with Numba where that is installed, and leaves it as it is where it is not.

The same functions run either way and give the same results; compiled they are some hundred times faster.
The modules named ``*_kernel`` import this one, and nothing else imports them but ``fleet``, when it is
first used: Numba takes a second to import. Compiled code is kept in the user's cache folder, by a digest
of all kernels, because Numba by itself would not notice that a function in another file has changed.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

try:
    import numba
except ImportError:  # the extra [twin] is not installed
    numba = None

if numba is not None:
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

Kernel = TypeVar("Kernel", bound=Callable[..., object])

COMPILED = numba is not None


def compiled(function: Kernel) -> Kernel:
    """A function of arrays that is compiled for the types of its first call, or cached from an earlier
    run."""
    return _jit(function, cache=True)


def inlined(function: Kernel) -> Kernel:
    """A small part of a kernel, compiled into its callers."""
    return _jit(function, inline="always")


def embedded(function: Kernel) -> Kernel:
    """A large part of a kernel, compiled once and put into its callers by LLVM: Numba's own inlining copies
    what is inlined there again and again, and took most of the time to compile."""
    return _jit(function, forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def _jit(function: Kernel, **how: object) -> Kernel:
    if numba is None:
        return function
    kept = numba.config.CACHE_DIR
    if not kept:
        numba.config.CACHE_DIR = str(_cache_folder())
    try:
        # No kernel allocates, so arrays need no reference counts; with them all is six times slower.
        made: Kernel = numba.njit(nogil=True, error_model="numpy", _nrt=False, **how)(function)
    finally:
        numba.config.CACHE_DIR = kept
    return made


def _cache_folder() -> Path:
    here = Path(__file__)
    sources = [here, here.with_name("floor_arrays.py"), *sorted(here.parent.glob("*_kernel.py"))]
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()
    return Path.home() / ".cache" / "tokenmill" / "numba" / digest[:16]


def _plain_bits(number: float) -> int:
    found: int = struct.unpack("<q", struct.pack("<d", number))[0]
    return found


def _no_fetch(_where: Any) -> None: ...


def _bits(_context: Any, number: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        return builder.bitcast(given[0], ir.IntType(64))

    return types.int64(number), generate


def _fetch(_context: Any, where: Any) -> Any:
    def generate(context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        at = given[0]
        if isinstance(where, types.Array):
            at = context.make_array(where)(context, builder, at).data
        at = builder.bitcast(at, ir.IntType(8).as_pointer())
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [at.type, word, word, word])
        ask = builder.module.declare_intrinsic("llvm.prefetch", [at.type], kind)
        builder.call(ask, [at, word(1), word(3), word(1)])  # to write, to keep, data
        return context.get_dummy_value()

    return types.void(where), generate


bits_of = _plain_bits if numba is None else intrinsic(_bits)
"""The 64 bits of a float as an integer."""

fetch = _no_fetch if numba is None else intrinsic(_fetch)
"""Ask for the first cache line of a record or an array, which is needed soon. It changes nothing."""
