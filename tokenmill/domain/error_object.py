"""OpenAI's error object, which every part of the tenant's API answers with, whatever went wrong."""

from __future__ import annotations

from typing import Any

TYPES = {
    400: "invalid_request_error",
    401: "invalid_request_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    409: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
}


def error_object(status: int, code: str | None, message: str, param: str | None = None) -> dict[str, Any]:
    """``{"error": {message, type, param, code}}`` with all four keys, as the schema demands."""
    kind = "insufficient_quota" if code == "insufficient_quota" else TYPES.get(status, "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
