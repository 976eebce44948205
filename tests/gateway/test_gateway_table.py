"""The table file: newer replaces older, damage replaces nothing, and tenants see what is theirs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from gateway_rig import OTHER, SECRET, Engine, key, table_of, write_table

from tokenmill.control.requests import EdgeMemory, index_of
from tokenmill.domain.errors import UsageError
from tokenmill.domain.factory import Quota
from tokenmill.domain.table import TenantEntry
from tokenmill.gateway.identity import identify
from tokenmill.gateway.limits import ratelimit_headers
from tokenmill.gateway.metrics import Metrics
from tokenmill.gateway.options import is_loopback, parse
from tokenmill.gateway.table import Serving, TableFile


def test_only_newer_tables_are_taken(tmp_path: Path) -> None:
    table = table_of([])
    tables = TableFile(tmp_path / "table.json")
    assert not tables.poll()
    assert not tables.present
    write_table(tmp_path, replace(table, version=5))
    assert tables.poll()
    assert not tables.poll()
    write_table(tmp_path, replace(table, version=4))
    assert not tables.poll()
    assert tables.serving.version == 5
    assert tables.rejected == 1
    (tmp_path / "table.json").write_bytes(b'{"version": 9')
    assert not tables.poll()
    assert tables.problem
    assert tables.serving.version == 5
    (tmp_path / "table.json").unlink()
    assert not tables.poll()
    assert tables.present
    write_table(tmp_path, replace(table, version=6))
    assert tables.poll()
    assert not tables.problem


def test_unknown_fields_of_a_newer_controller_are_ignored(tmp_path: Path) -> None:
    plain = msgspec.to_builtins(table_of([]))
    (tmp_path / "table.json").write_text(json.dumps({**plain, "invented": 1}))
    assert TableFile(tmp_path / "table.json").poll()


def test_listing_is_by_tenant() -> None:
    serving = Serving(table_of([Engine(port=1)]))
    mine = json.loads(serving.listing(key(SECRET)))
    assert [m["id"] for m in mine["data"]] == ["m", "org/m:1", "embed"]
    assert mine["data"][0]["object"] == "model"
    assert mine["data"][0]["max_model_len"] == 4096
    theirs = json.loads(serving.listing(key(OTHER, "key-2", "other")))
    assert "private" in [m["id"] for m in theirs["data"]]
    assert serving.visible("private", "acme") is None


def test_identity() -> None:
    index = index_of(table_of([]))
    bearer = b"Bearer " + SECRET.encode()
    assert identify(index, bearer, 1) is not None
    assert identify(index, b"bearer   " + SECRET.encode(), 1) is not None
    for wrong in (b"", b"Bearer ", b"Basic x", SECRET.encode(), bearer + b"x", b"Bearer " + b"x" * 1000):
        assert identify(index, wrong, 1) is None
    expiring = replace(table_of([]), keys=(key(SECRET, expires_us=50),))
    assert identify(index_of(expiring), bearer, 49) is not None
    assert identify(index_of(expiring), bearer, 50) is None


def test_rate_limit_headers_show_the_tighter_limit() -> None:
    table = table_of([])
    assert ratelimit_headers(index_of(table), EdgeMemory(), key(SECRET), 0) == b""
    tight = (("p", Quota(requests_per_minute=5)),)
    limited = replace(
        table,
        tenants=(TenantEntry("acme", Quota(requests_per_minute=60, tokens_per_day=1000), (), tight),),
    )
    headers = ratelimit_headers(index_of(limited), EdgeMemory(), key(SECRET), 0)
    assert b"x-ratelimit-limit-requests: 5\r\n" in headers
    assert b"x-ratelimit-remaining-requests: 5\r\n" in headers
    assert b"x-ratelimit-remaining-tokens: 1000\r\n" in headers


def test_metrics_text_escapes_and_accumulates() -> None:
    metrics = Metrics()
    metrics.model('a"b').ttft.observe(0.003)
    metrics.model('a"b').ttft.observe(99.0)
    metrics.add(metrics.requests, ('a"b', "ok"), 2)
    text = metrics.text({"x_total": ("A counter.", 3)}).decode()
    assert 'vllm:time_to_first_token_seconds_bucket{model_name="a\\"b",le="0.005"} 1' in text
    assert 'vllm:time_to_first_token_seconds_count{model_name="a\\"b"} 2' in text
    assert (
        'gen_ai_server_time_to_first_token_seconds_bucket{gen_ai_request_model="a\\"b",le="+Inf"} 2' in text
    )
    assert 'vllm:request_success_total{model_name="a\\"b"} 2' in text
    assert "# TYPE x_total counter\nx_total 3\n" in text


NEEDED = ["--table", "t", "--spool", "s-0.jsonl", "--control", "c", "--state", "g"]


@pytest.mark.parametrize(
    "more",
    [["--host", "0.0.0.0"], ["--port", "70000"], ["--tls-cert", "x"], ["--index", "1"]],
)
def test_options_that_make_no_sense(more: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        parse([*NEEDED, *more])
    assert caught.value.problem.fix


def test_options() -> None:
    assert parse(NEEDED).host == "127.0.0.1"
    assert parse([*NEEDED, "--host", "0.0.0.0", "--insecure-bind"]).insecure_bind
    assert is_loopback("127.3.4.5")
    assert is_loopback("::1")
    assert not is_loopback("10.0.0.1")
    assert not is_loopback("example.org")
