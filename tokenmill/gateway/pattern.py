"""Recognises chunks that hold one more event like the last one, which most of a stream is.

An engine writes the same JSON around each piece of output. What stands before and after the text is learned
from one event that was read in full; a later chunk is alike when its framing says exactly its length, both
ends are the same and it holds no second event. Such a chunk can go on as it came. Nothing is parsed here, and
what is not alike is left to the parser: usage, errors, the end, other fields, other framing.
"""

from __future__ import annotations

import re

LONGEST = 4096  # bytes of a chunk that is looked at
RELEARNED = 8  # an engine whose events differ all the time is not learned again and again

_TEXT_ENDS = re.compile(rb'(?:[^"\\]|\\.)*"')
_LINES = 4  # newlines in a chunk of one event: after the size, two after the event, after the chunk
_QUOTE = 34


class Pattern:
    """What one stream's events have in common. It is empty until ``learn``."""

    __slots__ = ("_back", "_front", "_heads", "_learned")

    def __init__(self) -> None:
        self._front = b""
        self._back = b""
        self._heads: dict[int, bytes] = {}  # by length of the whole chunk: its size line and the front
        self._learned = 0

    def learn(self, event: bytes, text: int) -> None:
        """Take ``event``, one whole event that carries output from position ``text`` on."""
        self._heads = {}
        self._front = b""
        self._learned += 1
        ends = _TEXT_ENDS.match(event, text)
        if self._learned <= RELEARNED and ends and event.endswith(b"\n\n") and event.count(b"\n") == 2:
            self._front, self._back = event[:text], event[ends.end() - 1 :] + b"\r\n"

    def forget(self) -> None:
        """Nothing is alike any more, until ``learn``."""
        self._heads = {}
        self._front = b""

    def is_one(self, data: bytes) -> bool:
        """Whether ``data``, raw bytes from a chunk's start on, is exactly one chunk that is alike."""
        head = self._heads.get(len(data)) or self._head(len(data))
        return (
            head != b""
            and data.startswith(head)
            and data.endswith(self._back)
            and data[len(head)] != _QUOTE
            and data.count(b"\n") == _LINES
        )

    def leading(self, data: bytes) -> tuple[int, int]:
        """How many bytes, and chunks, at the start of ``data`` are whole chunks that are alike."""
        position = count = 0
        back, front = self._back, len(self._front)
        while front:
            end = data.find(back, position + front, position + LONGEST)
            if end < 0:
                break
            end += len(back)
            head = self._heads.get(end - position) or self._head(end - position)
            if (
                head == b""
                or not data.startswith(head, position)
                or data[position + len(head)] == _QUOTE
                or data.count(b"\n", position, end) != _LINES
            ):
                break
            position = end
            count += 1
        return position, count

    def _head(self, length: int) -> bytes:
        """What a chunk of ``length`` bytes in all begins with; empty when there is none that is alike."""
        if not self._front or length > LONGEST:
            return b""
        digits = 3 if length > 0xFF + 6 else 2 if length > 0xF + 5 else 1  # of a size that fills the chunk
        size = length - digits - 4
        head = b"%x\r\n%b" % (max(size, 0), self._front)
        if len(head) != digits + 2 + len(self._front) or len(head) + len(self._back) >= length:
            return b""
        self._heads[length] = head
        return head
