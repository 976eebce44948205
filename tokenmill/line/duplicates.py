"""Which texts are nearly the same, by Jaccard similarity of their character shingles. Drops nothing itself.

Sets of moderate size are joined exactly, by prefix and length (Bayardo, Ma and Srikant, "Scaling up all pairs
similarity search", 2007; Xiao et al., "Efficient similarity joins for near duplicate detection", 2008).
Larger ones go through MinHash signatures and locality-sensitive bands (Broder 1997; Leskovec, Rajaraman and
Ullman, "Mining of Massive Datasets", chapter 3): a pair whose similarity is the threshold is met with a
chance of at least ``RECALL``, a more alike one more surely, and every pair that is met is checked on its
shingles, so that none is reported wrongly.
"""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from tokenmill.domain.errors import MissingExtraError

SHINGLE = 5  # characters
EXACT_SHINGLES = 4_000_000  # of all texts together, up to which the join is exact
HASHES = 128
RECALL = 0.99
BUCKET_TEXTS = 16  # of one bucket that a text is compared with; more of them are alike among themselves


def near_pairs(
    texts: Sequence[str], similarity: float, exact_shingles: int = EXACT_SHINGLES
) -> Iterator[tuple[int, int, float]]:
    """Pairs (earlier index, later index, Jaccard similarity) of ``texts`` at least ``similarity`` alike.

    ``texts`` are normalised, and may be read lazily; the order is that of the later index, then of the
    earlier.
    """
    total = 0
    for text in texts:
        total += max(1, len(text) - SHINGLE + 1)
        if total > exact_shingles:
            return _hashed_pairs(texts, similarity)
    return _exact_pairs(texts, similarity)


def _exact_pairs(texts: Sequence[str], similarity: float) -> Iterator[tuple[int, int, float]]:
    sets = [shingles_of(text) for text in texts]
    frequency = Counter(shingle for shingles in sets for shingle in shingles)
    index: dict[int, list[int]] = defaultdict(list)
    for later, shingles in enumerate(sets):
        size = len(shingles)
        rare_first = sorted(shingles, key=lambda s: (frequency[s], s))
        # A pair that is alike enough shares one of so many of each one's rarest shingles.
        prefix = rare_first[: size - _at_least(similarity * size) + 1]
        candidates = {earlier for shingle in prefix for earlier in index[shingle]}
        for earlier in sorted(candidates):
            alike = _alike(shingles, sets[earlier], similarity)
            if alike >= similarity:
                yield earlier, later, alike
        for shingle in prefix:
            index[shingle].append(later)


def _at_least(value: float) -> int:
    """``value`` rounded up, but for the error of floating point."""
    return -int(-(value - 1e-9) // 1)


def _hashed_pairs(texts: Sequence[str], similarity: float) -> Iterator[tuple[int, int, float]]:
    try:
        import numpy as np
    except ImportError as error:
        raise MissingExtraError(
            "finding near duplicates among so much text needs numpy", fix="pip install 'tokenmill[tune]'"
        ) from error
    bands, rows = bands_for(similarity)
    draw = np.random.Generator(np.random.PCG64(1))
    odd = draw.integers(1, 1 << 63, HASHES, dtype=np.uint64) | np.uint64(1)
    add = draw.integers(0, 1 << 63, HASHES, dtype=np.uint64)
    buckets: list[dict[bytes, list[int]]] = [{} for _ in range(bands)]
    for later, text in enumerate(texts):
        shingles = shingles_of(text)
        hashes = np.fromiter(shingles, dtype=np.uint64, count=len(shingles))
        # Multiply-shift hashing (Dietzfelbinger et al. 1997): the high half of a product modulo 2**64.
        signature = ((hashes[:, None] * odd + add) >> np.uint64(32)).min(axis=0).astype(np.uint32)
        candidates: set[int] = set()
        for band, table in enumerate(buckets):
            found = table.setdefault(signature[band * rows : (band + 1) * rows].tobytes(), [])
            candidates.update(found)
            if len(found) < BUCKET_TEXTS:
                found.append(later)
        for earlier in sorted(candidates):
            alike = _alike(shingles, shingles_of(texts[earlier]), similarity)
            if alike >= similarity:
                yield earlier, later, alike


def bands_for(similarity: float) -> tuple[int, int]:
    """Bands and rows of each, of ``HASHES`` in all: as selective as ``RECALL`` at ``similarity`` allows."""
    for rows in range(HASHES, 0, -1):
        bands = HASHES // rows
        if 1 - (1 - similarity**rows) ** bands >= RECALL:
            return bands, rows
    return HASHES, 1


def _alike(one: frozenset[int], other: frozenset[int], similarity: float) -> float:
    """Jaccard similarity, or 0 where the sizes alone say that it is less than ``similarity``."""
    if min(len(one), len(other)) < similarity * max(len(one), len(other)):
        return 0.0
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def shingles_of(text: str) -> frozenset[int]:
    """Hashes of every run of ``SHINGLE`` characters; of the whole text where it is shorter."""
    # crc32 is fast and the same in every process; a rare collision moves a similarity slightly.
    parts = (text[at : at + SHINGLE] for at in range(max(1, len(text) - SHINGLE + 1)))
    return frozenset(zlib.crc32(part.encode("utf-8", "surrogatepass")) for part in parts)


class Groups:
    """Union-find over row indexes. The name of a group is that of its least member key."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._parent = list(range(len(keys)))
        self._key = list(keys)
        first: dict[bytes, int] = {}
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

    def name(self, at: int) -> bytes:
        return self._key[self.find(at)]
