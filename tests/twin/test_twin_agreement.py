"""``plan --traffic`` and ``plan --size`` say the same of one layout while nobody has to wait."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("numpy", reason="the twin's core needs the extra [twin]")

from typer.testing import CliRunner

from tokenmill.cli.app import app
from tokenmill.spec.catalogue import catalogue
from tokenmill.twin.profiles import profile
from tokenmill.twin.size import BUDGET_TOKENS, candidates
from tokenmill.twin.size_question import question_of
from tokenmill.twin.steady import Steady, steady

OUTPUTS, MINUTES = 250, 60
FACTORY = """
{{kind: factory, name: one}}
---
{{kind: site, name: here, nodes: [{{name: box, type: {node}}}]}}
---
{{kind: tenant, name: acme, projects: [main]}}
---
{{kind: model, name: m, source: "hf://maker/{model}"}}
---
{{kind: deployment, name: chat, model: m, engine: {engine}, replicas: 1, slots: 256, context: 8192,
  resources: {{accelerators: {tensor}, accelerator: {gpu}}}, engine_args: [-tp, "{tensor}", -q, fp8]}}
"""
TRAFFIC = """kind: traffic
name: even
duration: {minutes}m
streams:
  - deployment: chat
    requests_per_second: {rate}
    input: {{mean: {inputs}, sigma: 0}}
    output: {{mean: {outputs}, sigma: 0}}
    targets: {{ttft: 2s, tpot: 80ms}}
"""


@dataclass(frozen=True)
class Case:
    engine: str
    node: str
    gpu: str
    model: str
    tensor: int
    inputs: int

    def closed_form(self, batch: int) -> Steady:
        """What sizing says of this layout while it has ``batch`` requests and none has to wait."""
        asked = question_of(
            self.model, "fp8", self.inputs, OUTPUTS, "1k", "ttft_p99<2s,tpot_p99<80ms", self.engine
        )
        [one] = [
            found
            for found in candidates(asked, catalogue().accelerators[self.gpu], 8, profile())
            if found.layout.tensor == found.layout.expert_tensor == self.tensor and found.layout.pipeline == 1
        ]
        return steady(
            one.work, one.eff, one.protocol, batch=float(batch), waiting=0.0, inputs=float(self.inputs),
            outputs=float(OUTPUTS), budget=float(BUDGET_TOKENS),
        )  # fmt: skip

    def simulated(self, folder: Path, per_second: float) -> tuple[float, float]:
        """Median TTFT and TPOT, in seconds, of a rehearsal under even lengths."""
        plain = {name: getattr(self, name) for name in ("engine", "node", "gpu", "model", "tensor")}
        (folder / "factory.yaml").write_text(FACTORY.format(**plain))
        traffic = TRAFFIC.format(minutes=MINUTES, rate=per_second, inputs=self.inputs, outputs=OUTPUTS)
        (folder / "even.yaml").write_text(traffic)
        files = [str(folder / "factory.yaml"), "--traffic", str(folder / "even.yaml")]
        found = CliRunner().invoke(app, ["plan", *files, "--json"])
        assert found.exit_code == 0, found.output
        [chat] = json.loads(found.stdout)["services"]
        assert chat["ended"] > 20
        return chat["ttft_p50_ms"]["value"] / 1000, chat["tpot_p50_ms"]["value"] / 1000


CASES = {
    "prompts mixed in, dense": Case("vllm", "hgx-h100", "h100-sxm", "llama-3.1-8b", 1, 1000),
    "prompts first, dense": Case("sglang", "hgx-h200", "h200-sxm", "llama-3.1-70b", 4, 1000),
    "prompts mixed in, experts": Case("vllm", "hgx-h200", "h200-sxm", "qwen3-30b-a3b", 2, 3000),
}


@pytest.mark.parametrize("name", CASES)
def test_both_foretell_the_same_latencies_at_light_load(name, tmp_path):
    case = CASES[name]
    alone = case.closed_form(1)
    ttft, tpot = case.simulated(tmp_path, 0.1 / (OUTPUTS * alone.tpot_s))
    assert ttft == pytest.approx(alone.ttft_s, rel=0.05)
    assert tpot == pytest.approx(alone.tpot_s, rel=0.05)


@pytest.mark.parametrize("name", CASES)
def test_prompts_of_others_slow_decoding_alike(name, tmp_path):
    case, batch = CASES[name], 23
    busy = case.closed_form(batch)
    assert busy.tpot_s > 1.15 * case.closed_form(1).tpot_s  # else there is nothing to disagree about
    _, tpot = case.simulated(tmp_path, batch / (busy.ttft_s + OUTPUTS * busy.tpot_s))
    assert tpot == pytest.approx(busy.tpot_s, rel=0.05)
