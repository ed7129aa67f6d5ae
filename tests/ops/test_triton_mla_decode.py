"""MLA decode and cache append in Triton: every case in the interpreter, and what is compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from expertile import ops, targets
from expertile.ops.models import Load, preset
from expertile.ops.spec import Shape
from expertile.targets._triton.target import TritonTarget

from ..triton_child import Interpreter

OP = ops.load("mla_decode")
APPEND = ops.load("mla_kv_append")


def known(device: str) -> TritonTarget:
    """A described GPU."""
    target = targets.load(device, mode="compile")
    assert isinstance(target, TritonTarget)
    return target


def rows(heads: int, dv: int, rope: int, page: int, s_q: int, dtype: str, kv_dtype: str,
         causal: bool = True) -> Shape:
    """A shape whose sequences fill two pages and some."""
    return {"heads": heads, "head_dim_v": dv, "rope": rope, "page": page, "s_q": s_q,
            "dtype": dtype, "kv_dtype": kv_dtype, "causal": causal, "batch": 3, "ctx": 2 * page + 6}


FP8_ROWS = rows(3, 200, 32, 24, 1, "float32", "fp8")                # scales end within a chunk
FP8_PARTS = rows(3, 600, 0, 9, 1, "bfloat16", "fp8")                # two programs share the output
MTP = rows(20, 130, 30, 32, 2, "bfloat16", "bfloat16")              # 130 in chunks of 64 and more


@pytest.mark.parametrize(("device", "shape", "knobs"), [
    ("cuda:sm_90", OP.odd_shapes[0], {}),
    ("cuda:sm_90", OP.odd_shapes[1], {}),
    ("cuda:sm_80", OP.odd_shapes[2], {}),
    ("hip:gfx942", OP.odd_shapes[3], {}),
    ("cuda:sm_90", OP.odd_shapes[4], {}),
    ("hip:gfx942", OP.odd_shapes[5], {}),
    ("cuda:sm_80", OP.odd_shapes[1], {"splits": 4, "combine_rows": 4}),
    ("cuda:sm_80", OP.odd_shapes[4], {"splits": 1}),
    ("cuda:sm_90", FP8_ROWS, {"block_n": 32}),
    ("cuda:sm_80", FP8_PARTS, {}),
    ("cuda:sm_90", MTP, {}),
    ("cuda:sm_90", MTP, {"splits": 1, "split_v": 1})], ids=str)
def test_all_cases(interpreter: Interpreter, device: str, shape: Shape,
                   knobs: dict[str, Any]) -> None:
    """Default tiles and those that take another path through the kernels."""
    config = {**known(device).space(OP, shape).default(), **knobs}
    why = interpreter(device, OP.name, shape, config)
    assert why is None, why


@pytest.mark.parametrize(("device", "index", "tile"), [
    ("cuda:sm_90", 0, 1), ("cuda:sm_90", 1, 8), ("cuda:sm_90", 2, 8), ("cuda:sm_80", 3, 4),
    ("hip:gfx942", 2, 8), ("cuda:sm_80", 4, 8), ("cuda:sm_90", 5, 8)])
def test_append_on_all_cases(interpreter: Interpreter, device: str, index: int, tile: int) -> None:
    """All dtypes of the cache; its FP8 layout bit for bit."""
    shape = APPEND.odd_shapes[index]
    why = interpreter(device, APPEND.name, shape, {"tile": tile, "warps": 1 if tile < 8 else 2})
    assert why is None, why


def recorded(shape: Shape, **knobs: Any) -> list[tuple[str, tuple[int, ...]]]:
    """Names and grids of what the lowering launches on an H100, on meta tensors."""
    class Recording(TritonTarget):
        def launch(self, kernel, grid, *args, **meta):  # type: ignore[no-untyped-def]
            seen.append((kernel.__name__, grid))

    seen: list[tuple[str, tuple[int, ...]]] = []
    h100 = known("cuda:sm_90")
    target = Recording("cuda", "cuda", h100.gpu, "compile", "", h100.cache_dir)
    args = OP.signature(shape)
    config = {**h100.space(OP, shape).default(), **knobs}
    target.build_kernel(OP, shape, config)(*args, out=OP.empty(*args))
    return seen


def test_launches_need_no_data() -> None:
    """The split count fills the device, one split needs no merge, no sequence no launch."""
    v3 = OP.shapes(preset("v3"), Load(batch=(1,), ctx=(4096,)))[0]
    assert recorded(v3) == [("mla_decode_split", (2, 64)), ("mla_decode_combine", (128, 1))]
    assert recorded({**v3, "batch": 16}, splits=1) == [("mla_decode_split", (32, 1))]
    assert recorded({**v3, "batch": 0}) == []


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "fp8"])
@pytest.mark.parametrize(("model", "tp"), [("v3", 1), ("v3", 8), ("kimi-k2", 1), ("glm-lite", 1)])
def test_splits_fill_the_device_within_reason(model: str, tp: int, kv_dtype: str) -> None:
    """At least nine of ten cores have a program, or every program has a single step."""
    for device in ("cuda:sm_90", "cuda:sm_86", "hip:gfx942"):
        target = known(device)
        for shape in OP.shapes(preset(model).split(tp=tp), Load()):
            space = target.space(OP, {**shape, "kv_dtype": kv_dtype})
            config = space.default()
            assert space.why_not(config) is None
            splits, step = int(config["splits"]), int(config["block_n"])
            blocks = -(-int(shape["heads"]) // int(config["block_h"])) * int(config["split_v"])
            programs = int(shape["batch"]) * blocks * splits
            assert (10 * programs >= 9 * target.cores or 2 * splits * step > int(shape["ctx"])
                    or splits == 128)
        assert 24 <= len(list(space)) <= 600


@pytest.mark.parametrize(("device", "kv_dtype"), [("cuda:sm_90", "fp8"),
                                                  ("cuda:sm_86", "bfloat16")])
def test_defaults_have_no_spills(device: str, kv_dtype: str) -> None:
    import triton

    from expertile.targets._triton import sass

    target = known(device)
    shape = {**OP.shapes(preset("v3"), Load())[-1], "kv_dtype": kv_dtype}
    for launch in target.launches(OP, shape, target.space(OP, shape).default()):
        facts = sass.read(launch.compiled.asm["cubin"], launch.compiled.metadata.shared,
                          sass.tools_in(Path(triton.__file__).parent))
        assert facts.stack_bytes == 0 and facts.shared_bytes <= target.shared_bytes
        if launch.name == "mla_decode_split":
            wanted, refused = ("HGMMA", "HMMA") if device == "cuda:sm_90" else ("HMMA", "HGMMA")
            assert facts.mma.get(wanted) and not facts.mma.get(refused)
            assert facts.counts["LDGSTS"] > 0


def test_signatures_are_meta() -> None:
    """What the launch tests stand on."""
    for op in (OP, APPEND):
        args = op.signature(op.odd_shapes[0])
        assert all(a.device == torch.device("meta") for a in args if isinstance(a, torch.Tensor))
