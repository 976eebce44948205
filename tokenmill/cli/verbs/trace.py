"""``tokenmill trace``: from an answer back to the release, the run and the rows that made it."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape

from tokenmill.cli.client import connect, segment
from tokenmill.cli.options import AsJson, Directory, File, locate
from tokenmill.cli.output import add_rows, examples, print_json, stdout, table
from tokenmill.console.text import clock, energy, percent, short_digest

app = typer.Typer(add_completion=False)


@app.command(
    epilog=examples(
        "tokenmill trace req-65a1b2c3d4e5f-0a1b2c3d000007",
        "tokenmill trace chatcmpl-Ab12 --rows 5",
        "tokenmill trace chatcmpl-Ab12 --json",
    )
)
def trace(
    answer: Annotated[
        str, typer.Argument(metavar="RESPONSE_ID", help="x-request-id, or the id in the body.")
    ],
    rows: Annotated[int, typer.Option(min=0, max=1000, help="List so many of the training rows.")] = 0,
    offset: Annotated[int, typer.Option(min=0, help="Begin the list after so many rows.")] = 0,
    directory: Directory = None,
    file: File = None,
    as_json: AsJson = False,
) -> None:
    """Show which release gave an answer, and the run, rows, code, settings and joules behind it."""
    with connect(locate(directory, file)) as client:
        found = client.get(f"/api/trace/{segment(answer)}", rows=rows, offset=offset)
    if as_json:
        print_json(found)
        return
    out = stdout()
    cells = [(name, escape(value)) for name, value in _facts(found) if value]
    out.print(add_rows(table("What", "Which"), cells, "nothing"))
    listed = found["data"].get("rows")
    if listed is not None:
        lines = [
            (str(row["n"]), str(row["line"]), short_digest("sha256:" + row["digest"]), _said(row))
            for row in listed
        ]
        out.print(add_rows(table(">Row", ">Line", "Digest", "Says"), lines, "no row from there on"))
    for text in found["missing"]:
        out.print(f"Not kept: {escape(text)}")


def _facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    answer, release, run = found["answer"], found["release"], found["run"]
    data, code, used = found["data"], found["code"], found["energy"]
    verdict = found["evaluation"]["verdict"]
    facts = [
        ("answer", f"{answer['request']} {answer['response']}".strip()),
        ("given", f"{clock(answer['at_us'])} as {answer['alias']}, {answer['outcome']}, {answer['status']}"),
        ("to", f"{answer['tenant']}/{answer['project']}, key {answer['key']}"),
        ("tokens", f"{answer['input_tokens']} in, {answer['output_tokens']} out"),
        ("energy", energy(used["answer_mj"]) if used["answer_mj"] else "none posted yet"),
        ("replica", answer["replica"]),
        ("feedback", answer["feedback"]),
    ]
    if release:
        gone = f", recalled: {release['recalled']['reason']}" if release["recalled"] else ""
        facts.append(
            ("release", f"{release['id']} of {release['model']}, {clock(release['created_us'])}{gone}")
        )
        facts += [(name, release[name]) for name in ("weights", "adapter", "digest")]
    if run:
        facts.append(
            ("run", f"{run['id']}" + (f" of {run['line']}, by {run['by'] or '-'}" if run["kept"] else ""))
        )
    if used["run_mj"]:
        facts.append(("run's energy", f"{energy(used['run_mj'])} ({used['run_source']})"))
    if data:
        source = data.get("source", {})
        facts.append(("source", f"{source.get('name', '')} {source.get('sha', '')}"))
        facts += [(f"data/{name}", digest) for name, digest in sorted(data.get("artifacts", {}).items())]
    if code:
        facts.append(("code", f"tokenmill {code.get('version', '')} {code.get('source', '')}"))
    facts += [(f"settings/{name}", _pairs(value)) for name, value in found["settings"].items()]
    if verdict:
        shares = f"{percent(verdict['candidate_milli'])} against {percent(verdict['reference_milli'])}"
        on = f"{verdict['n']} items ({verdict['metric']}), p = {verdict['p_value']:.3g}"
        facts.append(("evaluation", f"{shares} on {on}"))
    return facts


def _pairs(value: dict[str, Any]) -> str:
    return ", ".join(f"{name}={item}" for name, item in value.items()) or "as they are by default"


def _said(row: dict[str, Any]) -> str:
    said = " → ".join(str(m.get("content", "")) for m in row["messages"] if m.get("role") != "system")
    return escape(said if len(said) <= 100 else said[:99] + "…")
