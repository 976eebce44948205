"""Errors of the house as JSON bodies with an HTTP status, and back into errors for the CLI's client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenmill.domain import errors
from tokenmill.domain.codec import to_plain
from tokenmill.domain.errors import Problem, RefusedError, SpecError, TokenmillError

STATUS_OF_KIND = {
    "usage": 400,
    "data": 400,
    "spec": 422,
    "not_found": 404,
    "conflict": 409,
    "refused": 403,
    "engine": 502,
    "corrupt_weights": 502,
    "store": 503,
    "not_leader": 503,
    "missing_extra": 501,
    "resource": 507,
}


def _kinds() -> dict[str, type[TokenmillError]]:
    found: dict[str, type[TokenmillError]] = {}
    for value in vars(errors).values():
        if isinstance(value, type) and issubclass(value, TokenmillError):
            found[value.kind] = value
    return found


def body_of(error: TokenmillError) -> dict[str, Any]:
    """``{"error": {...}}`` as the admin API and ``--json`` show it."""
    problem = error.problem
    return {
        "error": {
            "kind": error.kind,
            "message": problem.message,
            "expected": problem.expected,
            "fix": problem.fix,
            "where": problem.where,
            "reasons": list(error.reasons) if isinstance(error, RefusedError) else [],
            "exit_code": error.exit_code,
            "problems": [to_plain(p) for p in error.problems] if isinstance(error, SpecError) else [],
            "problem_count": error.count if isinstance(error, SpecError) else 0,
        }
    }


def status_of(error: TokenmillError) -> int:
    return STATUS_OF_KIND.get(error.kind, 500)


def error_of(body: Mapping[str, Any]) -> TokenmillError:
    """The error that a body came from; a kind that this version does not know becomes the plain one."""
    found = body.get("error")
    if not isinstance(found, Mapping):
        return TokenmillError("the controller answered something that is not understood")
    kind = _kinds().get(str(found.get("kind")), TokenmillError)
    message, fix = str(found.get("message", "")), str(found.get("fix", ""))
    if kind is SpecError:
        problems = tuple(Problem(**p) for p in found.get("problems", ()))
        return SpecError(problems, count=found.get("problem_count", len(problems)))
    if kind is RefusedError:
        return RefusedError(message, tuple(found.get("reasons", ())), fix=fix)
    return kind(message, expected=str(found.get("expected", "")), fix=fix, where=str(found.get("where", "")))
