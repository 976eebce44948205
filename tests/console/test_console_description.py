"""One list of endpoints: what is served, what ``/openapi.json`` describes and what docs/api.md says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from console_bed import Bed

from tokenmill.console.tenant.api import routes
from tokenmill.gateway import openapi
from tokenmill.gateway.routes import DIALECTS, SURFACES, TENANT_TREES, TOKENIZERS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"
ROW = re.compile(r"^\| `(GET|POST|DELETE) (/[^`]*)` \|", re.MULTILINE)
GATEWAYS = {
    *(("GET", path) for path in ("/models", "/models/{id}", "/healthz", "/health", "/readyz", "/version")),
    *(("GET", path) for path in ("/openapi.json", "/metrics")),
}
"""Answered by the gateway alone; tests/gateway/test_gateway_pages.py asks for each."""


def short(path: str) -> str:
    return path.removeprefix("/v1").replace("{model:path}", "{id}")


def test_the_page_the_description_and_what_is_served_are_one_list(bed: Bed) -> None:
    nothing: Any = None
    table = routes(bed.context, nothing, nothing)
    served = {(method, short(path)) for method, path, _ in table} | GATEWAYS
    served |= {("POST", path) for path in (*SURFACES, *DIALECTS, *TOKENIZERS)}
    paths = json.loads(openapi.document())["paths"]
    described = {(method.upper(), short(path)) for path, methods in paths.items() for method in methods}
    page = {(method, short(path)) for method, path in ROW.findall(PAGE.read_text())}
    assert described == served
    assert page == served
    trees = {path.split("/")[1] for _, path, _ in table} - {"models"}
    assert trees == set(TENANT_TREES)  # else the gateway would not pass them on
