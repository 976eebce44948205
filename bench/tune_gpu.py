"""How fast the trainer tunes on this machine's accelerator: tokens/s, MFU, joules and peak memory.

    python bench/tune_gpu.py --out tune_gpu.json

It needs torch, transformers, peft, accelerate, safetensors and (for joules) nvidia-ml-py; no network and
no model: it makes a Llama of a stated size with random weights and a byte-level tokenizer. Speed does not
depend on what the weights say. The steps of the first ``--warmup`` are not counted. The trainer is the
line's own (``tokenmill.engine.trainer``), so what it measures includes checkpoint bookkeeping and reports.
A factory's line on the same machine pays besides for loading the model and writing the result, which are
shown apart.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tokenmill.engine import environment, trainer
from tokenmill.engine.tuning import Progress, TrainRequest

environment.prepare()

SIZES = {  # hidden, intermediate, layers, heads, key-value heads; of Llama 3 and of SmolLM2 at 135m
    "tiny": (64, 128, 2, 4, 2),
    "135m": (576, 1536, 30, 9, 3),
    "1b": (2048, 8192, 16, 32, 8),
    "3b": (3072, 8192, 28, 24, 8),
    "8b": (4096, 14336, 32, 32, 8),
}
TEMPLATE = "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
CASES = ("lora:1b:16:2048", "lora:8b:8:2048", "full:1b:16:2048", "full:3b:8:2048")


@dataclass(frozen=True)
class Case:
    """One measurement: ``batch`` rows of ``tokens`` tokens per optimizer step."""

    method: str
    size: str
    batch: int
    tokens: int


def make_model(size: str, vocabulary: int, into: Path) -> int:
    """Write a random Llama of ``size`` and its tokenizer; returns its parameters."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    hidden, intermediate, layers, heads, kv_heads = SIZES[size]
    pieces = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    raw = Tokenizer(models.BPE(vocab={piece: at for at, piece in enumerate(pieces)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="</s>", chat_template=TEMPLATE
    )
    config = LlamaConfig(
        vocab_size=max(vocabulary, len(pieces)),
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=8192,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        tie_word_embeddings=size in ("tiny", "135m", "1b", "3b"),
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    parameters = sum(p.numel() for p in model.parameters())
    model.save_pretrained(str(into))
    tokenizer.save_pretrained(str(into))
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return int(parameters)


def write_rows(path: Path, rows: int, tokens: int) -> None:
    """Conversations of exactly ``tokens`` tokens, a quarter of them the prompt."""
    rng = random.Random(0)
    given = tokens // 4
    overhead = len("user\n") + len("assistant\n") + 4  # and two marks for each message

    def text(length: int) -> str:
        return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz ") for _ in range(length))

    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            ask, answer = text(given), text(tokens - given - overhead)
            messages = [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": messages}) + "\n")


def measure(case: Case, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Make the model, tune it, and say what a step took after warming up."""
    base = folder / f"{case.size}-base"
    began = time.monotonic()
    parameters = make_model(case.size, args.vocabulary, base) if not base.is_dir() else args.made[case.size]
    args.made[case.size] = parameters
    made_s = time.monotonic() - began
    rows = folder / "rows.jsonl"
    write_rows(rows, case.batch * args.steps, case.tokens)
    work = folder / f"{case.method}-{case.size}-{case.batch}"
    request = TrainRequest(
        base_dir=base,
        train_jsonl=rows,
        out_dir=work / "out",
        work_dir=work / "work",
        method=case.method,
        batch=case.batch,
        micro_batch=args.micro,
        recompute=args.recompute,
        max_tokens=case.tokens,
        save_every_s=1e9,
        lr=1e-4,
        precision=args.precision,
    )
    seen: list[tuple[float, Progress]] = []
    began = time.monotonic()
    outcome = trainer.train(request, lambda progress: seen.append((time.monotonic(), progress)))
    whole_s = time.monotonic() - began
    steps = [(at, p) for at, p in seen if p.done >= args.warmup and p.done > 0]
    (first_s, first), (last_s, last) = steps[0], steps[-1]
    seconds, tokens = last_s - first_s, last.tokens - first.tokens
    rate = tokens / seconds if seconds > 0 else 0.0
    share = rate / outcome.tokens_per_s if outcome.tokens_per_s else 0.0
    return {
        **asdict(case),
        "parameters": parameters,
        "device": outcome.device,
        "precision": outcome.precision,
        "micro_batch": outcome.micro_batch,
        "recompute": args.recompute,
        "steps": outcome.steps,
        "tokens_per_s": round(rate, 1),
        "ms_per_step": round(1000 * seconds / max(1, last.done - first.done), 1),
        "mfu": round(outcome.mfu * share, 4),
        "peak_tflops": outcome.peak_tflops,
        "joules": round(outcome.energy_mj / 1000, 1),
        "joules_per_1k_tokens": round(outcome.energy_mj / outcome.tokens, 3) if outcome.tokens else 0.0,
        "energy_source": outcome.energy_source or "not measured",
        "peak_memory_gb": round(outcome.peak_memory_bytes / 1e9, 2),
        "training_s": round(outcome.seconds, 1),
        "load_and_save_s": round(whole_s - outcome.seconds, 1),
        "make_model_s": round(made_s, 1),
        "loss_first": outcome.loss_curve[0][1],
        "loss_last": outcome.loss_curve[-1][1],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The figures for people, as a Markdown table."""
    names = ("method", "size", "batch", "tokens", "micro_batch", "tokens_per_s", "mfu", "ms_per_step")
    names += ("joules_per_1k_tokens", "peak_memory_gb")
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(str(row.get(name, "")) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", default=CASES, help="METHOD:SIZE:BATCH:TOKENS; lora or full")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--warmup", type=int, default=6, help="steps that are not counted")
    parser.add_argument("--micro", type=int, default=4, help="rows at a time; halved when memory is short")
    parser.add_argument("--vocabulary", type=int, default=32_000, help="rows of the embedding")
    parser.add_argument("--recompute", action="store_true", help="activations in the backward pass")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"))
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    parser.add_argument("--folder", type=Path, help="for models and checkpoints; temporary without it")
    args = parser.parse_args()
    args.made = {}
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        for text in args.cases:
            method, size, batch, tokens = text.split(":")
            case = Case(method, size, int(batch), int(tokens))
            try:
                results.append(measure(case, args, Path(temporary)))
            except Exception as error:  # noqa: BLE001 - one case must not cost the others' figures
                results.append({**asdict(case), "error": f"{type(error).__name__}: {error}"})
            print(json.dumps(results[-1]), flush=True)
            if args.out:
                args.out.write_text(json.dumps(results, indent=1), encoding="utf-8")
    print(table(results))
    return 1 if any("error" in row for row in results) else 0


if __name__ == "__main__":
    sys.exit(main())
