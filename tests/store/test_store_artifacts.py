"""Artifacts: addressed by content, whole or absent, and refused when their bytes changed."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from pathlib import Path

import pytest

from tokenmill.domain.errors import (
    CorruptWeightsError,
    DataError,
    NotFoundError,
    ResourceError,
    StoreError,
)
from tokenmill.store import artifacts as module
from tokenmill.store.artifacts import Artifacts


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    return Artifacts(tmp_path / "artifacts")


def tree(root: Path) -> Path:
    (root / "sub" / "empty").mkdir(parents=True)
    (root / "weights.bin").write_bytes(b"w" * 1000)
    (root / "sub" / "ünï.json").write_text("{}")
    return root


def leftovers(artifacts: Artifacts) -> list[Path]:
    return list((artifacts.root / "incoming").iterdir())


def test_a_file_is_found_by_its_content(artifacts: Artifacts, tmp_path: Path) -> None:
    source = tmp_path / "model.gguf"
    source.write_bytes(b"weights")
    digest = artifacts.put_file(source)
    assert digest == "sha256:" + hashlib.sha256(b"weights").hexdigest()
    assert artifacts.put_bytes(b"weights") == digest
    path = artifacts.path(digest)
    assert path.read_bytes() == b"weights"
    assert path.parent.name == digest[7:9]
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert source.exists()
    artifacts.verify(digest)
    assert leftovers(artifacts) == []


def test_a_moved_file_is_gone(artifacts: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "model.gguf"
    source.write_bytes(b"weights")
    digest = artifacts.put_file(source, move=True)
    assert not source.exists()
    assert artifacts.has(digest)

    source.write_bytes(b"weights")
    assert artifacts.put_file(source, move=True) == digest
    assert not source.exists()

    source.write_bytes(b"from another disk")
    monkeypatch.setattr(module, "_same_disk", lambda *_: False)
    artifacts.verify(artifacts.put_file(source, move=True))
    assert not source.exists()
    assert leftovers(artifacts) == []


def test_a_move_that_fails_loses_nothing(
    artifacts: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "model.gguf"
    source.write_bytes(b"weights")

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(module.Path, "rename", refuse)
        with pytest.raises(StoreError, match="EROFS"):
            artifacts.put_file(source, move=True)
    assert source.read_bytes() == b"weights"


def test_a_tree_is_named_by_its_manifest(artifacts: Artifacts, tmp_path: Path) -> None:
    one = artifacts.put_tree(tree(tmp_path / "one"))
    two = artifacts.put_tree(tree(tmp_path / "two"))
    assert one == two
    stored = artifacts.path(one)
    assert sorted(p.relative_to(stored).as_posix() for p in stored.rglob("*") if p.is_file()) == [
        "sub/ünï.json",
        "weights.bin",
    ]
    artifacts.verify(one)
    (tmp_path / "two" / "weights.bin").rename(tmp_path / "two" / "weights2.bin")
    assert artifacts.put_tree(tmp_path / "two") != one
    assert leftovers(artifacts) == []


def test_changed_bytes_are_refused(artifacts: Artifacts, tmp_path: Path) -> None:
    single, folder = artifacts.put_bytes(b"weights"), artifacts.put_tree(tree(tmp_path / "one"))
    for path in (artifacts.path(single), artifacts.path(folder) / "weights.bin"):
        path.chmod(0o644)
        data = bytearray(path.read_bytes())
        data[3] ^= 1
        path.write_bytes(data)
    with pytest.raises(CorruptWeightsError) as caught:
        artifacts.verify(single)
    assert caught.value.problem.expected == single
    with pytest.raises(CorruptWeightsError):
        artifacts.verify(folder)


def test_an_added_file_is_noticed(artifacts: Artifacts, tmp_path: Path) -> None:
    digest = artifacts.put_tree(tree(tmp_path / "one"))
    (artifacts.path(digest) / "extra.py").write_text("import os")
    with pytest.raises(CorruptWeightsError):
        artifacts.verify(digest)


def test_what_is_not_there(artifacts: Artifacts, tmp_path: Path) -> None:
    absent = "sha256:" + "0" * 64
    assert not artifacts.has(absent)
    for call in (
        lambda: artifacts.path(absent),
        lambda: artifacts.verify(absent),
        lambda: artifacts.put_file(tmp_path / "none"),
        lambda: artifacts.put_tree(tmp_path / "none"),
    ):
        with pytest.raises(NotFoundError):
            call()


@pytest.mark.parametrize("bad", ["", "sha256:", "sha256:../../../etc/passwd", "md5:" + "0" * 64, "0" * 71])
def test_only_digests_are_paths(artifacts: Artifacts, bad: str) -> None:
    with pytest.raises(DataError):
        artifacts.path(bad)


def test_links_are_refused(artifacts: Artifacts, tmp_path: Path) -> None:
    root = tree(tmp_path / "one")
    (root / "sub" / "link").symlink_to("/etc/passwd")
    with pytest.raises(DataError, match="link"):
        artifacts.put_tree(root)
    assert leftovers(artifacts) == []


def test_a_full_disk_leaves_nothing(artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(ResourceError, match="no room"):
        artifacts.put_bytes(b"weights")
    assert leftovers(artifacts) == []
    assert not (artifacts.root / "sha256").exists()


def test_many_writers_of_the_same_tree(artifacts: Artifacts, tmp_path: Path) -> None:
    source = tree(tmp_path / "one")
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(artifacts.put_tree(source))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    artifacts.verify(found[0])
    assert leftovers(artifacts) == []


def test_sweeping_deletes_only_what_is_old(artifacts: Artifacts) -> None:
    assert artifacts.sweep() == 0
    artifacts.put_bytes(b"x")
    for name in ("old", "new"):
        (artifacts.root / "incoming" / name).write_bytes(b"half")
    os.utime(artifacts.root / "incoming" / "old", (0, 0))
    assert artifacts.sweep() == 1
    assert [path.name for path in leftovers(artifacts)] == ["new"]
