"""Checkpoints come from the trainers' progress into events, each once; the interval goes back as a file."""

from dataclasses import replace
from pathlib import Path

import msgspec

from tokenmill.domain.work import Job, JobSpec, JobStatus
from tokenmill.floor.trainers import TrainerWatch
from tokenmill.floor.workers import write_pace
from tokenmill.spec.paths import Paths

JOB = Job("j-1", JobSpec("station", "a", "p"), JobStatus.RUNNING, 1, ("n0",), 100, attempt=2)


def line(saved_us: int) -> dict[str, dict[str, object]]:
    return {"j-1": {"done": 3, "metrics": {"saved_us": saved_us, "save_us": 40}}, "import-m": {"done": 1}}


def test_each_checkpoint_of_this_attempt_is_told_once():
    watch = TrainerWatch()
    assert watch.look(line(90), {"j-1": JOB}, 500) == [], "it is of the attempt before"
    (event,) = watch.look(line(200), {"j-1": JOB}, 500)
    assert (event.at_us, event.job, event.attempt, event.save_us) == (200, "j-1", 2, 40)
    assert watch.look(line(200), {"j-1": JOB}, 600) == []
    assert TrainerWatch().look(line(200), {"j-1": replace(JOB, saved_us=200)}, 600) == [], (
        "the journal has it"
    )
    assert watch.look(line(900), {"j-1": JOB}, 700)[0].at_us == 700, "no worker's clock runs ahead of ours"
    assert watch.look(line(950), {"j-1": replace(JOB, status=JobStatus.STOPPING)}, 1000) == []
    assert watch.look(line(950), {}, 1000) == []


def test_the_interval_is_a_file_in_the_job_folder(tmp_path: Path):
    paths = Paths(tmp_path)
    paths.job("j-1").mkdir(parents=True)
    write_pace(paths, "j-1", 30_000_000)
    assert msgspec.json.decode(paths.job_pace("j-1").read_bytes()) == {"checkpoint_us": 30_000_000}
    write_pace(paths, "j-1", 0)
    assert not paths.job_pace("j-1").exists()


def test_who_is_slow_is_told_once_and_nonsense_is_left_out():
    def ranks(slow: object, at_us: object = 300) -> dict[str, dict[str, object]]:
        return {"j-1": {"metrics": {"ranks": {"at_us": at_us, "median_us": 100, "slow": slow}}}}

    watch = TrainerWatch()
    (event,) = watch.look(ranks([[3, 150], [1], "x", [1, "y"]]), {"j-1": JOB}, 500)
    assert (event.attempt, event.median_us, event.slow) == (2, 100, ((3, 150),))
    assert watch.look(ranks([[3, 150]]), {"j-1": JOB}, 500) == []
    assert watch.look(ranks([], 50), {"j-1": JOB}, 500) == [], "it is of the attempt before"
    assert watch.look(ranks([], "soon"), {"j-1": JOB}, 500) == []
    assert watch.look(ranks(None, 900), {"j-1": JOB}, 500)[0].slow == ()
