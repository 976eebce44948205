"""The description of the tenant's API at ``/openapi.json``: what is offered, and no more.

It names the fields that are looked at; chat, completions and embeddings pass all others to the engine. A test
sends what the description allows, and worse, to a real gateway.
"""

from __future__ import annotations

from typing import Any

import orjson

from tokenmill import __version__

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
WHOLE: Schema = {"type": "integer", "minimum": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
TEXTS: Schema = {"type": "array", "items": TEXT, "minItems": 1}
IDS: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
ANY: Schema = {}


def listed(items: Schema, least: int = 0) -> Schema:
    return {"type": "array", "items": items, **({"minItems": least} if least else {})}


def fields(required: str = "", **properties: Schema) -> Schema:
    """An object; ``required`` names what must be there, separated by blanks."""
    found: Schema = {"type": "object", "properties": properties}
    return {**found, "required": required.split()} if required else found


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


MODEL = {"type": "string", "minLength": 1, "description": "An alias of GET /v1/models."}
MESSAGE = fields(
    "role",
    role={"enum": ["system", "developer", "user", "assistant", "tool"]},
    content={"anyOf": [TEXT, {"type": "null"}, listed(fields("type", type=TEXT))]},
    tool_calls=listed(fields()),
    tool_call_id=TEXT,
)
SAMPLING = {
    "stream": FLAG,
    "stream_options": fields(include_usage=FLAG),
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "minimum": 0, "maximum": 1},
    "max_tokens": WHOLE,
    "n": {"type": "integer", "minimum": 1, "maximum": 128},
    "stop": {"anyOf": [TEXT, TEXTS]},
    "seed": {"type": "integer"},
    "user": TEXT,
}
INPUT = {"anyOf": [{**TEXT, "minLength": 1}, TEXTS, IDS, listed(IDS, 1)]}
ERROR = fields(
    "error",
    error=fields(
        "message type param code",
        message=TEXT,
        type=TEXT,
        param={"type": ["string", "null"]},
        code={"type": ["string", "null"]},
    ),
)
ANTHROPIC_ERROR = fields("type error", type={"const": "error"}, error=fields("type message"))
PAGE = (("limit", WHOLE), ("after", TEXT))
BATCHED = ("chat/completions", "completions", "embeddings", "responses", "messages", "rerank")
METADATA: Schema = {"type": "object", "additionalProperties": {**TEXT, "maxLength": 512}, "maxProperties": 16}
HYPERPARAMETERS = fields(
    "",
    **{
        name: {"anyOf": [{"const": "auto"}, {"type": kind, "exclusiveMinimum": 0, "maximum": most}]}
        for name, kind, most in (
            ("n_epochs", "integer", 50),
            ("batch_size", "integer", 256),
            ("learning_rate_multiplier", "number", 100),
        )
    },
)
SCHEMAS: dict[str, Schema] = {
    "Error": ERROR,
    "AnthropicError": ANTHROPIC_ERROR,
    "Model": fields("id object created owned_by", id=TEXT, object={"const": "model"}),
    "ChatRequest": fields(
        "model messages",
        model=MODEL,
        messages=listed(MESSAGE, 1),
        max_completion_tokens=WHOLE,
        tools=listed(fields()),
        tool_choice=ANY,
        parallel_tool_calls=FLAG,
        response_format=fields("type", type=TEXT),
        reasoning_effort=TEXT,
        store=FLAG,
        **SAMPLING,
    ),
    "CompletionRequest": fields("model prompt", model=MODEL, prompt=INPUT, **SAMPLING),
    "EmbeddingRequest": fields(
        "model input",
        model=MODEL,
        input=INPUT,
        encoding_format={"enum": ["float", "base64"]},
        dimensions=WHOLE,
    ),
    "ResponseRequest": fields(
        "model input",
        model=MODEL,
        input={"anyOf": [{**TEXT, "minLength": 1}, listed(fields(), 1)]},
        instructions={"type": ["string", "null"]},
        max_output_tokens=WHOLE,
        tools=listed(fields("type name", type={"const": "function"}, name=TEXT)),
        tool_choice=ANY,
        text=fields(format=fields("type", type={"enum": ["text", "json_object", "json_schema"]})),
        reasoning=fields(effort=TEXT),
        stream=FLAG,
        store=FLAG,
        temperature=SAMPLING["temperature"],
        top_p=SAMPLING["top_p"],
    ),
    "MessagesRequest": fields(
        "model max_tokens messages",
        model=MODEL,
        max_tokens=WHOLE,
        messages=listed(
            fields(
                "role content", role={"enum": ["user", "assistant"]}, content={"anyOf": [TEXT, listed(ANY)]}
            ),
            1,
        ),
        system={"anyOf": [TEXT, listed(fields("type text", type={"const": "text"}, text=TEXT))]},
        stop_sequences=listed(TEXT),
        tools=listed(fields("name input_schema", name=TEXT, input_schema=fields())),
        tool_choice=fields("type", type={"enum": ["auto", "any", "tool", "none"]}),
        stream=FLAG,
        temperature={"type": "number", "minimum": 0, "maximum": 1},
    ),
    "RerankRequest": fields(
        "model query documents",
        model=MODEL,
        query={**TEXT, "minLength": 1},
        documents=listed({"anyOf": [TEXT, fields("text", text=TEXT)]}, 1),
        top_n=WHOLE,
        return_documents=FLAG,
    ),
    "ScoreRequest": fields(
        "model text_1 text_2", model=MODEL, text_1={"anyOf": [TEXT, TEXTS]}, text_2={"anyOf": [TEXT, TEXTS]}
    ),
    "TokenizeRequest": fields(
        "model", model=MODEL, prompt=TEXT, messages=listed(MESSAGE, 1), add_special_tokens=FLAG
    ),
    "DetokenizeRequest": fields("model tokens", model=MODEL, tokens=IDS),
    "File": fields("id object bytes created_at filename purpose", id=TEXT, object={"const": "file"}),
    "FileUpload": fields(
        "file purpose",
        file={"type": "string", "format": "binary"},
        purpose={"enum": ["batch", "fine-tune", "user_data"]},
        **{"expires_after[anchor]": {"const": "created_at"}, "expires_after[seconds]": WHOLE},
    ),
    "Usage": fields(
        "object project requests input_tokens output_tokens cost",
        object={"const": "usage"},
        project=TEXT,
        requests=COUNT,
        input_tokens=COUNT,
        output_tokens=COUNT,
        cost={"type": "object", "additionalProperties": TEXT},
    ),
    "Batch": fields("id object endpoint status request_counts", id=TEXT, object={"const": "batch"}),
    "BatchRequest": fields(
        "input_file_id endpoint completion_window",
        input_file_id=TEXT,
        endpoint={"enum": [f"/v1/{name}" for name in BATCHED]},
        completion_window={"type": "string", "example": "24h"},
        metadata=METADATA,
    ),
    "FineTuningJob": fields(
        "id object created_at model status training_file", id=TEXT, object={"const": "fine_tuning.job"}
    ),
    "FineTuningRequest": fields(
        "model training_file",
        model=MODEL,
        training_file=TEXT,
        validation_file={"type": ["string", "null"]},
        hyperparameters=HYPERPARAMETERS,
        method=fields(
            "type",
            type={"const": "supervised"},
            supervised=fields(hyperparameters=HYPERPARAMETERS),
        ),
        suffix={"type": "string", "maxLength": 64, "pattern": "^[A-Za-z0-9-]*$"},
        seed={"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
        metadata=METADATA,
    ),
    "FineTuningEvent": fields("id object created_at level message", id=TEXT),
    "FineTuningCheckpoint": fields("id object created_at metrics step_number", id=TEXT),
    "FeedbackRequest": fields("id rating", id=TEXT, rating={"enum": ["good", "bad"]}),
}


def document() -> bytes:
    """The description as JSON (OpenAPI 3.1)."""
    return orjson.dumps(
        {
            "openapi": "3.1.0",
            "info": {"title": "Tokenmill", "version": __version__, "license": {"name": "Apache-2.0"}},
            "servers": [{"url": "/"}],
            "security": [{"key": []}],
            "paths": _paths(),
            "components": {
                "schemas": SCHEMAS,
                "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            },
        }
    )


POSTS = (
    ("/v1/chat/completions", "ChatRequest", "Answer a conversation."),
    ("/v1/completions", "CompletionRequest", "Complete a text."),
    ("/v1/embeddings", "EmbeddingRequest", "Embed texts."),
    ("/v1/responses", "ResponseRequest", "Answer, as a Response. Nothing is stored."),
    ("/v1/responses/input_tokens", "ResponseRequest", "Count what a response would be asked."),
    ("/v1/messages", "MessagesRequest", "Answer, as Anthropic's API."),
    ("/v1/messages/count_tokens", "MessagesRequest", "Count what a message would send."),
    ("/v1/rerank", "RerankRequest", "Order documents by similarity to a query."),
    ("/v2/rerank", "RerankRequest", "The same, where Cohere's client asks."),
    ("/v1/score", "ScoreRequest", "Similarity of texts."),
    ("/tokenize", "TokenizeRequest", "Tokens of a text or conversation."),
    ("/detokenize", "DetokenizeRequest", "The text of tokens."),
)
"""What models are asked: path, schema and what it does."""


def _paths() -> dict[str, Any]:
    paths: dict[str, Any] = {
        "/v1/models": {"get": _operation("List the models of this key's tenant.", _list("Model"))},
        "/v1/models/{id}": {
            "get": _operation("One model.", ref("Model"), path=True),
            "delete": _operation("Delete a fine-tuned model.", fields("id deleted"), path=True),
        },
        "/v1/files": {
            "get": _operation(
                "List files.",
                _list("File"),
                query=(
                    ("purpose", TEXT),
                    ("limit", WHOLE),
                    ("order", {"enum": ["asc", "desc"]}),
                    ("after", TEXT),
                ),
            ),
            "post": _operation("Upload a file.", ref("File"), "FileUpload", form=True),
        },
        "/v1/files/{id}": {
            "get": _operation("One file.", ref("File"), path=True),
            "delete": _operation("Delete a file.", fields("id deleted"), path=True),
        },
        "/v1/files/{id}/content": {"get": _operation("The bytes of a file.", None, path=True)},
        "/v1/batches": {
            "get": _operation("List batches.", _list("Batch"), query=PAGE),
            "post": _operation("Create a batch.", ref("Batch"), "BatchRequest"),
        },
        "/v1/batches/{id}": {"get": _operation("One batch.", ref("Batch"), path=True)},
        "/v1/batches/{id}/cancel": {"post": _operation("Cancel a batch.", ref("Batch"), path=True)},
        "/v1/feedback": {"post": _operation("Rate an answer.", fields("id rating"), "FeedbackRequest")},
        "/v1/usage": {
            "get": _operation(
                "What this key's project has used.",
                _list("Usage"),
                query=(("start_time", WHOLE), ("end_time", WHOLE), ("group_by", TEXT)),
            )
        },
        **_fine_tuning(),
    }
    for path, body, about in POSTS:
        error = "AnthropicError" if "messages" in path else "Error"
        paths[path] = {"post": _operation(about, fields(), body, error=error)}
    for path, about in (
        ("/healthz", "The process lives."),
        ("/health", "The same, where vLLM's users ask."),
        ("/readyz", "It can serve; else 503 with the reasons."),
        ("/version", "The version."),
        ("/openapi.json", "This description."),
    ):
        paths[path] = {"get": {**_operation(about, fields()), "security": []}}
    about = "Prometheus's text; from this machine, or with an admin key."
    paths["/metrics"] = {"get": _operation(about, None, kind="text/plain")}
    return paths


def _fine_tuning() -> dict[str, Any]:
    job, base = ref("FineTuningJob"), "/v1/fine_tuning/jobs"
    found: dict[str, Any] = {
        base: {
            "get": _operation("List fine-tuning jobs.", _list("FineTuningJob"), query=PAGE),
            "post": _operation("Create a fine-tuning job.", job, "FineTuningRequest"),
        },
        f"{base}/{{id}}": {"get": _operation("One fine-tuning job.", job, path=True)},
    }
    for verb in ("cancel", "pause", "resume"):
        about = f"{verb.capitalize()} a fine-tuning job."
        found[f"{base}/{{id}}/{verb}"] = {"post": _operation(about, job, path=True)}
    for noun, name in (("events", "FineTuningEvent"), ("checkpoints", "FineTuningCheckpoint")):
        listed_ = _operation(f"List a job's {noun}.", _list(name), path=True, query=PAGE)
        found[f"{base}/{{id}}/{noun}"] = {"get": listed_}
    return found


def _list(name: str) -> Schema:
    return fields("object data", object={"const": "list"}, data=listed(ref(name)))


def _operation(
    about: str,
    answer: Schema | None,
    body: str = "",
    *,
    path: bool = False,
    form: bool = False,
    query: tuple[tuple[str, Schema], ...] = (),
    error: str = "Error",
    kind: str = "",
) -> dict[str, Any]:
    kind = kind or ("application/json" if answer is not None else "application/octet-stream")
    found: dict[str, Any] = {
        "summary": about,
        "responses": {
            "200": {"description": "Done.", "content": {kind: {"schema": answer or {}}}},
            "default": {"description": "Refused.", "content": {"application/json": {"schema": ref(error)}}},
        },
    }
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "query", "schema": schema} for name, schema in query
    ]
    if path:
        parameters.append({"name": "id", "in": "path", "required": True, "schema": TEXT})
    if parameters:
        found["parameters"] = parameters
    if body:
        sent = "multipart/form-data" if form else "application/json"
        found["requestBody"] = {"required": True, "content": {sent: {"schema": ref(body)}}}
    return found
