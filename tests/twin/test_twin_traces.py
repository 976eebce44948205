"""Published traces: every layout, every kind of broken row, and what the core makes of real ones."""

from __future__ import annotations

import gzip
import os
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numpy", reason="the twin's core needs the extra [twin]")

from twin_floor import table

from tokenmill.domain.errors import DataError
from tokenmill.twin import floor_arrays as fa
from tokenmill.twin import traces
from tokenmill.twin.fleet import Fleet
from tokenmill.twin.step_table import EngineRules
from tokenmill.twin.trace_columns import ServeGen, columns

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
DATA = Path(os.environ.get("TOKENMILL_SHARED_DATA", SHARED))
AZURE = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
BURST = ["Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"]


def shared(name: str) -> Path:
    if not (DATA / name).is_dir():
        pytest.skip("the shared data is not here; TOKENMILL_SHARED_DATA names it")
    return DATA / name


def test_azure_of_2024_has_time_zones():
    rows = [*AZURE, "2024-05-10 23:59:59.500000+00:00,2162,5", "2024-05-11 00:00:00.250000+00:00,2399,6"]
    found = list(traces.azure(rows, "week.csv"))
    assert [row.at_s for row in found] == pytest.approx([0.0, 0.75])
    assert (found[1].input_tokens, found[1].output_tokens) == (2399, 6)


def test_a_time_zone_is_a_part_of_the_time():
    """One moment written in five ways, then a second later behind Greenwich; over a day's end too."""
    moments = ("2024-01-01 00:30:00Z", "2024-01-01T00:30:00 UTC", "2024-01-01 02:00:00.0+01:30",
               "2023-12-31 19:30:00-0500", "2024-01-01 00:30:00", "2023-12-31 16:30:01.5-08:00")  # fmt: skip
    found = list(traces.azure([*AZURE, *(f"{moment},9,9" for moment in moments)], "zones.csv"))
    assert [row.at_s for row in found] == [0.0, 0.0, 0.0, 0.0, 0.0, 1.5]


def test_times_begin_at_the_first_row_also_of_json_lines():
    lines = [f'{{"timestamp": {at}, "input_length": 9, "output_length": 1}}' for at in (1.7e12, 1.7e12 + 500)]
    assert [row.at_s for row in traces.mooncake(lines, "t")] == [0.0, 0.5]


def test_burstgpt_with_and_without_sessions():
    plain = list(
        traces.burstgpt([*BURST, "5,ChatGPT,472,18,490,Conversation log", "45,GPT-4,1087,0,1087,API"], "b")
    )
    assert [row.at_s for row in plain] == [0.0, 40.0]
    assert plain[1].output_tokens == 1
    header = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type"
    found = list(traces.burstgpt([header, "5,s7,1.5,ChatGPT,472,18,490,Conversation log"], "b"))
    assert found[0].session == "s7"


@pytest.mark.parametrize(
    ("reader", "lines", "error"),
    [
        (
            traces.azure,
            [*AZURE, "2023-11-16 18:15:46.6,x,44"],
            "t:2: ContextTokens is 'x'. Expected a number",
        ),
        (traces.azure, [*AZURE, "2023-11-16 18:15:46.6,10,-4"], "t:2: GeneratedTokens is -4"),
        (traces.azure, [*AZURE, "2023-11-16 18:15:46.6,10,nan"], "t:2: GeneratedTokens is nan"),
        (traces.azure, [*AZURE, "yesterday,10,4"], "t:2: TIMESTAMP is 'yesterday'. Expected a date and time"),
        (traces.azure, [*AZURE, "2023-02-30 18:15:46,10,4"], "t:2: TIMESTAMP is '2023-02-30 18:15:46'"),
        (traces.azure, [*AZURE, "2023-02-28 24:15:46,10,4"], "t:2: TIMESTAMP is '2023-02-28 24:15:46'"),
        (traces.azure, [*AZURE, "9,9,4", "8,9,4"], "t:3: TIMESTAMP lies 1 s before the first row's"),
        (traces.azure, [*AZURE, "1,1.5,4"], "t:2: ContextTokens is 1.5"),
        (traces.burstgpt, ["a,b"], "t:1: the header is not that of BurstGPT"),
        (traces.burstgpt, [*BURST, "5,ChatGPT,472"], "t:2: the row has 3 fields"),
        (traces.mooncake, ['{"timestamp": 0, "input_length": 9}'], "t:1: output_length is missing"),
        (traces.mooncake, ["[1]"], "t:1: the line cannot be read: no object"),
        (
            traces.mooncake,
            ['{"timestamp": 0, "input_length": 600, "output_length": 1, "hash_ids": [1]}'],
            "t:1: hash_ids has 1 ids. Expected 2",
        ),
        (
            traces.mooncake,
            ['{"timestamp": 0, "input_length": 9, "output_length": 1, "hash_ids": ["a"]}'],
            "t:1: hash_ids is not a list of numbers",
        ),
    ],
)
def test_a_broken_row_is_named_by_file_line_and_field(reader, lines, error):
    with pytest.raises(DataError) as caught:
        list(reader(lines, "t"))
    assert str(caught.value).startswith(error)


def test_rounded_times_are_spread_up_to_the_next():
    rows = [traces.TraceRow(at, n, 1) for n, at in enumerate([0.0, 0.0, 0.0, 3.0, 6.0, 6.0], 1)]
    found = traces.spread(rows, 4)
    assert [row.input_tokens for row in found] == [1, 2, 3, 4, 5, 6]
    assert all(before.at_s <= after.at_s for before, after in pairwise(found))
    assert all(row.at_s <= moved.at_s < row.at_s + 3 for row, moved in zip(rows, found, strict=True))
    assert found == traces.spread(rows, 4) != traces.spread(rows, 5)


def test_mooncake_hits_what_its_blocks_say():
    """An endless cache hits every block that came before: the core must find what counting finds."""
    with gzip.open(shared("llm_mooncake") / "conversation.jsonl.gz", "rt") as file:
        rows = list(traces.mooncake(file, "conversation"))
    # One at a time and far apart, so that no block is asked for again before its prompt is done.
    rows = [traces.TraceRow(20.0 * n, r.input_tokens, 2, r.prefix) for n, r in enumerate(rows)]
    seen: set[int] = set()
    hits = 0
    for row in rows:
        found = 0
        while found < len(row.prefix) and row.prefix[found] in seen:
            found += 1
        hits += min(found * 512, row.input_tokens - 1)
        seen.update(row.prefix)
    requests, units = columns(rows, 1)
    rules = EngineRules(token_budget=8192, max_sequences=8, prefix_cache=True)
    fleet = Fleet([table(rules, 2**32)], [0], ["random"], units=units, cache_units=len(seen) + 1)
    fleet.send(requests)
    fleet.advance()
    fleet.check()
    assert fleet.count(fa.HIT) == hits
    assert hits / sum(r.input_tokens for r in rows) == pytest.approx(0.35, abs=0.03)


def test_affinity_hits_more_than_chance_on_a_real_trace():
    with gzip.open(shared("llm_mooncake") / "conversation.jsonl.gz", "rt") as file:
        rows = traces.spread(list(traces.mooncake(file, "conversation")), 1)
    rules = EngineRules(token_budget=8192, max_sequences=32, prefix_cache=True)
    found = {}
    for router in ("two-choices", "prefix-affinity"):
        requests, units = columns(rows, 1)
        fleet = Fleet([table(rules, 2**22)], [0] * 16, [router], units=units, cache_units=8192)
        fleet.send(requests)
        fleet.advance()
        fleet.check()
        found[router] = fleet.count(fa.HIT)
    assert found["prefix-affinity"] > found["two-choices"] > 0


def test_servegen_clients_have_their_rates_and_lengths():
    pq = pytest.importorskip("pyarrow.parquet", reason="ServeGen's tables are Parquet: the extra [parquet]")
    where = shared("llm_servegen")
    only = [("model", "=", "deepseek-r1")]
    rates, lengths = (
        {
            name: np.asarray(column)
            for name, column in pq.read_table(where / f"{n}.parquet", filters=only).to_pydict().items()
        }
        for n in ("rates", "lengths")
    )
    model = ServeGen(rates, lengths)
    made = model.window(1, 36_000.0)
    wanted = float(rates["rate"][rates["t"] == 36_000].sum()) * 600
    assert len(made) == pytest.approx(wanted, rel=0.1)
    assert (made["at"][1:] >= made["at"][:-1]).all()
    assert 300 < made["output"].mean() < 3_000
    counts = Counter(made["key"].tolist())
    top = sum(count for _, count in counts.most_common(10)) / len(made)
    assert top > 0.5
    assert (model.window(1, 36_000.0) == made).all()


def test_a_broken_servegen_table_names_row_and_field():
    rates = {"client": [0], "t": [0], "rate": [-1.0], "dist": ["Gamma"], "p1": [1.0]}
    lengths = {"client": [0], "t": [0], "field": ["input_tokens"], "value": [5.0], "prob": [1.0]}
    with pytest.raises(DataError, match="rates, row 0: rate is -1"):
        ServeGen(rates, lengths)
    with pytest.raises(DataError, match="dist is 'Poisson'"):
        ServeGen({**rates, "rate": [1.0], "dist": ["Poisson"]}, lengths)
