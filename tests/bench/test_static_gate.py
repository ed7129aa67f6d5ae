"""Seeded code-generation faults are found by the static gate, each for the right reason."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from expertile.bench.result import NoBaseline
from expertile.bench.static import baseline as files
from expertile.bench.static.diff import Finding, compare_points
from expertile.bench.static.disasm import facts
from expertile.bench.static.points import Kernel, Point, point_from_json
from expertile.targets.child import Child

GOOD = {"block_m": 128, "block_n": 128, "block_k": 128, "warps": 8, "stages": 3}
WIDE = {**GOOD, "block_n": 256}


class Compiler:
    """Points by config; each is compiled once."""

    def __init__(self) -> None:
        self._child = Child(env={"PYTHONPATH": str(Path(__file__).parent)})
        self._made: dict[str, Point] = {}

    def __call__(self, config: dict[str, Any], **which: str) -> Point:
        key = f"{config} {which}"
        if key not in self._made:
            self._made[key] = self.fresh(config, **which)
        return self._made[key]

    def fresh(self, config: dict[str, Any], **which: str) -> Point:
        return point_from_json(self._child.call("static_child:point", 180, config=config, **which))

    def close(self) -> None:
        self._child.close()


@pytest.fixture(scope="module")
def compiled() -> Iterator[Compiler]:
    pytest.importorskip("triton")
    made = Compiler()
    yield made
    made.close()


def failures(base: Point, head: Point, tools: str = "") -> dict[str, Finding]:
    return {f.rule: f for f in compare_points("sm_90 gemm default", base, head, tools)
            if f.severity == "fail"}


@pytest.mark.parametrize(("base", "head", "which", "rule", "cause"), [
    pytest.param(GOOD, GOOD, {"kernel": "gemm_without_hint"}, "async", "divisibility by 16",
                 id="lost alignment hint"),
    pytest.param(GOOD, {**GOOD, "stages": 1}, {}, "async", "stages 3 -> 1", id="one stage"),
    pytest.param(WIDE, {**WIDE, "warps": 4}, {}, "spills", "warps 8 -> 4", id="warps halved"),
    pytest.param(GOOD, GOOD, {"dtype": "bfloat16"}, "mma", "multiplies bf16, it was fp8",
                 id="bf16 by mistake"),
    pytest.param(GOOD, {**GOOD, "block_m": 256, "block_n": 256}, {}, "spills",
                 "tile is too large", id="over-large tile"),
    pytest.param(GOOD, {**GOOD, "block_m": 32}, {}, "mma", "32 rows is below the 64 of wgmma",
                 id="tile below wgmma"),
    pytest.param(WIDE, WIDE, {"kernel": "gemm_that_spills"}, "spills", "register pressure",
                 id="a spill"),
])
def test_seeded_fault(compiled: Compiler, base: dict[str, Any], head: dict[str, Any],
                      which: dict[str, str], rule: str, cause: str) -> None:
    found = failures(compiled(base), compiled(head, **which))
    assert rule in found, found
    assert cause in found[rule].cause


def test_compiling_again_finds_nothing(compiled: Compiler) -> None:
    again = compiled.fresh(GOOD)
    assert again == compiled(GOOD) and again.kernels[0].mma.get("QGMMA", 0) > 0
    assert compare_points("x", compiled(GOOD), again, "") == []


def test_a_compiler_bump_is_named_when_only_it_changed(compiled: Compiler) -> None:
    base = compiled(GOOD)
    kernel = replace(base.kernels[0], spill_bytes=64, opcode_hash="other")
    found = failures(base, replace(base, kernels=(kernel,)), "triton 3.6.0 -> 3.9.0")
    assert "the compiler, the source is the same (triton 3.6.0 -> 3.9.0)" in found["spills"].cause
    edited = replace(base, kernels=(kernel,), source="edited")
    found = failures(base, edited, "triton 3.6.0 -> 3.9.0")
    assert "the compiler changed as well" in found["spills"].cause


def test_an_occupancy_step_warns() -> None:
    kernel = Kernel("k", 100, "a", registers=128, blocks_per_sm=4)
    base = Point({}, "s", True, kernels=(kernel,))
    head = replace(base, kernels=(replace(kernel, registers=136, blocks_per_sm=3,
                                          opcode_hash="b"),))
    found = compare_points("x", base, head, "")
    assert [(f.severity, f.rule) for f in found] == [("warn", "occupancy")]
    assert "registers 128 -> 136" in found[0].text


def test_a_config_that_no_longer_compiles_fails() -> None:
    base = Point({}, "s", True, kernels=(Kernel("k", 100, "a"),))
    head = Point({}, "s", False, "needs 250000 bytes of shared memory, sm_90 has 232448")
    assert failures(base, head)["legal"].text.endswith("sm_90 has 232448")


_DOT = """
#include <immintrin.h>
__m512i dot(__m512i acc, __m512i a, __m512i b) { return _mm512_dpbusd_epi32(acc, a, b); }
"""
_NO_DOT = """
#include <immintrin.h>
__m512i dot(__m512i acc, __m512i a, __m512i b) {
  __m512i pairs = _mm512_maddubs_epi16(a, b);
  return _mm512_add_epi32(acc, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}
"""


def _object(folder: Path, name: str, source: str) -> Kernel:
    (folder / f"{name}.c").write_text(source)
    built = folder / f"{name}.so"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-mavx512f", "-mavx512bw", "-mavx512vnni",
                    str(folder / f"{name}.c"), "-o", str(built)], check=True)
    return Kernel("dot", **facts(built))


def test_an_avx512_kernel_without_its_dot_product(tmp_path: Path) -> None:
    if shutil.which("cc") is None or not (shutil.which("objdump") or _has_capstone()):
        pytest.skip("needs cc, and capstone or objdump")
    base = Point({}, "s", True, kernels=(_object(tmp_path, "good", _DOT),))
    head = Point({}, "s", True, kernels=(_object(tmp_path, "bad", _NO_DOT),))
    assert base.kernels[0].counts["vpdpbusd"] == 1 and base.kernels[0].counts["zmm"] > 0
    found = failures(base, head)
    assert found["instructions"].text == "vpdpbusd instructions 1 -> 0"


def _has_capstone() -> bool:
    from importlib.util import find_spec

    return find_spec("capstone") is not None


def _baseline(point: Point, tuned: int = 2, triton: str = "3.9.0") -> files.Baseline:
    return files.Baseline(files.Scope(("sm_90",), ("v3",)), {"sm_90": files.DeviceFacts(
        {"triton": triton}, {"gemm default": point}, {"shapes": 4, "tuned": tuned})})


def test_the_file_keeps_everything(tmp_path: Path) -> None:
    point = Point({"block_m": 64, "form": "tma"}, "s", True, "", (
        Kernel("k", 100, "a", {"QGMMA": 4}, {"LDGSTS": 3}, 120, 0, 4096, 4, 2, "fp8", 3),), 10, 20)
    made = _baseline(point)
    files.write(tmp_path / "b.json", made)
    assert files.read(tmp_path / "b.json") == made
    assert files.compare(made, files.read(tmp_path / "b.json")) == []


def test_lost_coverage_fails_and_a_bump_without_consequence_is_told() -> None:
    point = Point({}, "s", True, kernels=(Kernel("k", 100, "a"),))
    found = files.compare(_baseline(point), _baseline(point, tuned=1, triton="3.10.0"))
    assert [(f.severity, f.rule) for f in found] == [("fail", "coverage"), ("info", "compiler")]
    assert "1 of 1 configs compile to the same code" in found[1].text


@pytest.mark.parametrize("text", [None, "{", '{"schema": "other"}', '{"schema": '
                                  '"expertile-static/1", "scope": {}, "devices": {}}'])
def test_a_missing_or_damaged_baseline_is_none(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "b.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(NoBaseline, match="--update"):
        files.read(path)


def test_named_configs_of_an_operator(tmp_path: Path) -> None:
    """Collected twice: the same facts, hence no difference."""
    pytest.importorskip("triton")
    scope = files.Scope(("sm_90",), ("tiny",), ("silu_mul",))
    first, second = (files.collect(scope, 1, tmp_path / str(i)) for i in range(2))
    points = first.devices["sm_90"].points
    assert len(points) == 4 and all(p.legal and p.kernels for p in points.values())
    assert files.compare(first, second) == []
