"""``/v1/files``: upload as a form, list, look at, read and delete.

A form is parsed while it comes and its file goes to disk, so that no upload is held in memory.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from tokenmill.console.tenant.answers import (
    ApiRefusedError,
    answer,
    bad,
    listing,
    missing,
    query_count,
    seconds,
)
from tokenmill.console.tenant.caller import owner_of
from tokenmill.console.tenant.files import FileShelf
from tokenmill.domain.errors import NotFoundError
from tokenmill.domain.tenancy import UPLOADED, Owner, Purpose, TenantFile
from tokenmill.spec.files import DISK_ERRNOS

UPLOAD_BYTES = 64 * 2**20
"""As large as a request may be at the gateway, the form around the file included."""

RESERVE_BYTES = 256 * 2**20
"""What uploads leave free of the disk: a full one stops the factory's database too."""

FIELDS_MOST = 16
FIELD_BYTES = 64 * 1024
PAGE_MOST = 10_000
KEEP_SECONDS = (3600, 2_592_000)  # OpenAI's bounds of expires_after: an hour to thirty days
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def file_view(file: TenantFile) -> dict[str, Any]:
    """The public File object."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": seconds(file.created_us),
        "expires_at": seconds(file.expires_us),
        "filename": file.name,
        "purpose": file.purpose.value,
        "status": "processed",
        "status_details": None,
    }


class Uploads:
    """The endpoints over one shelf."""

    def __init__(self, shelf: FileShelf) -> None:
        self.shelf = shelf

    async def create(self, request: Request) -> Response:
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise ApiRefusedError(415, "invalid_content_type", "Send the file as multipart/form-data.")
        owner = owner_of(request)
        await run_in_threadpool(self._check_disk, owner)
        with _disk_errors():
            try:
                form = await _Limited(request).form(
                    max_files=1, max_fields=FIELDS_MOST, max_part_size=FIELD_BYTES
                )
            except (HTTPException, MultiPartException) as error:
                raise bad(f"The form cannot be read: {getattr(error, 'detail', error)}") from None
            try:
                upload, purpose, keep_us = _read_form(form)
                stored = await run_in_threadpool(self._keep, owner, upload, purpose, keep_us)
            finally:
                await form.close()
        return answer(file_view(stored))

    async def list(self, request: Request) -> Response:
        query = request.query_params
        limit = query_count(request, "limit", PAGE_MOST, PAGE_MOST)
        purpose, order = query.get("purpose", ""), query.get("order", "desc")
        if purpose and purpose not in tuple(Purpose):
            raise bad(f"'purpose' must be one of {', '.join(Purpose)}.", "purpose")
        if order not in ("asc", "desc"):
            raise bad("'order' must be 'asc' or 'desc'.", "order")
        found = await run_in_threadpool(
            self.shelf.page,
            owner_of(request),
            purpose=purpose,
            after=query.get("after", ""),
            limit=limit + 1,
            newest_first=order == "desc",
        )
        return listing([file_view(file) for file in found], limit)

    async def get(self, request: Request) -> Response:
        return answer(file_view(await self._named(request)))

    async def content(self, request: Request) -> Response:
        file = await self._named(request)
        path = await run_in_threadpool(self.shelf.path, file)
        headers = {"content-disposition": f"attachment; filename*=UTF-8''{quote(file.name, safe='')}"}
        return FileResponse(path, headers=headers, media_type="application/octet-stream")

    async def delete(self, request: Request) -> Response:
        file = await self._named(request)
        await run_in_threadpool(self.shelf.delete, file.owner, file.id)
        return answer({"id": file.id, "object": "file", "deleted": True})

    async def _named(self, request: Request) -> TenantFile:
        name = request.path_params["id"]
        try:
            return await run_in_threadpool(self.shelf.get, owner_of(request), name)
        except NotFoundError:
            raise missing("file", name) from None

    def _check_disk(self, owner: Owner) -> None:
        if shutil.disk_usage(self.shelf.incoming(owner.tenant)).free < UPLOAD_BYTES + RESERVE_BYTES:
            raise _full()

    def _keep(self, owner: Owner, upload: UploadFile, purpose: Purpose, keep_us: int) -> TenantFile:
        folder = self.shelf.incoming(owner.tenant)
        handle, name = tempfile.mkstemp(dir=folder)
        path = Path(name)
        try:
            with open(handle, "wb") as target:
                shutil.copyfileobj(upload.file, target, 1024 * 1024)
            name = _CONTROL.sub("", (upload.filename or "file").replace("\\", "/").rpartition("/")[2])
            return self.shelf.add(owner, purpose, name, path, keep_us=keep_us)
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def _disk_errors() -> Iterator[None]:
    """A disk that fills up meanwhile is told as one that was full before."""
    try:
        yield
    except OSError as error:
        raise _full() if error.errno in DISK_ERRNOS else error from None


def _full() -> ApiRefusedError:
    return ApiRefusedError(
        507,
        "disk_full",
        "The factory's disk is full, and nothing of the file was kept. Upload it again when its operator has "
        "made room.",
    )


def _read_form(form: FormData) -> tuple[UploadFile, Purpose, int]:
    upload, purpose = form.get("file"), form.get("purpose")
    if not isinstance(upload, UploadFile):
        raise bad("'file' must be a file in the form.", "file", "missing_required_parameter")
    if not upload.size:
        raise bad("The file is empty.", "file", "empty_file")
    if purpose is None:
        raise bad("'purpose' is a required property.", "purpose", "missing_required_parameter")
    if purpose not in UPLOADED:
        raise bad(f"'purpose' must be one of {', '.join(UPLOADED)}.", "purpose")
    return upload, Purpose(str(purpose)), _keep_us(form)


def _keep_us(form: FormData) -> int:
    anchor, wanted = form.get("expires_after[anchor]"), form.get("expires_after[seconds]")
    if anchor is None and wanted is None:
        return 0
    low, high = KEEP_SECONDS
    text = str(wanted)
    if anchor != "created_at":
        raise bad("'expires_after.anchor' must be 'created_at'.", "expires_after.anchor")
    if not text.isascii() or not text.isdecimal() or len(text) > 9 or not low <= int(text) <= high:
        raise bad(f"'expires_after.seconds' must be from {low} to {high}.", "expires_after.seconds")
    return int(text) * 1_000_000


class _Limited(Request):
    """A request whose body ends with a refusal when it grows beyond ``UPLOAD_BYTES``."""

    def __init__(self, request: Request) -> None:
        super().__init__(request.scope, request.receive)

    async def stream(self):  # type: ignore[no-untyped-def]  # an async generator, typed by its parent
        size = 0
        async for part in super().stream():
            size += len(part)
            if size > UPLOAD_BYTES:
                raise ApiRefusedError(413, "file_too_large", f"The upload exceeds {UPLOAD_BYTES} bytes.")
            yield part
