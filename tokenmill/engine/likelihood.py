"""How likely a model finds the wanted answers: mean log-probability by token, in nats. Greedy answers play
no part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tokenmill.domain.errors import MissingExtraError
from tokenmill.engine import environment, examples
from tokenmill.engine.safe import check_adapter_fits, check_safe

MAX_TOKENS = 4096


def mean_log_likelihoods(
    base_dir: Path,
    adapter_dir: Path | None,
    rows: Sequence[Sequence[dict[str, str]]],
    report: Callable[[int], None] = lambda done: None,
) -> list[float]:
    """One figure for each of ``rows``, whose last message is the answer. Raises ``EngineError`` for another
    base.
    """
    environment.prepare()
    try:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise MissingExtraError("log-likelihoods need torch", fix="pip install 'tokenmill[tune]'") from error
    check_safe(base_dir)
    tokenizer = AutoTokenizer.from_pretrained(str(base_dir), local_files_only=True)
    model: Any = AutoModelForCausalLM.from_pretrained(
        str(base_dir), dtype=torch.float32, local_files_only=True, use_safetensors=True
    )
    if adapter_dir is not None:
        check_adapter_fits(adapter_dir, base_dir)
        model = PeftModel.from_pretrained(model, str(adapter_dir))
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    found = []
    with torch.no_grad():
        for done, messages in enumerate(rows, 1):
            (example,), _ = examples.tokenize([messages], tokenizer, MAX_TOKENS)
            ids = torch.tensor([example.input_ids], device=model.device)
            logits = model(input_ids=ids).logits[0, -example.learnt - 1 : -1].float()
            chosen = logits.log_softmax(-1).gather(-1, ids[0, -example.learnt :, None])
            found.append(float(chosen.mean()))
            report(done)
    return found
