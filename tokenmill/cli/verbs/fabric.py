"""``tokenmill fabric``: switches and cables that a factory's fabrics need, and what a failure leaves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from tokenmill.cli.options import AsJson, Directory, File, locate
from tokenmill.cli.output import add_rows, examples, print_json, stdout, table
from tokenmill.domain.codec import to_plain
from tokenmill.domain.errors import DataError
from tokenmill.spec.catalogue import catalogue
from tokenmill.spec.factory_file import load
from tokenmill.spec.files import unreadable
from tokenmill.twin.fabric_plan import FabricPlan, Loss, PublishedRow, check
from tokenmill.twin.fabric_site import SitePlan, read_published, site_plans

app = typer.Typer(add_completion=False)


@app.command(
    epilog=examples(
        "tokenmill fabric -f examples/taiwan/factory.yaml",
        "tokenmill fabric -f examples/taiwan/factory.yaml --spines 48",
        "tokenmill fabric --check examples/taiwan/published-fabrics.csv",
    )
)
def fabric(
    directory: Directory = None,
    file: File = None,
    spines: Annotated[
        int | None, typer.Option(help="Spines of the accelerators' fabric, not those that balance.", min=1)
    ] = None,
    check_file: Annotated[
        Path | None, typer.Option("--check", help="A published table (CSV): say which rows do not add up.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Plan leaves, spines and cables of a factory's fabrics, and what each single failure leaves.

    With --check exits with 10 when a row of the table does not add up.
    """
    if check_file is not None:
        _check(check_file, as_json=as_json)
        return
    place = locate(directory, file)
    plans = site_plans(load([place.need_file()], os.environ), spines)
    if as_json:
        print_json({"sites": [_plain(one) for one in plans]})
        return
    for one in plans:
        _show(stdout(), one)


def _plain(site: SitePlan) -> dict[str, Any]:
    plain: dict[str, Any] = to_plain(site)
    for made, one in zip(plain["fabrics"], site.fabrics, strict=True):
        made |= {"balanced": one.balanced, "usable": one.usable, "switch": one.switch.id}
    return plain


def _show(console: Console, site: SitePlan) -> None:
    console.print(
        f"[bold]{escape(site.site)}[/bold]: {site.nodes:,} nodes, {site.accelerators:,} accelerators\n"
    )
    columns = (">leaves", ">spines", ">links", ">node cables", ">spine cables", "balance")
    made = table("fabric", "switch", *columns)
    console.print(add_rows(made, [_row(one) for one in site.fabrics], "no fabric of switches"))
    for one in site.fabrics:
        if one.spines and one.spines_by_ports != one.spines:
            console.print(f"  {escape(one.name)}: {_why(one)}")
    for domain in site.nvlink:
        console.print(
            f"  {escape(domain.name)}: {domain.domains} domains of {domain.accelerators} accelerators, "
            f"{domain.switch_trays} switch trays each"
        )
    for reason in site.left_out:
        console.print(f"  [dim]{escape(reason)}[/dim]")
    console.print("\n[bold]Left after one failure[/bold]")
    losses = table("fabric", "what fails", ">of", ">adapters hit", ">an adapter", ">its node", ">the fabric")
    rows = [(one.name, *_loss(loss)) for one in site.fabrics for loss in one.losses]
    rows += [(one.name, *_loss(loss)) for one in site.nvlink for loss in one.losses]
    console.print(add_rows(losses, rows, "nothing"))


def _row(one: FabricPlan) -> tuple[str, ...]:
    low, high = one.links
    links = f"{low}" if one.balanced else f"{low} to {high}"
    balance = "even" if one.balanced else f"[yellow]uneven: {one.usable:.0%} usable[/yellow]"
    planes = f" x {one.ends.planes} planes" if one.ends.planes > 1 else ""
    counts = (f"{n:,}" for n in (one.leaves, one.spines))
    cables = (f"{n:,}" for n in (one.node_cables, one.spine_cables))
    return (escape(one.name), escape(one.switch.name) + planes, *counts, links, *cables, balance)


def _why(one: FabricPlan) -> str:
    if one.balanced:
        return (
            f"{one.spines_by_ports} spines have ports enough; {one.spines} spread the {one.uplinks} uplinks "
            "of a leaf evenly"
        )
    return f"the {one.uplinks} uplinks of a leaf do not spread evenly over {one.spines} spines"


def _loss(loss: Loss) -> tuple[str, ...]:
    shares = (loss.adapter_left, loss.node_left, loss.fabric_left)
    return (loss.what, f"{loss.count:,}", f"{loss.adapters:,}", *(_percent(share) for share in shares))


def _percent(share: float) -> str:
    """Never 100 % for what is less."""
    return "100%" if share == 1 else f"{min(share * 100, 99.99):.4g}%"


def _check(file: Path, *, as_json: bool) -> None:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {unreadable(error)}", expected="a CSV file") from None
    rows = read_published(lines, str(file))
    found = [(row, check(row, catalogue().switches)) for row in rows]
    wrong = sum(bool(said) for _, said in found)
    if as_json:
        print_json({"rows": [{**to_plain(row), "problems": list(said)} for row, said in found]})
    else:
        _show_checked(stdout(), found)
        stdout().print(f"{wrong} of {len(found)} rows do not add up." if wrong else "Every row adds up.")
    if wrong:
        raise typer.Exit(DataError.exit_code)


def _show_checked(console: Console, found: list[tuple[PublishedRow, tuple[str, ...]]]) -> None:
    made = table("row", ">accelerators", ">leaves", ">spines", "what does not add up")
    rows = [
        (
            escape(row.name), f"{row.accelerators:,}", row.leaves, row.spines,
            f"[red]{escape('; '.join(said))}[/red] [dim]({escape(row.where)})[/dim]" if said else "-",
        )
        for row, said in found
    ]  # fmt: skip
    console.print(add_rows(made, rows, "no rows"))
