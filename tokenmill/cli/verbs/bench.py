"""``tokenmill bench``: what a client sees: TTFT, TPOT and tokens per second, through the gateway.

Closed loop: ``--concurrency`` clients ask one question after another. Percentiles are of single requests.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from tokenmill.cli.inference import Answer, Target, chat_body, find_target, raise_refusal, take_line
from tokenmill.cli.options import AsJson, Directory, File, locate
from tokenmill.cli.output import end_with, examples, stderr, stdout, table
from tokenmill.console.text import number
from tokenmill.domain.errors import EngineError, TokenmillError, UsageError

app = typer.Typer(add_completion=False)

PROMPTS = (
    "Explain in two sentences why the sky is blue.",
    "Write a short note that thanks a colleague for her help.",
    "List three uses of copper and say why it fits each.",
    "What should one check before a long journey by car?",
)


@dataclass(slots=True)
class Bench:
    """What was measured so far."""

    answers: list[Answer] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0


@app.command(
    epilog=examples(
        "tokenmill bench --model smol", "tokenmill bench -m desk --concurrency 8 --requests 64 --json"
    )
)
def bench(
    model: Annotated[str, typer.Option("--model", "-m", help="Alias to ask.")],
    concurrency: Annotated[int, typer.Option(min=1, max=4096, help="Clients at once.")] = 4,
    requests: Annotated[int, typer.Option(min=1, max=1_000_000, help="Requests in all.")] = 16,
    max_tokens: Annotated[int, typer.Option(min=1, max=131072, help="Longest answer.")] = 64,
    prompts: Annotated[Path | None, typer.Option(help="Text file with one prompt per line.")] = None,
    warmup: Annotated[int, typer.Option(min=0, max=1000, help="Requests before measuring.")] = 1,
    directory: Directory = None,
    file: File = None,
    as_json: AsJson = False,
) -> None:
    """Measure TTFT, TPOT and tokens per second through the gateway."""
    target = find_target(locate(directory, file))
    texts = _prompts(prompts)
    stderr().print(f"[dim]{requests} requests to {model}, {concurrency} at once, at {target.url}[/dim]")
    asyncio.run(_measure(target, model, texts, warmup, 1, max_tokens))
    found = summary(asyncio.run(_measure(target, model, texts, requests, concurrency, max_tokens)))
    found |= {"model": model, "concurrency": concurrency, "max_tokens": max_tokens, "url": target.url}
    error = None
    if not found["requests"]:
        failed = f"all {found['errors']} requests failed: {found['first_error']}"
        error = EngineError(failed, fix="tokenmill status")
    end_with(found, error, as_json=as_json, show=lambda: _show(found))


async def _measure(
    target: Target, model: str, texts: Sequence[str], requests: int, concurrency: int, max_tokens: int
) -> Bench:
    made, left = Bench(), iter(range(requests))
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    started = time.perf_counter()
    async with httpx.AsyncClient(
        timeout=httpx.Timeout(600, connect=10), limits=limits, trust_env=False
    ) as http:

        async def client() -> None:
            for i in left:
                body = chat_body(model, [{"role": "user", "content": texts[i % len(texts)]}], max_tokens, 0.0)
                try:
                    made.answers.append(await _ask(http, target, body))
                except (TokenmillError, httpx.HTTPError) as error:
                    made.errors.append(str(error))

        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(client())
    made.seconds = time.perf_counter() - started
    return made


async def _ask(http: httpx.AsyncClient, target: Target, body: dict[str, Any]) -> Answer:
    answer, started = Answer(), time.perf_counter()
    headers = {"authorization": f"Bearer {target.key}"}
    async with http.stream("POST", f"{target.url}/v1/chat/completions", json=body, headers=headers) as found:
        if found.is_error:
            await found.aread()
            raise_refusal(found)
        async for line in found.aiter_lines():
            take_line(line, answer, time.perf_counter() - started)
    return answer


def summary(made: Bench) -> dict[str, Any]:
    """Rates over the whole measurement, and percentiles of TTFT, TPOT and whole answers in seconds."""
    output = sum(answer.output_tokens for answer in made.answers)
    return {
        "requests": len(made.answers),
        "errors": len(made.errors),
        "first_error": made.errors[0] if made.errors else "",
        "seconds": round(made.seconds, 3),
        "input_tokens": sum(answer.input_tokens for answer in made.answers),
        "output_tokens": output,
        "output_tokens_per_s": round(output / made.seconds, 2) if made.seconds else 0.0,
        "requests_per_s": round(len(made.answers) / made.seconds, 3) if made.seconds else 0.0,
        "ttft_s": percentiles([a.first_s for a in made.answers if a.first_s]),
        "tpot_s": percentiles([a.tpot_s for a in made.answers if a.tpot_s]),
        "answer_s": percentiles([a.last_s for a in made.answers if a.last_s]),
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Nearest-rank p50, p90 and p99; zeros when there is nothing."""
    ordered = sorted(values)
    if not ordered:
        return {"p50": 0.0, "p90": 0.0, "p99": 0.0}
    last = len(ordered) - 1
    return {f"p{p}": round(ordered[min(last, -(-p * len(ordered) // 100) - 1)], 5) for p in (50, 90, 99)}


def _prompts(path: Path | None) -> Sequence[str]:
    if path is None:
        return PROMPTS
    try:
        found = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    if not found:
        raise UsageError(f"{path} holds no prompt", expected="one prompt per line")
    return found


def _show(found: dict[str, Any]) -> None:
    console = stdout()
    console.print(
        f"[bold]{number(found['output_tokens_per_s'])}[/bold] output tokens/s, "
        f"{number(found['requests_per_s'])} requests/s, "
        f"{found['requests']} answered, {found['errors']} failed, in {number(found['seconds'])} s"
    )
    made = table("", ">p50", ">p90", ">p99")
    for name, label in (
        ("ttft_s", "TTFT: first token"), ("tpot_s", "TPOT: each token after it"), ("answer_s", "all of it"),
    ):  # fmt: skip
        made.add_row(label, *(f"{found[name][p] * 1000:,.1f} ms" for p in ("p50", "p90", "p99")))
    console.print(made)
    if found["first_error"]:
        console.print(f"[yellow]first failure:[/yellow] {found['first_error']}")
