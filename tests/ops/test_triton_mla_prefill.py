"""The GPU lowering of mla_prefill: numerics in the interpreter, facts of what it compiles to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from expertile import ops, targets
from expertile.ops.mla_prefill import OP
from expertile.ops.models import Load, preset
from expertile.ops.numerics import mismatches
from expertile.ops.space import Config
from expertile.ops.spec import Shape
from expertile.opt.checks import run_once
from expertile.targets._triton.target import TritonTarget
from expertile.targets.child import Child

from ..triton_child import REPO, Interpreter


def known(device: str) -> TritonTarget:
    target = targets.load(device, mode="compile")
    assert isinstance(target, TritonTarget)
    return target


def shape(heads: int, d_qk: int, d_v: int, dtype: str, causal: bool = True) -> Shape:
    return {"heads": heads, "d_qk": d_qk, "d_v": d_v, "dtype": dtype, "causal": causal,
            "tokens": 37, "ctx": 53, "batch": 2}


# Blocks of 16 make the short sequences of the cases span several, with and without a mask. Widths
# come in one, two and three parts, with padding (40 = 32 + 8, 72 = 64 + 8) and without.
RUNS = [
    ("cuda:sm_90", shape(1, 96, 64, "float32"), {}),
    ("cuda:sm_80", shape(1, 192, 128, "bfloat16"), {"block_m": 32, "block_n": 16, "stages": 3}),
    ("hip:gfx942", shape(1, 256, 256, "bfloat16", False), {}),
    ("cuda:sm_90", shape(2, 72, 40, "float32"), {"fastest": "heads", "precision": "ieee"}),
    ("hip:gfx942", shape(1, 112, 16, "float32"),
     {"block_m": 16, "block_n": 16, "warps": 2, "stages": 1, "waves_per_eu": 2}),
]


@pytest.mark.parametrize(("device", "axes", "change"), RUNS)
def test_every_case(interpreter: Interpreter, device: str, axes: Shape, change: Config) -> None:
    config = {**known(device).space(OP, axes).default(), **change}
    assert interpreter(device, OP.name, axes, config) is None


def odd_calls() -> dict[str, str | None]:
    """Runs in a child: slices as operands and outputs, scales that are not positive."""
    target = targets.load("cuda:sm_90", mode="interpret")
    axes = shape(2, 48, 32, "float32")
    q, k, v, cu_q, cu_k, scale, causal = OP.inputs(axes, 0)
    kernel = target.build_kernel(OP, axes, target.space(OP, axes).default())
    wide, kv = torch.cat([q, q], -1), torch.cat([k, v], -1)
    found = {}
    for name, args in {
            "slices": (wide[..., 48:], kv[..., :48], kv[..., 48:], cu_q, cu_k, scale, causal),
            "every other column": (wide[..., ::2], k, v, cu_q, cu_k, scale, causal),
            "negative scale": (q, k, v, cu_q, cu_k, -scale, causal),
            "no scale": (q, k, v, cu_q, cu_k, 0.0, causal)}.items():
        want = run_once(OP.reference, OP, args)
        out = (torch.full((q.shape[0], 2, 64), float("nan")), torch.full((q.shape[0], 2), 0.0))
        kernel(*args, out=(out[0][..., ::2], out[1].T))
        found[name] = mismatches((out[0][..., ::2], out[1].T), want, OP.rtol)
        if not out[0][..., 1::2].isnan().all():
            found[name] = "wrote between the columns of out"
    return found


def test_strides_and_scales() -> None:
    child = Child(12.0, env={"PYTHONPATH": str(REPO)})
    found = child.call(f"{__name__}:odd_calls", 300.0)
    child.close()
    assert found == dict.fromkeys(
        ["slices", "every other column", "negative scale", "no scale"])


@pytest.mark.parametrize("width", [1, 8, 16, 40, 64, 72, 96, 128, 192, 240, 256, 320, 576])
def test_parts_cover_a_width(width: int) -> None:
    parts = ops.lowering(OP.name, "triton").parts(width)
    used = [p for p in parts if p]
    assert sum(used) >= width > sum(used[:-1])
    assert all(p >= 16 and p & (p - 1) == 0 for p in used)
    if width in (64, 96, 128, 192, 256, 320):            # no work is padded
        assert sum(used) == width


def test_the_grid_needs_no_data() -> None:
    """On meta tensors: static bounds, one list of blocks and one attention launch."""
    class Recording(TritonTarget):
        def launch(self, kernel, grid, *args, **meta):  # type: ignore[no-untyped-def]
            seen.append((kernel.__name__, grid))

    seen: list[tuple[str, tuple[int, ...]]] = []
    h100 = known("cuda:sm_90")
    target = Recording("cuda", "cuda", h100.gpu, "compile", "", h100.cache_dir)
    axes = {**OP.shapes(preset("v3"), Load(tokens=(1000,)))[0], "batch": 7}
    args = OP.signature(axes)
    assert all(a.device == torch.device("meta") for a in args if isinstance(a, torch.Tensor))
    config = {**h100.space(OP, axes).default(), "block_m": 64}
    target.build_kernel(OP, axes, config)(*args, out=OP.empty(*args))
    assert seen == [("list_blocks", (1,)), ("mla_prefill", ((1000 // 64 + 7 + 2) * 128,))]


@pytest.mark.parametrize(("device", "model"), [("cuda:sm_90", "v3"), ("cuda:sm_86", "glm-lite")])
def test_defaults_have_no_spills(device: str, model: str) -> None:
    import triton

    from expertile.targets._triton import sass

    target = known(device)
    axes = OP.shapes(preset(model), Load())[-1]
    launch = target.launches(OP, axes, target.space(OP, axes).default())[-1]
    facts = sass.read(launch.compiled.asm["cubin"], launch.compiled.metadata.shared,
                      sass.tools_in(Path(triton.__file__).parent))
    assert facts.stack_bytes == 0
    assert facts.shared_bytes <= target.shared_bytes
    wanted, refused = ("HGMMA", "HMMA") if device == "cuda:sm_90" else ("HMMA", "HGMMA")
    assert facts.mma.get(wanted) and not facts.mma.get(refused)
    assert facts.counts["LDGSTS"] > 0
