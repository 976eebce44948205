"""``/v1/files`` of the controller: upload, pages, content, expiry, limits, and tenants apart."""

from __future__ import annotations

import resource
from typing import Any

import pytest
from console_bed import Bed

from tokenmill.console.tenant import uploads
from tokenmill.domain.tenancy import Owner


def secret_of(bed: Bed, tenant: int = 0) -> dict[str, str]:
    found = bed.factory.tenants[tenant]
    made = bed.client.post("/api/keys", json={"tenant": found.name, "project": found.projects[0].name})
    return {"authorization": f"Bearer {made.json()['secret']}"}


def upload(bed: Bed, auth: dict[str, str], data: bytes = b'{"a":1}\n', **form: str) -> Any:
    fields = {"purpose": "batch", **form}
    files = {"file": ("in put.jsonl", data, "application/jsonl")}
    return bed.client.post("/v1/files", headers=auth, data=fields, files=files)


def test_a_file_lives_and_goes(served: Bed) -> None:
    auth = secret_of(served)
    made = upload(served, auth)
    assert made.status_code == 200, made.text
    file = made.json()
    assert file["object"] == "file"
    assert file["bytes"] == 8
    assert file["filename"] == "in put.jsonl"
    assert file["purpose"] == "batch"
    assert file["status"] == "processed"
    assert file["expires_at"] is None
    assert made.headers["x-request-id"]
    again = served.client.get(f"/v1/files/{file['id']}", headers=auth).json()
    assert again == file
    content = served.client.get(f"/v1/files/{file['id']}/content", headers=auth)
    assert content.content == b'{"a":1}\n'
    gone = served.client.delete(f"/v1/files/{file['id']}", headers=auth)
    assert gone.json() == {"id": file["id"], "object": "file", "deleted": True}
    missing = served.client.get(f"/v1/files/{file['id']}", headers=auth)
    assert missing.status_code == 404
    error = missing.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == "file_not_found"
    assert not list((served.paths.artifacts / "tenants").rglob("sha256/*/*"))  # the bytes are gone too


def test_same_bytes_stay_while_one_file_has_them(served: Bed) -> None:
    auth = secret_of(served)
    first, second = upload(served, auth).json(), upload(served, auth, purpose="user_data").json()
    served.client.delete(f"/v1/files/{first['id']}", headers=auth)
    assert served.client.get(f"/v1/files/{second['id']}/content", headers=auth).content == b'{"a":1}\n'


def test_pages(served: Bed) -> None:
    auth = secret_of(served)
    names = [upload(served, auth, b"%d\n" % n).json()["id"] for n in range(5)]
    first = served.client.get("/v1/files?limit=2", headers=auth).json()
    assert [f["id"] for f in first["data"]] == names[:2:-1]
    assert first["has_more"] is True
    assert first["last_id"] == names[3]
    rest = served.client.get(f"/v1/files?after={names[3]}", headers=auth).json()
    assert [f["id"] for f in rest["data"]] == names[2::-1]
    assert rest["has_more"] is False
    up = served.client.get("/v1/files?order=asc&limit=1", headers=auth).json()
    assert up["data"][0]["id"] == names[0]
    none = served.client.get("/v1/files?purpose=fine-tune", headers=auth).json()
    assert none == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


def test_tenants_and_projects_do_not_see_each_other(served: Bed) -> None:
    auth, stranger = secret_of(served), secret_of(served, 1)
    file = upload(served, auth).json()["id"]
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        found = served.client.request(method, f"/v1/files/{file}{path}", headers=stranger)
        assert found.status_code == 404, found.text
    assert served.client.get("/v1/files", headers=stranger).json()["data"] == []
    assert served.client.get(f"/v1/files?after={file}", headers=stranger).status_code == 404
    assert served.client.get(f"/v1/files/{file}", headers=auth).status_code == 200


@pytest.mark.parametrize(
    ("form", "code", "param"),
    [
        ({"purpose": "batch_output"}, "invalid_value", "purpose"),
        ({"purpose": "assistants"}, "invalid_value", "purpose"),
        (
            {"expires_after[anchor]": "now", "expires_after[seconds]": "3600"},
            "invalid_value",
            "expires_after.anchor",
        ),
        (
            {"expires_after[anchor]": "created_at", "expires_after[seconds]": "5"},
            "invalid_value",
            "expires_after.seconds",
        ),
    ],
)
def test_bad_forms_are_400(served: Bed, form: dict[str, str], code: str, param: str) -> None:
    answer = upload(served, secret_of(served), **form)
    assert answer.status_code == 400, answer.text
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == (code, param)


def test_broken_uploads_are_refused(served: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    auth = secret_of(served)
    assert upload(served, auth, b"").json()["error"]["code"] == "empty_file"
    plain = served.client.post("/v1/files", headers=auth, json={"purpose": "batch"})
    assert plain.status_code == 415
    broken = served.client.post(
        "/v1/files", headers={**auth, "content-type": "multipart/form-data; boundary=x"}, content=b"no form"
    )
    assert broken.status_code == 400, broken.text
    unbounded = served.client.post(
        "/v1/files", headers={**auth, "content-type": "multipart/form-data"}, content=b"no form"
    )
    assert unbounded.status_code == 400, unbounded.text
    monkeypatch.setattr(uploads, "UPLOAD_BYTES", 1000)
    assert upload(served, auth, b"x" * 2000).status_code == 413
    assert served.client.get("/v1/files", headers=auth).json()["data"] == []


def test_a_full_disk_refuses_an_upload_and_keeps_nothing_of_it(
    served: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit on files stands in for the disk: once while the form comes, once while the file is kept."""
    auth = secret_of(served)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit, size in ((4 << 20, 6 << 20), (800_000, 900_000)):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            refused = upload(served, auth, b"x" * size)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert (refused.status_code, refused.json()["error"]["code"]) == (507, "disk_full"), refused.text
        assert not list((served.paths.artifacts / "tenants").rglob("incoming/*"))
        assert served.client.get("/v1/files", headers=auth).json()["data"] == []
    with monkeypatch.context() as patch:
        patch.setattr(uploads, "RESERVE_BYTES", 1 << 60)
        assert upload(served, auth).status_code == 507
    assert upload(served, auth).status_code == 200


def test_expired_files_are_gone_at_once_and_swept(served: Bed) -> None:
    auth = secret_of(served)
    kept = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    file = upload(served, auth, **kept).json()
    assert file["expires_at"] == file["created_at"] + 3600
    shelf, tenant = served.context.shelf, served.factory.tenants[0]
    record = shelf.page(Owner(tenant.name, tenant.projects[0].name), limit=1)[0]
    shelf._now_us = lambda: record.expires_us
    assert served.client.get(f"/v1/files/{file['id']}", headers=auth).status_code == 404
    assert served.client.get("/v1/files", headers=auth).json()["data"] == []
    assert shelf.sweep() == 1
    assert not list((served.paths.artifacts / "tenants").rglob("sha256/*/*"))


def test_only_live_keys_are_answered(served: Bed) -> None:
    for headers in ({}, {"authorization": "Bearer tm-no"}, {"authorization": "Basic x"}):
        found = served.client.get("/v1/files", headers=headers)
        assert found.status_code == 401
        assert found.json()["error"]["code"] == "invalid_api_key"
    auth = secret_of(served)
    for key in list(served.runtime.state.keys):
        served.client.delete(f"/api/keys/{key}")
    assert served.client.get("/v1/files", headers=auth).status_code == 401


def test_unknown_paths_and_methods_have_error_objects(served: Bed) -> None:
    auth = secret_of(served)
    for method, path, status in (
        ("GET", "/v1/assistants", 404),
        ("PUT", "/v1/files", 405),
        ("GET", "/v1/files/a/b/c", 404),
        ("GET", "/v1/files?limit=0", 400),
        ("GET", "/v1/files?limit=9999999999999", 400),
        ("GET", "/v1/files?order=up", 400),
        ("GET", "/v1/files?purpose=x", 400),
        ("GET", "/v1/files?after=file-0", 404),
    ):
        found = served.client.request(method, path, headers=auth)
        assert found.status_code == status, (path, found.text)
        assert set(found.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"model": "\xe9"}', b"NaN", b"[]", b'"x"'])
@pytest.mark.parametrize("path", ["/v1/batches", "/v1/fine_tuning/jobs"])
def test_a_body_that_is_no_object_is_refused_with_an_error_object(
    served: Bed, path: str, body: bytes
) -> None:
    refused = served.client.post(path, headers=secret_of(served), content=body)
    assert refused.status_code == 400, refused.text
    error = refused.json()["error"]
    assert (set(error), error["type"]) == ({"message", "type", "param", "code"}, "invalid_request_error")


def test_a_mistake_of_ours_is_an_error_object_too(served: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    auth = secret_of(served)

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("tokenmill.console.tenant.batches.query_count", broken)
    served.client._transport.raise_server_exceptions = False
    failed = served.client.get("/v1/batches", headers=auth)
    assert failed.status_code == 500
    assert failed.json()["error"]["type"] == "server_error"
    assert failed.headers["x-request-id"]
