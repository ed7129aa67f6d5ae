"""int8 GEMMs on dot-product instructions: exact sums, every tile, and AMX with tiles in C."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from expertile import ops, targets
from expertile.ops.spec import Shape
from expertile.targets.base import Target
from expertile.targets.cpu.levels import LEVELS, host_arch

from ..conformance import check

OP = ops.load("gemm_nt")
HAS_VNNI = "vnni" in LEVELS[host_arch()].dots
NO_VNNI = "this machine has no AVX-512 VNNI; the same tiles run for aarch64 under the emulator"


def target_of(arch: str) -> Target:
    """A CPU level with a dot product of bytes: this machine's, or emulated."""
    if arch == "vnni":
        if not HAS_VNNI:
            pytest.skip(NO_VNNI)
        return targets.load("cpu", arch="x86-avx512-vnni")
    if arch.startswith("x86"):
        if not LEVELS[arch].runs_here():
            pytest.skip(f"this machine is not {arch}")
        return targets.load("cpu", arch=arch)
    made = targets.load("cpu", unit="2", arch=arch, emulate=True)
    why = made.available()
    assert why is None, why
    return made


def shape_of(n: int, k: int, block_n: int, block_k: int, tokens: int = 64) -> Shape:
    return {"n": n, "k": k, "a_dtype": "int8", "w_dtype": "int8", "out_dtype": "float32",
            "block_n": block_n, "block_k": block_k, "tokens": tokens}


@pytest.mark.parametrize("arch", ["vnni", "x86-avx512", "x86-avx2", "x86", "aarch64-dotprod"])
def test_sums_are_exact(arch: str) -> None:
    """All codes, -128 included, in every number of rows that takes another tile."""
    n, k = 77, 1000                  # a sum is below 2^24: float32 holds it
    shape, target = shape_of(n, k, 1, k), target_of(arch)
    kernel = target.build_kernel(OP, shape, target.space(OP, shape).default())
    g = torch.Generator().manual_seed(0)
    b = torch.randint(-128, 128, (n, k), generator=g, dtype=torch.int8)
    b[:2] = -128
    for rows in (1, 2, 3, 4, 5, 16, 17, 33, 49, 130):
        a = torch.randint(-128, 128, (rows, k), generator=g, dtype=torch.int8)
        a[0] = -128
        out = torch.full((rows, n), torch.nan)
        kernel(a, torch.ones(rows, 1), b, torch.ones(n, 1), 1, k, torch.float32, out=(out,))
        assert torch.equal(out.long(), a.long() @ b.long().T), rows


@pytest.mark.parametrize(("arch", "shape"), [
    ("vnni", shape_of(45, 203, 7, 64)), ("vnni", shape_of(3, 6, 3, 4)),
    ("x86-avx2", shape_of(45, 203, 7, 63)), ("x86-avx2", shape_of(3, 6, 3, 4)),
    ("aarch64-dotprod", shape_of(45, 203, 7, 64)), ("vnni", shape_of(300, 256, 128, 50))])
def test_scale_blocks_that_divide_nothing(arch: str, shape: Shape) -> None:
    target = target_of(arch)
    check(OP, target.build_kernel(OP, shape, target.space(OP, shape).default()), shape)


@pytest.mark.parametrize("name", ["m_grouped_gemm_nt_contiguous", "m_grouped_gemm_nt_masked",
                                  "fused_moe"])
@pytest.mark.parametrize("arch", ["vnni", "x86-avx2", "aarch64-dotprod"])
def test_grouped_gemms(arch: str, name: str) -> None:
    op, target = ops.load(name), target_of(arch)
    shape = next(s for s in op.odd_shapes if s["w_dtype"] == "int8"
                 and (s.get("a_dtype") == "int8" or s.get("w8a8")))
    check(op, target.build_kernel(op, shape, target.space(op, shape).default()), shape)


def test_without_the_instructions_codes_are_widened() -> None:
    from expertile.ops._tvm.int8_lower import serves

    shape = shape_of(64, 64, 1, 64)
    takes = {arch for arch in LEVELS if serves(targets.load("cpu", arch=arch), shape)}
    assert takes == set(LEVELS) - {"aarch64"}
    assert not serves(targets.load("cpu", arch="x86-amx"), {**shape, "a_dtype": "float32"})


# What Intel's manual says of the instructions, volume 2, on tiles of 16 rows of 64 bytes.
_TILES = """
#include <stdint.h>
#include <string.h>
static __thread int8_t tile[8][16][64];
static __thread int ready;
void fake_ldtilecfg(const uint8_t *c) {
  ready = c[0] == 1 && c[1] == 0;
  for (int t = 0; t < 8; ++t) ready &= c[16 + 2 * t] == 64 && !c[17 + 2 * t] && c[48 + t] == 16;
}
void fake_tilerelease(void) { ready = 0; }
void fake_tilezero(int8_t t) { memset(tile[t], ready ? 0 : 1, 1024); }
void fake_tileloadd64(int8_t t, const char *p, int64_t stride) {
  for (int r = 0; r < 16; ++r) memcpy(tile[t][r], p + r * stride, 64);
}
void fake_tilestored64(int8_t t, char *p, int64_t stride) {
  for (int r = 0; r < 16; ++r) memcpy(p + r * stride, tile[t][r], 64);
}
void fake_tdpbssd(int8_t c, int8_t a, int8_t b) {
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 16; ++n) {
      int32_t *sum = (int32_t *)tile[c][m] + n;
      for (int k = 0; k < 64; ++k) *sum += tile[a][m][k] * tile[b][k / 4][4 * n + k % 4];
    }
}
"""


@pytest.mark.parametrize(("n", "k", "block_k"), [(77, 256, 128), (40, 192, 192)])
def test_amx_lowering_with_its_instructions_in_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                 n: int, k: int, block_k: int) -> None:
    """Addresses, strides and layouts of the AMX code; the instructions themselves never ran."""
    if not HAS_VNNI:
        pytest.skip(NO_VNNI)
    import tvm
    from tvm.script import tirx as T

    from expertile.ops._tvm import int8_lower, int8dot
    from expertile.targets.cpu.artifacts import use_threads

    (tmp_path / "tiles.c").write_text(_TILES)
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", str(tmp_path / "tiles.c"), "-o",
                    str(tmp_path / "tiles.so")], check=True)
    ctypes.CDLL(str(tmp_path / "tiles.so"), ctypes.RTLD_GLOBAL)

    def fake(name: str, *args: Any) -> None:
        T.evaluate(T.call_extern("int32", f"fake_{name.removeprefix('llvm.x86.')}", *args))

    monkeypatch.setattr(int8dot, "_do", fake)
    amx = targets.load("cpu", unit="2", arch="x86-amx")
    shape = shape_of(n, k, 16, block_k)
    config = amx.space(OP, shape).default()
    functions = int8_lower.lower_gemm(amx, OP.static_of(shape), config)
    level = LEVELS["x86-avx512-vnni"]
    tvm.compile(tvm.IRModule(functions), target=tvm.target.Target(level.llvm(2))).export_library(
        str(tmp_path / "amx.so"))
    library = tvm.runtime.load_module(str(tmp_path / "amx.so"))
    use_threads(2)

    class Built:
        """The AMX target with that library for every kernel."""

        def __getattr__(self, name: str) -> Any:
            return getattr(amx, name)

        def compile(self, op: str, static: Shape, config: Any) -> Any:
            return library

    check(OP, int8_lower.bind_gemm(Built(), OP.name, OP.static_of(shape), config), shape)
