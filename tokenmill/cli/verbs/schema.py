"""``tokenmill schema``: the JSON Schema of a factory file, for editors and for programs that write one."""

from __future__ import annotations

import sys

import typer

from tokenmill.cli.options import AsJson
from tokenmill.cli.output import examples
from tokenmill.spec.reference import schema_text

app = typer.Typer(add_completion=False)


@app.command(epilog=examples("tokenmill schema > factory.schema.json"))
def schema(as_json: AsJson = False) -> None:
    """Print the JSON Schema of factory.yaml. It is JSON with or without --json."""
    sys.stdout.write(schema_text().rstrip() + "\n")
