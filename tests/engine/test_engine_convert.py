"""What conversion refuses, and the rotary order of rows; whole conversions are in the live tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tokenmill.domain.errors import CorruptWeightsError, EngineError
from tokenmill.engine import convert

np = pytest.importorskip("numpy")
pytest.importorskip("gguf")

LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none"}
LLAMA = {"model_type": "llama", "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1}


def write_adapter(folder: Path, settings: dict[str, object], tensors: dict[str, object]) -> Path:
    from safetensors.numpy import save_file

    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return folder


def pair(module: str, inside: int, out: int) -> dict[str, object]:
    name = f"base_model.model.model.layers.0.{module}"
    rng = np.random.default_rng(0)
    return {
        f"{name}.lora_A.weight": rng.standard_normal((2, inside)).astype(np.float32),
        f"{name}.lora_B.weight": rng.standard_normal((out, 2)).astype(np.float32),
    }


def test_rotary_order_pairs_the_halves_of_each_head() -> None:
    rows = np.arange(8).reshape(8, 1)  # two heads of four rows
    assert convert.rotary_order(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_an_adapter_becomes_gguf_with_its_names_scale_and_order(tmp_path: Path) -> None:
    import gguf

    tensors = pair("self_attn.q_proj", 8, 8) | pair("self_attn.v_proj", 8, 4) | pair("mlp.down_proj", 6, 8)
    folder = write_adapter(tmp_path / "a", LORA, tensors)
    reader = gguf.GGUFReader(convert.lora_to_gguf(folder, folder, tmp_path / "a.gguf"))
    assert reader.get_field("general.type").contents() == "adapter"
    assert reader.get_field("adapter.type").contents() == "lora"
    assert reader.get_field("adapter.lora.alpha").contents() == 4.0
    found = {t.name: t.data for t in reader.tensors}
    assert sorted(found) == sorted(
        f"blk.0.{n}.weight.lora_{s}" for n in ("attn_q", "attn_v", "ffn_down") for s in "ab"
    )
    b = tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]
    assert (found["blk.0.attn_q.weight.lora_b"] == convert.rotary_order(b, 2)).all()
    v = tensors["base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight"]
    assert (found["blk.0.attn_v.weight.lora_b"] == v).all()


def test_rank_stabilised_scale_is_kept(tmp_path: Path) -> None:
    import gguf

    folder = write_adapter(tmp_path / "a", {**LORA, "use_rslora": True}, pair("mlp.up_proj", 8, 6))
    reader = gguf.GGUFReader(convert.lora_to_gguf(folder, folder, tmp_path / "a.gguf"))
    assert reader.get_field("adapter.lora.alpha").contents() == pytest.approx(4 * 2**0.5)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "IA3"}, "IA3"),
    ],
)
def test_what_the_engine_cannot_apply_is_refused(
    tmp_path: Path, change: dict[str, object], what: str
) -> None:
    folder = write_adapter(tmp_path / "a", {**LORA, **change}, pair("mlp.up_proj", 8, 6))
    with pytest.raises(EngineError, match=what):
        convert.lora_to_gguf(folder, folder, tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


def test_a_broken_adapter_file_is_said_so(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", LORA, pair("mlp.up_proj", 8, 6))
    (folder / "adapter_model.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(CorruptWeightsError):
        convert.lora_to_gguf(folder, folder, tmp_path / "a.gguf")


def test_only_bert_becomes_an_embedding_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(EngineError, match="embedding"):
        convert.bert_to_gguf(tmp_path, tmp_path / "x.gguf")
