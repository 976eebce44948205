"""The spool: nothing is lost or written twice over crashes, rotation and a full disk."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tokenmill.domain.errors import ResourceError
from tokenmill.domain.ledger import Outcome, Settlement
from tokenmill.gateway.endings import Opening
from tokenmill.gateway.spool import Spool, spool_files


def opening(request: str) -> Opening:
    return Opening(request, 5, "t", "p", "k", "m", "chat.completions")


def make(folder: Path, **more: Any) -> Spool:
    spool = Spool(folder / "gateway-0.jsonl", **{"rotate_bytes": 10**7, "free_bytes": 0, **more})
    spool.start(100)
    return spool


def settlement(request: str, reason: str = "") -> Settlement:
    return Settlement(
        request,
        9,
        "t",
        "p",
        "k",
        "m",
        "rel",
        "r-1",
        "chat.completions",
        Outcome.OK,
        200,
        1,
        0,
        2,
        reason=reason,
    )


def lines(folder: Path) -> list[dict[str, Any]]:
    every = [path.read_bytes() for _, path in spool_files(folder / "gateway-0.jsonl")]
    return [json.loads(line) for data in every for line in data.splitlines()]


def crash(spool: Spool) -> None:
    """End as a killed process does: no flush, no unlock by us, and no thread of it left in the kernel."""
    spool._stopping = True
    spool._dirty.set()
    spool._thread.join()
    os.close(spool._fd)  # a thread still in fdatasync would hold the lock beyond this


def test_open_and_settle_lines(tmp_path: Path) -> None:
    spool = make(tmp_path)
    assert spool.open(opening("a"))
    spool.settle(settlement("a"))
    spool.close()
    first, second = lines(tmp_path)
    assert first == {"t": "open", **asdict(opening("a"))}
    assert second["t"] == "settle"
    assert (second["request"], second["outcome"], second["output_tokens"]) == ("a", "ok", 2)
    assert set(second) == {"t", *Settlement.__slots__}


def test_a_crash_settles_what_was_open_as_interrupted(tmp_path: Path) -> None:
    spool = make(tmp_path)
    for name in "abc":
        spool.open(opening(name))
    spool.settle(settlement("b"))
    crash(spool)
    with open(tmp_path / "gateway-0.jsonl", "ab") as file:
        file.write(b'{"t":"settle","request":"c","at')
    again = make(tmp_path)
    again.close()
    ends = {line["request"]: line["outcome"] for line in lines(tmp_path) if line["t"] == "settle"}
    assert ends == {"a": "interrupted", "b": "ok", "c": "interrupted"}
    third = make(tmp_path)
    third.close()
    assert len(lines(tmp_path)) == 6  # a second start settles nothing again


def test_rotation_carries_open_requests(tmp_path: Path) -> None:
    spool = make(tmp_path, rotate_bytes=3000)
    spool.open(opening("long"))
    for number in range(20):
        spool.open(opening(f"r{number}"))
        spool.settle(settlement(f"r{number}"))
    assert spool.path.name != "gateway-0.jsonl"
    for _, path in spool_files(tmp_path / "gateway-0.jsonl")[:-1]:
        path.unlink()  # as the controller does with what it has taken in
    crash(spool)
    again = make(tmp_path, rotate_bytes=3000)
    again.close()
    left = [x for x in lines(tmp_path) if x["t"] == "settle" and x["outcome"] == "interrupted"]
    assert [x["request"] for x in left] == ["long"]


def test_two_gateways_never_share_a_file(tmp_path: Path) -> None:
    old = make(tmp_path)
    old.open(opening("a"))
    new = make(tmp_path)
    assert new.path != old.path
    old.settle(settlement("a"))
    old.close()
    new.close()
    assert [x["outcome"] for x in lines(tmp_path) if x["t"] == "settle"] == ["ok"]


@pytest.fixture
def file_limit() -> Iterator[Any]:
    """Lets a test make the kernel refuse writes beyond a size, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(
        resource.RLIMIT_FSIZE, (before[0] if size is None else size, before[1])
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_refuses_new_requests_and_loses_none(tmp_path: Path, file_limit: Any) -> None:
    spool = make(tmp_path)
    assert spool.open(opening("a"))
    file_limit(os.fstat(spool._fd).st_size + 40)
    assert not spool.open(opening("b"))
    assert not spool.writable
    spool.settle(settlement("a"))
    assert spool.waiting == 1
    assert len(lines(tmp_path)) == 1  # the torn half of a line was taken back
    spool.check()
    assert not spool.open(opening("c"))
    file_limit(None)
    spool.check()
    assert spool.writable
    assert spool.waiting == 0
    assert spool.open(opening("d"))
    spool.settle(settlement("d"))
    spool.close()
    assert [x["request"] for x in lines(tmp_path) if x["t"] == "settle"] == ["a", "d"]


def test_little_free_space_refuses_early(tmp_path: Path) -> None:
    spool = make(tmp_path, free_bytes=10**18)
    assert "bytes free" in spool.problem
    assert not spool.open(opening("a"))
    spool.close()


def test_a_spool_has_a_number(tmp_path: Path) -> None:
    with pytest.raises(ResourceError):
        Spool(tmp_path / "spool", rotate_bytes=1, free_bytes=0)
