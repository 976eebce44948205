"""The list of verbs, and what is common to all: help, version, errors, exit codes, Ctrl-C.

A verb's module is imported when it is called; the list below is enough for ``tokenmill --help``, so that it
answers at once.
"""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from tokenmill import __version__
from tokenmill.cli.output import report_error
from tokenmill.domain.errors import TokenmillError

INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Verb:
    summary: str
    panel: str


RUN, LOOK, MAKE, CHANGE, CARE = "Run", "Look", "Make models and work", "Change", "Care"

VERBS: dict[str, Verb] = {
    "init": Verb("Write a commented factory.yaml to start from.", RUN),
    "up": Verb("Start the factory of this folder and print its URL.", RUN),
    "down": Verb("Stop the factory and everything that it runs.", RUN),
    "chat": Verb("Talk to a model of the factory.", RUN),
    "status": Verb("Show the factory: health, models, lines, jobs.", LOOK),
    "top": Verb("Watch the factory live.", LOOK),
    "ps": Verb("List processes with CPU and memory.", LOOK),
    "logs": Verb("Show the log of the controller, the gateway, a replica, a job or a run.", LOOK),
    "events": Verb("Show what happened, from the journal.", LOOK),
    "why": Verb("Explain why something is as it is.", LOOK),
    "trace": Verb("Go from an answer back to the release, run and rows that made it.", LOOK),
    "usage": Verb("Show tokens, energy and money by tenant, project, key, model or day.", LOOK),
    "peers": Verb("Show peer factories, what they answered for us, and what they bill.", LOOK),
    "run": Verb("Run a line: data in, released model out.", MAKE),
    "runs": Verb("List, show, pause, resume or cancel runs.", MAKE),
    "rerun": Verb("Run a line again from one station on.", MAKE),
    "cancel": Verb("Stop a run or a job.", MAKE),
    "jobs": Verb("List, submit, show or cancel jobs.", MAKE),
    "models": Verb("List weights, releases and aliases, or verify them.", MAKE),
    "captures": Verb("List traffic that is kept for lines, or erase from it.", MAKE),
    "bench": Verb("Measure TTFT, TPOT and tokens per second through the gateway.", MAKE),
    "plan": Verb("Show what a factory file would change, rehearsed on the twin.", CHANGE),
    "calibrate": Verb("Fit the twin to measured serving rows, and say what it misses.", CHANGE),
    "catalogue": Verb("List accelerators, nodes, racks, switches and models that are known.", CHANGE),
    "fabric": Verb("Plan leaves, spines and cables, and what each failure leaves of them.", CHANGE),
    "apply": Verb("Apply a factory file or a saved plan.", CHANGE),
    "cordon": Verb("Take a node out of use, or into use again.", CHANGE),
    "rollback": Verb("Point an alias back at an earlier release.", CHANGE),
    "promote": Verb("Hold an alias, let it go on, or promote a release at once.", CHANGE),
    "recall": Verb("Take a release out of every alias for ever, and list whom it served.", CHANGE),
    "keys": Verb("List, create, disable or rotate API keys.", CHANGE),
    "doctor": Verb("Check this machine and the installation.", CARE),
    "store": Verb("Look at, migrate or copy the store.", CARE),
    "ledger": Verb("Verify the ledger against the gateways' spools.", CARE),
    "sim": Verb("Try to break the control core in seeded worlds with faults.", CARE),
    "schema": Verb("Print the JSON Schema of factory.yaml.", CARE),
}

EXIT_CODES = (
    "Exit codes: 0 done · 1 failed · 2 the command line or a setting is wrong · 3 the factory file is wrong "
    "· 4 not found, or not running · 5 the world moved on · 6 a policy refused · 7 an engine failed · "
    "8 the store failed · 9 an extra is not installed · 10 a data file is broken · 11 the run failed · "
    "12 the gate rejected · 13 disk, port or memory ran out · 130 interrupted"
)


class VerbGroup(TyperGroup):
    """Lists verbs without importing them, and turns every error of ours into words and an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A stand-in with the verb's summary; ``resolve_command`` gives the real one."""
        verb = VERBS.get(cmd_name)
        if verb is None:
            return None
        return TyperCommand(name=cmd_name, help=verb.summary, rich_help_panel=verb.panel)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, load_verb(name) if command is not None and name is not None else command, rest

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.obj = {"json": "--json" in args}
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except TokenmillError as error:
            if os.environ.get("TOKENMILL_LOG_LEVEL", "").lower() == "debug":
                raise
            report_error(error, as_json=bool(ctx.obj and ctx.obj["json"]))
            raise SystemExit(error.exit_code) from None
        except KeyboardInterrupt:
            sys.stderr.write("\nInterrupted. What the factory runs goes on: tokenmill status\n")
            raise SystemExit(INTERRUPTED) from None


def load_verb(name: str) -> Any:
    """Import the module of one verb and return its command."""
    module = importlib.import_module(f"tokenmill.cli.verbs.{name}")
    command: Any = typer.main.get_command(module.app)
    command.name = name
    if not command.help:
        command.help = VERBS[name].summary
    return command


def _version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"tokenmill {__version__}\n")
        raise typer.Exit


app = typer.Typer(
    name="tokenmill",
    cls=VerbGroup,
    help="The operating software of an AI factory: data goes in; tested models and metered tokens come out.",
    epilog=f"{EXIT_CODES}\n\nFirst steps: tokenmill init, tokenmill up, tokenmill chat. "
    "Every verb takes --json and has examples in its --help.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def tokenmill(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options before the verb."""
