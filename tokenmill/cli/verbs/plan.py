"""``tokenmill plan``: what a factory file would change, and what the twin says would come of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.markup import escape

from tokenmill.cli.client import Client
from tokenmill.cli.options import AsJson, Directory, File, Place, locate
from tokenmill.cli.output import examples, print_json, stdout
from tokenmill.cli.plan_size import show_size
from tokenmill.control.plan import diff
from tokenmill.control.state import EMPTY
from tokenmill.domain.codec import from_plain, to_plain
from tokenmill.domain.factory import Factory
from tokenmill.spec.factory_file import load
from tokenmill.twin.forecast import Forecast
from tokenmill.twin.rehearse import rehearse_plain
from tokenmill.twin.report import to_text
from tokenmill.twin.size_question import question_of

app = typer.Typer(add_completion=False)

FORMAT = "tokenmill.plan/1"
SIGNS = {"add": "[green]+[/green]", "change": "[yellow]~[/yellow]", "remove": "[red]-[/red]"}


@app.command(
    epilog=examples(
        "tokenmill plan",
        "tokenmill plan -f bigger.yaml",
        "tokenmill plan --out plan.json",
        "tokenmill plan --size --model deepseek-r1 --precision fp4 --inputs 1000 --outputs 1000 "
        '--target "2M tok/s" --slo "ttft_p99<2s,tpot_p99<80ms"',
    )
)
def plan(
    directory: Directory = None,
    file: File = None,
    as_json: AsJson = False,
    out: Annotated[Path | None, typer.Option(help="Save the plan for tokenmill apply.")] = None,
    size: Annotated[bool, typer.Option("--size", help="Racks for a throughput, not for a file.")] = False,
    model: Annotated[str | None, typer.Option(help="With --size: a model of the catalogue.")] = None,
    precision: Annotated[str | None, typer.Option(help="With --size: bf16, fp8 or fp4.")] = None,
    inputs: Annotated[int | None, typer.Option(help="With --size: tokens of a prompt.")] = None,
    outputs: Annotated[int | None, typer.Option(help="With --size: tokens of an answer.")] = None,
    target: Annotated[str | None, typer.Option(help="With --size: output tokens, as 2M tok/s.")] = None,
    slo: Annotated[str | None, typer.Option(help="With --size: as ttft_p99<2s,tpot_p99<80ms.")] = None,
    rack: Annotated[list[str] | None, typer.Option(help="With --size: only this type; repeatable.")] = None,
    engine: Annotated[str, typer.Option(help="With --size: trtllm, vllm or sglang.")] = "trtllm",
    profile: Annotated[Path | None, typer.Option(help="With --size: what calibrate wrote.")] = None,
) -> None:
    """Show what a factory file would change, rehearsed on the twin; or size racks. Changes nothing."""
    if size or target is not None:
        question = question_of(model, precision, inputs, outputs, target, slo, engine)
        show_size(question, rack or [], profile, as_json=as_json)
        return
    place = locate(directory, file)
    made = make_plan(place, load([place.need_file()], os.environ))
    if out is not None:
        out.write_bytes(msgspec.json.format(msgspec.json.encode(made), indent=1))
    if as_json:
        print_json({name: value for name, value in made.items() if name != "factory"})
        return
    console = stdout()
    show_plan(console, made)
    if out is not None:
        console.print(f"Saved: tokenmill apply {out}")


def make_plan(place: Place, factory: Factory) -> dict[str, Any]:
    """The plan from the running controller, or against an empty factory when none runs."""
    plain = to_plain(factory)
    with Client(place) as client:
        if place.settings.url or client.running():
            shown = client.post("/api/plan", {"factory": plain}, timeout_s=300)
            return {"format": FORMAT, "running": True, **shown, "factory": plain}
    shown = to_plain(diff(EMPTY, factory))
    return {
        "format": FORMAT,
        "running": False,
        **shown,
        "forecast": rehearse_plain(EMPTY, factory),
        "factory": plain,
    }


def show_plan(console: Console, made: dict[str, Any]) -> None:
    if not made["running"]:
        console.print("[dim]The factory is not running: this is the plan from nothing.[/dim]")
    for change in made["changes"]:
        sign = SIGNS.get(change["kind"], change["kind"])
        detail = f" [dim]{escape(_flat(change['detail']))}[/dim]" if change["detail"] else ""
        console.print(f"{sign} {escape(change['what'])} [bold]{escape(change['name'])}[/bold]{detail}")
    if not made["changes"]:
        console.print("Nothing would change.")
    if made["forecast"]:
        console.print("\n[bold]Forecast of the twin[/bold]")
        console.print(escape(to_text(from_plain(made["forecast"], Forecast)).rstrip()))


def _flat(detail: Any) -> str:
    if isinstance(detail, list):
        return "; ".join(_flat(part) for part in detail)
    if isinstance(detail, dict):
        return "; ".join(f"{name} {_flat(value)}" for name, value in detail.items())
    return str(detail)
