"""Sizing: what a throughput needs, what it lacks, and that tighter limits never need fewer racks."""

import math
import re
from dataclasses import replace

import pytest

from tokenmill.domain.errors import DataError
from tokenmill.twin.profiles import OTHER_MODEL, profile
from tokenmill.twin.size import answers
from tokenmill.twin.size_question import limits_of, question_of, racks_of, target_of
from tokenmill.twin.tuned_size import tuned_answers

SLO = "ttft_p99<2s,tpot_p99<80ms"


def ask(model="deepseek-r1", precision="fp4", target="2M tok/s", slo=SLO):
    return question_of(model, precision, 1000, 1000, target, slo, "trtllm")


def test_answers_hold_the_limits_and_the_cheapest_is_first():
    question = ask()
    found = answers(question, racks_of([], "trtllm"), profile())
    assert [a.million_tokens_micros for a in found] == sorted(a.million_tokens_micros for a in found)
    assert {a.disaggregated for a in found} == {True, False}
    for one in found:
        assert one.ttft_p99_s <= question.ttft_p99_s
        assert one.tpot_p99_s <= question.tpot_p99_s
        assert one.racks * one.accelerators / one.racks * one.tokens_s_per_accelerator >= question.tokens_s
        assert one.most_racks >= one.racks


def test_a_little_needs_one_rack_even_where_the_forecast_errs():
    for one in answers(ask(target="10k tok/s"), racks_of([], "trtllm"), profile()):
        assert one.racks == math.ceil(one.exactly)
        assert one.most_racks == math.ceil(one.exactly * (1 + one.error))
    least = answers(ask(target="1 tok/s"), racks_of([], "trtllm"), profile())
    assert {one.most_racks for one in least} == {1}


def test_tighter_limits_and_more_tokens_never_need_fewer_racks():
    racks = racks_of(["gb300-nvl72"], "trtllm")
    loose = answers(ask(), racks, profile())[0]
    tight = answers(ask(slo="ttft_p99<2s,tpot_p99<30ms"), racks, profile())[0]
    more = answers(replace(ask(), tokens_s=8e6), racks, profile())[0]
    assert loose.million_tokens_micros <= tight.million_tokens_micros
    assert more.racks >= 3 * loose.racks


def test_what_is_missing_is_said_at_once():
    with pytest.raises(DataError) as raised:
        question_of(None, None, None, None, "2M tok/s", None, "trtllm")
    for what in ("--model", "--precision", "--inputs", "--outputs", "--slo"):
        assert what in str(raised.value)
    assert "--target)" not in str(raised.value)


@pytest.mark.parametrize(
    ("model", "precision", "slo", "racks", "said"),
    [
        ("llama-3.1-405b", "bf16", "ttft_p99<2s,tpot_p99<80ms", ["dgx-h100-x4"], "smallest layout that fits"),
        ("llama-3.1-405b", "fp4", "ttft_p99<2s,tpot_p99<1ms", ["gb300-nvl72"], "at best"),
        ("gpt-9", "fp4", SLO, [], "--model"),
        ("gpt-oss-120b", "int3", SLO, [], "--precision"),
        ("gpt-oss-120b", "fp4", "ttft_p99<2s", [], "tpot_p99"),
        ("gpt-oss-120b", "fp4", "ttft_p99<2s,ttft_p99<1s", [], "ttft_p99 twice"),
        ("llama-3.1-405b", "bf16", SLO, ["pcie-l40s-x8"], "8 of pcie-l40s-x8"),
        ("gpt-oss-120b", "fp4", "ttft_p99<0s,tpot_p99<1ms", [], "--slo"),
        ("gpt-oss-120b", "fp4", SLO, ["nvl9"], "--rack"),
        ("gpt-oss-120b", "fp8", SLO, ["ubb-mi300x-x4"], "--engine vllm"),
    ],
)
def test_what_cannot_be_says_what_could(model, precision, slo, racks, said):
    with pytest.raises(DataError) as raised:
        answers(ask(model, precision, slo=slo), racks_of(racks, "trtllm"), profile())
    assert said in f"{raised.value} {raised.value.problem.expected} {raised.value.problem.fix}"


def test_what_was_never_measured_has_the_error_of_accelerators_or_models_left_out():
    """GB200 was fitted under another engine, H200 NVL's chip on another board, and nothing like MI300X."""
    question = question_of("qwen3-32b", "fp8", 1000, 500, "50k tok/s", "ttft_p99<5s,tpot_p99<200ms", "vllm")
    racks = ["gb200-nvl72", "dgx-h100-x4", "pcie-h200-nvl-x8", "ubb-mi300x-x4"]
    found = {one.rack: one for one in answers(question, racks_of(racks, "vllm"), profile())}
    assert found["dgx-h100-x4"].measured
    assert found["dgx-h100-x4"].error == profile().stated("dense_tpot").at(0.9)
    for rack in ("gb200-nvl72", "pcie-h200-nvl-x8", "ubb-mi300x-x4"):
        assert not found[rack].measured
        assert found[rack].error > 2 * found["dgx-h100-x4"].error
    other = question_of("llama-3.1-70b", "fp8", 1000, 500, "50k tok/s", "ttft_p99<5s,tpot_p99<200ms", "vllm")
    [one] = answers(other, racks_of(["dgx-h100-x4"], "vllm"), profile())[:1]
    assert not one.measured  # nor was that model
    assert one.error == profile().stated("dense_tpot", (OTHER_MODEL,)).at(0.9)
    assert one.error_of == "of models left out of the fit"


def test_an_engine_is_only_asked_of_accelerators_that_it_runs_on():
    of_nvidia = {rack.id for rack in racks_of([], "trtllm")}
    assert {rack.id for rack in racks_of([], "sglang")} - of_nvidia == {
        "ubb-mi300x-x4", "ubb-mi325x-x4", "ubb-mi350x-x4", "ubb-mi355x-x4",
    }  # fmt: skip
    with pytest.raises(DataError, match="--engine is 'ollama'"):
        question_of("llama-3.1-70b", "fp8", 1000, 500, "1k", SLO, "ollama")


def test_tuned_engines_need_fewer_racks_and_are_known_of_few_accelerators():
    question = question_of("llama-3.1-70b", "fp8", 300, 300, "2M tok/s", SLO, "trtllm")
    found = tuned_answers(question, racks_of([], "trtllm"))
    known = {"dgx-h100-x4", "hgx-h200-x4", "hgx-b200-x4", "gb200-nvl72", "gb300-nvl72"}
    assert {one.rack for one in found} == known
    assert [one.million_tokens_micros for one in found] == sorted(one.million_tokens_micros for one in found)
    plain = {one.rack: one.racks for one in answers(question, racks_of([], "trtllm"), profile())}
    for one in found:
        assert one.racks <= one.most_racks < 2 * one.racks
        assert one.racks * one.accelerators / one.racks * one.tokens_s_per_accelerator >= question.tokens_s
        assert one.racks < plain[one.rack]  # tables of defaults of this model say a third of MLPerf's rates
    tight = tuned_answers(replace(question, tpot_p99_s=0.01), racks_of(["dgx-h100-x4"], "trtllm"))
    assert tight[0].racks > next(one.racks for one in found if one.rack == "dgx-h100-x4")
    with pytest.raises(DataError, match="holds tpot_p99 1 ms") as impossible:  # of one token after the other
        tuned_answers(replace(question, tpot_p99_s=0.001), racks_of([], "trtllm"))
    best_ms = float(re.search(r"at best ([\d.]+) ms", impossible.value.problem.expected)[1])
    assert best_ms > 1
    assert tuned_answers(replace(question, tpot_p99_s=2 * best_ms / 1000), racks_of([], "trtllm"))
    with pytest.raises(DataError, match="of none of these racks"):
        tuned_answers(question, racks_of(["ubb-mi355x-x4", "pcie-l40s-x8"], "vllm"))
    with pytest.raises(DataError, match="does not fit"):
        tuned_answers(replace(question, inputs=10**7), racks_of(["dgx-h100-x4"], "trtllm"))


@pytest.mark.parametrize("text", ["0", "nan tok/s", "-2M", "2 million", "", "1.2.3k"])
def test_a_rate_that_cannot_be_is_refused(text):
    with pytest.raises(DataError, match="--target"):
        target_of(text)


def test_rates_and_limits_are_read():
    assert target_of("2M tok/s") == 2e6
    assert target_of("50k") == 5e4
    assert limits_of("tpot_p99<=80ms, ttft_p99 < 2s") == {"tpot_p99": 0.08, "ttft_p99": 2.0}
