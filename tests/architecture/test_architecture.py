"""The few rules of the house that decay without a test: layers, circles, purity, sizes, entries."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "tokenmill"

PURE = ("domain", "policy", "spec", "control")
# What each room may import, besides itself. Imports point up the list of docs/architecture.md only.
ALLOWED: dict[str, tuple[str, ...]] = {
    "domain": (),
    "policy": ("domain",),
    "spec": ("domain",),
    "control": ("domain", "policy"),
    "twin": PURE,
    "store": ("domain", "policy", "control"),
    "engine": ("domain", "spec"),
    "floor": ("domain", "policy", "control", "spec", "store", "engine"),
    "gateway": ("domain", "policy", "control", "spec", "federation"),
    "line": ("domain", "spec", "engine", "store"),
    "federation": ("domain", "policy"),
    "console": ("domain", "policy", "control", "spec", "twin", "store", "floor", "federation"),
    "compose": (*PURE, "twin", "store", "engine", "floor", "gateway", "line", "federation", "console"),
    "cli": (*PURE, "twin", "store", "engine", "floor", "gateway", "line", "federation", "console", "compose"),
}
BANNED_IN_PURE = {
    "asyncio", "datetime", "http", "httpx", "logging", "multiprocessing", "numpy", "os", "psutil", "random",
    "secrets", "shutil", "signal", "socket", "sqlalchemy", "starlette", "subprocess", "sys", "tempfile",
    "threading", "time", "torch", "urllib", "uuid", "uvloop",
}  # fmt: skip
BANNED_CALLS_IN_PURE = {"open", "print", "input", "exec", "eval", "hash", "id", "set_start_method"}
# Like ``dataclasses``, it writes an ``__init__`` from field names, once per class when that is defined.
WRITES_CODE = {"tokenmill.domain.value"}
# A spec is a file that a person wrote, so this one room may read the paths that it is given.
SPEC_MAY_IMPORT = {"os", "sys"}
MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 400


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package by dotted name, parsed."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if "migrations" in path.parts:
            continue  # a migration is a frozen record of one day, not code that is kept in shape
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(), filename=str(path))
    return found


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports_of(tree: ast.Module) -> list[tuple[str, int]]:
    """Each imported module with its line, names of ``from`` imports joined on."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import at line {node.lineno}"
            found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return found


def test_imports_point_one_way() -> None:
    wrong = []
    for name, tree in modules().items():
        room = room_of(name)
        for target, line in imports_of(tree):
            other = room_of(target)
            if not target.startswith("tokenmill.") or not room or other in (room, "__version__"):
                continue
            if other not in ALLOWED.get(room, ()):
                wrong.append(f"{name}:{line} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_every_room_is_known_and_lived_in() -> None:
    rooms = {room_of(name) for name in modules()} - {""}
    assert rooms == set(ALLOWED), rooms ^ set(ALLOWED)
    for room in rooms - {"compose"}:
        own = [name for name in modules() if room_of(name) == room and name.count(".") >= 2]
        assert own, f"room {room} holds nothing but its door"


def test_no_circles() -> None:
    known = set(modules())
    graph: dict[str, set[str]] = {}
    for name, tree in modules().items():
        edges = set()
        for target, _ in imports_of(tree):
            while target and target not in known:
                target = target.rpartition(".")[0]
            # A package's door does not count when the import names a module behind it.
            if target and target != name and target != "tokenmill":
                edges.add(target)
        graph[name] = edges
    state: dict[str, int] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert state.get(name) != 1, " -> ".join((*path[path.index(name) :], name))
        if state.get(name) == 2:
            return
        state[name] = 1
        for target in sorted(graph[name]):
            visit(target, (*path, name))
        state[name] = 2

    for name in sorted(graph):
        visit(name, ())


def impurity(node: ast.AST, banned_calls: set[str]) -> str:
    """Say what makes this one node impure; empty when nothing does."""
    if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
        return "is asynchronous"
    if isinstance(node, ast.Global):
        return "has module state"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in banned_calls:
        return f"calls {node.func.id}()"
    is_name = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    if is_name and node.value.id == "random" and node.attr != "Random":
        return f"uses the unseeded random.{node.attr}"
    return ""


@pytest.mark.parametrize("room", [*PURE, "twin"])
def test_purity(room: str) -> None:
    """The pure half reads no clock, draws no number, opens nothing, waits for nothing and logs nothing."""
    wrong = []
    for name, tree in modules().items():
        if room_of(name) != room:
            continue
        banned = BANNED_IN_PURE - (SPEC_MAY_IMPORT if room == "spec" else set())
        calls = BANNED_CALLS_IN_PURE - ({"print"} if room == "spec" else set())
        calls = calls - ({"exec"} if name in WRITES_CODE else set())
        if room == "twin":  # virtual time and seeded: it may draw numbers, and read traces
            banned, calls = banned - {"random", "numpy"}, calls - {"open"}
        for target, line in imports_of(tree):
            if target.split(".")[0] in banned and not target.startswith("urllib.parse."):
                wrong.append(f"{name}:{line} imports {target}")
        for node in ast.walk(tree):
            found = impurity(node, calls)
            if found:
                wrong.append(f"{name}:{node.lineno} {found}")
    assert not wrong, "\n".join(wrong)


def test_nothing_iterates_a_set_in_the_pure_half() -> None:
    """A set has no order that survives another hash seed, so policies iterate what is sorted."""
    wrong = []
    for name, tree in modules().items():
        if room_of(name) not in ("domain", "policy", "control"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.For | ast.comprehension):
                source = node.iter
                is_set = isinstance(source, ast.Set | ast.SetComp) or (
                    isinstance(source, ast.Call)
                    and isinstance(source.func, ast.Name)
                    and source.func.id in ("set", "frozenset")
                )
                if is_set:
                    wrong.append(f"{name}:{source.lineno}")
    assert not wrong, "\n".join(wrong)


def test_sizes() -> None:
    wrong = []
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    wrong.append(f"{name}:{node.lineno} {node.name}() has {lines} lines")
    for path in sorted(PACKAGE.rglob("*.py")):
        lines = len(path.read_text().splitlines())
        if lines > MAX_FILE_LINES:
            wrong.append(f"{path.relative_to(ROOT)} has {lines} lines")
    assert not wrong, "\n".join(wrong)


def test_every_module_says_what_it_does() -> None:
    wrong = [name for name, tree in modules().items() if not ast.get_docstring(tree)]
    assert not wrong, "\n".join(wrong)


def test_the_house_has_few_doors() -> None:
    visible = [p.name for p in ROOT.iterdir() if not p.name.startswith(".")]
    kept = sorted(
        n for n in visible if not n.endswith(".egg-info") and n not in ("dist", "build", "demo-factory")
    )
    assert len(kept) <= 11, kept
    inside = [p.name for p in PACKAGE.iterdir() if not p.name.startswith("__") and p.name != "py.typed"]
    assert len(inside) <= 15, sorted(inside)


def test_architecture_page_names_every_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    missing = [room for room in ALLOWED if f"`{room}/`" not in page and f"`{room}.py`" not in page]
    assert not missing, missing


def test_every_dependency_has_its_line() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        wanted += extra
    page = (ROOT / "docs" / "dependencies.md").read_text()
    names = {w.split(">")[0].split("=")[0].split("[")[0].strip() for w in wanted} - {"tokenmill"}
    missing = sorted(n for n in names if f"| `{n}` |" not in page)
    assert not missing, missing
