"""``tokenmill models``: weights, releases and aliases; ``verify`` reads every byte of them again."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import typer
from rich.markup import escape

from tokenmill.cli.client import connect
from tokenmill.cli.options import AsJson, Directory, File, locate
from tokenmill.cli.output import add_rows, examples, print_json, status_text, stdout, table
from tokenmill.console.text import clock, short_digest, size
from tokenmill.domain.codec import from_plain
from tokenmill.domain.errors import CorruptWeightsError, TokenmillError
from tokenmill.domain.work import Release
from tokenmill.floor.node import signatures_of
from tokenmill.store.artifacts import Artifacts

RECORD = tuple(item.name for item in fields(Release))

app = typer.Typer(
    add_completion=False,
    epilog=examples("tokenmill models", "tokenmill models verify", "tokenmill models list --json"),
)


@app.callback(invoke_without_command=True)
def models(
    ctx: typer.Context, directory: Directory = None, file: File = None, as_json: AsJson = False
) -> None:
    """List weights, releases and aliases, or verify them."""
    if ctx.invoked_subcommand is None:
        list_models(directory, file, as_json)


@app.command("list", epilog=examples("tokenmill models list"))
def list_models(directory: Directory = None, file: File = None, as_json: AsJson = False) -> None:
    """List what the factory can serve."""
    with connect(locate(directory, file)) as client:
        found = client.get("/api/models")
    if as_json:
        print_json(found)
        return
    console = stdout()
    weights = [
        (
            item["model"],
            status_text(item["status"]),
            escape(item["source"]),
            short_digest(item["digest"]),
            size(item["size_bytes"]) if item["size_bytes"] else "-",
            escape(item["error"]),
        )
        for item in found["imports"]
    ]
    made = table("Model", "Weights", "Source", "Digest", ">Size", "Error")
    console.print(add_rows(made, weights, "no model in the factory file"))
    releases = [
        (
            item["id"],
            item["model"],
            item["origin"],
            _verdict(item["verdict"]),
            clock(item["created_us"]),
            "recalled" if item["recalled"] else ", ".join(item["serving"]) or "-",
        )
        for item in found["releases"]
    ]
    made = table("Release", "Model", "From", "Gate", "Made", "Served as")
    console.print(add_rows(made, releases, "no release yet"))


@app.command("verify", epilog=examples("tokenmill models verify"))
def verify(directory: Directory = None, file: File = None, as_json: AsJson = False) -> None:
    """Read all weights and adapters again and compare them with their digests; check every signature."""
    place = locate(directory, file)
    with connect(place) as client:
        found = client.get("/api/models")
    digests = {item["digest"] for item in found["imports"]}
    for item in found["releases"]:
        digests |= {item["weights"], item["adapter"], item["digest"]}
    artifacts, rows = Artifacts(place.paths.artifacts), []
    for digest in sorted(digest for digest in digests if digest.startswith("sha256:")):
        try:
            artifacts.verify(digest)
            rows.append({"digest": digest, "ok": True, "error": ""})
        except TokenmillError as error:
            rows.append({"digest": digest, "ok": False, "error": str(error)})
    signatures = signatures_of(place.paths)
    for item in found["releases"]:
        if not item["weights"]:
            continue
        row = {"digest": f"signature of {item['id']}", "ok": True, "error": ""}
        try:
            signatures.verify(from_plain({name: item[name] for name in RECORD}, Release))
        except TokenmillError as error:
            row |= {"ok": False, "error": str(error)}
        rows.append(row)
    if as_json:
        print_json(rows)
    else:
        cells = [
            (row["digest"], status_text("done" if row["ok"] else "failed"), escape(str(row["error"])))
            for row in rows
        ]
        stdout().print(add_rows(table("Artifact", "Whole", "Error"), cells, "nothing to verify yet"))
    broken = [row for row in rows if not row["ok"]]
    if broken:
        raise CorruptWeightsError(
            f"{len(broken)} of {len(rows)} artifacts do not have the bytes that they should",
            fix="Delete them under the data directory's artifacts/ and start again: they are imported anew.",
        )


def _verdict(verdict: dict[str, Any] | None) -> str:
    return status_text("passed" if verdict["passed"] else "rejected") if verdict else "-"
