"""Makes the data of the first example: service desk requests and the tickets they should become.

    python examples/first/generate.py --rows 1200 --seed 7 --out examples/first/data/tickets.jsonl

The same seed gives the same bytes on every machine. Some rows are broken on purpose, so that the intake
and curate stations have something to find. All names and requests are invented.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

SYSTEM = "Turn the request into a ticket."

# A family is one way of saying a problem. Its rows stay together in one split, so the held-out rows are
# worded in ways that training never saw.
FAMILIES: dict[str, tuple[str, ...]] = {
    "access": (
        "I can't log in to {p}",
        "my password for {p} has expired",
        "{p} says my account is locked",
        "please give me access to {p}",
        "{p} keeps rejecting my password",
        "I need permission to open {p}",
        "could you reset my {p} password",
        "{p} login fails since I changed my password",
        "the new colleague has no account for {p}",
        "{p} tells me access denied",
        "I forgot my password for {p}",
        "my user was removed from {p}",
        "I am locked out of {p}",
        "please unlock my {p} account",
        "{p} does not accept my credentials",
        "no rights to see anything in {p}",
        "my login to {p} is blocked",
        "{p} asks for a code that I never get",
        "my access to {p} ran out yesterday",
        "{p} does not know my user name",
        "please let my colleague into {p}",
        "sign in to {p} is refused",
    ),
    "hardware": (
        "the screen of my {p} is cracked",
        "my {p} does not turn on any more",
        "{p} makes a loud noise and smells burnt",
        "the {p} fell on the floor and is broken",
        "a key is missing on the {p}",
        "the {p} gets very hot",
        "the power button of the {p} is stuck",
        "my {p} is dead, no light at all",
        "coffee was spilled over the {p}",
        "the cable of the {p} is torn",
        "the battery of the {p} is swollen",
        "the {p} flickers and then goes black",
        "a part of the {p} broke off",
        "the {p} is physically damaged",
        "the fan of the {p} rattles",
        "the plug of the {p} is bent",
        "the {p} has a crack in the case",
        "a button fell off my {p}",
        "the {p} got wet and is broken",
        "the {p} only beeps and stays dark",
        "the hinge of the {p} snapped",
        "smoke came out of the {p}",
    ),
    "software": (
        "{p} crashes when I save a file",
        "{p} freezes after the last update",
        "{p} shows error 0x80 when starting",
        "{p} is very slow since the update",
        "the export in {p} gives an empty file",
        "{p} closes by itself",
        "please install the update for {p}",
        "{p} hangs while loading the report",
        "the search in {p} finds nothing",
        "{p} displays the wrong numbers",
        "the new version of {p} has a bug",
        "{p} stops responding all the time",
        "{p} quits with an error message",
        "I get an exception in {p}",
        "printing from {p} produces garbage",
        "the menu in {p} is gone after the upgrade",
        "{p} loses my changes when I close it",
        "a window in {p} stays empty",
        "{p} cannot open an old file",
        "after the patch {p} will not start",
        "{p} shows the same record twice",
        "sorting in {p} does not work",
    ),
    "network": (
        "no connection to {p}",
        "{p} drops every few minutes",
        "I cannot connect to {p}",
        "{p} is offline for the whole floor",
        "the signal of {p} is very weak",
        "{p} times out when I connect",
        "{p} disconnects all the time",
        "we lost {p} in the meeting room",
        "the connection over {p} is unstable",
        "{p} is not reachable from here",
        "{p} has been down since this morning",
        "there is no internet through {p}",
        "{p} does not reach my desk",
        "downloads over {p} crawl",
        "the link to {p} breaks again and again",
        "packets get lost on {p}",
        "I get kicked out of {p} during calls",
        "{p} fails as soon as I leave my desk",
        "nobody on our floor has {p}",
        "the speed of {p} is terrible",
        "{p} connects and then goes offline",
        "no route through {p}",
    ),
    "order": (
        "I would like to order a new {p}",
        "we need one more {p} for a colleague",
        "please send me a {p}",
        "can I get a second {p}",
        "our team wants to buy a {p}",
        "a new starter needs a {p} next week",
        "how do I request a {p}",
        "please replace my old {p} with a new one",
        "I want to purchase a {p}",
        "could you procure a {p} for me",
        "is there a spare {p} I could have",
        "please add a {p} to my order",
        "requesting a {p} for home office",
        "we are short of a {p}",
        "may I have a bigger {p}",
        "I was promised a {p}, please order it",
        "I have no {p} yet and need one",
        "can we get two of the {p} for the lab",
        "please ship a {p} to me",
        "my intern needs a {p}",
        "what does a {p} cost, I want one",
        "please buy me another {p}",
    ),
}
PRODUCTS: dict[str, tuple[tuple[str, ...], ...]] = {  # first the name on the ticket, then other words for it
    "access": (
        ("email", "outlook", "my mailbox"),
        ("crm", "the customer database"),
        ("payroll", "the salary system"),
    ),
    "hardware": (("laptop", "notebook"), ("monitor", "display"), ("printer",), ("phone", "mobile")),
    "software": (
        ("email", "outlook"),
        ("crm", "the customer database"),
        ("payroll",),
        ("browser", "the web browser"),
    ),
    "network": (("vpn", "the tunnel"), ("wifi", "the wireless"), ("lan", "the wired network")),
    "order": (("laptop", "notebook"), ("monitor", "display"), ("phone", "mobile"), ("headset",)),
}
SITES = ("Lyon", "Oslo", "Porto", "Leeds", "Turin", "Ghent", "Malmo", "Basel")
PLACES = (
    "{r} I am in {s}.",
    "{r} Office: {s}.",
    "Here in {s}: {r}",
    "{r} ({s})",
    "{r} This is about {s}.",
    "{s} - {r}",
)
URGENCY: dict[str, tuple[str, ...]] = {
    "high": ("This is urgent!", "Very urgent, please!", "Please help right now!", "Nobody can work!"),
    "normal": ("Thanks.", "Kind regards", "Please have a look.", "Can you help?"),
    "low": ("No hurry.", "Not urgent.", "It can wait.", "Whenever you have time."),
}
GREETINGS = ("", "", "", "Hi, ", "Hello, ", "Dear team, ", "Good morning, ", "hey, ")
NEIGHBOURS = {"a": "s", "e": "r", "i": "o", "n": "m", "o": "p", "r": "t", "s": "d", "t": "y"}  # on a keyboard


def typo(text: str, draw: random.Random) -> str:
    """One slip of a finger in a word of more than three letters, if there is one."""
    words = text.split(" ")
    places = [at for at, word in enumerate(words) if len(word) > 3 and word.isalpha() and word.islower()]
    if not places:
        return text
    at = draw.choice(places)
    word, letter = words[at], draw.randrange(1, len(words[at]) - 1)
    kind = draw.randrange(3)
    if kind == 0:
        words[at] = word[:letter] + word[letter + 1] + word[letter] + word[letter + 2 :]
    elif kind == 1:
        words[at] = word[:letter] + word[letter + 1 :]
    else:
        words[at] = word[:letter] + NEIGHBOURS.get(word[letter], word[letter]) + word[letter + 1 :]
    return " ".join(words)


def ticket(draw: random.Random) -> dict[str, object]:
    """One good row."""
    category = draw.choice(sorted(FAMILIES))
    family = draw.randrange(len(FAMILIES[category]))
    names = draw.choice(PRODUCTS[category])
    site = draw.choice(SITES)
    priority = draw.choice(sorted(URGENCY))
    said = FAMILIES[category][family].format(p=draw.choice(names)) + "."
    request = said[0].upper() + said[1:] if draw.random() < 0.7 else said
    if draw.random() < 0.25:
        request = typo(request, draw)
    text = draw.choice(PLACES).format(r=request, s=site)
    text = f"{draw.choice(GREETINGS)}{text} {draw.choice(URGENCY[priority])}".strip()
    answer = {"category": category, "product": names[0], "priority": priority, "site": site}
    return row(text, compact(answer), f"{category}-{family:02d}")


def compact(answer: dict[str, str]) -> str:
    """JSON without spaces, which costs a quarter fewer tokens."""
    return json.dumps(answer, separators=(",", ":"))


def row(request: str, answer: str, family: str) -> dict[str, object]:
    """A chat in the OpenAI fine-tuning form, with the family as a column of its own."""
    said = (("system", SYSTEM), ("user", request), ("assistant", answer))
    return {"messages": [{"role": r, "content": c} for r, c in said], "family": family}


def with_defects(rows: list[dict[str, object]], draw: random.Random) -> list[str]:
    """Lines of the file: ``rows`` and, for each defect, some rows that have it."""
    lines = [json.dumps(r) for r in rows]
    some = max(1, len(rows) // 100)
    for source in draw.sample(rows, some):  # the same request twice, in other letters
        request = source["messages"][1]["content"]  # type: ignore[index]
        lines.append(json.dumps(row(request.upper(), _answer(source), str(source["family"]))))
    for source in draw.sample(rows, some):  # nearly the same request
        request = source["messages"][1]["content"]  # type: ignore[index]
        lines.append(json.dumps(row(f"{request} Thx", _answer(source), str(source["family"]))))
    for source in draw.sample(rows, max(1, some // 2)):  # nobody filled the ticket in
        request = source["messages"][1]["content"]  # type: ignore[index]
        lines.append(json.dumps(row(f"{request} Ticket 4711.", "", str(source["family"]))))
    for source in draw.sample(rows, max(1, some // 3)):  # two people filed it differently
        request = source["messages"][1]["content"]  # type: ignore[index]
        other = json.loads(_answer(source)) | {"category": "other"}
        lines.append(json.dumps(row(request, compact(other), str(source["family"]))))
    for source in draw.sample(rows, max(1, some // 3)):  # a field is missing
        request = source["messages"][1]["content"]  # type: ignore[index]
        less = {k: v for k, v in json.loads(_answer(source)).items() if k != "site"}
        lines.append(json.dumps(row(f"Again: {request}", compact(less), str(source["family"]))))
    draw.shuffle(lines)
    for at in sorted(draw.sample(range(len(lines)), max(1, some // 3))):  # the line was cut while copying
        lines[at] = lines[at][: len(lines[at]) // 2]
    return lines


def _answer(source: dict[str, object]) -> str:
    return str(source["messages"][2]["content"])  # type: ignore[index]


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=1200, help="good rows; defective ones come on top")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data" / "tickets.jsonl")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    lines = with_defects([ticket(draw) for _ in range(options.rows)], draw)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} lines in {options.out}")


if __name__ == "__main__":
    main()
