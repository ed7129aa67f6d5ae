"""The instructions of every CPU level are in its kernels; the audit and the reader find faults."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from expertile.bench.static.audit import audit, row_of
from expertile.bench.static.disasm import facts
from expertile.bench.static.points import Kernel, Point
from expertile.targets.cpu.levels import LEVELS


@pytest.mark.parametrize(("level", "probe"), [
    *((level, "int8") for level in LEVELS), ("x86-avx512-bf16", "bf16"), ("x86-avx512", "bf16"),
    ("x86-avx2", "fp8"), ("x86-avx2", "half"), ("aarch64-dotprod", "fp8"), ("aarch64", "fp8"),
    ("aarch64", "half")])
def test_instructions_are_there_and_no_others(level: str, probe: str) -> None:
    if not LEVELS[level].is_ours:
        pytest.importorskip("capstone")
    (row,) = audit([level], [probe])
    assert row.good, row
    dots = ({"vpdpbusd", "vdpbf16ps", "amx", "dot", "pmaddwd"}
            & {k for k, n in row.counts.items() if n})
    want = {("x86-amx", "int8"): {"amx", "vpdpbusd"}, ("x86-avx512-bf16", "int8"): {"vpdpbusd"},
            ("x86-avx512-vnni", "int8"): {"vpdpbusd"}, ("x86-avx512-bf16", "bf16"): {"vdpbf16ps"},
            ("aarch64-dotprod", "int8"): {"dot"}, ("x86-avx512", "int8"): {"pmaddwd"},
            ("x86-avx2", "int8"): {"pmaddwd"}, ("x86", "int8"): {"pmaddwd"}}
    assert dots == want.get((level, probe), set())


def _point(**counts: int) -> Point:
    return Point({}, "s", True, kernels=(Kernel("gemm_nt", 100, "a", counts=counts),))


def test_a_level_without_its_instructions_is_found() -> None:
    good = _point(zmm=10, vpdpbusd=4)
    assert row_of("x86-avx512-vnni", "int8", good).good
    lost = row_of("x86-avx512-vnni", "int8", _point(zmm=10, vpdpbusd=0))
    assert (lost.missing, lost.foreign) == (("vpdpbusd",), ())
    assert row_of("x86-amx", "int8", good).missing == ("amx",)
    assert row_of("aarch64-dotprod", "int8", _point(fma=3)).missing == ("dot",)
    assert row_of("x86-avx2", "int8", _point(ymm=10)).missing == ("pmaddwd",)


@pytest.mark.parametrize(("level", "counts", "foreign"), [
    ("x86-avx512", {"zmm": 10, "vpdpbusd": 1}, ("vpdpbusd",)),
    ("x86-avx2", {"ymm": 10, "zmm": 1}, ("zmm",)), ("x86", {"fma": 1}, ("fma",)),
    ("aarch64", {"dot": 1}, ("dot",)), ("aarch64-dotprod", {"dot": 1, "sve": 2}, ("sve",))])
def test_instructions_that_trap_are_found(level: str, counts: dict[str, int],
                                          foreign: tuple[str, ...]) -> None:
    assert row_of(level, "int8", _point(**counts)).foreign == foreign


_NEWER = """
#include <immintrin.h>
__m512 pairs(__m512 s, __m512bh a, const __m512bh *b, long i) {
  return _mm512_dpbf16_ps(_mm512_dpbf16_ps(s, a, b[i]), a, b[1000]);
}
void tiles(const char *a, const char *b, char *c, long n) {
  char config[64] = {1};
  _tile_loadconfig(config);
  _tile_zero(0);
  _tile_loadd(1, a + 4096, n);
  _tile_loadd(2, b - 64, 64);
  _tile_dpbssd(0, 1, 2);
  _tile_dpbf16ps(0, 1, 2);
  _tile_stored(0, c, n);
  _tile_release();
}
"""


def test_instructions_newer_than_capstone_are_read(tmp_path: Path) -> None:
    pytest.importorskip("capstone")
    (tmp_path / "newer.c").write_text(_NEWER)
    built = tmp_path / "newer.so"
    made = subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-mavx512bf16", "-mamx-tile",
                           "-mamx-int8", "-mamx-bf16", str(tmp_path / "newer.c"), "-o", str(built)],
                          capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"this compiler does not know AMX: {made.stderr[-200:]}")
    found = facts(built)
    assert {k: found["counts"][k] for k in ("amx", "amx_load", "vdpbf16ps")} == {
        "amx": 2, "amx_load": 2, "vdpbf16ps": 2}
    listed = subprocess.run(["objdump", "-d", "-j", ".text", "--no-show-raw-insn", str(built)],
                            capture_output=True, text=True, check=True).stdout
    names = Counter(re.findall(r"^\s*[0-9a-f]+:\s+(\S+)", listed, re.MULTILINE))
    assert found["instructions"] == sum(names.values())      # no byte taken for another's
