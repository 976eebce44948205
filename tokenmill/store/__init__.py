"""What outlives a process: journal, leader lease, ledger, registry of releases, and artifacts.

The state lives in SQLite or PostgreSQL (``open_store``), the artifacts in a folder (``store.artifacts``).
Nothing here decides anything: it keeps what ``control`` and the gateway say, and refuses what would break
it. A worker that only reads artifacts does not pay for importing SQLAlchemy, so the names below are
looked up when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenmill.store.artifacts import Artifacts
    from tokenmill.store.copy import CopyReport, copy_store
    from tokenmill.store.opening import Store, open_store
    from tokenmill.store.usage import UsageRow
    from tokenmill.store.verify import LedgerReport

__all__ = ["Artifacts", "CopyReport", "LedgerReport", "Store", "UsageRow", "copy_store", "open_store"]

_HOME = {
    "Artifacts": "tokenmill.store.artifacts",
    "CopyReport": "tokenmill.store.copy",
    "LedgerReport": "tokenmill.store.verify",
    "Store": "tokenmill.store.opening",
    "UsageRow": "tokenmill.store.usage",
    "copy_store": "tokenmill.store.copy",
    "open_store": "tokenmill.store.opening",
}


def __getattr__(name: str) -> Any:
    """Import an exported name from its module (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
