"""GEMMs in Triton: every adversarial case in the interpreter, and what sm_90's binaries hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from expertile import ops, targets
from expertile.ops.spec import Operator, Shape
from expertile.targets._triton.interpreter import TESTED
from expertile.targets.child import Child
from tests.triton_child import Interpreter, triton_env

GEMM = ops.load("gemm_nt")
CONTIGUOUS = ops.load("m_grouped_gemm_nt_contiguous")
MASKED = ops.load("m_grouped_gemm_nt_masked")
SM_90, SM_80, GFX942 = "cuda:sm_90", "cuda:sm_80", "hip:gfx942"
F32, BF16, FP8, INT8 = "float32", "bfloat16", "float8_e4m3fn", "int8"
F16 = "float16"


def shape_of(rows: dict[str, int], n: int, k: int, a: str, w: str, out: str, block: int = 128
             ) -> Shape:
    """Any of the three operators' shapes."""
    return {**rows, "n": n, "k": k, "a_dtype": a, "w_dtype": w, "out_dtype": out,
            "block_n": block, "block_k": block}


def dense(tokens: int, *axes: Any) -> Shape:
    """A shape of gemm_nt."""
    return shape_of({"tokens": tokens}, *axes)


def contiguous(tokens: int, *axes: Any) -> Shape:
    """A shape of m_grouped_gemm_nt_contiguous with three experts."""
    return shape_of({"tokens": tokens, "e": 3}, *axes)


def masked(expected: int, *axes: Any) -> Shape:
    """A shape of m_grouped_gemm_nt_masked with three experts."""
    return shape_of({"e": 3, "m_max": 2 * expected, "expected_m": expected}, *axes)


def config_of(device: str, op: Operator, shape: Shape, **knobs: Any) -> dict[str, Any]:
    """The default config with other choices for some knobs."""
    return {**targets.load(device, mode="compile").space(op, shape).default(), **knobs}


def per_channel(shape: Shape) -> Shape:
    """With one scale for each row of the weights, and of the activations."""
    return {**shape, "block_n": 1, "block_k": shape["k"]}


# Devices in turn: the kernels are the same, the operands' handling is in CONFIGS on each of them.
DEFAULTS = [(op, shape, (SM_90, SM_80, GFX942)[(i + j) % 3])
            for i, op in enumerate((GEMM, CONTIGUOUS, MASKED))
            for j, shape in enumerate(op.odd_shapes)]

SMALL = {"block_m": 64, "block_n": 64}
CONFIGS = [
    # how operands are multiplied: FP8 tiles, as fnuz, as float16 bits, decoded to bfloat16, float32
    *((device, GEMM, dense(5, 72, 272, a, FP8, out), {})
      for device in (SM_90, SM_80, GFX942) for a, out in ((FP8, BF16), (BF16, F32))),
    *((device, GEMM, dense(5, 24, 144, FP8, FP8, F32), {}) for device in (SM_90, GFX942)),
    (GFX942, GEMM, dense(5, 40, 72, FP8, FP8, F32, 24), {}),
    (SM_90, GEMM, dense(5, 72, 272, BF16, F32, BF16), {"precision": "ieee"}),
    # operand order, splits, raster; tiles of 128 columns cut scale blocks of 64
    (SM_90, GEMM, dense(16, 144, 200, FP8, FP8, BF16, 64), {"swap": True, "block_n": 128}),
    (SM_80, GEMM, dense(16, 144, 200, FP8, FP8, BF16, 64), {"block_n": 128}),
    (SM_90, GEMM, dense(16, 72, 1040, BF16, FP8, BF16), {"splits": 2}),
    (SM_80, GEMM, dense(150, 144, 72, BF16, BF16, F32), {"group_m": 8, **SMALL}),
    # loads by descriptors: K tail, N tail, results by descriptor (144) or by pointers (70)
    (SM_90, GEMM, dense(64, 144, 272, FP8, FP8, BF16), {"form": "tma_ws", **SMALL, "swap": False}),
    (SM_90, GEMM, dense(64, 70, 1040, FP8, FP8, BF16),
     {"form": "tma", "splits": 2, **SMALL, "swap": True}),
    (SM_90, GEMM, dense(64, 144, 200, BF16, BF16, F32), {"form": "tma", "swap": False, **SMALL}),
    (SM_90, GEMM, dense(64, 144, 272, BF16, FP8, BF16, 64), {"form": "tma", "block_n": 128}),
    (SM_90, GEMM, dense(64, 72, 270, FP8, FP8, BF16), {}),     # K on no 16 bytes
    (SM_90, CONTIGUOUS, contiguous(60, 144, 272, FP8, FP8, BF16),
     {"form": "tma_ws", "block_m": 16, "block_n": 64, "lanes": 2}),
    (SM_90, CONTIGUOUS, contiguous(60, 150, 272, BF16, FP8, BF16),
     {"form": "tma", "block_m": 32, "block_n": 64}),
    (SM_80, CONTIGUOUS, contiguous(3, 72, 80, BF16, BF16, BF16), {"lanes": 2}),
    (SM_90, MASKED, masked(20, 144, 272, FP8, FP8, BF16), {"form": "tma_ws", "block_n": 64}),
    (SM_90, MASKED, masked(20, 150, 272, BF16, BF16, BF16), {"form": "tma", "block_n": 64}),
    # int8: summed in int32 and scaled once, by groups, in blocks that K tiles cut; by descriptors
    *((device, GEMM, per_channel(dense(16, 144, 272, a, INT8, BF16)), {})
      for device, a in ((SM_90, INT8), (SM_80, BF16), (GFX942, INT8))),
    (SM_90, GEMM, per_channel(dense(16, 72, 1040, INT8, INT8, F32)), {"splits": 2}),
    (SM_80, GEMM, dense(5, 40, 200, INT8, INT8, F32, 24), {}),
    (SM_90, GEMM, dense(64, 144, 272, INT8, INT8, BF16), {"form": "tma_ws", **SMALL,
                                                          "swap": False}),
    (SM_90, GEMM, per_channel(dense(64, 144, 272, INT8, INT8, BF16)),
     {"form": "tma", **SMALL, "swap": True}),
    (SM_90, CONTIGUOUS, per_channel(contiguous(60, 144, 272, BF16, INT8, BF16)),
     {"form": "tma", "block_m": 32, "block_n": 64}),
    (SM_90, MASKED, masked(20, 144, 272, INT8, INT8, BF16), {"form": "tma", "block_n": 64}),
    # float16: codes beside it become float16 on each device; float32 weights; scales by element
    *((device, GEMM, dense(16, 72, 272, F16, FP8, F16), {}) for device in (SM_90, SM_80, GFX942)),
    (SM_80, GEMM, dense(16, 72, 272, F16, INT8, F32), {}),
    (GFX942, GEMM, dense(5, 40, 72, F16, FP8, F16, 24), {}),
    (SM_90, GEMM, dense(5, 72, 272, F16, F32, F16), {}),
    (SM_90, GEMM, dense(64, 144, 272, F16, F16, F16), {"form": "tma_ws", **SMALL, "swap": False}),
    (SM_90, CONTIGUOUS, contiguous(60, 150, 272, F16, FP8, F16),
     {"form": "tma", "block_m": 32, "block_n": 64}),
]


@pytest.mark.parametrize(("op", "shape", "device"), DEFAULTS,
                         ids=[f"{o.name} {d} {dict(s)}" for o, s, d in DEFAULTS])
def test_default_configs(interpreter: Interpreter, op: Operator, shape: Shape, device: str) -> None:
    assert interpreter(device, op.name, shape) is None


@pytest.mark.parametrize(("device", "op", "shape", "knobs"), CONFIGS,
                         ids=[f"{o.name} {d} {dict(s)} {k}" for d, o, s, k in CONFIGS])
def test_every_path(interpreter: Interpreter, device: str, op: Operator, shape: Shape,
                    knobs: dict[str, Any]) -> None:
    assert interpreter(device, op.name, shape, config_of(device, op, shape, **knobs)) is None


def compiled(op_name: str, shape: dict[str, Any], knobs: dict[str, Any]) -> list[dict[str, Any]]:
    """The kernels of a config for sm_90; runs in a child, whose triton may be another one."""
    from expertile.targets._triton.static import examine_here

    op = ops.load(op_name)
    target = targets.load(SM_90, mode="compile")
    return list(examine_here(target, op, shape, config_of(SM_90, op, shape, **knobs)).kernels)


@pytest.fixture(scope="module", params=TESTED)
def compiler(request: pytest.FixtureRequest) -> Iterator[Child]:
    """Compiles for sm_90 with each triton that we test with."""
    made = Child(memory_gb=16.0, env=triton_env(request.param))
    yield made
    made.close()


def kernels(compiler: Child, op: Operator, shape: Shape, **knobs: Any) -> list[dict[str, Any]]:
    """Facts of a config's kernels."""
    made: list[dict[str, Any]] = compiler.call(f"{__name__}:compiled", 300.0, op_name=op.name,
                                               shape=dict(shape), knobs=knobs)
    assert made, "the space refuses the config"
    return made


def test_fp8_decode_multiplies_16_rows_as_fp8(compiler: Child) -> None:
    shape = dense(1, 2112, 7168, FP8, FP8, BF16)
    gemm, add = kernels(compiler, GEMM, shape, block_m=16)
    assert set(gemm["mma"]) == {"QGMMA"} and gemm["stack_bytes"] == 0
    assert gemm["counts"]["LDGSTS"] and gemm["grid"] == [33, 4] and not add["mma"]


@pytest.mark.parametrize("a", [INT8, BF16])
def test_int8_with_a_scale_per_channel(compiler: Child, a: str) -> None:
    """Two int8 operands meet in integer WGMMA; weights alone become bfloat16 in registers."""
    for tokens in (1, 2048):
        shape = per_channel(dense(tokens, 4096, 7168, a, INT8, BF16))
        gemm = kernels(compiler, GEMM, shape)[0]
        assert set(gemm["mma"]) == {"IGMMA" if a == INT8 else "HGMMA"}
        assert gemm["stack_bytes"] == 0


@pytest.mark.parametrize("w", [F16, FP8])
def test_float16_takes_the_warpgroup_instruction(compiler: Child, w: str) -> None:
    for tokens in (1, 2048):
        gemm = kernels(compiler, GEMM, dense(tokens, 4096, 7168, F16, w, F16))[0]
        assert set(gemm["mma"]) == {"HGMMA"} and gemm["stack_bytes"] == 0


@pytest.mark.parametrize("op", [GEMM, CONTIGUOUS, MASKED], ids=lambda op: op.name)
def test_warp_specialised_fp8_has_a_loading_warp_and_no_spills(compiler: Child, op: Operator
                                                               ) -> None:
    rows = {GEMM.name: {"tokens": 2048}, CONTIGUOUS.name: {"tokens": 32768, "e": 256},
            MASKED.name: {"e": 256, "m_max": 512, "expected_m": 128}}[op.name]
    shape = shape_of(rows, 4096, 7168, FP8, FP8, BF16)
    gemm = kernels(compiler, op, shape, form="tma_ws", block_m=128, block_n=128, warps=4, stages=3,
                   swap=False)[-1]
    assert gemm["counts"]["USETMAXREG"] and gemm["counts"]["UTMALDG"]
    assert set(gemm["mma"]) == {"QGMMA"} and gemm["stack_bytes"] == 0
