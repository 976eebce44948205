"""Counters and histograms of this process, and their Prometheus text.

An update is an addition; all text is made when it is asked for. Histograms are kept once and shown under the
names that vLLM dashboards and OpenTelemetry's GenAI conventions use. Labels hold only names out of the table,
so their number is bounded; keys and users are in the ledger, not here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping

from tokenmill.domain.factory import Objective
from tokenmill.domain.ledger import Settlement
from tokenmill.gateway.outcomes import answered

FAST_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)
SLOW_S = (0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0)

MET, MISSED = "met", "missed"  # an objective

KINDS = ("input", "cached", "output", "reasoning")  # of tokens

Labels = tuple[str, ...]


class Histogram:
    """Cumulative only when shown; ``observe`` touches one bucket."""

    __slots__ = ("bounds", "buckets", "count", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.buckets = [0] * (len(bounds) + 1)
        self.count = 0
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.buckets[bisect_left(self.bounds, value)] += times
        self.count += times
        self.sum += value * times


class ModelMetrics:
    """What is measured per alias."""

    __slots__ = ("e2e", "running", "token_gap", "ttft")

    def __init__(self) -> None:
        self.ttft = Histogram((*FAST_S, 20.0, 40.0, 80.0))
        self.token_gap = Histogram(FAST_S)
        self.e2e = Histogram(SLOW_S)
        self.running = 0

    def stream_ended(self, tokens: int, spent_s: float) -> None:
        """A stream took ``spent_s`` after its first token: its gaps, by their mean, at no cost a token."""
        if tokens > 1:
            self.token_gap.observe(spent_s / (tokens - 1), tokens - 1)


class Metrics:
    """All of one gateway."""

    def __init__(self) -> None:
        self.models: dict[str, ModelMetrics] = {}
        self._tokens: dict[Labels, list[int]] = {}  # by tenant, project and model: of each of ``KINDS``
        self.requests: dict[Labels, int] = {}  # model, outcome
        self.refusals: dict[Labels, int] = {}  # code
        self.retries = 0
        self.engine_failures: dict[Labels, int] = {}  # model
        self.responses: dict[Labels, int] = {}  # status
        self.objectives: dict[Labels, int] = {}  # model, result
        self.captures: dict[Labels, int] = {}  # what became of an answer that might be kept

    def model(self, name: str) -> ModelMetrics:
        found = self.models.get(name)
        if found is None:
            found = self.models[name] = ModelMetrics()
        return found

    @staticmethod
    def add(family: dict[Labels, int], labels: Labels, amount: int = 1) -> None:
        family[labels] = family.get(labels, 0) + amount

    def settled(self, settlement: Settlement, model: str, code: str) -> None:
        """Count one request's end. ``model`` is empty when the alias does not exist."""
        who = (settlement.tenant, settlement.project, model)
        counts = self._tokens.get(who)
        if counts is None:
            counts = self._tokens[who] = [0] * len(KINDS)
        counts[0] += settlement.input_tokens
        counts[1] += settlement.cached_tokens
        counts[2] += settlement.output_tokens
        counts[3] += settlement.reasoning_tokens
        self.add(self.requests, (model, settlement.outcome))
        if code:
            self.add(self.refusals, (code,))

    def promised(self, alias: str, slo: Objective, settlement: Settlement, ttft_s: float) -> None:
        """Count whether an answer kept what its deployment promises; ``ttft_s`` is 0 for one in one piece."""
        found = answered(settlement)
        if found is not None:
            met = found and slo.met(round(ttft_s * 1e6), settlement.duration_us, settlement.output_tokens)
            self.add(self.objectives, (alias, MET if met else MISSED))

    @property
    def tokens(self) -> dict[Labels, int]:
        """By tenant, project, model and kind."""
        return {
            (*who, kind): count
            for who, counts in self._tokens.items()
            for kind, count in zip(KINDS, counts, strict=True)
            if count
        }

    def total(self, kind: str) -> int:
        """Tokens of one kind over everybody."""
        return sum(n for labels, n in self.tokens.items() if labels[3] == kind)

    def text(self, gauges: Mapping[str, tuple[str, float]]) -> bytes:
        """Everything in Prometheus text format 0.0.4. ``gauges`` maps a name to (help, value)."""
        lines: list[str] = []
        for name, (help_text, value) in sorted(gauges.items()):
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}", f"{name} {value:g}"]
        self._counters(lines)
        self._histograms(lines)
        return ("\n".join(lines) + "\n").encode()

    def _counters(self, lines: list[str]) -> None:
        by_model: dict[str, dict[Labels, int]] = {"input": {}, "output": {}}
        for (_, _, model, kind), count in self.tokens.items():
            if kind in by_model:
                self.add(by_model[kind], (model,), count)
        running: dict[Labels, int] = {(name,): m.running for name, m in self.models.items()}
        success: dict[Labels, int] = {(m,): n for (m, outcome), n in self.requests.items() if outcome == "ok"}
        families: list[tuple[str, str, str, Labels, dict[Labels, int]]] = [
            (
                "tokenmill_tokens_total",
                "counter",
                "Tokens settled, cached ones also counted as input.",
                ("tenant", "project", "model", "kind"),
                self.tokens,
            ),
            (
                "tokenmill_requests_total",
                "counter",
                "Requests settled.",
                ("model", "outcome"),
                self.requests,
            ),
            (
                "tokenmill_quota_rejections_total",
                "counter",
                "Requests refused, by error code.",
                ("code",),
                self.refusals,
            ),
            (
                "tokenmill_engine_failures_total",
                "counter",
                "Attempts that an engine lost.",
                ("model",),
                self.engine_failures,
            ),
            (
                "tokenmill_slo_requests_total",
                "counter",
                "Answers of deployments with an objective, by whether they kept it.",
                ("model", "result"),
                self.objectives,
            ),
            ("tokenmill_captures_total", "counter", "Answers to capture.", ("result",), self.captures),
            ("tokenmill_http_responses_total", "counter", "Responses sent.", ("status",), self.responses),
            ("vllm:num_requests_running", "gauge", "Requests open now.", ("model_name",), running),
            ("vllm:prompt_tokens_total", "counter", "Input tokens.", ("model_name",), by_model["input"]),
            (
                "vllm:generation_tokens_total",
                "counter",
                "Output tokens.",
                ("model_name",),
                by_model["output"],
            ),
            ("vllm:request_success_total", "counter", "Requests answered.", ("model_name",), success),
        ]
        for name, kind, help_text, names, family in families:
            lines += [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]
            lines += [f"{name}{_labels(names, labels)} {family[labels]}" for labels in sorted(family)]

    def _histograms(self, lines: list[str]) -> None:
        shown = (
            (
                "ttft",
                "Arrival to first output, seconds.",
                ("vllm:time_to_first_token_seconds", "gen_ai_server_time_to_first_token_seconds"),
            ),
            (
                "token_gap",
                "Time between output tokens, seconds.",
                ("vllm:inter_token_latency_seconds", "gen_ai_server_time_per_output_token_seconds"),
            ),
            (
                "e2e",
                "Arrival to end, seconds.",
                ("vllm:e2e_request_latency_seconds", "gen_ai_server_request_duration_seconds"),
            ),
        )
        for attribute, help_text, names in shown:
            for name in names:
                label = "model_name" if name.startswith("vllm:") else "gen_ai_request_model"
                lines += [f"# HELP {name} {help_text}", f"# TYPE {name} histogram"]
                for model in sorted(self.models):
                    histogram = getattr(self.models[model], attribute)
                    lines += _histogram_lines(name, f'{label}="{_escape(model)}"', histogram)


def _histogram_lines(name: str, label: str, histogram: Histogram) -> Iterable[str]:
    total = 0
    for bound, count in zip((*histogram.bounds, None), histogram.buckets, strict=True):
        total += count
        edge = "+Inf" if bound is None else f"{bound:g}"
        yield f'{name}_bucket{{{label},le="{edge}"}} {total}'
    yield f"{name}_sum{{{label}}} {histogram.sum:.6f}"
    yield f"{name}_count{{{label}}} {histogram.count}"


def _labels(names: Labels, values: Labels) -> str:
    return "{" + ",".join(f'{n}="{_escape(v)}"' for n, v in zip(names, values, strict=True)) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
