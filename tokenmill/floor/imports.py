"""Imports of models: one supervised process for each, and the event that tells how it went.

Weights are verified again each time an engine starts (``Verifier``): a disk can rot and a hand can slip.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from tokenmill.domain.codec import from_plain, to_plain
from tokenmill.domain.errors import DataError, TokenmillError
from tokenmill.domain.events import ModelImported
from tokenmill.domain.factory import Model
from tokenmill.domain.work import Imported, Release
from tokenmill.engine.unpacked import place_of
from tokenmill.floor import logs
from tokenmill.floor.gangs import last_line
from tokenmill.floor.ports import Clock, Report
from tokenmill.floor.process import Order
from tokenmill.floor.processes import Supervisor
from tokenmill.floor.workers import NICE
from tokenmill.spec.files import write_atomically
from tokenmill.spec.paths import Paths
from tokenmill.store.artifacts import Artifacts
from tokenmill.store.signing import Signatures


class Imports:
    """All imports of this floor."""

    def __init__(
        self, supervisor: Supervisor, paths: Paths, factory_dir: Path, report: Report, now_us: Clock
    ) -> None:
        self._supervisor = supervisor
        self._paths = paths
        self._factory_dir = factory_dir  # a relative source is relative to the factory file
        self._report = report
        self._now_us = now_us
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._wanted: dict[str, Model] = {}
        self._progress: dict[str, Mapping[str, Any]] = {}

    def start(self, model: Model) -> None:
        """Begin an import. One that is under way goes on; another source comes after it."""
        self._wanted[model.name] = model
        if model.name in self._tasks:
            return
        task = asyncio.create_task(self._run_wanted(model.name), name=f"import {model.name}")
        self._tasks[model.name] = task
        task.add_done_callback(lambda _: self._tasks.pop(model.name, None))

    def progress(self) -> Mapping[str, Mapping[str, Any]]:
        return self._progress

    def read_progress(self) -> None:
        """Read the last progress line of each import. Blocks for a moment; runs in a thread."""
        self._progress = {
            process_id(name): last_line(self._folder(name) / "progress.jsonl") for name in list(self._tasks)
        }

    async def close(self) -> None:
        """End the imports; the next controller begins them anew."""
        for name, task in list(self._tasks.items()):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self._supervisor.stop(process_id(name), 0)
            self._supervisor.forget(process_id(name))

    def cancel(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    def _folder(self, model: str) -> Path:
        return self._paths.run / "imports" / model

    async def _run_wanted(self, name: str) -> None:
        done = None
        while self._wanted[name] != done:
            done = self._wanted[name]
            await self._run(done)

    async def _run(self, model: Model) -> None:
        name = process_id(model.name)
        folder = self._folder(model.name)
        try:
            await asyncio.to_thread(
                write_atomically, folder / "model.json", msgspec.json.encode(to_plain(model))
            )
            result = folder / "imported.json"
            result.unlink(missing_ok=True)
            process = await self._supervisor.spawn(
                Order(
                    id=name,
                    kind="job",
                    argv=(
                        *(sys.executable, "-m", "tokenmill.floor.importing", str(folder)),
                        *("--artifacts", str(self._paths.artifacts)),
                    ),
                    log=self._paths.log(name),
                    cwd=self._factory_dir,
                    nice=NICE,
                    facts={"import": model.name},
                )
            )
            found = await process.wait()
            imported = read_imported(model, result, found.reason, self._paths.log(name))
        except (TokenmillError, OSError) as error:
            imported = Imported(model.name, "", 0, "", str(error), model.source)
        await self._report(ModelImported(self._now_us(), imported))
        self._supervisor.forget(name)


def process_id(model: str) -> str:
    return f"import-{model}"


def read_imported(model: Model, path: Path, reason: str, log: Path) -> Imported:
    """Return what the import wrote down, or an error that says how its process ended."""
    try:
        return from_plain(msgspec.json.decode(path.read_bytes()), Imported)
    except (OSError, msgspec.DecodeError, DataError):
        last = logs.last_words(log)
        error = f"the import {reason}" + (f": {last}" if last else "")
        return Imported(model.name, "", 0, "", error, model.source)


class Verifier:
    """Checks releases' signatures, and artifacts against their digests, each once for as long as its files
    look the same.

    "The same" is path, size, inode and modification time of every file; threads may share it.
    """

    def __init__(self, artifacts: Artifacts, signatures: Signatures) -> None:
        self._artifacts = artifacts
        self._signatures = signatures
        self._seen: dict[str, tuple[tuple[str, int, int, int], ...]] = {}
        self._lock = threading.Lock()

    def check(self, release: Release) -> None:
        """Raise ``CorruptWeightsError`` unless a trusted key signed this release and its bytes are whole."""
        self._signatures.verify(release)
        for digest in {release.weights, release.adapter, release.digest} - {""}:
            self.verified(digest)

    def verified(self, digest: str) -> Path:
        """Return the path of a whole artifact. Raises ``CorruptWeightsError`` or ``NotFoundError``."""
        with self._lock:
            path = self._artifacts.path(digest)
            looks = _looks(path)
            if not looks or self._seen.get(digest) != looks:
                self._seen.pop(digest, None)
                self._artifacts.verify(digest)
                self._seen[digest] = looks
            return path

    def unpacked(self, digest: str) -> Path:
        """Where GGUF weights are kept for engines that read none; it may not be there yet."""
        return place_of(self._artifacts.root.parent, digest)


def _looks(path: Path) -> tuple[tuple[str, int, int, int], ...]:
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    found = []
    for file in files:
        try:
            stat = file.stat()
        except FileNotFoundError:
            return ()
        found.append((str(file), stat.st_size, stat.st_ino, stat.st_mtime_ns))
    return tuple(found)
