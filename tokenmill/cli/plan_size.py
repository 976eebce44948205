"""``tokenmill plan --size``: the cheapest layout and number of racks for a throughput."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape

from tokenmill.cli.output import add_rows, print_json, stdout, table
from tokenmill.domain.errors import UsageError
from tokenmill.twin.profiles import Profile, read_profile
from tokenmill.twin.size import Answer, Question, SizedRack, answers
from tokenmill.twin.tuned_size import tuned_answers

TUNED_BASIS = (
    "Fitted to closed-division rates of MLPerf Inference v5.1; nine of ten rows of unseen submitters lay "
    "within 15% (NVL72) or 24% (others)"
)


def show_size(
    question: Question, racks: list[SizedRack], fitted: Path | None, *, tuned: bool = False, as_json: bool
) -> None:
    """Print the answers, cheapest first: of engines as they come, or ``tuned`` by hand."""
    if tuned:
        if fitted is not None:
            raise UsageError("--tuned has constants of its own", fix="Leave --profile out.")
        _show_tuned(question, racks, as_json=as_json)
        return
    used = read_profile(fitted)
    found = answers(question, racks, used)
    if as_json:
        print_json({"answers": [plain(one) for one in found], "profile": used.source})
        return
    _print(question, found, used)


def _show_tuned(question: Question, racks: list[SizedRack], *, as_json: bool) -> None:
    """Print what engines tuned by hand need, cheapest first."""
    found = tuned_answers(question, racks)
    if as_json:
        print_json({"answers": [asdict(one) for one in found], "profile": TUNED_BASIS})
        return
    console = stdout()
    console.print(
        f"{_asked(question)}, tpot_p99 < {question.tpot_p99_s * 1000:g} ms, on engines tuned as for MLPerf\n"
    )
    made = table("rack", ">racks", ">at most", ">accelerators", "layout", ">tokens/s each", ">MW at most",
                 ">USD/h", ">USD per M")  # fmt: skip
    rows = [
        (
            one.rack,
            f"{one.racks:,}",
            f"{one.most_racks:,}",
            f"{one.accelerators:,}",
            one.layout,
            f"{one.tokens_s_per_accelerator:,.0f}",
            f"{one.most_kw / 1000:.2f}",
            f"{one.hour_micros / 1e6:,.0f}",
            f"{one.million_tokens_micros / 1e6:.3f}",
        )
        for one in found
    ]
    add_rows(made, rows, "no answers")
    console.print(made)
    console.print(f"{TUNED_BASIS}.\nThe limit of TTFT is not looked at: submissions batch for throughput.")


def plain(answer: Answer) -> dict[str, Any]:
    return {**asdict(answer), "most_racks": answer.most_racks}


def _print(question: Question, found: list[Answer], used: Profile) -> None:
    console = stdout()
    console.print(
        f"{_asked(question)}, ttft_p99 < {question.ttft_p99_s:g} s, "
        f"tpot_p99 < {question.tpot_p99_s * 1000:g} ms, on {escape(question.engine)}\n"
    )
    columns = (
        ">racks", ">accelerators", "layout", ">batch", ">tokens/s each", ">ttft p99", ">tpot p99",
        ">MW at most", ">USD/h", ">USD per M",
    )  # fmt: skip
    made = table("rack", *columns)
    add_rows(made, [_row(one) for one in found], "no answers")
    console.print(made)
    first = found[0]
    if first.error is None:
        console.print("The profile states no error: too few rows were left out of its fit.")
    else:
        console.print(
            f"Nine of ten measured rows {first.error_of} lay within {first.error:.0%} of its TPOT: "
            f"up to {first.most_racks} racks for the first line."
        )
    if any(not one.measured for one in found):
        console.print(
            "* this engine on this accelerator, or this model, was never measured: an extrapolation."
        )
    console.print(
        "Lengths are taken as constant. Power is the racks' maximum, without cooling; prices are the\n"
        f"catalogue's assumptions, without energy. Profile: {escape(used.source)}"
    )


def _asked(question: Question) -> str:
    return (
        f"[bold]{question.tokens_s:,.0f} output tokens/s[/bold] of {question.model.id} in "
        f"{question.precision}, {question.inputs:,} tokens in and {question.outputs:,} out"
    )


def _row(one: Answer) -> tuple[str, ...]:
    layout = one.layout + (f", prefill {one.prefill_layout}" if one.disaggregated else "")
    return (
        one.rack + ("" if one.measured else " *"),
        f"{one.racks:,}",
        f"{one.accelerators:,}",
        layout,
        f"{one.batch:,}",
        f"{one.tokens_s_per_accelerator:,.0f}",
        f"{one.ttft_p99_s:.2f} s",
        f"{one.tpot_p99_s * 1000:.0f} ms",
        f"{one.most_kw / 1000:.2f}",
        f"{one.hour_micros / 1e6:,.0f}",
        f"{one.million_tokens_micros / 1e6:.3f}",
    )
