"""Where may data be? Residency removes candidates before anything is scored; it never weighs against speed.

A tenant's ``jurisdictions`` bound where its requests, jobs and what is derived from them may be; empty is
anywhere. A place whose jurisdiction is unknown (empty) is refused to a bound tenant: fail closed.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenmill.domain.table import Endpoint


def allowed(jurisdiction: str, jurisdictions: Sequence[str]) -> bool:
    """Whether data bound to ``jurisdictions`` may be in ``jurisdiction``. Names are compared whole."""
    return not jurisdictions or jurisdiction in jurisdictions


def reside(
    endpoints: Sequence[Endpoint], jurisdictions: Sequence[str]
) -> tuple[Sequence[Endpoint], tuple[str, ...]]:
    """Split ``endpoints`` into those that may be used and one reason for each that may not."""
    if not jurisdictions:
        return endpoints, ()
    kept: list[Endpoint] = []
    reasons: list[str] = []
    for endpoint in endpoints:
        if endpoint.jurisdiction in jurisdictions:
            kept.append(endpoint)
        else:
            where = endpoint.jurisdiction or "an unstated jurisdiction"
            reasons.append(f"{endpoint.replica}: is in {where}, allowed are {', '.join(jurisdictions)}")
    return kept, tuple(reasons)
