"""The tree of everything that can go wrong, and the exit code of each branch.

TokenmillError                      1
├── UsageError                      2   the command line or a setting makes no sense
├── SpecError                       3   a factory file is wrong; carries its problems at once
├── NotFoundError                   4   no such tenant, key, run, release ...
├── ConflictError                   5   the world moved on: stale plan, name taken, already running
├── RefusedError                    6   a policy said no; carries its reasons
├── EngineError                     7   an inference engine or trainer failed
│   └── CorruptWeightsError         7   bytes do not have the digest they should
├── StoreError                      8   state cannot be read or written
│   └── NotLeaderError              8   another controller holds the lease
├── MissingExtraError               9   an optional part is not installed
├── DataError                      10   a data file is broken; names file and line
├── RunFailedError                 11   a line's run ended in failure
├── GateRejectedError              12   a line's gate said no: not an error of the machine
└── ResourceError                  13   disk full, port taken, out of memory

An operating condition raises one of these. A programmer's mistake goes through ``invariant``.
"""

from __future__ import annotations

from dataclasses import dataclass

MOST_PROBLEMS = 100
"""Of one error. One mistake in a list may be found in each of its thousands of entries."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with something a person wrote: where it is, what it is, what would be right."""

    message: str
    where: str = ""  # "factory.yaml:12"
    field: str = ""  # "tenants[0].quota.tokens_per_minute"
    expected: str = ""
    fix: str = ""

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        field = f"{self.field}: " if self.field else ""
        expected = f" Expected {self.expected}." if self.expected else ""
        fix = f" {self.fix}" if self.fix else ""
        stop = "." if (expected or fix) and not self.message.endswith((".", "!", "?", ":")) else ""
        return f"{place}{field}{self.message}{stop}{expected}{fix}"


class TokenmillError(Exception):
    """Something happened that the caller can act on.

    ``message`` says what happened, ``expected`` what should have been, ``fix`` how to get there and
    ``where`` names file:line, process or address. ``exit_code`` is what the CLI returns.
    """

    exit_code = 1
    kind = "error"

    def __init__(self, message: str, *, expected: str = "", fix: str = "", where: str = "") -> None:
        super().__init__(message)
        self.problem = Problem(message, where=where, expected=expected, fix=fix)

    def __str__(self) -> str:
        return str(self.problem)


class UsageError(TokenmillError):
    exit_code = 2
    kind = "usage"


class SpecError(TokenmillError):
    """What a person wrote is wrong, in this kind of ``file``.

    ``problems`` holds the first ``MOST_PROBLEMS`` in file order, ``count`` says how many there are.
    """

    exit_code = 3
    kind = "spec"

    def __init__(
        self, problems: tuple[Problem, ...], file: str = "factory file", count: int | None = None
    ) -> None:
        self.count = len(problems) if count is None else count
        super().__init__(f"{self.count} problem(s) in the {file}")
        self.problems = problems[:MOST_PROBLEMS]

    def lines(self, most: int = MOST_PROBLEMS) -> list[str]:
        """The first ``most`` problems, and how many more there are."""
        shown = [str(problem) for problem in self.problems[:most]]
        more = self.count - len(shown)
        return [*shown, f"and {more:,} more"] if more else shown

    def __str__(self) -> str:
        return "\n".join(self.lines())


class NotFoundError(TokenmillError):
    exit_code = 4
    kind = "not_found"


class ConflictError(TokenmillError):
    exit_code = 5
    kind = "conflict"


class RefusedError(TokenmillError):
    """A policy said no. ``reasons`` lists why, candidate by candidate."""

    exit_code = 6
    kind = "refused"

    def __init__(self, message: str, reasons: tuple[str, ...] = (), *, fix: str = "") -> None:
        super().__init__(message, fix=fix)
        self.reasons = reasons


class EngineError(TokenmillError):
    exit_code = 7
    kind = "engine"


class CorruptWeightsError(EngineError):
    kind = "corrupt_weights"


class StoreError(TokenmillError):
    exit_code = 8
    kind = "store"


class NotLeaderError(StoreError):
    kind = "not_leader"


class MissingExtraError(TokenmillError):
    exit_code = 9
    kind = "missing_extra"


class DataError(TokenmillError):
    exit_code = 10
    kind = "data"


class RunFailedError(TokenmillError):
    exit_code = 11
    kind = "run_failed"


class GateRejectedError(TokenmillError):
    exit_code = 12
    kind = "gate_rejected"


class ResourceError(TokenmillError):
    exit_code = 13
    kind = "resource"


class InvariantError(AssertionError):
    """Tokenmill itself is wrong. Never caught on purpose."""


def invariant(condition: bool, text: str) -> None:
    """Stop when ``condition``, which only a mistake in our own code can break, does not hold."""
    if not condition:
        raise InvariantError(text)
