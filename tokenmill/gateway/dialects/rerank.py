"""``/v1/rerank`` and ``/v1/score`` over an embedding model: cosine similarity of query and documents.

The request's texts are embedded in one call of the engine, which is what is billed. The shapes are those of
Jina and Cohere (rerank) and of vLLM (score).
"""

from __future__ import annotations

import math
import secrets
from typing import Any

import orjson

from tokenmill.control.requests import TokenUsage
from tokenmill.gateway.body import EMBEDDINGS, Asked, asked_of, parse_object
from tokenmill.gateway.errors import ApiError, bad_request
from tokenmill.gateway.meter import usage_of

TEXTS_MOST = 2048


class _Similarity:
    """What both have in common: texts that are embedded, and vectors that are compared."""

    endpoint = EMBEDDINGS

    def __init__(self) -> None:
        self.billed = TokenUsage()
        self._model = ""
        self._usage = TokenUsage()

    def _asked(self, document: dict[str, Any], texts: list[str]) -> Asked:
        if len(texts) > TEXTS_MOST:
            raise bad_request(f"At most {TEXTS_MOST} texts can be compared at once.")
        body = {"model": document.get("model"), "input": texts, "encoding_format": "float"}
        if isinstance(document.get("user"), str):
            body["user"] = document["user"]
        asked = asked_of(EMBEDDINGS, body)
        self._model = asked.alias
        return asked

    def _vectors(self, body: bytes) -> list[list[float]]:
        try:
            answer = orjson.loads(body)
            rows = sorted(answer["data"], key=lambda row: row["index"])
            vectors = [[float(x) for x in row["embedding"]] for row in rows]
        except (orjson.JSONDecodeError, LookupError, TypeError, ValueError):
            raise ApiError(502, "engine_error", "The engine's answer holds no embeddings.") from None
        self._usage = usage_of(answer.get("usage")) or self.billed
        return vectors

    def _usage_object(self) -> dict[str, Any]:
        tokens = self._usage.input_tokens
        return {"prompt_tokens": tokens, "total_tokens": tokens}

    def error(self, status: int, body: bytes) -> bytes:
        del status
        return body

    def feed(self, events: bytes) -> bytes:
        """Embeddings do not stream."""
        return events

    def end(self) -> bytes:
        return b""


class Rerank(_Similarity):
    """One rerank request. See ``bridge.Dialect``."""

    name = "rerank"

    def __init__(self) -> None:
        super().__init__()
        self._documents: list[Any] = []
        self._top = 0
        self._return = False

    def read(self, body: bytes) -> Asked:
        document = parse_object(body)
        query, documents = document.get("query"), document.get("documents")
        if not isinstance(query, str) or not query:
            raise bad_request("'query' must be a text.", "query", "missing_required_parameter")
        if not isinstance(documents, list) or not documents:
            raise bad_request("'documents' must be a list with at least one.", "documents")
        texts = [d.get("text") if isinstance(d, dict) else d for d in documents]
        if not all(isinstance(text, str) and text for text in texts):
            raise bad_request("Every document must be a text, or an object with a text.", "documents")
        top = document.get("top_n", document.get("top_k"))
        if top is not None and (not isinstance(top, int) or isinstance(top, bool) or top < 1):
            raise bad_request("'top_n' must be a whole number of at least 1.", "top_n")
        shown = document.get("return_documents", False)
        if not isinstance(shown, bool):
            raise bad_request("'return_documents' must be true or false.", "return_documents")
        self._documents, self._top, self._return = documents, top or len(documents), shown
        return self._asked(document, [query, *(str(text) for text in texts)])

    def whole(self, body: bytes) -> bytes:
        vectors = self._vectors(body)
        if len(vectors) != len(self._documents) + 1:
            raise ApiError(502, "engine_error", "The engine did not embed every document.")
        scores = [(cosine(vectors[0], v), n) for n, v in enumerate(vectors[1:])]
        best = sorted(scores, key=lambda found: (-found[0], found[1]))[: self._top]
        results = []
        for score, number in best:
            found: dict[str, Any] = {"index": number, "relevance_score": score}
            if self._return:
                document = self._documents[number]
                found["document"] = document if isinstance(document, dict) else {"text": document}
            results.append(found)
        units = {"billed_units": {"input_tokens": self._usage.input_tokens}}
        return orjson.dumps(
            {
                "id": f"rerank-{secrets.token_hex(12)}",
                "object": "list",
                "model": self._model,
                "results": results,
                "usage": self._usage_object(),
                "meta": units,
            }
        )


class Score(_Similarity):
    """One score request. See ``bridge.Dialect``."""

    name = "score"

    def __init__(self) -> None:
        super().__init__()
        self._lefts = 0

    def read(self, body: bytes) -> Asked:
        document = parse_object(body)
        sides = []
        for name in ("text_1", "text_2"):
            value = document.get(name)
            side = [value] if isinstance(value, str) else value
            if not isinstance(side, list) or not side or not all(isinstance(t, str) and t for t in side):
                raise bad_request(f"'{name}' must be a text or a list of texts.", name)
            sides.append(side)
        left, right = sides
        if len(left) not in (1, len(right)):
            raise bad_request("'text_1' must be one text, or as many as 'text_2'.", "text_1")
        self._lefts = len(left)
        return self._asked(document, [*left, *right])

    def whole(self, body: bytes) -> bytes:
        vectors = self._vectors(body)
        left, right = vectors[: self._lefts], vectors[self._lefts :]
        data = [
            {"index": n, "object": "score", "score": cosine(left[n if self._lefts > 1 else 0], v)}
            for n, v in enumerate(right)
        ]
        found = {"id": f"score-{secrets.token_hex(12)}", "object": "list", "model": self._model, "data": data}
        return orjson.dumps({**found, "usage": self._usage_object()})


def cosine(a: list[float], b: list[float]) -> float:
    """Cosine similarity, 0 for a vector without length or of another dimension."""
    lengths = math.sqrt(math.fsum(x * x for x in a)) * math.sqrt(math.fsum(x * x for x in b))
    if lengths == 0.0 or len(a) != len(b):
        return 0.0
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / lengths
