"""Who a model request comes from: a key by its secret, or the controller on behalf of one.

Batches run in the controller, which knows no secrets of keys. It proves itself by the word in a file that
only this user can read, and names the key that the request is admitted and billed as; such a request is batch
work, which yields to what clients wait for.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from pathlib import Path

from tokenmill.control.edge import EdgeMemory
from tokenmill.domain.table import KeyEntry
from tokenmill.domain.value import value
from tokenmill.gateway.identity import identify, secret_of
from tokenmill.gateway.table import Serving

ON_BEHALF = b"x-tokenmill-on-behalf"
PROOF = b"x-tokenmill-proof"
PROOF_FILE = "proof.key"
SHORTEST_PROOF = 32


@value
class Caller:
    """``batch`` is work that nobody waits for."""

    key: KeyEntry
    batch: bool = False


class Proof:
    """The controller's word, read again when its file changes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._word = b""
        self._mark = (0, 0)

    def holds(self, word: bytes) -> bool:
        """Whether ``word`` is the controller's, in constant time."""
        try:
            stat = self.path.stat()
            mark = (stat.st_mtime_ns, stat.st_ino)
            if mark != self._mark:
                self._word, self._mark = self.path.read_bytes().strip(), mark
        except OSError:
            return False
        return len(self._word) >= SHORTEST_PROOF and hmac.compare_digest(self._word, word)


def caller_of(serving: Serving, proof: Proof, headers: Mapping[bytes, bytes], now_us: int) -> Caller | None:
    """Who asks, by the headers (names in lower case), or ``None`` when nobody that is known does."""
    behalf = headers.get(ON_BEHALF)
    if behalf is not None:
        return _delegated(proof, serving, headers, behalf, now_us)
    authorization = headers.get(b"authorization", b"")
    if not secret_of(authorization) and headers.get(b"x-api-key"):
        authorization = b"Bearer " + headers[b"x-api-key"]
    key = identify(serving.index, authorization, now_us)
    return Caller(key) if key is not None else None


def _delegated(
    proof: Proof, serving: Serving, headers: Mapping[bytes, bytes], behalf: bytes, now_us: int
) -> Caller | None:
    if not proof.holds(headers.get(PROOF, b"")):
        return None
    key = serving.keys.get(behalf.decode("latin-1"))
    if key is None or 0 < key.expires_us <= now_us:
        return None
    return Caller(key, batch=True)


def idle_slot(serving: Serving, memory: EdgeMemory, alias: str, now_us: int) -> bool:
    """Whether a replica of ``alias`` has a slot that batch work may take.

    One slot of each replica that has several stays free, so that a client who comes finds one at once.
    """
    entry = serving.index.aliases.get(alias)
    if entry is None or not entry.endpoints:
        return True  # the refusal that follows says what is wrong
    for endpoint in entry.endpoints:
        seen = memory.endpoints.get(endpoint.replica)
        room = max(1, endpoint.slots - 1)
        if endpoint.draining or (seen is not None and seen.cooling_until_us > now_us):
            continue
        if seen is None or seen.outstanding < room:
            return True
    return False
