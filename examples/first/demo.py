"""The first example, from data to a billed answer: what ``make demo`` runs.

    python examples/first/demo.py [--keep] [--folder demo-factory] [--questions 20]

It makes a factory in its own folder, starts it, tunes a small model on invented service desk requests, asks
the base model and the tuned one the same held-out questions, and prints the production report. It uses
nothing but the ``tokenmill`` command and the unmodified ``openai`` package. At the end it stops the factory,
unless ``--keep`` is given.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
LINE, BASE_ALIAS, TUNED_ALIAS = "desk", "smol", "desk"
TENANT, PROJECT = "acme", "support"

out = Console(highlight=False)


@dataclass(frozen=True)
class Asked:
    """How one alias answered the held-out questions."""

    alias: str
    right: int
    n: int
    ttft_s: list[float]
    tokens: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


def main() -> int:
    """Run the whole example; returns the exit code."""
    options = _options()
    folder = options.folder.resolve()
    began = time.monotonic()
    try:
        return _demo(folder, options, began)
    except KeyboardInterrupt:
        out.print("\n[yellow]Interrupted.[/yellow]")
        return 130
    finally:
        if not options.keep and (folder / ".tokenmill").exists():
            tokenmill(folder, "down", show=False, check=False)
            out.print(
                f"The factory is stopped. Start it again: [bold]tokenmill up -C {options.folder}[/bold]"
            )


def _demo(folder: Path, options: argparse.Namespace, began: float) -> int:
    title("1. Data and a factory file")
    prepare(folder, options.rows)
    title("2. The factory starts")
    tokenmill(folder, "up", "--timeout", "600")
    status = tokenmill_json(folder, "status")
    title("3. A line: curate, tune, evaluate, gate, release")
    code = tokenmill(folder, "run", LINE, check=False)
    run = tokenmill_json(folder, "runs", "list", "--limit", "1")[0]
    run = tokenmill_json(folder, "runs", "show", run["id"])
    if code != 0:
        out.print(f"[red]The run ended {run['status']}[/red]: {run['reason']}")
        return code
    wait_for_traffic(folder, run["release"])
    title("4. The same questions for both, through the openai package")
    client = openai.OpenAI(
        base_url=f"{status['url']}/v1", api_key=make_key(folder), max_retries=2, timeout=120
    )
    rows = held_out(folder, run, options.questions)
    show_stream(client, rows[0])
    asked = [ask_all(client, alias, rows) for alias in (BASE_ALIAS, TUNED_ALIAS)]
    time.sleep(2)  # the last settlements reach the ledger
    report(folder, status, run, asked, time.monotonic() - began)
    if options.keep:
        out.print(f"It goes on running: {status['url']}  [dim](tokenmill down -C {options.folder})[/dim]")
    return 0


def prepare(folder: Path, rows: int) -> None:
    """Put the factory file and fresh data into the folder. State of an earlier demo stays and is reused."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(HERE / "factory.yaml", folder / "factory.yaml")
    data = folder / "data" / "tickets.jsonl"
    subprocess.run([sys.executable, HERE / "generate.py", "--rows", str(rows), "--out", data], check=True)


def tokenmill(folder: Path, *words: str, show: bool = True, check: bool = True) -> int:
    """Run the command as a person would, with its progress on this terminal."""
    if show:
        out.print(f"[dim]$ tokenmill {' '.join(words)}[/dim]")
    done = subprocess.run(
        [command(), *words, "-C", str(folder)], stdout=None if show else subprocess.DEVNULL, check=False
    )
    if check and done.returncode:
        sys.exit(done.returncode)
    return done.returncode


def tokenmill_json(folder: Path, *words: str) -> Any:
    done = subprocess.run(
        [command(), *words, "-C", str(folder), "--json"], stdout=subprocess.PIPE, check=False
    )
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout)


def command() -> str:
    """The ``tokenmill`` beside this Python, so that the demo works without an activated environment."""
    beside = Path(sys.executable).parent / "tokenmill"
    return str(beside) if beside.exists() else "tokenmill"


def make_key(folder: Path) -> str:
    made = tokenmill_json(folder, "keys", "create", "--tenant", TENANT, "--project", PROJECT)
    return str(made["secret"])


def wait_for_traffic(folder: Path, release: str) -> None:
    """The release's replicas start and traffic goes over to them."""
    with out.status("the release's replica is starting"):
        for _ in range(240):
            models = tokenmill_json(folder, "models")
            alias = next((a for a in models["aliases"] if a["name"] == TUNED_ALIAS), {"targets": []})
            if any(target["release"] == release for target in alias["targets"]):
                return
            time.sleep(0.5)
    sys.exit(f"{TUNED_ALIAS} does not point at {release} yet; see: tokenmill why {TUNED_ALIAS}")


def held_out(folder: Path, run: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Rows of the test split, which training never saw, as the curate station left them."""
    curate = next(s for s in run["stations"] if s["kind"] == "curate")
    digest = curate["outputs"]["test"].removeprefix("sha256:")
    data = Path(os.environ.get("TOKENMILL_DATA_DIR") or folder / ".tokenmill")
    path = data / "artifacts" / "sha256" / digest[:2] / digest
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return rows[:: max(1, len(rows) // count)][:count]


def question(row: dict[str, Any]) -> list[dict[str, str]]:
    return [message for message in row["messages"] if message["role"] != "assistant"]


def answer(row: dict[str, Any]) -> str:
    return str(row["messages"][-1]["content"])


def show_stream(client: openai.OpenAI, row: dict[str, Any]) -> None:
    """One answer of the tuned model as it comes."""
    out.print(f"[dim]request:[/dim] {question(row)[-1]['content']}")
    out.print("[dim]ticket:[/dim]  ", end="")
    stream = client.chat.completions.create(
        model=TUNED_ALIAS, messages=question(row), max_tokens=64, temperature=0, stream=True
    )
    for chunk in stream:
        if chunk.choices:
            out.print(chunk.choices[0].delta.content or "", end="", markup=False)
    out.print()


def ask_all(client: openai.OpenAI, alias: str, rows: list[dict[str, Any]]) -> Asked:
    """Ask every question once, one after another, and judge the answers as JSON objects."""
    right, tokens, first, began = 0, 0, [], time.perf_counter()
    with out.status(f"asking {alias}") as line:
        for i, row in enumerate(rows):
            line.update(f"asking {alias}: {i} of {len(rows)}, {right} right")
            text, ttft_s, count = ask(client, alias, row)
            right += same_ticket(text, answer(row))
            tokens += count
            first.append(ttft_s)
    return Asked(alias, right, len(rows), first, tokens, time.perf_counter() - began)


def ask(client: openai.OpenAI, alias: str, row: dict[str, Any]) -> tuple[str, float, int]:
    """Answer, seconds to its first token, and output tokens as the factory counted them."""
    text, ttft_s, count, began = "", 0.0, 0, time.perf_counter()
    stream = client.chat.completions.create(
        model=alias,
        messages=question(row),
        max_tokens=48,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            ttft_s = ttft_s or time.perf_counter() - began
            text += chunk.choices[0].delta.content
        if chunk.usage:
            count = chunk.usage.completion_tokens
    return text, ttft_s, count


def same_ticket(answer: str, wanted: str) -> bool:
    try:
        return bool(json.loads(answer) == json.loads(wanted))
    except ValueError:
        return False


def report(
    folder: Path, status: dict[str, Any], run: dict[str, Any], asked: list[Asked], seconds: float
) -> None:
    """The production report: what went in, what came out, what it took and who owes what."""
    title("Production report")
    stations = {station["kind"]: station for station in run["stations"]}
    data, kept = stations["intake"]["metrics"], stations["curate"]["metrics"]
    reasons = {**kept.get("dropped_by_reason", {}), "unreadable": data.get("quarantined", 0)}
    why = ", ".join(
        f"{n} {name.replace('_', ' ')}" for name, n in sorted(reasons.items(), key=lambda r: -r[1]) if n
    )
    out.print(f"Rows in: {data['rows_in']}. Kept: {kept['kept']}. Dropped: {why or 'none'}.\n")
    out.print(stations_table(run))
    verdict = run["verdict"]
    out.print(
        f"Gate on {verdict['n']} held-out questions: "
        f"{verdict['reference']} {verdict['reference_milli'] / 10:.1f} %, "
        f"tuned [bold]{verdict['candidate_milli'] / 10:.1f} %[/bold], difference "
        f"{verdict['difference_milli'] / 10:+.1f} points (95 % interval {verdict['low_milli'] / 10:+.1f} to "
        f"{verdict['high_milli'] / 10:+.1f}): [bold]{'passed' if verdict['passed'] else 'rejected'}[/bold]."
    )
    out.print(
        f"Release: [bold]{run['release']}[/bold], served as {', '.join(run['serving']) or TUNED_ALIAS}.\n"
    )
    out.print(asked_table(asked))
    out.print(usage_table(tokenmill_json(folder, "usage", "--by", "tenant,model")))
    out.print(f"Page: [bold]{status['url']}[/bold]. All of it took {seconds / 60:.1f} minutes.")


def stations_table(run: dict[str, Any]) -> Table:
    made = Table("Station", "Status", "Seconds", "Joules", title="What each station took")
    for station in run["stations"]:
        joules = station["usage"]["energy_mj"] / 1000
        made.add_row(
            station["name"],
            station["status"],
            f"{station['seconds']:.1f}",
            f"{joules:.0f}" if joules else "-",
        )
    sources = sorted({s["usage"]["energy_source"] for s in run["stations"]} - {""})
    made.caption = "Energy by " + "; ".join(sources) if sources else None
    return made


def asked_table(asked: list[Asked]) -> Table:
    made = Table(
        "Alias",
        "Right",
        "Of",
        "First token (median)",
        "Tokens/s, one client",
        title="Asked through the openai package",
    )
    for found in asked:
        median_s = sorted(found.ttft_s)[len(found.ttft_s) // 2]
        made.add_row(
            found.alias,
            str(found.right),
            str(found.n),
            f"{median_s * 1000:.0f} ms",
            f"{found.tokens_per_s:.1f}",
        )
    return made


def usage_table(rows: list[dict[str, Any]]) -> Table:
    made = Table(
        "Tenant",
        "Model",
        "Requests",
        "Tokens in",
        "Tokens out",
        "Joules",
        "Owes",
        title="What each tenant owes",
    )
    for row in rows:
        if row["tenant"] in ("", "factory"):
            continue  # engines that all share, and what they used while nobody asked
        owes = " + ".join(
            f"{micros / 1e6:.6f} {currency}" for currency, micros in sorted(row["micros"].items())
        )
        counts = (row["requests"], row["input_tokens"], row["output_tokens"], round(row["energy_mj"] / 1000))
        made.add_row(row["tenant"], row["model"], *map(str, counts), owes or "-")
    return made


def title(text: str) -> None:
    out.print()
    out.rule(f"[bold]{text}[/bold]", align="left")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Data in, released model out, asked and billed.")
    parser.add_argument("--folder", type=Path, default=Path("demo-factory"), help="where the factory lives")
    parser.add_argument("--rows", type=int, default=1200, help="rows of data to invent")
    parser.add_argument("--questions", type=int, default=20, help="held-out questions to ask each alias")
    parser.add_argument("--keep", action="store_true", help="leave the factory running at the end")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
