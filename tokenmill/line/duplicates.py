"""Which texts are nearly the same: an exact Jaccard join over character shingles. Drops nothing itself.

The join filters by prefix and length (Bayardo, Ma and Srikant, "Scaling up all pairs similarity search",
2007; Xiao et al., "Efficient similarity joins for near duplicate detection", 2008), so it finds every pair
and no other. Very large sets are thinned to the shingles whose hash is divisible by a number, which
estimates the similarity.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

SHINGLE = 5  # characters
MAX_SHINGLES = 8_000_000  # of all texts together


def near_pairs(texts: Sequence[str], similarity: float) -> Iterator[tuple[int, int, float]]:
    """Pairs (earlier index, later index, Jaccard similarity) of ``texts`` at least ``similarity`` alike.

    ``texts`` are normalised; the order is that of the later index, then of the earlier.
    """
    total = sum(max(1, len(text) - SHINGLE + 1) for text in texts)
    thin = max(1, math.ceil(total / MAX_SHINGLES))
    sets = [_shingles(text, thin) for text in texts]
    frequency = Counter(shingle for shingles in sets for shingle in shingles)
    index: dict[int, list[int]] = defaultdict(list)
    for later, shingles in enumerate(sets):
        size = len(shingles)
        rare_first = sorted(shingles, key=lambda s: (frequency[s], s))
        prefix = rare_first[: size - math.ceil(similarity * size) + 1]
        candidates = {earlier for shingle in prefix for earlier in index[shingle]}
        for earlier in sorted(candidates):
            other = sets[earlier]
            if min(size, len(other)) < similarity * max(size, len(other)):
                continue
            shared = len(shingles & other)
            alike = shared / (size + len(other) - shared)
            if alike >= similarity:
                yield earlier, later, alike
        for shingle in prefix:
            index[shingle].append(later)


def _shingles(text: str, thin: int) -> frozenset[int]:
    # crc32 is fast and the same in every process; a rare collision moves a similarity slightly.
    parts = (text[at : at + SHINGLE] for at in range(max(1, len(text) - SHINGLE + 1)))
    hashes = {zlib.crc32(part.encode("utf-8", "surrogatepass")) for part in parts}
    return frozenset(h for h in hashes if h % thin == 0) or frozenset({min(hashes)})


class Groups:
    """Union-find over row indexes. The name of a group is that of its least member key."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._parent = list(range(len(keys)))
        self._key = list(keys)
        first: dict[str, int] = {}
        for at, key in enumerate(keys):
            self.join(first.setdefault(key, at), at)

    def find(self, at: int) -> int:
        while self._parent[at] != at:
            self._parent[at] = self._parent[self._parent[at]]
            at = self._parent[at]
        return at

    def join(self, one: int, other: int) -> None:
        a, b = self.find(one), self.find(other)
        if a != b:
            # The root carries the least key, so that a group's name does not depend on the order of joins.
            keep, give = (a, b) if self._key[a] <= self._key[b] else (b, a)
            self._parent[give] = keep

    def name(self, at: int) -> str:
        return self._key[self.find(at)]
