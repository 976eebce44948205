"""What was counted of each block, in order, for one pass: counted again only where a block has changed.

A pass places thousands of gangs on a fleet of which each changes a block or few, so what a search looks at
is kept between searches by the kind of work asked. A fleet is a value: a list says which one it was counted
for, and when it is asked for another one it looks at what ``follow`` was told, else at every block. Nothing
can grow stale, and a memo is never kept beyond its pass. It decides nothing.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from immutables import Map

from tokenmill.policy.fleet import Block, Fleet

Entry = tuple[Any, ...]
Count = Callable[[Iterable[Block]], dict[str, Entry]]
"""Makes the entry of each block that has one. Entries of two blocks are never equal."""

FEW = 16
"""Up to so many changed blocks are put in their places one by one; after more the list is sorted anew."""


class Memo:
    """Ordered entries by key (what was asked), each for the fleet that it was last asked for."""

    __slots__ = ("fleet", "known", "log")

    def __init__(self, fleet: Fleet | None = None) -> None:
        self.fleet = fleet
        self.log: list[str] = []  # blocks that changed on the way to ``fleet``
        self.known: dict[Hashable, _Ordered] = {}

    def follow(self, before: Fleet, after: Fleet, nodes: Iterable[str]) -> None:
        """``after`` is ``before`` but for the blocks of these nodes."""
        if self.fleet is not before:
            self.log.clear()
            for ordered in self.known.values():
                ordered.at = -1
        self.fleet = after
        self.log += dict.fromkeys([after.block_of[node] for node in nodes])

    def entries(self, key: Hashable, fleet: Fleet, count: Count) -> list[Entry]:
        """All entries of ``key`` in order, as ``count`` makes them; not to be kept or changed."""
        ordered = self.known.get(key)
        if ordered is None:
            ordered = self.known[key] = _Ordered()
        if ordered.blocks is not fleet.blocks:
            follows = fleet is self.fleet and ordered.at >= 0
            ordered.sync(fleet.blocks, self.log[ordered.at :] if follows else None, count)
        ordered.at = len(self.log) if fleet is self.fleet else -1
        return ordered.entries


class _Ordered:
    __slots__ = ("at", "blocks", "entries", "entry_of")

    def __init__(self) -> None:
        self.at = -1  # how far into the memo's log; -1 is not on the way to its fleet
        self.blocks: Map[str, Block] = Map()
        self.entry_of: dict[str, Entry] = {}
        self.entries: list[Entry] = []

    def sync(self, blocks: Map[str, Block], names: list[str] | None, count: Count) -> None:
        old, self.blocks = self.blocks, blocks
        if len(old) != len(blocks):
            self.entry_of = count(blocks.values())
            self.entries = sorted(self.entry_of.values())
            return
        if names is None:
            changed = [name for name, block in blocks.items() if old.get(name) is not block]
        else:
            changed = [name for name in dict.fromkeys(names) if old[name] is not blocks[name]]
        found = count([blocks[name] for name in changed])
        for name in changed:
            was = self.entry_of.pop(name, None)
            if was is not None and len(changed) <= FEW:
                del self.entries[bisect_left(self.entries, was)]
        self.entry_of.update(found)
        if len(changed) > FEW:
            self.entries = sorted(self.entry_of.values())
        else:
            for entry in found.values():
                insort(self.entries, entry)
