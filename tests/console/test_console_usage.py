"""What a tenant may read of its own bill, and what peers bill us."""

from __future__ import annotations

from typing import Any

from console_bed import Bed
from test_console_files import secret_of

from tokenmill.domain.ledger import Outcome, Settlement

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US


def settled(name: str, tenant: str, project: str, at_us: int, tokens: int, release: str = "r") -> Settlement:
    return Settlement(
        name, at_us, tenant, project, "key-1", "smol", release, "rep", "chat.completions", Outcome.OK, 200,
        input_tokens=tokens, output_tokens=2 * tokens,
    )  # fmt: skip


def test_a_key_reads_the_usage_of_its_own_project(served: Bed) -> None:
    tenant, other = served.factory.tenants[:2]
    mine, theirs = tenant.projects[0].name, other.projects[0].name
    served.store.ledger.settle(
        [
            settled("req-1", tenant.name, mine, DAY_US, 10),
            settled("req-2", tenant.name, mine, 2 * DAY_US + HOUR_US, 100),
            settled("req-3", tenant.name, "elsewhere", DAY_US, 1_000),
            settled("req-4", other.name, theirs, DAY_US, 10_000),
        ],
        [],
        "",
        0,
    )

    def asked(query: str = "") -> Any:
        return served.client.get(f"/v1/usage{query}", headers=secret_of(served)).json()

    assert [(row["model"], row["requests"], row["input_tokens"]) for row in asked()["data"]] == [
        ("smol", 2, 110)
    ]
    by_day = asked("?group_by=day,key")["data"]
    assert [(row["day"], row["key"], row["output_tokens"]) for row in by_day] == [
        ("1970-01-02", "key-1", 20),
        ("1970-01-03", "key-1", 200),
    ]
    start, end = 2 * DAY_US // 1_000_000, (2 * DAY_US + HOUR_US) // 1_000_000
    assert asked(f"?start_time={start}")["data"][0]["input_tokens"] == 100
    assert asked(f"?start_time={start}&end_time={end}")["data"] == []
    for query, field in (
        ("?group_by=tenant", "group_by"),
        ("?start_time=soon", "start_time"),
        ("?start_time=-1", "start_time"),
        ("?start_time=5&end_time=5", "end_time"),
    ):
        assert asked(query)["error"]["param"] == field
    assert served.client.get("/v1/usage").status_code == 401


def test_what_peers_answered_is_added_up_by_peer(served: Bed) -> None:
    tenant = served.factory.tenants[0]
    project = tenant.projects[0].name
    served.store.ledger.settle(
        [
            settled("req-1", tenant.name, project, HOUR_US, 10, "peer:b"),
            settled("req-2", tenant.name, project, 2 * HOUR_US, 5, "peer:b"),
            settled("req-3", tenant.name, project, HOUR_US, 7, "peer:c"),
            settled("req-4", tenant.name, project, HOUR_US, 9, "own"),
        ],
        [],
        "",
        0,
    )
    rows = served.store.ledger.forwarded()
    assert [(row.peer, row.requests, row.input_tokens, row.output_tokens) for row in rows] == [
        ("b", 2, 15, 30),
        ("c", 1, 7, 14),
    ]
    assert [row.input_tokens for row in served.store.ledger.forwarded(2 * HOUR_US)] == [5]
    assert [row.input_tokens for row in served.store.ledger.forwarded(0, 2 * HOUR_US)] == [10, 7]
