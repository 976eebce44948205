"""Where data comes from: a file, a folder, a glob, an uploaded file, or a store that fsspec reaches.

Everything ends as files on this machine, in the order of their names, because reading them twice must give
the same rows. Remote ones are copied through a fixed buffer. Says nothing about what is in a file.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenmill.domain.errors import DataError, MissingExtraError, ResourceError, TokenmillError
from tokenmill.store.artifacts import Artifacts

SUFFIXES = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet", ".gz")
ARTIFACT = "artifact:"
CHUNK_BYTES = 1 << 20
MAX_FILES = 10_000
PIP = {"s3": "pip install 'tokenmill[s3]'", "hf": "pip install 'tokenmill[hub]'"}


def local_files(
    text: str, factory_dir: Path, artifacts: Artifacts, into: Path, max_bytes: int, say: Callable[[str], None]
) -> list[Path]:
    """Files that ``text`` names, in order. Raises ``DataError`` when there are none, or too many bytes."""
    if text.startswith(ARTIFACT):
        return [artifacts.path(text.removeprefix(ARTIFACT))]
    if "://" in text:
        return _fetched(text, into, max_bytes, say)
    path = factory_dir / text
    if path.is_dir():
        return _some(sorted(p for p in path.iterdir() if _is_data(p)), text)
    if any(mark in path.name for mark in "*?["):
        return _some(sorted(p for p in path.parent.glob(path.name) if _is_data(p)), text)
    return [path]


def _is_data(path: Path) -> bool:
    """Whether a file of a folder is data; what is hidden or still being written is not."""
    return path.is_file() and not path.name.startswith(".") and path.suffix.lower() in SUFFIXES


def _some(paths: list[Path], text: str) -> list[Path]:
    if not paths or len(paths) > MAX_FILES:
        raise DataError(
            f"{len(paths):,} data files are at {text}",
            expected=f"1 to {MAX_FILES:,} files that end in {', '.join(SUFFIXES)}",
            where=text,
        )
    return paths


def _fetched(url: str, into: Path, max_bytes: int, say: Callable[[str], None]) -> list[Path]:
    scheme = url.partition("://")[0]
    try:
        import fsspec

        system, path = fsspec.core.url_to_fs(url)
        names = _names(system, path)
    except ImportError as error:
        raise MissingExtraError(
            f"reading {scheme}:// needs another package ({error})",
            fix=PIP.get(scheme, "pip install fsspec, and what it names"),
        ) from error
    except ValueError as error:
        raise DataError(
            f"no file system is known for {scheme}://: {error}",
            where=url,
            expected="s3://BUCKET/KEY, hf://datasets/OWNER/NAME/FILE, or a path",
        ) from error
    except TokenmillError:
        raise
    except Exception as error:  # each file system has its own: of HTTP, of its service, of the system
        raise _unreachable(url, error) from error
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    left = max_bytes
    found = []
    for at, name in enumerate(names):
        target = into / f"{at:05d}-{Path(name).name}"
        say(f"copying {Path(name).name}")
        try:
            left -= _copied(system, name, target, left, url)
        except TokenmillError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None and error.filename is None:
                raise  # of the disk here
            raise _unreachable(url, error) from error
        found.append(target)
    return found


def _names(system: Any, path: str) -> list[str]:
    if any(mark in path for mark in "*?["):
        return _listed(system.glob(path), path)
    if system.isdir(path):
        return _listed(system.find(path), path)
    if not system.exists(path):
        raise FileNotFoundError(f"there is no {path}")
    return [path]


def _listed(names: list[str], path: str) -> list[str]:
    kept = sorted(n for n in names if n.lower().endswith(SUFFIXES) and not Path(n).name.startswith("."))
    return (
        [str(name) for name in _some([Path(name) for name in kept], path)] if not kept else kept[:MAX_FILES]
    )


def _copied(system: Any, name: str, target: Path, most: int, url: str) -> int:
    size = 0
    with system.open(name, "rb") as source, target.open("wb") as file:
        while chunk := source.read(CHUNK_BYTES):
            size += len(chunk)
            if size > most:
                raise ResourceError(
                    "the data has more bytes than max_bytes allows",
                    where=url,
                    fix="Raise max_bytes of the intake station, or name fewer files.",
                )
            file.write(chunk)
    return size


def _unreachable(url: str, error: Exception) -> DataError:
    return DataError(
        f"the data cannot be read: {error}",
        where=url,
        expected="files that exist and that this machine may read",
        fix="Correct the path, or give the job credentials in its environment.",
    )
