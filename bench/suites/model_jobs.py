"""What runs in the model suite's child processes: one engine that holds one checkpoint."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ...model import LLM, SamplingParams
from ..peers.torch_moe import wide

_held: dict[str, Any] = {}


def load(path: str, engine: str, threads: int) -> None:
    """Hold a checkpoint in "ours", "transformers float32" or "transformers bfloat16"."""
    _held.clear()
    if engine == "ours":
        _held["llm"] = LLM(path, threads=threads)
        return
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    dtype = getattr(torch, engine.rpartition(" ")[2])
    _held["hf"] = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()


def tokens(ctx: int, count: int, vocab: int) -> list[float]:
    """Microseconds of the prompt's first token, then of each token after it."""
    generator = torch.Generator().manual_seed(ctx)
    ids = torch.randint(2, vocab, (ctx,), generator=generator).tolist()
    steps = _ours(ids, count) if "llm" in _held else _transformers(ids, count)
    return [1e6 * s for s in steps]


def _ours(ids: list[int], count: int) -> Iterator[float]:
    params = SamplingParams(max_tokens=count, ignore_eos=True)
    start = time.perf_counter()
    for _ in _held["llm"].stream(ids, params):
        yield time.perf_counter() - start
        start = time.perf_counter()


def _transformers(ids: list[int], count: int) -> Iterator[float]:
    following, kept = torch.tensor([ids]), None
    with torch.inference_mode():
        for _ in range(count):
            start = time.perf_counter()
            out = _held["hf"](following, past_key_values=kept, use_cache=True)
            following, kept = out.logits[:, -1:].argmax(-1), out.past_key_values
            yield time.perf_counter() - start


def plain_copy(source: str, out: str) -> None:
    """A checkpoint with its fp8 weights widened to bfloat16: transformers has no fp8 on CPUs."""
    config = json.loads((Path(source) / "config.json").read_text())
    block = tuple(config.pop("quantization_config", {}).get("weight_block_size", (128, 128)))
    found: dict[str, torch.Tensor] = {}
    for file in sorted(Path(source).glob("*.safetensors")):
        found |= load_file(file)
    tensors = {}
    for name, tensor in found.items():
        scale = found.get(f"{name}_scale_inv")
        if not name.endswith("_scale_inv"):
            tensors[name] = tensor if scale is None else wide(
                tensor[None], scale[None], block, torch.bfloat16)[0]
    Path(out).mkdir(parents=True, exist_ok=True)
    (Path(out) / "config.json").write_text(json.dumps(config))
    save_file(tensors, Path(out) / "model.safetensors", metadata={"format": "pt"})
