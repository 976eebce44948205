"""Who gets in through the gateway: admin keys and sessions, and nobody else."""

from __future__ import annotations

import re
import time

from console_bed import Bed

from tokenmill.console import auth

THROUGH = {"x-tokenmill-forwarded": "1", "host": "factory.test"}


def bearer(secret: str) -> dict[str, str]:
    return {**THROUGH, "authorization": f"Bearer {secret}"}


def sign_in(bed: Bed, secret: str) -> str:
    answer = bed.client.post(
        "/login", data={"key": secret}, headers={**THROUGH, "origin": "http://factory.test"}
    )
    assert answer.status_code == 303, answer.text
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert secret not in cookie
    bed.client.cookies.clear()
    return cookie.split(";")[0]


def test_the_socket_is_trusted(served: Bed) -> None:
    assert served.client.get("/api/keys").status_code == 200
    assert served.client.get("/").status_code == 200


def test_from_outside_a_key_is_needed(served: Bed) -> None:
    answer = served.client.get("/api/status", headers=THROUGH)
    assert answer.status_code == 401
    assert "www-authenticate" in answer.headers
    assert served.client.get("/console/fragments/status", headers=THROUGH).status_code == 401
    page = served.client.get("/console/runs/run-000001", headers=THROUGH)
    assert page.status_code == 303
    assert page.headers["location"] == "/login?next=/console/runs/run-000001"
    assert served.client.get("/login", headers=THROUGH).status_code == 200
    assert served.client.get("/console/style.css", headers=THROUGH).status_code == 200


def test_only_a_live_admin_key_opens(served: Bed) -> None:
    admin = served.admin()
    plain = served.client.post("/api/keys", json={}).json()
    soon_us = time.time_ns() // 1000 + 300_000
    short = served.client.post("/api/keys", json={"scope": "admin", "expires_us": soon_us}).json()
    assert served.client.get("/api/status", headers=bearer(admin)).status_code == 200
    served.until(lambda: time.time_ns() // 1000 > soon_us)
    for secret in (plain["secret"], short["secret"], admin + "x", "tm-", ""):
        assert served.client.get("/api/status", headers=bearer(secret)).status_code == 401
    key = next(k for k in served.client.get("/api/keys").json() if k["hint"] == admin[-4:])
    served.client.delete(f"/api/keys/{key['id']}")
    assert served.client.get("/api/status", headers=bearer(admin)).status_code == 401


def test_a_session_ends_with_its_key_and_on_sign_out(served: Bed) -> None:
    secret = served.admin()
    headers = {**THROUGH, "cookie": sign_in(served, secret)}
    assert served.client.get("/", headers=headers).status_code == 200
    assert "Sign out" in served.client.get("/", headers=headers).text
    out = served.client.post("/console/logout", headers={**headers, "origin": "http://factory.test"})
    assert out.status_code == 303
    assert served.client.get("/api/status", headers=headers).status_code == 401
    headers = {**THROUGH, "cookie": sign_in(served, secret)}
    key = next(k for k in served.client.get("/api/keys").json() if k["hint"] == secret[-4:])
    served.client.delete(f"/api/keys/{key['id']}")
    assert served.client.get("/api/status", headers=headers).status_code == 401


def test_another_site_cannot_post(served: Bed) -> None:
    headers = {**THROUGH, "cookie": sign_in(served, served.admin())}
    body = {"line": "desk"}
    for origin in ("http://evil.test", "null", "http://factory.test.evil.test", "http://factory.test:81"):
        answer = served.client.post("/api/runs", json=body, headers={**headers, "origin": origin})
        assert answer.status_code == 403, origin
    cross = {**headers, "sec-fetch-site": "cross-site"}
    assert served.client.post("/api/runs", json=body, headers=cross).status_code == 403
    assert not served.runtime.state.runs
    same = {**headers, "origin": "http://factory.test"}
    assert served.client.post("/api/runs", json=body, headers=same).status_code == 201


def test_logins_close_after_too_many_wrong_keys(served: Bed) -> None:
    headers = {**THROUGH, "origin": "http://factory.test"}
    for _ in range(auth.LOGIN_TRIES):
        assert served.client.post("/login", data={"key": "tm-wrong"}, headers=headers).status_code == 401
    closed = served.client.post("/login", data={"key": served.admin()}, headers=headers)
    assert closed.status_code == 429
    assert int(closed.headers["retry-after"]) > 0
    assert "Too many wrong keys" in closed.text


def test_after_signing_in_one_stays_here(served: Bed) -> None:
    secret = served.admin()
    for target, where in (
        ("/console/runs/run-000001", "/console/runs/run-000001"),
        ("//evil.test/", "/"),
        ("https://evil.test/", "/"),
        ("/\\evil.test", "/"),
    ):
        answer = served.client.post("/login", data={"key": secret, "next": target}, headers=THROUGH)
        assert answer.headers["location"] == where
        served.client.cookies.clear()


def test_every_answer_is_hardened(served: Bed) -> None:
    for path in ("/", "/login", "/api/status", "/api/nothing", "/console/style.css"):
        headers = served.client.get(path).headers
        assert headers["x-frame-options"] == "DENY"
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
    first, second = served.client.get("/"), served.client.get("/")
    nonces = [
        re.findall(r"'nonce-([^']+)'", answer.headers["content-security-policy"])[0]
        for answer in (first, second)
    ]
    assert nonces[0] != nonces[1]
    assert f'nonce="{nonces[0]}"' in first.text


def test_sessions_are_bounded_and_expire() -> None:
    clock = [1]
    sessions = auth.Sessions(lambda: clock[0])
    first = sessions.open("key-1")
    assert sessions.key_of(first) == "key-1"
    assert first not in str(sessions.live)
    for _ in range(auth.MAX_SESSIONS):
        last = sessions.open("key-2")
    assert sessions.key_of(first) == ""
    assert len(sessions.live) == auth.MAX_SESSIONS
    clock[0] += auth.SESSION_US
    assert sessions.key_of(last) == ""
