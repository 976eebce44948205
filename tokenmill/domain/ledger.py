"""What the ledger records: one settlement per request, double-entry postings, all integers.

A settlement says what a request used; postings turn it into movements between accounts. The gateway writes
settlements to its spool, the store turns each into postings exactly once, by ``request``.
"""

from __future__ import annotations

from enum import StrEnum

from tokenmill.domain.value import value


class Outcome(StrEnum):
    """How a request ended. Every admitted or refused request has exactly one."""

    OK = "ok"
    CANCELLED = "cancelled"  # the client went away
    ENGINE_FAILED = "engine_failed"  # the engine died or broke the stream
    ENGINE_ERROR = "engine_error"  # the engine answered 4xx or 5xx
    REFUSED = "refused"  # policy said no; nothing was used
    INTERRUPTED = "interrupted"  # the gateway itself died with the request open


@value
class Settlement:
    """One request's end. Token counts are the engine's own where ``counted_by`` is "engine".

    ``counted_by`` is "engine" (usage object), "stream" (input by the engine's
    tokenizer, output by the deltas seen before a cut), "estimate" (input by characters) or "none".
    """

    request: str
    at_us: int
    tenant: str
    project: str
    key: str
    alias: str
    release: str
    replica: str
    endpoint: str  # "chat.completions"
    outcome: Outcome
    status: int  # HTTP status sent to the client; 499 when it had gone
    input_tokens: int = 0
    cached_tokens: int = 0  # part of input_tokens
    output_tokens: int = 0
    reasoning_tokens: int = 0  # part of output_tokens
    counted_by: str = "none"
    first_token_us: int = 0  # after arrival; 0 when none came
    duration_us: int = 0
    reason: str = ""
    response: str = ""  # what the answer called itself, where it said so: "chatcmpl-..."
    tried: str = ""  # replicas that had the request and lost it before this one, separated by spaces
    price: str = ""  # the id of the price that was valid at admission; empty: by the date

    @property
    def admitted_us(self) -> int:
        """When the request came."""
        return self.at_us - self.duration_us


@value
class Posting:
    """``amount`` of ``unit`` moves from ``credit`` to ``debit``, so every unit sums to zero by form.

    Units: token.input, token.cached, token.output, token.reasoning, accelerator_us, cpu_us, energy_mj and
    micros:<currency>. Accounts: "tenant/<name>/<project>", "factory/<model>", "factory/idle".
    """

    entry: str  # request id, or "work:<lease>"
    line: int
    at_us: int
    debit: str
    credit: str
    unit: str
    amount: int
    tenant: str
    project: str
    key: str
    model: str
    release: str
    kind: str  # serve, shadow, train, evaluate, command, lease, idle


@value
class EngineCount:
    """What one engine has counted by itself since it started. Input includes what its cache held."""

    replica: str
    alias: str
    input_tokens: int
    output_tokens: int
