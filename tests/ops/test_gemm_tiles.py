"""The GEMM tiles on CPUs: both arithmetics, both forms of tile, every FP8 code, slices of K."""

from __future__ import annotations

import pytest
import torch

from expertile import ops, targets
from expertile.bench.static.disasm import facts
from expertile.ops._tvm.llvm import _bfloat_of
from expertile.ops._tvm.tiles import takes_pairs
from expertile.ops.spec import Shape
from expertile.targets.base import Target
from expertile.targets.cpu.artifacts import built
from tests.conformance import check_config

OP = ops.load("gemm_nt")
FP8 = torch.float8_e4m3fn
FP8_NAME = "float8_e4m3fn"


def shape_of(a: str, w: str, tokens: int, n: int, k: int, block: int) -> Shape:
    return {"tokens": tokens, "n": n, "k": k, "a_dtype": a, "w_dtype": w, "out_dtype": "float32",
            "block_n": 1 if block == k else block, "block_k": block}


def default(target: Target, shape: Shape) -> dict[str, object]:
    return dict(ops.lowering(OP.name, "tvm").space(target, shape).default())


@pytest.mark.parametrize(("a", "w", "block"), [
    ("bfloat16", FP8_NAME, 64), ("bfloat16", "bfloat16", 64), (FP8_NAME, FP8_NAME, 64),
    ("bfloat16", "int8", 320)])
def test_whole_vectors_match_the_reference(cpu: Target, a: str, w: str, block: int) -> None:
    """K of whole vectors, which the odd shapes have not; panels of a part of K, too."""
    shape = shape_of(a, w, 40, 100, 320, block)
    check_config(OP, cpu, shape, {**default(cpu, shape), "kc": 512})
    small = shape_of(a, w, 40, 100, 1088, 1088 if block == 320 else block)
    check_config(OP, cpu, small, {**default(cpu, small), "kc": 512, "panel": "6x4"})


@pytest.mark.parametrize("a", ["bfloat16", "float32", FP8_NAME])
@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize("arch", [None, "x86-avx2"])
def test_every_fp8_code_is_exact(cpu: Target, a: str, rows: int, arch: str | None) -> None:
    """One-hot rows pick columns of W: each result is one weight, bit for bit."""
    target = cpu if arch is None else targets.load("cpu", arch=arch)
    codes = torch.arange(256).repeat(4)
    codes[(codes & 0x7F) == 0x7F] = 0            # NaN codes read as 480
    b = codes[torch.randperm(1024, generator=torch.Generator().manual_seed(0))]
    b = b.to(torch.uint8).view(FP8).view(16, 64)
    shape = shape_of(a, FP8_NAME, rows, 16, 64, 64)
    kernel = ops.lowering(OP.name, "tvm").build(target, shape, default(target, shape))
    got = torch.empty(rows, 16)
    for first in range(0, 64, rows):
        x = torch.eye(64)[first:first + rows].to(getattr(torch, a))
        scale = torch.ones(len(x), 1) if x.dtype == FP8 else None
        out = got[:len(x)]
        kernel(x, scale, b, torch.ones(16, 1), 1, 64, torch.float32, out=(out,))
        assert torch.equal(out, b.float().T[first:first + rows])


@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize("arch", [None, "x86-avx2", "x86"])
def test_every_finite_float16_is_exact(cpu: Target, rows: int, arch: str | None) -> None:
    """One-hot rows pick columns of W: subnormals too, by streams and by panels with ragged ends."""
    target = cpu if arch is None else targets.load("cpu", arch=arch)
    codes = torch.arange(-32768, 32768, dtype=torch.int16).view(torch.float16)
    codes = torch.where(codes.isfinite(), codes, 0)
    k = 61
    b = torch.cat((codes, codes[:k * 1075 - len(codes)])).view(1075, k)
    shape = {**shape_of("float16", "float16", rows, 1075, k, k), "out_dtype": "float16"}
    kernel = ops.lowering(OP.name, "tvm").build(target, shape, default(target, shape))
    got, x = torch.empty(k, 1075, dtype=torch.float16), torch.eye(k, dtype=torch.float16)
    for first in range(0, k, rows):
        out = got[first:first + rows]
        kernel(x[first:first + rows], None, b, None, k, k, torch.float16, out=(out,))
    assert torch.equal(got, b.T)


@pytest.mark.parametrize("rows", [1, 64])
def test_float16_infinities_and_nans_stay_in_their_column(cpu: Target, rows: int) -> None:
    b = torch.ones(40, 64, dtype=torch.float16)
    b[3, 5], b[17, 63], b[39, 0] = float("inf"), float("nan"), float("-inf")
    shape = shape_of("float16", "float16", rows, 40, 64, 64)
    kernel = ops.lowering(OP.name, "tvm").build(cpu, shape, default(cpu, shape))
    got = torch.empty(rows, 40)
    kernel(torch.ones(rows, 64).half(), None, b, None, 64, 64, torch.float32, out=(got,))
    assert (got[:, 3] == float("inf")).all() and got[:, 17].isnan().all()
    assert (got[:, 39] == float("-inf")).all() and (got == 64).sum() == 37 * rows


@pytest.mark.parametrize("arch", ["x86-avx2", "x86-avx512", "aarch64", "x86"])
def test_float16_is_converted_by_instructions(arch: str) -> None:
    """F16C, AVX-512 and NEON convert vectors; x86-64-v2 has nothing, and calls a function."""
    target = targets.load(f"cpu:{arch}:2")
    shape = {**shape_of("float16", "float16", 40, 100, 320, 320), "out_dtype": "float16"}
    counts = facts(built(target, OP.name, OP.static_of(shape), default(target, shape)))["counts"]
    if arch == "x86":
        assert counts["half"] == 0 and counts["call"] > 100
    else:
        assert counts["half"] > 30 and counts["call"] < 30, counts


def test_bfloat16_bits_of_codes() -> None:
    """The table behind the look-ups, against torch's decoding."""
    codes = torch.arange(127, dtype=torch.uint8)
    bits = torch.tensor([_bfloat_of(int(c)) for c in codes], dtype=torch.int16)
    assert torch.equal(bits.view(torch.bfloat16).float(), codes.view(FP8).float() / 256)


def test_subnormal_bfloat16_counts_as_zero_at_most(cpu: Target) -> None:
    """dpbf16ps reads subnormals as zero: below 1.2e-38 nothing is promised, above it all is."""
    shape = shape_of("bfloat16", "bfloat16", 20, 32, 64, 64)
    kernel = ops.lowering(OP.name, "tvm").build(cpu, shape, default(cpu, shape))
    a = torch.ones(20, 64, dtype=torch.bfloat16)
    a[:, 0] = 2.0**-130
    b = torch.ones(32, 64, dtype=torch.bfloat16)
    b[0] = 2.0**-126
    got = torch.empty(20, 32)
    kernel(a, None, b, None, 64, 64, torch.float32, out=(got,))
    assert torch.equal(got[:, 1:], torch.full((20, 31), 63.0))
    assert (got[:, 0] == 63 * 2.0**-126).all()


def test_pairs_only_where_they_are_exact() -> None:
    assert takes_pairs(("bf16",), "bfloat16", FP8_NAME, 512, 128)
    assert takes_pairs(("bf16",), FP8_NAME, FP8_NAME, 512, 128)
    assert not takes_pairs(("bf16",), "float32", "bfloat16", 512, 128)
    assert not takes_pairs(("bf16",), "bfloat16", "float32", 512, 128)
    assert not takes_pairs(("bf16",), FP8_NAME, "bfloat16", 512, 128)
    assert not takes_pairs(("vnni",), "bfloat16", "bfloat16", 512, 128)
    assert not takes_pairs(("bf16",), "bfloat16", FP8_NAME, 512, 33)     # a pair has one scale
