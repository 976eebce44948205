"""``tokenmill chat``: one question, or a conversation, with the answer as it is made."""

from __future__ import annotations

import sys
from typing import Annotated

import httpx
import typer

from tokenmill.cli.client import connect
from tokenmill.cli.inference import Answer, Target, chat_body, find_target, stream_chat
from tokenmill.cli.options import AsJson, Directory, File, Place, locate
from tokenmill.cli.output import examples, print_json, stderr
from tokenmill.console.text import number
from tokenmill.domain.errors import NotFoundError, UsageError

app = typer.Typer(add_completion=False)

KEPT_MESSAGES = 40


@app.command(
    epilog=examples(
        'tokenmill chat "Why is the sky blue?"',
        'tokenmill chat "My screen is cracked" --model desk --max-tokens 48 --temperature 0',
        "tokenmill chat --model smol",
    )
)
def chat(
    question: Annotated[
        str, typer.Argument(help="What to ask. Without it: a conversation.", show_default=False)
    ] = "",
    model: Annotated[
        str, typer.Option("--model", "-m", help="Alias. Default: the first that can chat.")
    ] = "",
    system: Annotated[str, typer.Option(help="System message.")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, max=131072, help="Longest answer.")] = 256,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="0 is always the likeliest token.")
    ] = None,
    tenant: Annotated[str, typer.Option(help="Who asks, when no key is set.")] = "",
    project: Annotated[str, typer.Option(help="For which project.")] = "",
    directory: Directory = None,
    file: File = None,
    as_json: AsJson = False,
) -> None:
    """Talk to a model of the factory. Uses TOKENMILL_API_KEY, or a key of its own for this factory."""
    place = locate(directory, file)
    target = find_target(place, tenant=tenant, project=project)
    model = model or _first_alias(place)
    messages = [{"role": "system", "content": system}] if system else []
    with httpx.Client(timeout=httpx.Timeout(600, connect=10), trust_env=bool(place.settings.url)) as http:
        talk = _Talk(http, target, model, messages, max_tokens, temperature)
        if question:
            _ask_once(talk, question, as_json)
            return
        if as_json or not sys.stdin.isatty():
            raise UsageError("there is no question", expected="a question, or a terminal to talk at")
        _converse(talk)


class _Talk:
    """A conversation with one model."""

    def __init__(
        self,
        http: httpx.Client,
        target: Target,
        model: str,
        messages: list[dict[str, str]],
        max_tokens: int,
        temperature: float | None,
    ) -> None:
        self.http, self.target, self.model = http, target, model
        self.messages, self.max_tokens, self.temperature = messages, max_tokens, temperature

    def ask(self, question: str, *, show: bool) -> Answer:
        self.messages = [*self.messages[-KEPT_MESSAGES:], {"role": "user", "content": question}]
        body = chat_body(self.model, self.messages, self.max_tokens, self.temperature)
        answer = Answer()
        for piece in stream_chat(self.http, self.target, body, answer):
            if show:
                sys.stdout.write(piece)
                sys.stdout.flush()
        if show:
            sys.stdout.write("\n")
        self.messages.append({"role": "assistant", "content": answer.text})
        return answer


def _ask_once(talk: _Talk, question: str, as_json: bool) -> None:
    answer = talk.ask(question, show=not as_json)
    if as_json:
        print_json(
            {
                "model": talk.model,
                "text": answer.text,
                "input_tokens": answer.input_tokens,
                "output_tokens": answer.output_tokens,
                "ttft_s": round(answer.first_s, 4),
                "tpot_s": round(answer.tpot_s, 5),
                "seconds": round(answer.last_s, 4),
            }
        )
    elif sys.stdout.isatty():
        stderr().print(f"[dim]{_figures(answer)}[/dim]")


def _converse(talk: _Talk) -> None:
    console = stderr()
    console.print(f"[dim]{talk.model}; an empty line or Ctrl-D ends the conversation.[/dim]")
    while True:
        try:
            question = input("> ").strip()
            if not question:
                return
            answer = talk.ask(question, show=True)
        except EOFError:
            return
        except KeyboardInterrupt:
            console.print("\n[dim]Stopped.[/dim]")
            continue
        console.print(f"[dim]{_figures(answer)}[/dim]")


def _figures(answer: Answer) -> str:
    rate = 1 / answer.tpot_s if answer.tpot_s else 0.0
    return (
        f"{answer.input_tokens} tokens in, {answer.output_tokens} out, "
        f"first after {answer.first_s * 1000:.0f} ms, "
        f"{number(rate)} tokens/s"
    )


def _first_alias(place: Place) -> str:
    with connect(place) as client:
        found = [one for one in client.get("/api/status")["deployments"] if one["kind"] == "chat"]
    for deployment in sorted(found, key=lambda one: bool(one["asleep"])):  # one that sleeps is woken by it
        if deployment["ready_replicas"] or deployment["asleep"]:
            return str(deployment["name"])
    raise NotFoundError("no model that can chat is ready", fix="tokenmill status")
