"""``tokenmill plan``: what a factory file would change, and what the twin says would come of it."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.markup import escape

from tokenmill.cli.client import Client
from tokenmill.cli.options import AsJson, Directory, File, Place, locate, need_file_place
from tokenmill.cli.output import examples, print_json, stdout
from tokenmill.cli.plan_size import show_size
from tokenmill.control.plan import diff
from tokenmill.control.state import EMPTY
from tokenmill.domain.catalogue import NO_TYPES
from tokenmill.domain.codec import digest_of, from_plain, to_plain
from tokenmill.domain.errors import MissingExtraError, UsageError
from tokenmill.domain.factory import Factory
from tokenmill.spec.factory_file import load, load_types
from tokenmill.spec.files import write_atomically
from tokenmill.twin.forecast import Forecast
from tokenmill.twin.profiles import read_profile
from tokenmill.twin.rehearse import rehearse_plain
from tokenmill.twin.report import to_text
from tokenmill.twin.size_question import question_of, racks_of

app = typer.Typer(add_completion=False)

FORMAT = "tokenmill.plan/1"
OF_SIZE = ("model", "precision", "inputs", "outputs", "target", "rack", "engine", "tuned")
OF_TRAFFIC = ("report", "sweep", "seed", "deployment", "duration")
SIGNS = {"add": "[green]+[/green]", "change": "[yellow]~[/yellow]", "remove": "[red]-[/red]"}


@app.command(
    epilog=examples(
        "tokenmill plan",
        "tokenmill plan -f bigger.yaml",
        "tokenmill plan --out plan.json",
        "tokenmill plan --size --model deepseek-r1 --precision fp4 --inputs 1000 --outputs 1000 "
        '--target "2M tok/s" --slo "ttft_p99<2s,tpot_p99<80ms"',
        "tokenmill plan examples/taiwan/factory.yaml --traffic examples/taiwan/day.yaml --report day.html",
        "tokenmill plan factory.yaml --traffic trace.csv.gz --slo 'ttft_p99<2s,tpot_p99<80ms'",
        "tokenmill plan factory.yaml --traffic day.yaml --sweep deployment.chat.slots=16,32,64",
    )
)
def plan(
    context: typer.Context,
    factory: Annotated[Path | None, typer.Argument(help="Factory file, as -f.", show_default=False)] = None,
    directory: Directory = None,
    file: File = None,
    as_json: AsJson = False,
    out: Annotated[
        Path | None, typer.Option(help="Save the plan for tokenmill apply, or the points of a sweep.")
    ] = None,
    traffic: Annotated[
        Path | None, typer.Option(help="Rehearse the factory under this traffic file or trace.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write the rehearsal as one HTML page.")] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="FIELD=a,b,c: rehearse each value; given again, each pair.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of traffic, faults and jobs.", min=0)] = 1,
    deployment: Annotated[str | None, typer.Option(help="Of a trace: to which deployment it goes.")] = None,
    duration: Annotated[
        str | None, typer.Option(help="How much of the traffic, for example 1h; a trace repeats.")
    ] = None,
    slo: Annotated[
        str | None, typer.Option(help="Of a trace or a size: what is good, ttft_p99<2s,tpot_p99<80ms.")
    ] = None,
    size: Annotated[bool, typer.Option("--size", help="Racks for a throughput, not for a file.")] = False,
    model: Annotated[str | None, typer.Option(help="With --size: a model of the catalogue.")] = None,
    precision: Annotated[str | None, typer.Option(help="With --size: bf16, fp8 or fp4.")] = None,
    inputs: Annotated[int | None, typer.Option(help="With --size: tokens of a prompt.")] = None,
    outputs: Annotated[int | None, typer.Option(help="With --size: tokens of an answer.")] = None,
    target: Annotated[str | None, typer.Option(help="With --size: output tokens, as 2M tok/s.")] = None,
    rack: Annotated[list[str] | None, typer.Option(help="With --size: only this type; repeatable.")] = None,
    engine: Annotated[str, typer.Option(help="With --size: trtllm, vllm or sglang.")] = "trtllm",
    tuned: Annotated[bool, typer.Option("--tuned", help="With --size: engines tuned as for MLPerf.")] = False,
    profile: Annotated[Path | None, typer.Option(help="What calibrate wrote, for forecasts of it.")] = None,
) -> None:
    """Show what a factory file would change, rehearsed on the twin. Changes nothing.

    With --traffic the whole factory is rehearsed under it; with --size racks are sized for a throughput.
    """
    sizes = size or target is not None
    _refuse_unused(context, sizes=sizes, traffic=traffic is not None, sweep=bool(sweep))
    stated = factory or file
    stated = factory or file
    if sizes:
        own = load_types([stated], os.environ) if stated is not None else NO_TYPES
        question = question_of(model, precision, inputs, outputs, target, slo, engine, own)
        show_size(question, racks_of(rack or [], engine, own), profile, tuned=tuned, as_json=as_json)
        return
    place = locate(directory, stated)
    if traffic is None:
        _plan_change(place, out, profile, as_json=as_json)
        return
    planning = _with_twin("planning")
    asked = planning.Asked(place.need_file(), traffic, seed, slo, deployment, duration, profile)
    if sweep:
        kept = out or Path(f"{traffic.stem}.sweep.jsonl")
        _with_twin("sweeping").plan_sweep(asked, sweep, kept, as_json=as_json)
    else:
        planning.plan_traffic(asked, report, as_json=as_json)


def _refuse_unused(context: typer.Context, *, sizes: bool, traffic: bool, sweep: bool) -> None:
    """What is asked for and would not be done is refused before anything is, not passed over."""
    if context.params["factory"] is not None and context.params["file"] is not None:
        raise UsageError("the factory file is given twice", expected="FACTORY or -f FILE")
    need_file_place("--out", context.params["out"], "plan.json")
    need_file_place("--report", context.params["report"], "day.html")
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]

    def refuse(names: tuple[str, ...], what: str, fix: str) -> None:
        for name in given:
            if name in names:
                raise UsageError(what.format(f"--{name}"), fix=fix)

    if sizes:
        unused = ("traffic", "out", *OF_TRAFFIC)
        refuse(unused, "--size answers without {}", "Leave it out; --json prints what a program can keep.")
        return
    refuse(OF_SIZE, "{} needs --size", "Add --size, or leave it out.")
    if not traffic:
        refuse((*OF_TRAFFIC, "slo"), "{} needs --traffic", "Add --traffic FILE: a traffic file or a trace.")
    elif sweep:
        refuse(("report",), "a sweep writes no {}", "Leave it out, or rehearse one point without --sweep.")
    else:
        refuse(
            ("out",),
            "a forecast has no {}: it keeps the points of a sweep",
            "--report FILE, or --json > FILE.",
        )


def _with_twin(module: str) -> Any:
    """A part of the command line that needs the twin's arrays, loaded when it is asked for."""
    try:
        return importlib.import_module(f"tokenmill.cli.{module}")
    except ModuleNotFoundError as error:
        if error.name not in ("numpy", "numba"):
            raise
        raise MissingExtraError("a rehearsal needs NumPy", fix="pip install 'tokenmill[twin]'") from error


def _plan_change(place: Place, out: Path | None, fitted: Path | None, *, as_json: bool) -> None:
    made = make_plan(place, load([place.need_file()], os.environ), fitted)
    if out is not None:
        save_plan(out, made)
    if as_json:
        print_json({name: value for name, value in made.items() if name != "factory"})
        return
    console = stdout()
    show_plan(console, made)
    if out is not None:
        console.print(f"Saved: tokenmill apply {out}")


def save_plan(path: Path, made: dict[str, Any]) -> None:
    """Write a plan with a digest of all that it says, so that ``apply`` sees what was changed by hand."""
    read_back = msgspec.json.decode(msgspec.json.encode(made))
    sealed = {**made, "seal": seal_of(read_back)}
    write_atomically(path, msgspec.json.format(msgspec.json.encode(sealed), indent=1))


def seal_of(made: dict[str, Any]) -> str:
    """The digest of a plan as it is read from its file, without the seal itself."""
    return digest_of({name: value for name, value in made.items() if name != "seal"})


def make_plan(place: Place, factory: Factory, fitted: Path | None = None) -> dict[str, Any]:
    """The plan from the running controller, or against an empty factory when none runs."""
    plain, known = to_plain(factory), read_profile(fitted)
    with Client(place) as client:
        if place.settings.url or client.running():
            body = {"factory": plain} | ({"profile": to_plain(known)} if fitted else {})
            shown = client.post("/api/plan", body, timeout_s=300)
            return {"format": FORMAT, "running": True, **shown, "factory": plain}
    shown = to_plain(diff(EMPTY, factory))
    return {
        "format": FORMAT,
        "running": False,
        **shown,
        "forecast": rehearse_plain(EMPTY, factory, known),
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
