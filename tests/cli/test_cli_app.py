"""What all verbs share: help with examples, JSON, errors with exit codes, and a quick start."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer

from tokenmill import __version__
from tokenmill.cli import app as cli
from tokenmill.cli.output import when_interrupted
from tokenmill.domain import errors

GROUPS = ("keys", "models", "runs", "jobs", "store", "ledger")


def commands(command: Any, name: str) -> list[tuple[str, Any]]:
    """A command and its subcommands with their full names."""
    found = [(name, command)]
    for sub, inner in getattr(command, "commands", {}).items():
        found += commands(inner, f"{name} {sub}")
    return found


def every_command() -> list[tuple[str, Any]]:
    return [pair for verb in cli.VERBS for pair in commands(cli.load_verb(verb), verb)]


def test_version(shell: Any) -> None:
    assert shell("--version").stdout == f"tokenmill {__version__}\n"


def test_help_lists_every_verb_and_exit_code(shell: Any) -> None:
    text = " ".join(shell("--help").stdout.split())
    for verb in cli.VERBS:
        assert f" {verb} " in text
    codes = {
        kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and hasattr(kind, "exit_code")
    }
    for code in codes | {0, 130}:
        assert f" {code} " in cli.EXIT_CODES


@pytest.mark.parametrize(("name", "command"), every_command(), ids=[name for name, _ in every_command()])
def test_every_command_has_help_examples_and_json(name: str, command: Any) -> None:
    assert command.help
    assert "Examples:" in (command.epilog or "") or name in GROUPS
    for line in (command.epilog or "").splitlines():
        words = line.split()
        if words[:1] == ["tokenmill"]:
            assert line.strip().startswith(f"tokenmill {name}") or name.split()[0] in words, line
    options = {option for parameter in command.params for option in parameter.opts}
    if name not in ("store", "ledger"):
        assert "--json" in options


def test_summaries_are_those_of_the_modules() -> None:
    for verb in cli.VERBS:
        module = importlib.import_module(f"tokenmill.cli.verbs.{verb}")
        assert isinstance(module.app, typer.Typer)
        assert (module.__doc__ or "").startswith(f"``tokenmill {verb}")
    listed = {path.stem for path in Path(cli.__file__).parent.joinpath("verbs").glob("*.py")} - {"__init__"}
    assert listed == set(cli.VERBS)


def test_help_imports_no_verb_and_is_quick() -> None:
    code = (
        "import sys\nfrom tokenmill.cli import main\n"
        "try:\n main(['--help'])\nexcept SystemExit:\n pass\n"
        "heavy = ('tokenmill.cli.verbs', 'httpx', 'sqlalchemy', 'starlette')\n"
        "bad = [m for m in sys.modules if m.startswith(heavy)]\n"
        "assert not bad, bad\n"
    )
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60)
    assert time.perf_counter() - began < 10  # 0.3 s on an idle machine; a verb's imports would show above


def test_an_unknown_verb_or_option_is_a_usage_error(shell: Any) -> None:
    assert "No such command" in shell("nope", code=2).stderr
    assert "--nope" in shell("status", "--nope", code=2).stderr


def test_an_error_says_what_where_expected_and_fix(shell: Any) -> None:
    found = shell("status", code=4)
    assert found.stdout == ""
    assert "is not running" in found.stderr
    assert "fix: tokenmill up" in found.stderr
    assert "Traceback" not in found.stderr


def test_an_error_is_json_too(shell: Any) -> None:
    error = shell.json("status", code=4)["error"]
    assert error["kind"] == "not_found"
    assert error["exit_code"] == 4


def test_debug_shows_the_traceback(shell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENMILL_LOG_LEVEL", "debug")
    with pytest.raises(errors.NotFoundError):
        shell("status")


def test_an_unknown_setting_is_refused(shell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENMILL_PROT", "1")
    assert "TOKENMILL_PORT" in shell("status", code=2).stderr


def test_ctrl_c_before_there_is_a_verb_ends_at_once() -> None:
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # what runs the tests may ignore it
        "class Interrupted:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "from tokenmill.cli import main\n"
        "main(['--version'])\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, b"", b"")


def test_ctrl_c_says_what_goes_on(
    shell: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tokenmill.cli.verbs.doctor.all_checks", interrupted)
    assert "goes on" in shell("doctor", code=130).stderr
    with pytest.raises(SystemExit) as ended, when_interrupted("run-000001 goes on."):
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert "run-000001 goes on." in capsys.readouterr().err


def test_completion_knows_the_verbs(shell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Typer asks which shell started it, and make starts a plain one, for which there is no completion.
    monkeypatch.setattr("shellingham.detect_shell", lambda *_: ("bash", "/bin/bash"))
    assert "complete" in shell("--show-completion", "bash").stdout.lower()


def test_no_color_is_honoured(shell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[3" not in shell("doctor").stdout.replace("\x1b[3m", "")
