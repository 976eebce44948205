"""A plan under a profile that ``tokenmill calibrate`` wrote and the request carries."""

from __future__ import annotations

import msgspec
from console_bed import Bed

from tokenmill.twin.profiles import profile


def test_a_plan_is_rehearsed_under_the_profile_of_the_request(served: Bed) -> None:
    plain = msgspec.to_builtins(served.factory)
    shown = served.client.post("/api/plan", json={"factory": plain}).json()
    fitted = msgspec.to_builtins(profile())
    again = served.client.post("/api/plan", json={"factory": plain, "profile": fitted}).json()
    assert again["forecast"] == shown["forecast"]
    wrong = served.client.post("/api/plan", json={"factory": plain, "profile": {"base": {}}})
    assert wrong.status_code >= 400
    assert "the request's profile is no fitted profile" in wrong.json()["error"]["message"]
