"""Recognises a head that came before on the same connection, but for the digits of its ``Content-Length``.

Who keeps a connection sends the same lines with every message, and to read and check them costs more than
what the message says. Equal bytes mean the same, so a head that was parsed and found good once is compared
and no more. Nothing is parsed here; what differs in any byte but those digits is left to the parser.
"""

from __future__ import annotations

import re
from typing import Generic, TypeVar

H = TypeVar("H")

LESSONS = 8
"""A connection whose heads differ all the time is not learned again and again."""

DIGITS_MOST = 12
UNKNOWN = (-1, 0)

_LENGTH = re.compile(rb"\r\ncontent-length: ?(\d{1,12})\r\n", re.IGNORECASE)


class KnownHead:
    """One head. ``match`` says whether bytes begin with it."""

    __slots__ = ("_back", "_front", "_reach", "_rest", "_start")

    def __init__(self, front: bytes, back: bytes) -> None:
        self._front = front
        self._back = back
        self._start = len(front)
        self._rest = len(back)
        self._reach = len(front) + DIGITS_MOST + len(back)

    def match(self, data: bytes) -> tuple[int, int]:
        """(length of the body, where it begins), or ``UNKNOWN`` where ``data`` begins in another way."""
        start = self._start
        end = data.find(self._back, start, self._reach)
        if end < 0 or not data.startswith(self._front):
            return UNKNOWN
        digits = data[start:end]
        return (int(digits), end + self._rest) if digits.isdigit() else UNKNOWN


def learn(data: bytes, length: int) -> KnownHead | None:
    """The head that ``data`` begins with, of a message whose body had ``length`` bytes; ``None`` where it is
    not whole, states its length in another way, or has line ends that parsers disagree on."""
    end = data.find(b"\r\n\r\n") + 4
    found = [*_LENGTH.finditer(data, 0, end)] if end >= 4 else []
    lines = data.count(b"\r\n", 0, end)
    if len(found) != 1 or int(found[0][1]) != length:
        return None
    if data.count(b"\n", 0, end) != lines or data.count(b"\r", 0, end) != lines:
        return None
    return KnownHead(data[: found[0].start(1)], data[found[0].end(1) : end])


class Familiar(Generic[H]):
    """The head that came last on one connection, and what it was found to say.

    ``recognise`` what a message begins with; when it is unknown and was then parsed, ``remember`` it.
    """

    __slots__ = ("_first", "_known", "_lessons", "_said")

    def __init__(self) -> None:
        self._known: KnownHead | None = None
        self._said: H | None = None
        self._lessons = LESSONS
        self._first = b""

    def recognise(self, data: bytes, longest: int) -> tuple[H | None, int, int]:
        """What the head says, the length of its body and where that begins, if ``data`` begins with it and
        the body has ``longest`` bytes at most."""
        if self._known is not None:
            length, start = self._known.match(data)
            if 0 <= length <= longest:
                self._lessons = LESSONS
                return self._said, length, start
        self._first = data if self._lessons else b""
        return None, 0, 0

    def remember(self, length: int, said: H) -> None:
        """What was not recognised has been read: its body had ``length`` bytes."""
        first, self._first = self._first, b""
        if first:
            self._lessons -= 1
            self._known, self._said = learn(first, length), said

    def pass_over(self) -> None:
        """What was not recognised is nothing to be learned from."""
        self._first = b""
