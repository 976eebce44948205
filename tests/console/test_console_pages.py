"""The pages: complete without a script, accessible, escaped, and nothing from another host."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from console_bed import Bed

VOID = {"meta", "link", "img", "input", "br", "path", "rect", "circle"}


class Outline(HTMLParser):
    """Collects tags and ids, and checks that every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1:] == [tag], f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()


def outline(page: str) -> Outline:
    found = Outline()
    found.feed(page)
    assert found.open == []
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in found.tags:
        inline = [name for name in attributes if name == "style" or name.startswith("on")]
        assert not inline, (tag, attributes)
        assert not str(attributes.get("src", "/")).startswith(("http", "//"))
        if tag == "th":
            assert attributes.get("scope") in ("col", "row")
        if tag == "svg":
            assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"
        labelled = attributes.get("aria-labelledby")
        assert labelled is None or labelled in ids
    return found


def test_an_empty_factory_has_a_page(bed: Bed) -> None:
    page = bed.client.get("/")
    assert page.status_code == 200
    assert "Starting" in page.text
    assert "no factory file has been applied yet" in page.text
    outline(page.text)


def test_the_page_shows_the_factory(served: Bed) -> None:
    run = served.run()
    served.settle("acme", "support", "desk", 12)
    served.sample()
    page = served.client.get("/").text
    found = outline(page)
    for text in (
        "Ready",
        "first",
        "http://127.0.0.1:8400/v1",
        run["id"],
        run["release"],
        "acme",
        "95 % interval",
    ):
        assert text in page, text
    for station in run["stations"]:
        assert f">{station['name']}<" in page
    assert "points on 100 questions" in page
    landmarks = {tag for tag, _ in found.tags}
    assert {"main", "header", "nav", "h1", "table", "caption"} <= landmarks
    assert page.count("<script") == 1


def test_a_fragment_has_the_same_sections_and_no_script(served: Bed) -> None:
    ids = re.compile(r'<section[^>]* id="([^"]+)" data-live')
    page, part = served.client.get("/").text, served.client.get("/console/fragments/status").text
    assert ids.findall(page) == ids.findall(part)
    assert len(ids.findall(page)) >= 9
    assert "<script" not in part
    assert "<html" not in part


def test_what_people_write_is_escaped(served: Bed) -> None:
    served.floor.failing.add("intake")
    served.floor.lines["job"] = {}
    body = {"tenant": "acme", "project": "support", "command": ["x"], "name": "<script>alert(1)</script>"}
    body["resources"] = {"cpu_millis": 100}
    served.client.post("/api/jobs", json=body)
    page = served.client.get("/").text
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_a_running_run_has_progress(served: Bed) -> None:
    served.floor.held.add("tune")
    run = served.run()
    page = served.client.get(f"/console/runs/{run['id']}").text
    outline(page)
    assert "48 of 120 steps" in page
    assert "The gate has not decided yet." in page
    assert "loss over steps" in page
    assert "<script" in page
    assert "48 of 120 steps" in served.client.get("/").text


def test_a_finished_run_tells_everything(served: Bed) -> None:
    run = served.run()
    page = served.client.get(f"/console/runs/{run['id']}").text
    outline(page)
    for reason in run["verdict"]["reasons"]:
        assert reason.replace("'", "&#39;") in page
    for text in (
        "near duplicate",
        "rows in",
        "1,200",
        "peak",
        run["release"],
        "assumed, not measured",
        "Manifest",
    ):
        assert text.lower() in page.lower(), text
    assert "<script" not in page


def test_rejected_and_failed_runs_say_why(served: Bed) -> None:
    served.floor.reject = True
    page = served.client.get(f"/console/runs/{served.run()['id']}").text
    outline(page)
    assert "rejected" in page
    assert "This run made no release." in page
    served.floor.failing.add("intake")
    run = served.run()
    assert run["status"] == "failed"
    assert "not JSON" in served.client.get(f"/console/runs/{run['id']}").text


def test_an_unknown_run_is_404(served: Bed) -> None:
    page = served.client.get("/console/runs/run-999999")
    assert page.status_code == 404
    outline(page.text)
    assert "Back to the status page" in page.text


def test_the_login_page(served: Bed) -> None:
    page = served.client.get("/login?next=/console/runs/x", headers={"x-tokenmill-forwarded": "1"}).text
    outline(page)
    assert 'value="/console/runs/x"' in page
    assert 'type="password"' in page
