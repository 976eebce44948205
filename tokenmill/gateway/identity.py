"""Who is calling: the bearer secret's digest looked up among the table's keys.

Holds no secret and decides nothing but identity; what the key may do is asked elsewhere.
"""

from __future__ import annotations

import hashlib
import hmac

from tokenmill.control import requests
from tokenmill.domain.table import KeyEntry

LONGEST_HEADER = 512


def secret_of(authorization: bytes) -> bytes:
    """The secret in an ``Authorization: Bearer`` value, or ``b""``."""
    if len(authorization) > LONGEST_HEADER or authorization[:7].lower() != b"bearer ":
        return b""
    return authorization[7:].strip()


def identify(index: requests.Index, authorization: bytes, now_us: int) -> KeyEntry | None:
    """The key that belongs to the header, or ``None`` when there is none or it has expired.

    The dictionary finds the candidate by digest; a secret of 240 random bits cannot be approached by timing
    a digest lookup, and the last comparison takes constant time all the same.
    """
    secret = secret_of(authorization)
    if not secret:
        return None
    digest = hashlib.sha256(secret).hexdigest()
    found = requests.identify(index, digest, now_us)
    if isinstance(found, KeyEntry) and hmac.compare_digest(found.digest, digest):
        return found
    return None
