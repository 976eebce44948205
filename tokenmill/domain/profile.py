"""What rows are like, in counts that add up: how long their lines are, and which words stand in them.

Two profiles of the same rows are equal wherever they were counted, so what is new is a difference of counts.
Words are counted by hash, and only at both ends of a line, so that long rows cost no more than short ones.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field

PROFILE_BUCKETS = 24
"""Rows by the length of their line in bytes: bucket ``k`` holds 2**k to 2**(k+1) - 1."""
WORD_BUCKETS = 64
END_BYTES = 256

_WORD = re.compile(rb"[a-z\x80-\xff]{2,}")


def bucket(size_bytes: int) -> int:
    """The place of a row among the lengths."""
    return min(PROFILE_BUCKETS - 1, max(0, size_bytes.bit_length() - 1))


@dataclass(slots=True)
class Profile:
    """Counts that grow line by line."""

    lengths: list[int] = field(default_factory=lambda: [0] * PROFILE_BUCKETS)
    words: list[int] = field(default_factory=lambda: [0] * WORD_BUCKETS)

    def add(self, line: bytes, size_bytes: int) -> None:
        """Count one line of ``size_bytes``, of which ``line`` may be only the beginning."""
        self.lengths[bucket(size_bytes)] += 1
        ends = line if len(line) <= 2 * END_BYTES else line[:END_BYTES] + b" " + line[-END_BYTES:]
        for word in _WORD.findall(ends.lower()):
            self.words[zlib.crc32(word) % WORD_BUCKETS] += 1

    def join(self, other: Profile) -> None:
        """Add another's counts."""
        self.lengths = [a + b for a, b in zip(self.lengths, other.lengths, strict=True)]
        self.words = [a + b for a, b in zip(self.words, other.words, strict=True)]
