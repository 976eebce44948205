"""Operations of a training step and the share of the hardware's peak, against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenmill.engine.flops import Work, mfu, peak_tflops


def test_operations_of_full_tuning_and_of_an_adapter() -> None:
    full = Work(matrix=1_000_000, adapter=0, layers=2, attention_width=64)
    assert full.flops([100]) == 6e6 * 100 + 12 * 2 * 64 * 100 * 100
    lora = Work(matrix=1_000_000, adapter=10_000, layers=2, attention_width=64)
    assert lora.flops([100, 50]) == (4e6 + 6e4) * 150 + 12 * 2 * 64 * (100 * 100 + 50 * 50)


def test_a_peak_is_found_by_the_devices_own_name() -> None:
    assert peak_tflops("NVIDIA H100 80GB HBM3", "bf16") == 989
    assert peak_tflops("NVIDIA H200", "bf16") == 989
    assert peak_tflops("NVIDIA A100-SXM4-80GB", "bf16") == 312
    assert peak_tflops("NVIDIA B200", "bf16") == 2250
    assert peak_tflops("NVIDIA GB200", "bf16") == 2500
    assert peak_tflops("NVIDIA H100 80GB HBM3", "fp32") == 0
    assert peak_tflops("cpu", "bf16") == 0


def test_utilisation_is_none_where_the_peak_is_not_known() -> None:
    assert mfu(989e12, 2.0, 989, 1) == 0.5
    assert mfu(989e12, 1.0, 989, 2) == 0.5
    assert mfu(1e12, 1.0, 0.0, 1) == 0.0
    assert mfu(1e12, 0.0, 989, 1) == 0.0


@pytest.mark.model
@pytest.mark.filterwarnings("ignore")
def test_parameters_are_counted_where_a_token_is_multiplied(toy: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from tokenmill.engine.flops import work_of

    model = AutoModelForCausalLM.from_pretrained(str(toy))
    hidden, inner, layers, vocabulary = 64, 128, 2, 300
    matrices = layers * (2 * hidden * hidden + 2 * hidden * hidden // 2 + 3 * hidden * inner)
    assert work_of(model).matrix == matrices + vocabulary * hidden
    lora = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert work_of(lora).adapter == layers * 4 * (hidden + hidden)
