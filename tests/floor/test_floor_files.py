"""Small files and values: records, logs, load, machine, environments, lock."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec
import pytest

from tokenmill.domain.errors import ConflictError, CorruptWeightsError
from tokenmill.domain.factory import Accelerator, Factory, Node, Site
from tokenmill.floor import logs, machine, procfs, workers
from tokenmill.floor.imports import Verifier
from tokenmill.floor.load import LoadWatch
from tokenmill.floor.lock import DirectoryLock, held
from tokenmill.floor.log_lines import JsonLines, without_secrets
from tokenmill.floor.records import Record, Records
from tokenmill.spec.catalogue import with_power
from tokenmill.spec.paths import Paths
from tokenmill.store.artifacts import Artifacts
from tokenmill.store.signing import Signatures

NOW_US = 1_800_000_000_000_000


def record(name: str) -> Record:
    own = procfs.stat(os.getpid())
    assert own is not None
    return Record(
        name, "job", own.pid, own.start_time, procfs.boot_id(), ("x",), "log", 1, facts={"job": name}
    )


def test_records_round_trip_and_broken_ones_are_dropped(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.write(record("b"))
    records.write(record("a"))
    (tmp_path / "c.json").write_text("{torn")
    (tmp_path / "d.json").symlink_to(tmp_path / "removed")  # listed, and gone before it is read
    assert [r.id for r in records.read()] == ["a", "b"]
    assert not (tmp_path / "c.json").exists()
    assert records.read()[0].lives()
    records.remove("a")
    assert [r.id for r in records.read()] == ["b"]


def test_a_log_beyond_its_limit_is_moved_and_the_writer_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    handle = logs.open_log(path)
    os.write(handle, b"0123456789\n")
    assert not logs.bound(path, 100)
    assert logs.bound(path, 5)
    os.write(handle, b"more\n")
    os.close(handle)
    assert path.read_text() == "more\n"
    assert (tmp_path / "x.log.1").read_text() == "0123456789\n"
    assert logs.tail(path, 5) == "more"
    assert logs.tail(tmp_path / "absent", 5) == ""


def test_log_lines_hide_secrets() -> None:
    text = without_secrets("tm-" + "a" * 40 + " postgresql://me:word@host/db authorization: Bearer abc.def")
    assert "aaaa" not in text
    assert "word" not in text
    assert "abc.def" not in text
    made = logging.LogRecord("tokenmill.floor", logging.INFO, "f", 1, "hello %s", ("you",), None)
    assert msgspec.json.decode(JsonLines().format(made))["message"] == "hello you"


def write_load(path: Path, in_flight: int, refused: int, at_us: int) -> None:
    body = {"heartbeat_us": at_us, "deployments": {"smol": {"in_flight": in_flight, "refused_full": refused}}}
    path.write_bytes(msgspec.json.encode(body))


def test_load_is_reported_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "gateway.json"
    watch = LoadWatch(tmp_path)
    assert watch.look(NOW_US) == []
    write_load(path, 0, 5, NOW_US)
    assert watch.look(NOW_US) == []
    write_load(path, 2, 7, NOW_US)
    (event,) = watch.look(NOW_US)
    assert (event.deployment, event.in_flight, event.refused_full) == ("smol", 2, 2)
    write_load(path, 0, 7, NOW_US)
    (event,) = watch.look(NOW_US)
    assert (event.in_flight, event.refused_full) == (0, 0)
    assert watch.look(NOW_US) == []
    assert watch.look(NOW_US + 60_000_000) == []


def test_answers_against_an_objective_are_counted_over_the_last_minute(tmp_path: Path) -> None:
    watch, second = LoadWatch(tmp_path), 1_000_000

    def look(at_us: int, **processes: tuple[int, int]) -> list[tuple[int, int]]:
        for name, (met, missed) in processes.items():
            body = {"heartbeat_us": at_us, "deployments": {"smol": {"met": met, "missed": missed}}}
            (tmp_path / f"gateway-{name}.json").write_bytes(msgspec.json.encode(body))
        return [(event.measured, event.attained) for event in watch.look(at_us)]

    assert look(NOW_US, a=(100, 50), b=(7, 0)) == [], "what came before the watch is not counted"
    assert look(NOW_US + second, a=(110, 51), b=(8, 0)) == [(12, 11)]
    assert look(NOW_US + 30 * second, a=(110, 55), b=(8, 0)) == [(16, 11)]
    assert look(NOW_US + 61 * second, a=(110, 55), b=(8, 0)) == [(4, 0)], "the first twelve are too old"
    assert look(NOW_US + 62 * second, a=(0, 0), b=(9, 0)) == [], (
        "a process that began anew takes nothing away"
    )
    assert look(NOW_US + 63 * second, a=(2, 0), b=(9, 0)) == [(6, 2)]


def test_this_machine_takes_the_name_that_the_file_gives_it() -> None:
    plain = machine.local_node(Factory("f", sites=(Site("here"),)))
    assert (plain.id, plain.site) == ("local", "here")
    assert plain.cpu_millis >= 1000
    named = machine.local_node(
        Factory("f", nodes=(Node("box", "there", cpu_millis=500, memory_bytes=10**18),))
    )
    assert (named.id, named.site, named.cpu_millis) == ("box", "there", 500)
    assert named.memory_bytes == plain.memory_bytes
    two = machine.local_node(Factory("f", nodes=(Node("a", "s"), Node("local", "s2"))))
    assert (two.id, two.site) == ("local", "s2")


def test_a_node_that_no_file_names_draws_what_its_accelerators_type_does() -> None:
    """Eight H200 of 75 to 700 W in the server of the catalogue: 2.5 kW beside them, 1.675 when idle."""
    cluster = pytest.importorskip("tokenmill.floor.ray.cluster", exc_type=ImportError)

    def node(*kinds: str) -> Node:
        return Node(
            "n", "here", accelerators=tuple(Accelerator(f"n/{k}{i}", k, 0) for i, k in enumerate(kinds))
        )

    full = with_power(node(*["h200-sxm"] * 8))
    assert (full.power_mw, full.idle_mw) == (8_100_000, 2_275_000)
    stated = Factory("f", sites=(Site("s"),), nodes=(Node("n", "s", power_mw=5, idle_mw=1),))
    ray_node = cluster.RayNode("id", "n", "127.0.0.1", {}, {"GPU": 8.0, "CPU": 4.0})
    assert cluster.place_of(ray_node, node(*["h200-sxm"] * 8), stated).power_mw == 5
    assert cluster.place_of(ray_node, node(*["h200-sxm"] * 8), Factory("f")).power_mw == full.power_mw
    for unknown in (node(), node("gtx-1"), node("h200-sxm", "h100-sxm")):
        assert with_power(unknown) == unknown


def test_a_gpu_has_the_catalogues_name() -> None:
    assert machine.kind_of("NVIDIA H100 80GB HBM3") == "h100-sxm"
    assert machine.kind_of("NVIDIA H200") == "h200-sxm"
    assert machine.kind_of("NVIDIA B200") == "b200-sxm"
    assert machine.kind_of("NVIDIA GB200") == "b200-gb200"
    assert machine.kind_of("NVIDIA A100-SXM4-80GB") == "a100-sxm-80gb"
    assert machine.kind_of("NVIDIA H200 NVL") == "h200-nvl"
    assert machine.kind_of("NVIDIA L40S") == "l40s"
    assert machine.kind_of("NVIDIA RTX PRO 6000 Blackwell Server Edition") == "rtxpro6000-server"
    workstation = "NVIDIA RTX PRO 6000 Blackwell Workstation Edition"  # other memory, other clocks
    assert machine.kind_of(workstation) == workstation.lower().replace(" ", "-")
    assert machine.kind_of("NVIDIA L40") == "nvidia-l40"
    assert machine.kind_of("NVIDIA RTX 6000 Ada") == "nvidia-rtx-6000-ada"


def test_worker_environment() -> None:
    assert workers.device_environment(("local/gpu1", "local/gpu3"), 2500) == {
        "CUDA_VISIBLE_DEVICES": "1,3",
        "OMP_NUM_THREADS": "2",
    }
    assert workers.device_environment((), 0) == {"CUDA_VISIBLE_DEVICES": ""}
    share = workers.Share((2, 3), node_rank=1, nodes=2, address="10.0.0.7")
    assert workers.torchrun_environment(3, 4, share, 999) == {
        "RANK": "3",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "4",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "1",
        "NODE_RANK": "1",
        "NNODES": "2",
        "MASTER_ADDR": "10.0.0.7",
        "MASTER_PORT": "999",
    }
    assert [workers.signal_code(c) for c in (0, 3, 137, 143, 255)] == [0, 3, -9, -15, 255]


def test_one_controller_for_a_directory(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    assert not held(paths)
    lock = DirectoryLock(paths)
    lock.take()
    assert held(paths)
    with pytest.raises(ConflictError, match="already running"):
        DirectoryLock(paths).take()
    lock.release()
    assert not held(paths)


def test_verifier_reads_an_artifact_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts = Artifacts(tmp_path)
    digest = artifacts.put_bytes(b"weights")
    verifier = Verifier(artifacts, Signatures(tmp_path / "keys", tmp_path / "signatures"))
    read = []
    verify = artifacts.verify
    monkeypatch.setattr(artifacts, "verify", lambda d: (read.append(d), verify(d))[1])
    path = verifier.verified(digest)
    assert verifier.verified(digest) == path
    assert read == [digest]
    path.chmod(0o644)
    path.write_bytes(b"weightz")
    os.utime(path, ns=(1, 1))
    with pytest.raises(CorruptWeightsError):
        verifier.verified(digest)
    with pytest.raises(CorruptWeightsError):
        verifier.verified(digest)
