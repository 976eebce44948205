"""What no job may ask for on any floor: each field has a bound, so that no number of it can do harm.

Whether this floor could hold it is ``control.jobs``' to say.
"""

from __future__ import annotations

from tokenmill.domain.work import JobSpec

WORKERS_MOST = 100_000
ATTEMPTS_MOST = 1000
PRIORITY_MOST = 1_000_000
LONGEST_US = 366 * 86_400_000_000
NAME_MOST = 100
COMMAND_MOST_BYTES = 100_000  # of one word and of all: less than what Linux takes


def out_of_bounds(spec: JobSpec) -> tuple[str, ...]:
    """Every field that is out of its bounds, with what it may be. A timeout of 0 is none."""
    need = spec.resources
    numbers = (
        ("workers", spec.workers, 1, WORKERS_MOST),
        ("max_attempts", spec.max_attempts, 1, ATTEMPTS_MOST),
        ("priority", spec.priority, -PRIORITY_MOST, PRIORITY_MOST),
        ("timeout_us", spec.timeout_us, 0, LONGEST_US),
        ("runtime_us", spec.runtime_us, 0, LONGEST_US),
        ("min_run_us", spec.min_run_us, 0, LONGEST_US),
        ("resources.cpu_millis", need.cpu_millis, 0, None),
        ("resources.memory_bytes", need.memory_bytes, 0, None),
        ("resources.accelerators", need.accelerators, 0, None),
    )
    wrong = [
        f"{name} is {found}: " + (f"{least} or more" if most is None else f"{least} to {most}")
        for name, found, least, most in numbers
        if found < least or (most is not None and found > most)
    ]
    if not any((need.cpu_millis, need.memory_bytes, need.accelerators)):
        wrong.append("resources are nothing: some CPU, memory or accelerators")
    if len(spec.name) > NAME_MOST or not spec.name.isprintable():
        wrong.append(f"name is {spec.name[:NAME_MOST]!r}: up to {NAME_MOST} characters that can be printed")
    if spec.kind == "command" and not (spec.command and spec.command[0].strip()):
        wrong.append("command has no first word: the program to run")
    if any("\0" in word for word in spec.command):
        wrong.append("command holds a NUL character, which no program can be given")
    if sum(len(word.encode(errors="replace")) for word in spec.command) > COMMAND_MOST_BYTES:
        wrong.append(f"command is too long: up to {COMMAND_MOST_BYTES} bytes in all")
    return tuple(wrong)
