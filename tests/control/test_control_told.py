"""What a step decided, in sentences: each must say what, where and because of what."""

from __future__ import annotations

from control_mill import GB, GPU, SECOND, Mill, chat, factory

from tokenmill.control.why import why
from tokenmill.domain import events as ev
from tokenmill.domain.value import replace
from tokenmill.domain.work import JobSpec, ReplicaStatus
from tokenmill.policy.scale import UP_AFTER_US

SPEC = JobSpec("command", "a", "p", ("true",), resources=GPU, name="nightly")


def test_scaling_says_why_and_what_waits(mill: Mill) -> None:
    mill.join(gpus=1)
    mill.apply(factory(chat(resources=GPU, replicas=0, max_replicas=2)))
    mill.bring()
    mill.tell(ev.LoadReported, "chat", 0, 0, 1)
    (name,) = mill.named(ReplicaStatus.STARTING)
    assert mill.said == (
        "chat: 0 -> 1 replicas, since somebody asked while it slept",
        f"replica {name} of chat starts on n0",
    )
    mill.up_all()
    assert mill.said == ("traffic of chat goes to import-m",)
    slots = mill.state.index.deployments["chat"].slots
    mill.tell(ev.LoadReported, "chat", slots)
    mill.now += UP_AFTER_US
    mill.tell(ev.LoadReported, "chat", slots)
    (waiting,) = mill.named(ReplicaStatus.PENDING)
    assert mill.said == (
        f"chat: 1 -> 2 replicas, since {slots} of {slots} slots are in use",
        f"replica {waiting} of chat waits for room: `tokenmill why {waiting}` says for what",
    )


def test_preemption_says_for_whom_and_what_becomes_of_it(mill: Mill) -> None:
    mill.join(gpus=1)
    mill.apply(factory())
    mill.tell(ev.JobSubmitted, "low", SPEC)
    assert mill.said == ("job low (nightly) starts on n0",)
    mill.tell(ev.JobSubmitted, "high", replace(SPEC, priority=9))
    assert mill.said == (
        "job low (nightly) is told to stop: preempted for high",
        "it waits: `tokenmill why high` says for what",
    )
    mill.tell(ev.JobExited, "low", 1, 143)
    assert mill.said == (
        "job high (nightly) starts on n0",
        "it waits again, and has lost no attempt by it",
    )


def test_a_failure_says_what_follows(mill: Mill) -> None:
    mill.join(gpus=1)
    mill.apply(factory())
    mill.tell(ev.JobSubmitted, "j", replace(SPEC, max_attempts=2))
    mill.tell(ev.JobExited, "j", 1, 1)
    assert mill.said == ("it is tried again in 2 s, since that was attempt 1 of 2",)
    mill.wait(2)
    mill.tell(ev.JobExited, "j", 2, 1)
    assert mill.said == ("it is given up after attempt 2 of 2",)


def test_a_command_that_is_not_there_is_given_up_and_says_why(mill: Mill) -> None:
    mill.join(gpus=1)
    mill.apply(factory())
    mill.tell(ev.JobSubmitted, "j", SPEC)
    mill.tell(ev.JobExited, "j", 1, 127, None, "no-such-program: not found")
    assert mill.said == ("it is given up after attempt 1 of 3: another would end the same",)


def test_a_tenants_lease_says_what_was_granted_and_when_it_is_over(mill: Mill) -> None:
    mill.join(gpus=1)
    mill.apply(factory())
    mill.tell(ev.LeaseRequested, "lease-1", "a", "p", 1500, GB, 1, 90 * SECOND)
    assert mill.said == ("it is granted: 1.5 cores, 1 GiB, n0/0 on n0 for 1.5 minutes",)
    assert why(mill.state, "lease-1", mill.now).reasons == (
        "a/p was granted it and holds 1.5 cores, 1 GiB, n0/0 of n0",
    )
    mill.tell(ev.JobSubmitted, "j", SPEC)
    mill.wait(90)
    assert mill.said == ("lease lease-1 of a is over", "job j (nightly) starts on n0")
