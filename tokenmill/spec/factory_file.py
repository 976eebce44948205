"""Factory files to one ``Factory``: read, lay on what they extend, validate, check, build.

The way in is ``load``. It reads the files that it is given and those that they extend, and nothing else; a
secret is never resolved. All problems of all files come in one ``SpecError``, in file order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from tokenmill.domain import factory as nouns
from tokenmill.domain.catalogue import Catalogue, OwnTypes
from tokenmill.domain.errors import Problem, SpecError
from tokenmill.spec import build
from tokenmill.spec import documents as docs
from tokenmill.spec.catalogue import catalogue
from tokenmill.spec.entitlements import check_entitlements
from tokenmill.spec.files import unreadable
from tokenmill.spec.fit import check_fit
from tokenmill.spec.override import Override, overridden
from tokenmill.spec.own_types import own_types
from tokenmill.spec.references import check_references
from tokenmill.spec.source import MAX_FILE_BYTES, Document, Found, Place, read_documents
from tokenmill.spec.validate import Entry, identity, validate

MAX_FILES = 256
MAX_EXTENDS = 16
SUFFIXES = (".yaml", ".yml")

Layer = dict[tuple[str, str], Document]


def read_text(path: Path) -> str:
    """A file's text; reads at most one byte more than is allowed, which ``read_documents`` then refuses."""
    with path.open("rb") as file:
        return file.read(MAX_FILE_BYTES + 1).decode("utf-8-sig")


def load(
    paths: Sequence[Path],
    environ: Mapping[str, str],
    read: Callable[[Path], str] = read_text,
    overrides: Sequence[Override] = (),
) -> nouns.Factory:
    """The factory that these files and directories describe.

    ``environ`` gives ``${NAME}`` its values and ``read`` a file its text; ``overrides`` are laid on what is
    written. Raises ``SpecError`` with every problem found.
    """
    reading = _Reading(environ, read)
    layer = reading.layer(_expand(paths, reading), ())
    for override in overrides:
        layer = overridden(layer, override)
    entries, found = _validated(layer)
    types, wrong_types = own_types(entries, read)
    known = catalogue(types)
    found = reading.found + found + wrong_types + check_references(entries, known)
    found += _factory_problems(layer, reading, paths)
    models = [entry.model for entry in entries if entry.model is not None]
    if not any(one.problem.field.startswith("site ") for one in found):
        nodes = _nodes(models, known)
        found += check_fit(entries, nodes) + check_entitlements(entries, nodes)
    _refuse(found)
    return _factory(models, types)


def load_types(
    paths: Sequence[Path], environ: Mapping[str, str], read: Callable[[Path], str] = read_text
) -> OwnTypes:
    """Only what these files add to the catalogue. Raises ``SpecError`` with every problem of that."""
    reading = _Reading(environ, read)
    layer = reading.layer(_expand(paths, reading), ())
    entries, found = _validated({key: one for key, one in layer.items() if key[0] == "catalogue"})
    types, wrong = own_types(entries, read)
    if not entries and not reading.found:
        start = next((one.start for one in layer.values()), Place(0, 1, 1, str(paths[0])))
        problem = Problem("no document has `kind: catalogue`", expected="types that the catalogue lacks")
        found.append(Found(start, problem))
    _refuse(reading.found + found + wrong)
    return types


def _refuse(found: list[Found]) -> None:
    if found:
        found.sort(key=lambda one: one.place)
        raise SpecError(tuple(dict.fromkeys(_placed(one) for one in found)))


def written_at(paths: Sequence[Path], environ: Mapping[str, str], kind: str, name: str, field: str) -> str:
    """File, line and column of a document's field, or of the document where it is not written."""
    reading = _Reading(environ, read_text)
    found = reading.layer(_expand(paths, reading), ()).get((kind, name))
    return str(found.place((field,))) if found is not None else ""


@dataclass(slots=True)
class _Reading:
    """Reads files and what they extend; gathers problems and counts what it read."""

    environ: Mapping[str, str]
    read: Callable[[Path], str]
    found: list[Found] = field(default_factory=list)
    order: int = 0

    def layer(self, paths: Sequence[Path], above: tuple[Path, ...]) -> Layer:
        """The documents of these files, laid on those that they extend."""
        own: list[Document] = []
        below: Layer = {}
        for path in paths:
            documents = self._file(path)
            for document in documents:
                for target, place in _extends(document):
                    below = _laid_on(below, self._extended(path, target, place, above))
            own += documents
        return _laid_on(below, self._by_name(own))

    def _extended(self, path: Path, target: str, place: Place, above: tuple[Path, ...]) -> Layer:
        other = _clean(path.parent / target)
        chain = (*above, _clean(path))
        if other in chain:
            circle = " -> ".join(p.name for p in (*chain[chain.index(other) :], other))
            self._problem(place, f"files extend one another in a circle: {circle}", fix="Remove one.")
            return {}
        if len(chain) > MAX_EXTENDS:
            self._problem(place, "files extend one another too deep", f"at most {MAX_EXTENDS} levels")
            return {}
        return self.layer([other], chain)

    def _file(self, path: Path) -> list[Document]:
        self.order += 1
        place = Place(self.order, 1, 1, str(path))
        if self.order > MAX_FILES:
            if self.order == MAX_FILES + 1:
                self._problem(place, "too many files", f"at most {MAX_FILES}")
            return []
        try:
            text = self.read(path)
        except UnicodeDecodeError as error:
            self._problem(place, f"is not UTF-8 text (byte {error.start})", "a YAML file in UTF-8")
            return []
        except OSError as error:
            fix = "`tokenmill init` writes a first one." if isinstance(error, FileNotFoundError) else ""
            self._problem(place, f"the file cannot be read: {unreadable(error)}", "a factory file", fix)
            return []
        documents, found = read_documents(text, str(path), self.order, self.environ)
        self.found += found
        return documents

    def _by_name(self, documents: Sequence[Document]) -> Layer:
        layer: Layer = {}
        nameless = 0
        for document in documents:
            kind, name = identity(document)
            if not name and kind != "factory":
                nameless += 1
                layer[kind, f"?{nameless}-{document.start}"] = document
            elif (kind, name) in layer:
                first = layer[kind, name].start
                title = f"{kind} {name}".strip()
                fix = "Remove one, or put it into a file that `extends` the other."
                expected = "one factory" if kind == "factory" else "each name once for each kind"
                self._problem(document.start, f"{title} is already written at {first}", expected, fix)
            else:
                layer[kind, name] = document
        return layer

    def _problem(self, place: Place, message: str, expected: str = "", fix: str = "") -> None:
        self.found.append(Found(place, Problem(message, "", "", expected, fix)))


def _expand(paths: Sequence[Path], reading: _Reading) -> list[Path]:
    """Directories to their factory files, by name."""
    result: list[Path] = []
    for path in paths:
        if not path.is_dir():
            result.append(path)
            continue
        inside = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and not p.name.startswith("."))
        if not inside:
            reading.found.append(
                Found(
                    Place(0, 1, 1, str(path)), Problem("the directory holds no .yaml file", expected="some")
                )
            )
        result += inside
    return result


def _extends(document: Document) -> list[tuple[str, Place]]:
    if document.value.get("kind") != "factory":
        return []
    written = document.value.get("extends", [])
    targets = written if isinstance(written, list) else [written]
    return [(t, document.place(("extends", i))) for i, t in enumerate(targets) if isinstance(t, str) and t]


def _clean(path: Path) -> Path:
    """Without ``..``, so that one file has one name; asks the file system nothing."""
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and parts and parts[-1] not in ("..", "/"):
            parts.pop()
        elif part != ".":
            parts.append(part)
    return Path(*parts)


def _laid_on(below: Layer, above: Layer) -> Layer:
    result = dict(below)
    for key, document in above.items():
        result[key] = result[key].merged(document) if key in result else document
    return result


def _validated(layer: Layer) -> tuple[list[Entry], list[Found]]:
    entries: list[Entry] = []
    found: list[Found] = []
    for document in layer.values():
        entry, problems = validate(document)
        entries.append(entry)
        found += problems
    return entries, found


def _factory_problems(layer: Layer, reading: _Reading, paths: Sequence[Path]) -> list[Found]:
    if any(kind == "factory" for kind, _ in layer) or (reading.found and not layer):
        return []
    place = next((d.start for d in layer.values()), Place(0, 1, 1, str(paths[0]) if paths else "no file"))
    problem = Problem("no document has `kind: factory`", expected="`kind: factory` with its `name`")
    return [Found(place, problem)]


def _placed(found: Found) -> Problem:
    problem = found.problem
    where = str(found.place) if found.place.file else ""
    return Problem(problem.message, where, problem.field, problem.expected, problem.fix)


def _nodes(models: Sequence[Any], known: Catalogue) -> tuple[nouns.Node, ...]:
    sites = [m for m in models if isinstance(m, docs.SiteDocument)]
    return tuple(node for site in sites for node in build.nodes(site, known))


def _factory(models: Sequence[Any], types: OwnTypes) -> nouns.Factory:
    def every(kind: type[Any], make: Callable[[Any], Any]) -> tuple[Any, ...]:
        return tuple(make(model) for model in models if isinstance(model, kind))

    [document] = [m for m in models if isinstance(m, docs.FactoryDocument)]
    sites = [m for m in models if isinstance(m, docs.SiteDocument)]
    known = catalogue(types)
    return nouns.Factory(
        name=document.name,
        sites=every(docs.SiteDocument, build.site),
        nodes=_nodes(models, known),
        racks=tuple(rack for site in sites for rack in build.racks(site, known)),
        fabrics=tuple(fabric for site in sites for fabric in build.fabrics(site)),
        tenants=every(docs.TenantDocument, build.tenant),
        prices=every(docs.PriceDocument, build.price),
        quotas=every(docs.QuotaDocument, build.model_quota),
        models=every(docs.ModelDocument, build.model),
        deployments=every(docs.DeploymentDocument, build.deployment),
        lines=every(docs.LineDocument, build.line),
        jobs=every(docs.JobDocument, build.job),
        peers=every(docs.PeerDocument, build.peer),
        types=types,
    )


def template() -> str:
    """The commented factory file that ``tokenmill init`` writes; it loads and serves the small model."""
    return files("tokenmill.spec").joinpath("first_factory.yaml").read_text(encoding="utf-8")
