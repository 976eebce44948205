"""A factory file with very many mistakes: the first are shown, the rest are counted."""

from pathlib import Path
from typing import Any

import pytest

from tokenmill.console.problems import body_of, error_of
from tokenmill.domain.errors import SpecError
from tokenmill.spec.factory_file import load

MISTAKES = 9_000


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    rows = "".join(f"- {{name: n{number}, cpu: 1, memory: 1 XB}}\n" for number in range(MISTAKES))
    path = tmp_path / "factory.yaml"
    path.write_text(f"kind: factory\nname: f\n---\nkind: site\nname: s\nnodes:\n{rows}")
    return path


def test_the_first_problems_are_shown_and_the_rest_counted(shell: Any, bad: Path) -> None:
    result = shell("plan", "-f", str(bad), code=3)
    lines = result.stderr.splitlines()
    assert lines[0] == f"✕ {MISTAKES} problem(s) in the factory file:"
    assert len(lines) == 22
    assert "factory.yaml:7:" in lines[1]
    assert lines[-1].strip() == f"and {MISTAKES - 20:,} more"


def test_json_keeps_a_hundred_and_says_how_many_there_are(shell: Any, bad: Path) -> None:
    error = shell.json("plan", "-f", str(bad), code=3)["error"]
    assert len(error["problems"]) == 100
    assert error["problem_count"] == MISTAKES


def test_a_client_reads_the_count_back(bad: Path) -> None:
    with pytest.raises(SpecError) as raised:
        load([bad], {})
    again = error_of(body_of(raised.value))
    assert isinstance(again, SpecError)
    assert str(again) == str(raised.value)
    assert str(again).endswith(f"and {MISTAKES - 100:,} more")
