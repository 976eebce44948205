"""``python -m tokenmill.floor.importing``: bring one model into the artifact store, in a process of its own.

What it needs (hub clients, converters) would stay in the controller's memory for ever. It fetches, converts
BERT-like embedding models to GGUF, checks a pinned digest, stores the artifact, and writes one JSON file
that tells the floor how it went. Killed and started again it begins anew.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tokenmill.domain.codec import from_plain, to_plain
from tokenmill.domain.errors import CorruptWeightsError, TokenmillError
from tokenmill.domain.factory import Model
from tokenmill.domain.work import Imported
from tokenmill.engine.convert import bert_to_gguf
from tokenmill.engine.sources import FetchedModel, fetch
from tokenmill.spec.files import write_atomically
from tokenmill.store.artifacts import Artifacts

PROGRESS_EVERY_S = 0.5


def import_model(model: Model, artifacts: Artifacts, folder: Path) -> Imported:
    """Return where ``model``'s weights lie in the artifact store. ``folder`` is for what is downloaded.

    Raises ``CorruptWeightsError`` when a pinned digest does not match, and whatever fetching raises.
    """
    progress = Progress(folder / "progress.jsonl")
    progress(0, 0)
    fetched = fetch(model.source, folder / "download", progress)
    if model.kind == "embedding" and fetched.format == "safetensors":
        fetched = _as_gguf(fetched, folder / "converted.gguf")
    whole_file = fetched.path.is_file()
    if whole_file:
        digest = artifacts.put_file(fetched.path, move=not fetched.borrowed)
    else:
        digest = artifacts.put_tree(_only_accepted(fetched, folder / "tree"))
    if model.digest and model.digest != digest:
        raise CorruptWeightsError(
            f"the weights of {model.name} have digest {digest}",
            expected=model.digest,
            fix="Find out who changed them, or correct the digest in the factory file.",
            where=model.source,
        )
    progress(fetched.size_bytes, fetched.size_bytes)
    return Imported(model.name, digest, fetched.size_bytes, fetched.format, "", model.source)


def _as_gguf(fetched: FetchedModel, into: Path) -> FetchedModel:
    path = bert_to_gguf(fetched.path, into)
    return FetchedModel(path, "gguf", fetched.license, (path.name,), path.stat().st_size, False)


def _only_accepted(fetched: FetchedModel, into: Path) -> Path:
    """Copy (by hard link where that is possible) the files that were looked at, and none beside them."""
    shutil.rmtree(into, ignore_errors=True)
    for name in fetched.files:
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(fetched.path / name, target)
    return into


class Progress:
    """Writes progress lines, at most two a second."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last_s = 0.0
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)

    def __call__(self, done: int, total: int) -> None:
        now_s = time.time()
        if now_s - self._last_s < PROGRESS_EVERY_S and done != total:
            return
        self._last_s = now_s
        line = {"at_us": int(now_s * 1e6), "done": done, "total": total, "unit": "bytes", "message": ""}
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Import the model described by ``DIR/model.json`` and write ``DIR/imported.json``."""
    parser = argparse.ArgumentParser(prog="python -m tokenmill.floor.importing", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--artifacts", type=Path, required=True)
    options = parser.parse_args(argv)
    folder: Path = options.folder
    model = from_plain(msgspec.json.decode((folder / "model.json").read_bytes()), Model)
    code = 0
    try:
        imported = import_model(model, Artifacts(options.artifacts), folder)
    except TokenmillError as error:
        imported, code = Imported(model.name, "", 0, "", str(error), model.source), error.exit_code
    except OSError as error:
        imported, code = Imported(model.name, "", 0, "", f"{type(error).__name__}: {error}", model.source), 13
    write_atomically(folder / "imported.json", msgspec.json.encode(to_plain(imported)))
    for leftover in ("download", "tree"):
        shutil.rmtree(folder / leftover, ignore_errors=True)
    (folder / "converted.gguf").unlink(missing_ok=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
