"""What the loader refuses, and that what it accepts is what was stored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import expertile as et
from expertile.model.config import ModelConfig
from expertile.model.llm import LLM
from expertile.model.weights import Checkpoint, Fp8As

from .conftest import Checkpoints, Models
from .oracle import BLOCK, VARIANTS, quantized, random_tensors, write

_CONFIG: dict[str, Any] = VARIANTS["v3"]
_EXPERT = "model.layers.1.mlp.experts.3.up_proj.weight"
_FP8 = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}}


def saved(path: Path, tensors: dict[str, Tensor], **change: Any) -> Path:
    write(path, _CONFIG | change, tensors)
    return path


def opened(path: Path, dtype: torch.dtype | None = None) -> Checkpoint:
    return Checkpoint(path, ModelConfig.from_dir(path), dtype)


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return random_tensors(_CONFIG, 0)


def test_experts_are_stacked_gate_first(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    w1, w2 = opened(saved(tmp_path, tensors)).experts("model.layers.1.mlp.experts")
    assert isinstance(w1, Tensor) and isinstance(w2, Tensor)
    prefix = "model.layers.1.mlp.experts.3"
    assert torch.equal(w1[3, :128], tensors[f"{prefix}.gate_proj.weight"])
    assert torch.equal(w1[3, 128:], tensors[f"{prefix}.up_proj.weight"])
    assert torch.equal(w2[3], tensors[f"{prefix}.down_proj.weight"])


def test_fp8_experts_are_padded_to_whole_blocks(checkpoint: Checkpoints) -> None:
    made = checkpoint("v3", "float")
    (w1, s1), (w2, s2) = opened(made.path).experts("model.layers.1.mlp.experts")
    assert w1.dtype == w2.dtype == torch.float8_e4m3fn and s1.dtype == torch.float32
    assert (w1.shape, s1.shape) == ((16, 256, 256), (16, 2, 2))      # I = 96, padded to 128
    assert (w2.shape, s2.shape) == ((16, 256, 128), (16, 2, 1))
    assert not w1[:, 96:128].float().any() and not w2[..., 96:].float().any()


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_fp8_weights_become_bf16(checkpoint: Checkpoints, dtype: torch.dtype | None) -> None:
    path = checkpoint("v3", "float").path
    files = Checkpoint(path, ModelConfig.from_dir(path), dtype, fp8_as="bf16")
    w1, w2 = files.experts("model.layers.1.mlp.experts")
    o_proj = files.operand("model.layers.0.self_attn.o_proj.weight")
    assert all(isinstance(w, Tensor) and w.dtype == (dtype or torch.bfloat16)
               for w in (w1, w2, o_proj))
    assert (w1.shape, w2.shape) == ((16, 192, 256), (16, 256, 96))   # nothing to pad for
    (q, s), _ = opened(path).experts("model.layers.1.mlp.experts")
    want = et.convert_fp8_weight(q, s, (BLOCK, BLOCK), "bf16")
    assert torch.equal(w1[:, :96].float(), want[:, :96].float())
    assert torch.equal(w1[:, 96:].float(), want[:, 128:224].float())


def test_fp8_weights_become_int8_with_a_scale_per_row_and_block(checkpoint: Checkpoints) -> None:
    path = checkpoint("v3", "float").path
    files = Checkpoint(path, ModelConfig.from_dir(path), fp8_as="int8")
    assert files.block == (1, BLOCK)
    (w1, s1), (w2, s2) = files.experts("model.layers.1.mlp.experts")
    assert w1.dtype == w2.dtype == torch.int8
    assert (w1.shape, s1.shape) == ((16, 256, 256), (16, 256, 2))    # I = 96, padded to 128
    assert (w2.shape, s2.shape) == ((16, 256, 128), (16, 256, 1))
    assert not w1[:, 96:128].any() and not w2[..., 96:].any() and not s1[:, 96:128].any()
    assert s1.isfinite().all() and s2.isfinite().all()
    (q, s), _ = opened(path).experts("model.layers.1.mlp.experts")
    want, scale = et.convert_fp8_weight(q[3], s[3], (BLOCK, BLOCK), block_shape=(1, BLOCK))
    assert torch.equal(w1[3], want) and torch.equal(s1[3, :96], scale[:96])
    with pytest.raises(ValueError, match="'as-is', 'int8' or 'bf16', got 'int4'"):
        Checkpoint(path, files.config, fp8_as="int4")  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", ["int8", "bf16"])
def test_converted_weights_give_nearly_the_same_logits(checkpoint: Checkpoints, load: Models,
                                                       weights: Fp8As) -> None:
    """Both forms of attention: the absorbed one takes kv_b dequantised.

    Weights are random, so a token whose experts are nearly tied may take another one.
    """
    ids = torch.arange(40).view(2, 20) * 7 % 250
    want = load("v3", "float").logits(ids)
    model = LLM(checkpoint("v3", "float").path, page_size=16, weights=weights)
    for prefill in (None, 15):
        got = model.logits(ids, prefill=prefill)
        assert 1e-6 < float((got - want).norm() / want.norm()) < 0.1


def test_scales_may_be_stored_as_e8m0(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    stored, _ = quantized(tensors, "ue8m0")
    packed = {n: t.to(torch.float8_e8m0fnu) if n.endswith("scale_inv") else t
              for n, t in stored.items()}
    name = "model.layers.0.self_attn.o_proj.weight"
    q, s = opened(saved(tmp_path, packed, **_FP8)).operand(name)
    assert torch.equal(s, stored[f"{name}_scale_inv"])
    assert torch.equal(q.view(torch.uint8), stored[name].view(torch.uint8))


def test_dtype_converts_plain_weights_only(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    half = {n: t.to(torch.float16 if n == "lm_head.weight" else torch.bfloat16)
            for n, t in tensors.items()}
    path = saved(tmp_path, half)
    assert opened(path).plain("model.embed_tokens.weight").dtype == torch.bfloat16
    assert opened(path).plain("lm_head.weight").dtype == torch.float32
    wide = opened(path, torch.float32).operand("model.layers.0.self_attn.o_proj.weight")
    assert isinstance(wide, Tensor) and wide.dtype == torch.float32


def test_a_single_file_is_enough(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(_CONFIG))
    save_file(tensors, tmp_path / "model.safetensors")
    got = opened(tmp_path).plain("model.norm.weight")
    assert torch.equal(got, tensors["model.norm.weight"])
    assert got.data_ptr() % 64 == 0


def _drop(t: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {n: v for n, v in t.items() if n != name}


@pytest.mark.parametrize("name", [_EXPERT, "lm_head.weight", "model.layers.2.mlp.gate.weight",
                                  "model.layers.1.mlp.gate.e_score_correction_bias"])
def test_a_missing_tensor_is_named(tmp_path: Path, tensors: dict[str, Tensor], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        opened(saved(tmp_path, _drop(tensors, name)))


def test_an_extra_tensor_is_named(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    name = "model.layers.1.self_attn.q_proj.weight"
    with pytest.raises(ValueError, match=f"does not explain: {name}"):
        opened(saved(tmp_path, tensors | {name: torch.zeros(2, 2)}))


def test_a_wrong_shape_is_named(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=rf"{_EXPERT} must have shape \[128, 256\], got \[2, 2\]"):
        opened(saved(tmp_path, tensors | {_EXPERT: torch.zeros(2, 2)}))


def test_fp8_rules(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    stored, _ = quantized(tensors, "float")
    with pytest.raises(ValueError, match="no fp8 quantization_config"):
        opened(saved(tmp_path / "a", {n: t for n, t in stored.items() if "scale_inv" not in n}))
    scale = f"{_EXPERT}_scale_inv"
    with pytest.raises(ValueError, match=f"lacks {scale}"):
        opened(saved(tmp_path / "b", _drop(stored, scale), **_FP8))
    with pytest.raises(ValueError, match=rf"{scale} must be .* of shape \[1, 2\]"):
        opened(saved(tmp_path / "c", stored | {scale: torch.ones(3, 2)}, **_FP8))
    mixed = _drop(stored, scale) | {_EXPERT: tensors[_EXPERT]}
    with pytest.raises(ValueError, match=f"{_EXPERT} must be stored like its neighbours"):
        opened(saved(tmp_path / "d", mixed, **_FP8)).experts("model.layers.1.mlp.experts")


def test_damaged_files_are_named(checkpoint: Checkpoints, tmp_path: Path) -> None:
    path = tmp_path / "copy"
    shutil.copytree(checkpoint("v3").path, path)
    shard = path / "model-00002-of-00003.safetensors"
    whole = shard.read_bytes()
    for size in (0, 5, 4096, len(whole) - 1):
        shard.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="model-00002-of-00003.safetensors is truncated"):
            opened(path)
    shard.unlink()
    with pytest.raises(ValueError, match="model-00002-of-00003.safetensors does not exist"):
        opened(path)
    save_file(_drop(load_file(path / "model-00001-of-00003.safetensors"), "nothing"), shard)
    with pytest.raises(ValueError, match="in files that do not hold them"):
        opened(path)
    (path / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match="must hold model.safetensors"):
        opened(path)
