"""What ``Idempotency-Key`` promises: a request that is sent again is not done again and not billed again.

One entry per key, tenant and project, with a digest of what was asked and the answer as it went out. While
the first request runs, and after an answer too large to keep, the same key is a conflict. An answer that the
factory failed to give is not kept, so that asking again may succeed. Entries, their bytes and their age are
bounded, and they live in this process only.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field

from tokenmill.domain.table import KeyEntry
from tokenmill.gateway.errors import ApiError, bad_request
from tokenmill.gateway.message import HttpRequest

ENTRIES = 4096
KEPT_BYTES = 32 * 1024 * 1024
ANSWER_BYTES = 1024 * 1024
KEEP_S = 24 * 3600.0
LONGEST_KEY = 255

Name = tuple[str, str, bytes]


@dataclass(slots=True)
class Entry:
    """One answer. ``open`` until the request has ended; ``parts`` is its body without framing."""

    name: Name
    digest: bytes
    request_id: str
    since_s: float
    open: bool = True
    status: int = 0
    content_type: bytes = b"application/json"
    parts: list[bytes] = field(default_factory=list)
    size: int = 0

    def keep(self, data: bytes) -> None:
        """Remember a piece of the body, as long as it is not too much."""
        self.size += len(data)
        if self.size <= ANSWER_BYTES:
            self.parts.append(data)
        else:
            self.parts.clear()

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)


class Replays:
    """The entries of one gateway process, oldest out first."""

    def __init__(self) -> None:
        self._entries: OrderedDict[Name, Entry] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def begin(self, key: KeyEntry, http: HttpRequest, request_id: str, now_s: float) -> Entry | None:
        """The entry of this request: new and open, or ended and to be replayed; ``None`` without a header.

        Raises ``ApiError`` for a key that is used for something else, is still at work, or is no key.
        """
        value = http.header(b"idempotency-key")
        if not value:
            return None
        if len(value) > LONGEST_KEY:
            message = f"Idempotency-Key is longer than {LONGEST_KEY} characters."
            raise bad_request(message, "Idempotency-Key")
        self._forget(now_s)
        name = (key.tenant, key.project, value)
        digest = hashlib.sha256(http.path.encode() + b"\n" + http.body).digest()
        found = self._entries.get(name)
        if found is None:
            entry = self._entries[name] = Entry(name, digest, request_id, now_s)
            return entry
        if found.digest != digest:
            raise ApiError(
                409, "idempotency_conflict", "This Idempotency-Key was used for another request.",
                param="Idempotency-Key",
            )  # fmt: skip
        if found.open:
            raise ApiError(
                409, "idempotency_in_progress", "The first request with this Idempotency-Key still runs.",
                param="Idempotency-Key", retry_us=1_000_000,
            )  # fmt: skip
        if found.size > ANSWER_BYTES:
            message = "The request with this Idempotency-Key was answered, with more than is kept."
            raise ApiError(409, "idempotency_answer_gone", message, param="Idempotency-Key")
        return found

    def end(self, entry: Entry, *, well: bool) -> None:
        """The request has ended. Its answer is kept when the factory did what was asked of it."""
        if not entry.open:
            return
        entry.open = False
        if not well:
            if self._entries.get(entry.name) is entry:
                del self._entries[entry.name]
            return
        self._bytes += len(entry.body)

    def _forget(self, now_s: float) -> None:
        """Drop what is too old or too much. Open entries stay: each belongs to an admitted request."""
        while self._entries:
            entry = next(iter(self._entries.values()))
            old = now_s - entry.since_s > KEEP_S
            if not old and len(self._entries) < ENTRIES and self._bytes <= KEPT_BYTES:
                return
            if entry.open:
                self._entries.move_to_end(entry.name)
                entry.since_s = now_s
                if all(e.open for e in self._entries.values()):
                    return
                continue
            self._bytes -= len(entry.body)
            del self._entries[entry.name]
