"""The table that the gateway serves from: the watch on its file and what is derived once per version.

Keeps the last good table whatever happens to the file; an older version never replaces a newer one. It
does not talk to the controller.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import orjson

from tokenmill.control.requests import Index, index_of, visible_aliases
from tokenmill.domain.table import AliasEntry, Endpoint, KeyEntry, Table
from tokenmill.federation.directory import Directory, resolve
from tokenmill.policy.route import PEER_PREFIX

LARGEST_TABLE = 256 * 1024 * 1024


def model_object(alias: AliasEntry) -> dict[str, object]:
    """The public Model object, with vLLM's ``max_model_len`` and ``root``/``parent``."""
    releases = [release for release, weight in alias.targets if weight > 0]
    return {
        "id": alias.name,
        "object": "model",
        "created": alias.created_s,
        "owned_by": alias.owner or "tokenmill",
        "root": releases[0] if releases else alias.name,
        "parent": None,
        "max_model_len": alias.context_tokens,
    }


def without_peers(table: Table) -> Table:
    """The same table for a request that a peer forwarded: it must be answered here or not at all."""
    return replace(
        table,
        aliases=tuple(
            replace(a, endpoints=tuple(e for e in a.endpoints if not e.release.startswith(PEER_PREFIX)))
            for a in table.aliases
        ),
    )


class Serving:
    """One table, ready to be asked. Built once per version."""

    def __init__(self, table: Table) -> None:
        self.index: Index = index_of(table)
        self.local: Index = index_of(without_peers(table))
        self.endpoints: dict[str, Endpoint] = {e.replica: e for a in table.aliases for e in a.endpoints}
        self.keys: dict[str, KeyEntry] = {key.id: key for key in self.index.keys.values()}
        self._listings: dict[str, bytes] = {}

    @property
    def version(self) -> int:
        return self.index.table.version

    def listing(self, key: KeyEntry) -> bytes:
        """The body of ``GET /v1/models`` for this key's tenant."""
        body = self._listings.get(key.tenant)
        if body is None:
            models = [model_object(a) for a in visible_aliases(self.index, key)]
            body = orjson.dumps({"object": "list", "data": models})
            self._listings[key.tenant] = body
        return body

    def visible(self, alias: str, tenant: str) -> AliasEntry | None:
        """The alias when this tenant may call it."""
        entry = self.index.aliases.get(alias)
        if entry is None or (entry.tenants and tenant not in entry.tenants):
            return None
        return entry


class TableFile:
    """Reads the table when its file changes. ``poll`` is cheap: one ``stat`` when nothing happened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.directory = Directory()
        self.table = Table(version=-1, factory="")
        self.serving = Serving(self.table)
        self.problem = "no table has been read yet"
        self.rejected = 0
        self._mark: tuple[int, int, int] = (0, 0, 0)

    @property
    def present(self) -> bool:
        return self.serving.version >= 0

    def poll(self) -> bool:
        """Look at the file; True when a newer table was taken."""
        try:
            stat = self.path.stat()
        except OSError as error:
            # The last table goes on serving; the controller that would have written a new one is away.
            self.problem = f"{self.path} cannot be read: {error.strerror}"
            return False
        mark = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        if mark == self._mark:
            return False
        self._mark = mark
        if stat.st_size > LARGEST_TABLE:
            self.problem = f"{self.path} has {stat.st_size} bytes, more than {LARGEST_TABLE}"
            return False
        return self._take()

    def _take(self) -> bool:
        try:
            table = msgspec.json.decode(self.path.read_bytes(), type=Table)
        except (OSError, msgspec.DecodeError) as error:
            # The writer replaces the file whole, so this is a damaged file and not one half written.
            self.problem = f"{self.path} is no table: {error}"
            self.rejected += 1
            return False
        self.problem = ""
        if table.version <= self.serving.version:
            self.rejected += table.version < self.serving.version
            return False
        self.table = table
        self.refresh()
        return True

    def refresh(self) -> None:
        """Derive again what is served, after a new table or news from a peer."""
        self.serving = Serving(resolve(self.table, self.directory.statuses))
