"""Content-addressed artifacts in a folder: weights, adapters, data sets, evidence, manifests.

``sha256/ab/<hex>`` is a file, or a directory for a tree. What is there is whole: it was written under
another name, synced and renamed. It is never changed, and deleted only where its one owner says so.
A tree's digest is that of its manifest: canonical JSON of each file's name and sha256, sorted by name.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenmill.domain.errors import CorruptWeightsError, DataError, NotFoundError, ResourceError, StoreError

_CHUNK = 4 * 1024 * 1024
_PREFIX = "sha256:"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# What a killed writer left is kept this long, in case it was not killed.
_ABANDONED_S = 86_400


class Artifacts:
    """The artifact store under ``root``. Processes may share it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put_file(self, path: Path, *, move: bool = False) -> str:
        """Store a file's bytes and return their digest. With ``move`` the file is gone afterwards.

        Raises ``NotFoundError`` when it is not there and ``ResourceError`` when the disk is full.
        """
        if not path.is_file():
            raise NotFoundError(f"there is no file {path}", fix="Correct the path.")
        with self._incoming() as incoming:
            if move and _same_disk(path, incoming.parent):
                _sync(path)
                # Straight to its place: whatever fails before leaves the file where it was.
                kept = self._keep(path, _file_digest(path))
                path.unlink(missing_ok=True)
                return kept
            kept = self._keep(incoming, _copy(path, incoming))
            if move:
                path.unlink()
            return kept

    def put_bytes(self, data: bytes) -> str:
        """Store ``data`` and return its digest."""
        with self._incoming() as incoming:
            _write(incoming, data)
            return self._keep(incoming, hashlib.sha256(data).hexdigest())

    def put_tree(self, directory: Path) -> str:
        """Store a directory's files, with their relative names, and return the digest of their manifest.

        Empty directories, modes and times are not part of it. Raises ``DataError`` for a link or device.
        """
        if not directory.is_dir():
            raise NotFoundError(f"there is no directory {directory}", fix="Correct the path.")
        with self._incoming() as incoming:
            incoming.mkdir()
            listing = {}
            for name, path in _files(directory):
                target = incoming / name
                target.parent.mkdir(parents=True, exist_ok=True)
                listing[name] = _copy(path, target)
                target.chmod(0o444)
            for folder, _, _ in os.walk(incoming):
                _sync(Path(folder))
            return self._keep(incoming, _manifest_digest(listing))

    def path(self, digest: str) -> Path:
        """Where an artifact lies. Its bytes are not checked. Raises ``NotFoundError`` when it is absent."""
        path = self._place(digest)
        if not path.exists():
            raise NotFoundError(
                f"artifact {digest} is not in {self.root}",
                fix="Import it again, or run the line's station again that made it.",
            )
        return path

    def has(self, digest: str) -> bool:
        """Whether the artifact is there."""
        return self._place(digest).exists()

    def verify(self, digest: str) -> None:
        """Read every byte and compare. Raises ``CorruptWeightsError`` when they are not what was stored."""
        path = self.path(digest)
        found = _PREFIX + (_tree_digest(path) if path.is_dir() else _file_digest(path))
        if found != digest:
            raise CorruptWeightsError(
                f"the bytes of an artifact have digest {found}",
                expected=digest,
                fix=f"Delete {path} and import it again; check the disk.",
                where=str(path),
            )

    def delete(self, digest: str) -> None:
        """Delete an artifact that nothing refers to any more; one that is absent is no error."""
        path = self._place(digest)
        try:
            _delete(path)
        except OSError as error:
            raise _explain(error, self.root) from error

    def sweep(self) -> int:
        """Delete what writers left unfinished more than a day ago; return how many."""
        swept = 0
        folder = self.root / "incoming"
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.stat().st_mtime < time.time() - _ABANDONED_S:
                _delete(path)
                swept += 1
        return swept

    def _place(self, digest: str) -> Path:
        name = digest.removeprefix(_PREFIX)
        if not _DIGEST.fullmatch(digest):
            raise DataError(f"{digest!r} is not a digest", expected="sha256: and 64 hexadecimal digits")
        return self.root / "sha256" / name[:2] / name

    @contextmanager
    def _incoming(self) -> Iterator[Path]:
        """A free name in the same file system; whatever is left there is deleted."""
        folder = self.root / "incoming"
        path = folder / secrets.token_hex(8)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            yield path
        except OSError as error:
            raise _explain(error, self.root) from error
        finally:
            _delete(path)

    def _keep(self, incoming: Path, name: str) -> str:
        """Rename into place. Who comes second with the same bytes finds them there."""
        place = self._place(_PREFIX + name)
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                incoming.rename(place)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            # Folders stay writable, so that a person can delete a data directory with rm -r.
            if place.is_file():
                place.chmod(0o444)
            _sync(place.parent)
        return _PREFIX + name


def _files(directory: Path) -> Iterator[tuple[str, Path]]:
    """Every file below ``directory`` with its name relative to it, in the order of those names."""
    found = []
    for folder, folders, names in os.walk(directory):
        for name in (*names, *folders):
            path = Path(folder, name)
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise DataError(f"{path} is a link or a device", expected="plain files", where=str(directory))
        found += [
            (Path(folder, name).relative_to(directory).as_posix(), Path(folder, name)) for name in names
        ]
    yield from sorted(found)


def _manifest_digest(listing: dict[str, str]) -> str:
    text = json.dumps(listing, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _tree_digest(directory: Path) -> str:
    return _manifest_digest({name: _file_digest(path) for name, path in _files(directory)})


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _same_disk(path: Path, folder: Path) -> bool:
    return path.stat().st_dev == folder.stat().st_dev


def _copy(source: Path, target: Path) -> str:
    """Copy ``source`` to ``target``, synced, and return the hex digest of the bytes that were copied."""
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("xb") as writer:
        while block := reader.read(_CHUNK):
            digest.update(block)
            writer.write(block)
        writer.flush()
        os.fsync(writer.fileno())
    return digest.hexdigest()


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _explain(error: OSError, root: Path) -> StoreError | ResourceError:
    detail = f"{error.strerror} ({errno.errorcode.get(error.errno or 0, '?')})"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(
            f"no room for an artifact: {detail}",
            fix="Free space, or set TOKENMILL_DATA_DIR to a larger disk.",
            where=str(root),
        )
    return StoreError(
        f"an artifact cannot be written: {detail}",
        fix="Give this user write access to the artifacts folder.",
        where=str(error.filename or root),
    )
