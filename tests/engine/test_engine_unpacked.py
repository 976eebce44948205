"""A GGUF model kept as a directory, and the program that starts when it is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MODULE = (sys.executable, "-m", "tokenmill.engine.unpacked")


@pytest.mark.model
def test_what_is_there_is_not_made_again_and_the_program_takes_over(chat_gguf: Path, tunable: Path) -> None:
    before = (tunable / "config.json").stat().st_mtime_ns
    program = (sys.executable, "-c", "import os; print(os.getpid())")
    with subprocess.Popen(
        (*MODULE, str(chat_gguf), str(tunable), "--", *program), stdout=subprocess.PIPE
    ) as it:
        assert it.stdout is not None
        assert int(it.stdout.read()) == it.pid, "the engine is the process that the floor started"
    assert it.returncode == 0
    assert (tunable / "config.json").stat().st_mtime_ns == before


def test_a_broken_file_is_said_and_nothing_starts(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "w").write_bytes(b"GGUF but no more")
    ended = subprocess.run(
        (*MODULE, str(tmp_path / "w"), str(tmp_path / "place"), "--", "echo", "started"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode != 0
    assert "cannot be opened" in ended.stderr
    assert ended.stdout == ""
    assert not (tmp_path / "place").exists()
