"""What admission and routing remember, kept so that a dead gateway forgets no budget and several share one.

One file beside the state file, mapped by every gateway process of a factory: the meters of quotas and, where
several processes share a port, what each has open on each replica. A lock on the file makes the decisions of
all processes follow one another, so that no quota is passed by one request; the kernel frees it when its
holder dies. Each process counts what it has open in a column of its own, which its next life clears. The map
is read only: a page that the disk takes no more, full or gone read-only, is an error to write, not death.
A process that shares with none goes by its own memory, and writes after each turn of its loop (``alone``).

The file knows names by digest only. It decides nothing and outlives every process; the ledger, not this, is
what is billed by.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

from msgspec.structs import astuple

from tokenmill.control.edge import EndpointMemory
from tokenmill.domain.errors import ResourceError
from tokenmill.policy.admit import Meter
from tokenmill.spec.settings import GATEWAYS_MOST

V = TypeVar("V")

PROCESSES_MOST = GATEWAYS_MOST
NAMES_MOST = 65_536
"""Quotas and replicas. The file is sparse: what is not used takes no room."""

_MAGIC = 0x31_6D_65_74_65_72_73  # and with it the layout
_HEAD = 8  # words: magic, generation, count
_GENERATION, _COUNT = 1, 2
_NUMBERS = 7
_OPEN = 2 + _NUMBERS  # where the columns begin in a slot, after digest and numbers
_WORDS = _OPEN + PROCESSES_MOST
_WORD = struct.Struct("<q")
_SLOT = struct.Struct(f"<{_NUMBERS}q")
_FIRST = struct.Struct(f"<{_NUMBERS + 1}q")
"""The numbers and the first column, which is the only one of a process that shares with none."""


class SharedFile:
    """The mapped file, as a context: within it no other process decides. Not to be entered twice."""

    def __init__(self, path: Path, index: int, processes: int) -> None:
        self.path = path
        self.index = index
        self.alone = processes == 1
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._lock()
            os.ftruncate(self._fd, 8 * (_HEAD + _WORDS * NAMES_MOST))
            self.map = mmap.mmap(self._fd, 8 * (_HEAD + _WORDS * NAMES_MOST), prot=mmap.PROT_READ)
            self.words = memoryview(self.map).cast("q")
            if self.words[0] != _MAGIC:  # new, or of another version: quotas begin anew
                self._write(0, _WORD.pack(_MAGIC) + bytes(8 * (_HEAD - 1)))
        except OSError as error:
            raise ResourceError(
                f"{path} cannot be used: {error.strerror}",
                expected="a file of this user on a disk with room",
                fix="Free space, or give this user the file.",
            ) from error
        self._generation = self.words[_GENERATION]
        self._slots: dict[bytes, int] = {}  # digest -> first word
        self._read = 0
        self._unlock()

    def __enter__(self) -> None:
        if not self.alone:
            self._lock()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.alone:
            self._unlock()

    @property
    def generation(self) -> int:
        """Changes when slots move; what was found before is to be looked for again."""
        return int(self.words[_GENERATION])

    def slot(self, name: str) -> int:
        """The first word of this name's slot, which is made when there is none. Within the lock."""
        found = self.find(name)
        return self._append(_digest(name)) if found is None else found

    def find(self, name: str) -> int | None:
        """The first word of this name's slot, if there is one."""
        if self._generation != self.generation:
            self._slots, self._read, self._generation = {}, 0, self.generation
        digest = _digest(name)
        if digest not in self._slots:
            self._catch_up()
        return self._slots.get(digest)

    def clear_open(self, columns: Iterable[int]) -> None:
        """What these processes had open is gone with them."""
        with self:
            for number in range(self.words[_COUNT]):
                base = _HEAD + number * _WORDS + _OPEN
                for column in columns:
                    if self.words[base + column]:
                        self._write(base + column, bytes(8))

    def compact(self, names: Iterable[str]) -> None:
        """When three quarters of the file are taken, drop every slot but those of ``names``."""
        if self.words[_COUNT] < NAMES_MOST * 3 // 4:
            return
        with self, contextlib.suppress(OSError):  # a disk that takes nothing refuses the first write
            keep = {_digest(name) for name in names}
            kept = 0
            for number in range(self.words[_COUNT]):
                start = 8 * (_HEAD + number * _WORDS)
                if self.map[start : start + 16] in keep:
                    self._write(_HEAD + kept * _WORDS, self.map[start : start + 8 * _WORDS])
                    kept += 1
            self._write(_GENERATION, _WORD.pack(self.words[_GENERATION] + 1) + _WORD.pack(kept))

    def close(self) -> None:
        """Let go of the file; what it says stays. Done twice, it would close what got the number since."""
        if self._fd < 0:
            return
        self.words.release()
        self.map.close()
        os.close(self._fd)
        self._fd = -1

    def put(self, base: int, numbers: tuple[int, ...], opened: int) -> None:
        """Write a slot; ``opened`` is what all processes have open, and the difference is this one's."""
        words = self.words
        own = base + _OPEN + self.index
        before = sum(words[base + _OPEN : base + _OPEN + PROCESSES_MOST])
        self._write(base + 2, _SLOT.pack(*numbers))
        self._write(own, _WORD.pack(max(0, words[own] + opened - before)))

    def put_alone(self, base: int, numbers: tuple[int, ...], opened: int) -> None:
        """The same for a process that shares with none."""
        self._write(base + 2, _FIRST.pack(*numbers, opened))

    def read_alone(self, base: int) -> tuple[int, ...]:
        """What ``put_alone`` wrote: the numbers, and what is open."""
        return _FIRST.unpack_from(self.map, 8 * (base + 2))

    def place(self, base: int) -> slice:
        """Where the bytes of a slot are that its values are read from."""
        return slice(8 * base + 16, 8 * (base + _WORDS))

    def _catch_up(self) -> None:
        """Learn the slots that other processes, or an earlier life, made."""
        while self._read < self.words[_COUNT]:
            start = _HEAD + self._read * _WORDS
            self._slots[self.map[8 * start : 8 * start + 16]] = start
            self._read += 1

    def _append(self, digest: bytes) -> int:
        number = self.words[_COUNT]
        if number >= NAMES_MOST:
            raise ResourceError(
                f"{self.path} holds {NAMES_MOST} quotas and replicas",
                expected="fewer",
                fix="Bound tenants instead of projects.",
            )
        base = _HEAD + number * _WORDS
        self._write(base, digest + bytes(8 * (_WORDS - 2)))
        self._write(_COUNT, _WORD.pack(number + 1))
        self._slots[digest] = base
        self._read = number + 1
        return base

    def _write(self, word: int, data: bytes) -> None:
        """Raises ``OSError`` where the disk takes none; to write to the map would be death then."""
        os.pwrite(self._fd, data, 8 * word)

    def _lock(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def _unlock(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)


class _Slot(Generic[V]):
    """Where a name is in the file, and what its bytes were last read as."""

    __slots__ = ("base", "place", "said", "value")

    def __init__(self, base: int, place: slice) -> None:
        self.base = base
        self.place = place
        self.said = b""
        self.value: V | None = None


class _Shared(Generic[V]):
    """``control.edge.Kept`` of names of one kind in the file."""

    def __init__(self, file: SharedFile, kind: str) -> None:
        self._file = file
        self._kind = kind
        self._slots: dict[str, _Slot[V]] = {}
        self._missing: set[str] = set()  # what the file has not, as it was at ``_missed``
        self._missed = (0, 0)
        self._generation = file.generation

    def get(self, name: str) -> V | None:
        """Without the lock too: what others write meanwhile is seen the next time."""
        file = self._file
        slot = self._slots.get(name)
        if slot is None or self._generation != file.words[_GENERATION]:
            slot = self._sought(name)
            if slot is None:
                return None
        said = file.map[slot.place]
        if said != slot.said:
            # From these bytes and no others: another process may write meanwhile.
            words = memoryview(said).cast("q").tolist()
            slot.said, slot.value = said, self._read(sum(words[_NUMBERS:]), words[:_NUMBERS])
        return slot.value

    def delete(self, name: str) -> Self:
        self._slots.pop(name, None)
        return self

    def items(self) -> Iterable[tuple[str, V]]:
        """Those that this process has used."""
        return [(name, value) for name in self._slots if (value := self.get(name)) is not None]

    def _sought(self, name: str) -> _Slot[V] | None:
        """As ``_found``, and what is not there is looked for again only when names have come or moved."""
        now = self._file.words[_GENERATION], self._file.words[_COUNT]
        if now != self._missed:
            self._missing.clear()
            self._missed = now
        if name in self._missing:
            return None
        slot = self._found(name, self._file.find)
        if slot is None:
            self._missing.add(name)
        return slot

    def _found(self, name: str, look: Callable[[str], int | None]) -> _Slot[V] | None:
        file = self._file
        if self._generation != file.generation:
            self._slots, self._generation = {}, file.generation
        slot = self._slots.get(name)
        if (slot is None or slot.base < 0) and (base := look(self._kind + name)) is not None:
            slot = self._slots[name] = _Slot(base, file.place(base))
        return slot

    def _keep(self, name: str, value: V, opened: int, numbers: tuple[int, ...]) -> None:
        file = self._file
        slot = self._slots.get(name)
        try:
            if slot is None or slot.base < 0 or self._generation != file.words[_GENERATION]:
                slot = self._found(name, file.slot)
                assert slot is not None, "what is not there is made"
            file.put(slot.base, numbers, opened)
            slot.said = file.map[slot.place]
        except OSError:  # no disk takes it: this process goes on with what it knows, and tries again
            if slot is None:
                slot = self._slots[name] = _Slot(-1, slice(0, 0))
            slot.said = file.map[slot.place]
        slot.value = value

    @staticmethod
    def _read(opened: int, numbers: list[int]) -> V:
        raise NotImplementedError


class SharedMeters(_Shared[Meter]):
    """Meters outlive their tenant's place in the table: who is taken out and put in has no new budget."""

    def set(self, name: str, value: Meter) -> SharedMeters:
        numbers = astuple(value)  # type: ignore[arg-type]
        self._keep(name, value, numbers[0], numbers[1:])
        return self

    @staticmethod
    def _read(opened: int, numbers: list[int]) -> Meter:
        return Meter(opened, *numbers)


class SharedEndpoints(_Shared[EndpointMemory]):
    """Replicas, whose outstanding requests are those of all processes."""

    def set(self, name: str, value: EndpointMemory) -> SharedEndpoints:
        numbers = (value.failures, value.cooling_until_us, 0, 0, 0, 0, 0)
        self._keep(name, value, value.outstanding, numbers)
        return self

    @staticmethod
    def _read(opened: int, numbers: list[int]) -> EndpointMemory:
        return EndpointMemory(opened, *numbers[:2])


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=16).digest()
