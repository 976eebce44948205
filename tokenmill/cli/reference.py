"""Makes ``docs/cli.md`` from the commands themselves: ``python -m tokenmill.cli.reference docs/cli.md``.

A test holds the page to what this makes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenmill.cli.app import VERBS, load_verb
from tokenmill.domain import errors
from tokenmill.domain.errors import TokenmillError

HEAD = """# The command line

This page is made by `python -m tokenmill.cli.reference docs/cli.md` from the commands themselves.

`tokenmill VERB --help` says the same, with examples. What holds for every verb:

- `-C DIR` means the factory in another folder and `-f FILE` another factory file (`logs` takes only `-C`,
  because its `-f` follows). The data directory is `.tokenmill` beside the file, or `TOKENMILL_DATA_DIR`.
- `--json` prints one JSON document on stdout and nothing else; progress and errors go to stderr. An error is
  `{"error": {"kind", "message", "expected", "fix", "where", "reasons", "exit_code", "problems",
  "problem_count"}}`; of a factory file the first 100 problems at most, the first 20 as text.
- `-y` answers a question; where nobody can answer, it is needed.
- `NO_COLOR` is honoured. `TOKENMILL_LOG_LEVEL=debug` shows the traceback of an error.
- `TOKENMILL_URL` and `TOKENMILL_API_KEY` (an admin key) make the verbs talk to a factory elsewhere.
- Ctrl-C stops the watching, never the factory, says what goes on, and exits with 130.
- `tokenmill --install-completion` teaches your shell the verbs.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD, _exit_codes()]
    for verb in VERBS:
        parts += _sections(load_verb(verb), f"tokenmill {verb}", 2)
    return "\n".join(parts).rstrip() + "\n"


def _exit_codes() -> str:
    rows = ["## Exit codes", "", "| code | kind | meaning |", "|---:|---|---|", "| 0 | | done |"]
    seen: dict[int, list[str]] = {}
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, TokenmillError):
            seen.setdefault(kind.exit_code, []).append(kind.kind)
    for code, kinds in sorted(seen.items()):
        rows.append(f"| {code} | {', '.join(f'`{kind}`' for kind in kinds)} | {MEANINGS[code]} |")
    rows.append("| 130 | | interrupted; what the factory runs goes on |\n")
    return "\n".join(rows)


MEANINGS = {
    1: "something else failed",
    2: "the command line or a setting makes no sense",
    3: "a factory file is wrong; its problems are listed",
    4: "no such thing, or the factory is not running",
    5: "the world moved on: stale plan, name taken, already running with another file",
    6: "a policy said no, with its reasons",
    7: "an engine or trainer failed, or weights do not have their digest",
    8: "the store cannot be read or written",
    9: "an optional part is not installed",
    10: "a data file is broken",
    11: "a run or job ended in failure",
    12: "the gate rejected the candidate; what serves is unchanged",
    13: "disk, port, memory or time ran out",
}


def _sections(command: Any, name: str, depth: int) -> list[str]:
    """This command and those below it, one section each."""
    usage = " ".join([f"{name}", *_pieces(command)])
    parts = [f"{'#' * depth} {name}", "", command.help.strip(), "", f"    {usage}", ""]
    options = [_option(parameter) for parameter in command.params if parameter.name != "help"]
    if options:
        parts += ["| option | default | meaning |", "|---|---|---|", *options, ""]
    examples = [line.strip() for line in (command.epilog or "").splitlines() if line.strip()][1:]
    if examples:
        parts += ["```sh", *examples, "```", ""]
    for sub, inner in getattr(command, "commands", {}).items():
        parts += _sections(inner, f"{name} {sub}", depth + 1)
    return parts


def _pieces(command: Any) -> list[str]:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    shown = [_argument(p) for p in arguments]
    return ["[OPTIONS]", *shown, *(["[COMMAND]"] if getattr(command, "commands", None) else [])]


def _argument(parameter: Any) -> str:
    name = parameter.name.upper() + ("..." if parameter.nargs == -1 else "")
    return name if parameter.required else f"[{name}]"


def _option(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        names = f"`{parameter.name.upper()}`"
    else:
        names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    default = parameter.default
    shown = "" if default in (None, "", False, True) or callable(default) else f"`{default}`"
    return f"| {names} | {shown} | {parameter.help or ''} |"


def main(arguments: Sequence[str]) -> int:
    """Write the page to the file that is named."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m tokenmill.cli.reference docs/cli.md\n")
        return 2
    Path(arguments[0]).write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
