"""Keeps tenants' files: bytes in artifacts of the tenant's own, records in the store.

``FileShelf`` is what other parts use too (batches, fine-tuning): it speaks of owners and paths, never of
HTTP. Its methods block, so async code calls them in a thread. A file that has expired is gone from the moment
it expired, and ``sweep`` gives its bytes back.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from pathlib import Path

from tokenmill.domain.errors import NotFoundError, RefusedError, UsageError
from tokenmill.domain.tenancy import Owner, Purpose, TenantFile
from tokenmill.store.artifacts import Artifacts
from tokenmill.store.tenancy import FileRecords

FILES_MOST = 10_000
BYTES_MOST = 20 * 2**30
NAME_MOST = 255


class FileShelf:
    """The files of every tenant. ``root`` is the factory's artifacts folder."""

    def __init__(self, records: FileRecords, root: Path, now_us: Callable[[], int]) -> None:
        self.records = records
        self._root = root / "tenants"
        self._now_us = now_us
        # Between storing bytes and recording them nobody may find them unused and delete them.
        self._changing = threading.Lock()

    def add(
        self,
        owner: Owner,
        purpose: Purpose,
        name: str,
        path: Path,
        *,
        keep_us: int = 0,
        id: str = "",  # noqa: A002
    ) -> TenantFile:
        """Take the file at ``path``, which is gone afterwards, for ``keep_us`` (0: until it is deleted).

        With ``id`` a file that exists already is returned as it is, so that a writer that was interrupted
        may simply write again. Raises ``UsageError`` for an empty file and ``RefusedError`` when the tenant
        has too much.
        """
        if id and (there := self.records.get(owner, id)) is not None:
            return there
        size = path.stat().st_size
        if size == 0 and purpose is not Purpose.BATCH_OUTPUT:
            raise UsageError("the file is empty", expected="a file with at least one byte")
        self._check_room(owner.tenant, size)
        now_us = self._now_us()
        with self._changing:
            file = TenantFile(
                id=id or f"file-{secrets.token_hex(12)}",
                owner=owner,
                purpose=purpose,
                name=name[-NAME_MOST:] or "file",
                size_bytes=size,
                digest=self._artifacts(owner.tenant).put_file(path, move=True),
                created_us=now_us,
                expires_us=now_us + keep_us if keep_us else 0,
            )
            self.records.add(file)
        return file

    def get(self, owner: Owner, id: str) -> TenantFile:  # noqa: A002
        """One file. Raises ``NotFoundError``, also when it has expired or is somebody else's."""
        found = self.records.get(owner, id)
        if found is None or 0 < found.expires_us <= self._now_us():
            raise NotFoundError(f"there is no file {id!r}", fix="GET /v1/files lists yours.")
        return found

    def path(self, file: TenantFile) -> Path:
        """Where its bytes lie, for reading only. Raises ``NotFoundError`` when they are gone."""
        return self._artifacts(file.owner.tenant).path(file.digest)

    def page(
        self, owner: Owner, *, purpose: str = "", after: str = "", limit: int, newest_first: bool = True
    ) -> list[TenantFile]:
        """See ``FileRecords.page``; expired files are left out."""
        now_us = self._now_us()
        found = self.records.page(owner, purpose=purpose, after=after, limit=limit, newest_first=newest_first)
        return [file for file in found if not 0 < file.expires_us <= now_us]

    def delete(self, owner: Owner, id: str) -> None:  # noqa: A002
        """Forget a file, and its bytes unless another file of the tenant has the same ones."""
        file = self.get(owner, id)
        self._drop(file)

    def sweep(self) -> int:
        """Delete what has expired; return how many."""
        found = self.records.expired(self._now_us())
        for file in found:
            self._drop(file)
        return len(found)

    def incoming(self, tenant: str) -> Path:
        """A folder for files that are being written, on the disk where they will stay."""
        folder = self._artifacts(tenant).root / "incoming"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _drop(self, file: TenantFile) -> None:
        tenant = file.owner.tenant
        with self._changing:
            if self.records.delete(file.owner, file.id) and not self.records.uses(tenant, file.digest):
                self._artifacts(tenant).delete(file.digest)

    def _artifacts(self, tenant: str) -> Artifacts:
        return Artifacts(self._root / tenant)

    def _check_room(self, tenant: str, size: int) -> None:
        count, total = self.records.total(tenant)
        reasons = []
        if count >= FILES_MOST:
            reasons.append(f"{count} files are kept, limit {FILES_MOST}")
        if total + size > BYTES_MOST:
            reasons.append(f"{total} bytes are kept, this file has {size}, limit {BYTES_MOST}")
        if reasons:
            raise RefusedError("there is no room for another file", tuple(reasons), fix="Delete files.")
