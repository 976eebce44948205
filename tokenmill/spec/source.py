"""YAML text to documents of plain values, each of which still knows its file, line and column.

A document is parsed on its own, so that a syntax error in one does not hide the problems of the others.
Scalars follow YAML 1.2's core schema: ``no`` is text, not false, and ``12:30`` is not a number. Size, depth
and the growth by aliases are bounded. What the values mean is for ``documents``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from yaml.composer import Composer
from yaml.error import MarkedYAMLError, YAMLError
from yaml.events import CollectionEndEvent, CollectionStartEvent, Event
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from tokenmill.domain.errors import Problem

MAX_FILE_BYTES = 1 << 20
MAX_VALUES = 50_000  # of one document, counted after aliases are expanded
MAX_DEPTH = 32
MAX_TEXT = 65_536

FieldPath = tuple[str | int, ...]

_VARIABLE = re.compile(r"\$(\$|\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}|\{)")
_SECRET_NAME = re.compile(r"(?i)(^|_)(secret|password|passwd|token|api_?key|private_?key)s?$")
_INTEGER = re.compile(r"[-+]?[0-9]{1,30}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,4})?")
_STRING_TAG = "tag:yaml.org,2002:str"
_PLAIN_TAGS = (_STRING_TAG, "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where something was written. ``order`` is the place of the file among those read."""

    order: int
    line: int
    column: int
    file: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(slots=True)
class Document:
    """One YAML document. ``keys`` and ``places`` say where each key and each value was written."""

    value: dict[str, Any]
    start: Place
    keys: dict[FieldPath, Place] = field(default_factory=dict)
    places: dict[FieldPath, Place] = field(default_factory=dict)
    bad: set[FieldPath] = field(default_factory=set)  # fields whose value is a stand-in after a problem

    def is_bad(self, path: FieldPath) -> bool:
        """Whether a problem with this field was already reported as one with its text."""
        return any(path[: len(bad)] == bad for bad in self.bad)

    def place(self, path: FieldPath, *, key: bool = False) -> Place:
        """The nearest written thing: steps that a short form left out are skipped."""
        found = self.places.get((), self.start)
        at: FieldPath = ()
        for step in path:
            longer: FieldPath = (*at, step)
            if longer in self.places:
                at, found = longer, self.places[longer]
        return self.keys.get(at, found) if key else found

    def merged(self, over: Document) -> Document:
        """This document with what ``over`` says laid on it: mappings merge, all else is replaced."""
        result = Document(
            dict(self.value), over.start, dict(self.keys), dict(self.places), self.bad | over.bad
        )
        result.value = _merge(result, over, self.value, over.value, ())
        return result


@dataclass(slots=True)
class Found:
    """A problem and its place; sorted by place before it is shown."""

    place: Place
    problem: Problem


class _Composer(Reader, Scanner, Parser, Composer, BaseResolver):
    """PyYAML up to nodes: no tag is resolved and no object is made."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)


def read_documents(
    text: str, file: str, order: int, environ: Mapping[str, str]
) -> tuple[list[Document], list[Found]]:
    """Every document of one file, and everything that is wrong with its YAML."""
    documents: list[Document] = []
    found: list[Found] = []
    if len(text.encode()) > MAX_FILE_BYTES:
        place = Place(order, 1, 1, file)
        return [], [_found(place, "the file is too large", f"at most {MAX_FILE_BYTES} bytes", "Split it.")]
    for offset, part in _split(text):
        walk = _Walk(file, order, offset, environ, found)
        document = walk.document(part)
        if document is not None:
            documents.append(document)
    return documents, found


def _split(text: str) -> list[tuple[int, str]]:
    """``(first line, text)`` of each document. ``---`` at a line's start always divides, by YAML's rules."""
    parts: list[tuple[int, str]] = []
    start, lines = 0, text.splitlines()
    for index, line in enumerate(lines):
        if re.match(r"---(\s|$)", line):
            parts.append((start, "\n".join(lines[start:index]) + "\n"))
            start = index
            lines[index] = "   " + line[3:]
    parts.append((start, "\n".join(lines[start:]) + "\n"))
    return parts


@dataclass(slots=True)
class _Walk:
    """Turns one document's nodes into values and notes where each was."""

    file: str
    order: int
    offset: int
    environ: Mapping[str, str]
    found: list[Found]
    values: int = 0
    bad: set[FieldPath] = field(default_factory=set)

    def document(self, text: str) -> Document | None:
        start = Place(self.order, self.offset + 1, 1, self.file)
        try:
            if not self._fits(text):
                return None
            root = _Composer(text).get_single_node()
        except ReaderError as error:
            line = text.count("\n", 0, error.position) + self.offset + 1
            place = Place(self.order, line, 1, self.file)
            code = (
                error.character if isinstance(error.character, int) else ord(str(error.character)[:1] or "?")
            )
            self.found.append(
                _found(place, f"the character U+{code:04X} is not allowed in YAML", "plain text")
            )
            return None
        except MarkedYAMLError as error:
            self._syntax(error, start)
            return None
        except YAMLError as error:
            self.found.append(_found(start, f"this is not YAML: {error}", "a YAML document"))
            return None
        if root is None:
            return None
        place = self._place(root.start_mark)
        if not isinstance(root, MappingNode):
            expected = "`kind:` and the fields of that kind"
            self.found.append(_found(place, "the document is not a mapping", expected))
            return None
        document = Document({}, place)
        value = self._value(root, (), document, ())
        document.value = value if isinstance(value, dict) else {}
        document.bad = self.bad
        return document if self.values <= MAX_VALUES else None

    def _fits(self, text: str) -> bool:
        """Walk the events first: they take no recursion, and so no deep document can hurt."""
        depth = count = 0
        parser = _Composer(text)
        while parser.check_event():
            event: Event = parser.get_event()  # type: ignore[no-untyped-call]
            count += 1
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            place = self._place(event.start_mark)
            if depth > MAX_DEPTH:
                self.found.append(
                    _found(place, "the document is nested too deep", f"at most {MAX_DEPTH} levels")
                )
                return False
            if count > 2 * MAX_VALUES:
                self.found.append(_found(place, "the document is too large", f"at most {MAX_VALUES} values"))
                return False
        return True

    def _value(self, node: Node, path: FieldPath, document: Document, above: tuple[Node, ...]) -> Any:
        place = self._place(node.start_mark)
        document.places[path] = place
        self.values += 1
        if any(node is one for one in above):
            self.bad.add(path)
            self.found.append(_found(place, f"the anchor at {path_text(path)} contains itself", "a tree"))
            return None
        if self.values > MAX_VALUES:
            if self.values == MAX_VALUES + 1:
                expected = f"at most {MAX_VALUES} values in a document, aliases expanded"
                self.found.append(_found(place, "the document grows too large", expected))
            return None
        if node.tag not in _PLAIN_TAGS and node.tag != "!":
            self.bad.add(path)
            fix = "Remove the tag; quote the value if it is text."
            self.found.append(_found(place, f"the tag {node.tag} is not allowed", "plain YAML", fix))
            return None
        if isinstance(node, ScalarNode):
            return self._scalar(node, place, path)
        if isinstance(node, SequenceNode):
            return [
                self._value(child, (*path, index), document, (*above, node))
                for index, child in enumerate(node.value)
            ]
        return self._mapping(node, path, document, (*above, node))

    def _mapping(
        self, node: Node, path: FieldPath, document: Document, above: tuple[Node, ...]
    ) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = self._place(key_node.start_mark)
            if not isinstance(key_node, ScalarNode):
                self.found.append(_found(place, "a key is not text", "a field's name"))
                continue
            key = key_node.value
            if key == "<<":
                fix = "Write `extends: FILE` in the factory document instead."
                self.found.append(_found(place, "merge keys are not allowed", "fields, each once", fix))
                continue
            if key in result:
                first = document.keys[(*path, key)].line
                name = path_text((*path, key))
                message = f"{name} is written twice, first in line {first}"
                self.found.append(_found(place, message, "each field once", "Remove one."))
                continue
            document.keys[(*path, key)] = place
            result[key] = self._value(value_node, (*path, key), document, above)
        return result

    def _scalar(self, node: ScalarNode, place: Place, path: FieldPath) -> Any:
        text = node.value
        if len(text) > MAX_TEXT:
            self.found.append(
                _found(place, f"{path_text(path)} is too long", f"at most {MAX_TEXT} characters")
            )
            return ""
        text = self._interpolate(text, place, path)
        quoted = node.style is not None or node.tag == "!"
        return text if quoted else plain_scalar(text)

    def _interpolate(self, text: str, place: Place, path: FieldPath) -> str:
        def replace(match: re.Match[str]) -> str:
            name, default = match[2], match[3]
            field_name = path_text(path)
            if match[1] == "$":
                return "$"
            if name is None:
                fix = "Write $$ for a dollar sign."
                problem = Problem(
                    "a variable is not closed", "", field_name, "${NAME} or ${NAME:-default}", fix
                )
            elif _SECRET_NAME.search(name):
                fix = f"Where a field takes a secret, write secret://env/{name}."
                problem = Problem(
                    f"{name} looks like a secret, and a file's values are kept", "", field_name, "", fix
                )
            elif name in self.environ:
                return self.environ[name]
            elif default is not None:
                return default
            else:
                fix = f"Set {name}, or write ${{{name}:-default}}."
                problem = Problem(f"the environment variable {name} is not set", "", field_name, "", fix)
            self.found.append(Found(place, problem))
            self.bad.add(path)
            return "unset"

        return _VARIABLE.sub(replace, text) if "$" in text else text

    def _place(self, mark: Any) -> Place:
        if mark is None:
            return Place(self.order, self.offset + 1, 1, self.file)
        return Place(self.order, self.offset + mark.line + 1, mark.column + 1, self.file)

    def _syntax(self, error: MarkedYAMLError, start: Place) -> None:
        mark = error.problem_mark or error.context_mark
        place = self._place(mark) if mark else start
        context = f" {error.context}" if error.context else ""
        fix = (
            "Indent with spaces."
            if "\\t" in str(error.problem)
            else "Quote text that holds one of : # { } [ ] , & *."
        )
        message = f"this is not YAML:{context}{',' if context else ''} {error.problem}"
        self.found.append(_found(place, message, "", fix))


def plain_scalar(text: str) -> Any:
    """The value of an unquoted scalar by YAML 1.2's core schema (https://yaml.org/spec/1.2.2/#103-core-schema)."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE"):
        return True
    if text in ("false", "False", "FALSE"):
        return False
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def path_text(path: FieldPath) -> str:
    """("quota", 0, "x") as people write it: ``quota[0].x``."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")


def _merge(result: Document, over: Document, below: Any, above: Any, path: FieldPath) -> Any:
    if isinstance(below, dict) and isinstance(above, dict):
        merged = dict(below)
        for key, value in above.items():
            here = (*path, key)
            merged[key] = _merge(result, over, below.get(key), value, here)
            result.keys[here] = over.keys.get(here, over.start)
        return merged
    for known in (result.keys, result.places):
        for old in [p for p in known if p[: len(path)] == path]:
            del known[old]
    result.keys.update({p: place for p, place in over.keys.items() if p[: len(path)] == path})
    result.places.update({p: place for p, place in over.places.items() if p[: len(path)] == path})
    return above


def _found(place: Place, message: str, expected: str = "", fix: str = "") -> Found:
    return Found(place, Problem(message, expected=expected, fix=fix))
