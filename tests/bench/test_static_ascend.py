"""The static gate on an NPU's kernels: what a memory plan, library calls and cores say."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path

import pytest

from expertile import ops
from expertile.bench.static import baseline as files
from expertile.bench.static.diff import Finding, compare_points
from expertile.bench.static.points import (
    NPU_ARCHS,
    Kernel,
    Point,
    examine,
    load_target,
    tasks_of,
    toolchain_of,
)
from expertile.targets.ascend import process

GOOD = Kernel("gemm", opcode_hash="a", task_type="mix",
              memory={"ub": 36864, "l1": 73728, "l0c": 8192}, workspace_bytes=65536,
              calls={"load_gm_to_ubuf_1d_float": "AIV", "mma_tile_half": "AIC"})
WHEEL = "ascendnpu-ir 1.2.0 -> 1.3.0"


def found(head: Kernel, tools: str = "", source: str = "s") -> dict[str, Finding]:
    base = Point({}, "s", True, kernels=(GOOD,))
    other = Point({}, source, True, kernels=(replace(head, opcode_hash="b"),))
    return {f.rule: f for f in compare_points("ascend910b3 gemm default", base, other, tools)}


@pytest.mark.parametrize(("head", "rule", "severity", "text"), [
    pytest.param(replace(GOOD, task_type="vector", calls={}), "cores", "fail",
                 "runs on mix cores -> vector cores", id="no cube"),
    pytest.param(replace(GOOD, calls={"load_gm_to_ubuf_1d_float": "AIV"}), "calls", "fail",
                 "no longer calls mma_tile_half", id="no product"),
    pytest.param(replace(GOOD, calls={**GOOD.calls, "vcast_float_1d": "AIV"}), "calls", "warn",
                 "now calls vcast_float_1d", id="another cast"),
    pytest.param(replace(GOOD, memory={**GOOD.memory, "l1": 36864}), "memory", "warn",
                 "L1 73728 -> 36864 bytes", id="held once"),
    pytest.param(replace(GOOD, memory={**GOOD.memory, "ub": 40000}), "memory", "warn",
                 "UB 36864 -> 40000 bytes", id="more of the unified buffer"),
    pytest.param(replace(GOOD, memory={**GOOD.memory, "l0c": 8000}), "memory", "info",
                 "L0C 8192 -> 8000 bytes", id="a little less"),
    pytest.param(replace(GOOD, workspace_bytes=131072), "workspace", "warn",
                 "workspace 65536 -> 131072 bytes", id="more workspace"),
    pytest.param(replace(GOOD, fallbacks=("multi-buffer is off",)), "fallback", "fail",
                 "multi-buffer is off", id="a pass gave up"),
    pytest.param(GOOD, "code", "info", "other input of hivmc (a -> b)", id="only the text"),
])
def test_a_change_is_named(head: Kernel, rule: str, severity: str, text: str) -> None:
    said = found(head)
    assert set(said) <= {rule, "calls"} and said[rule].severity == severity
    assert text in said[rule].text


def test_the_wheel_is_named_when_only_it_moved() -> None:
    more = replace(GOOD, workspace_bytes=131072)
    assert f"the compiler, the source is the same ({WHEEL})" in found(more, WHEEL)[
        "workspace"].cause
    assert "the compiler changed as well" in found(more, WHEEL, "edited")["workspace"].cause
    base, head = (files.Baseline(files.Scope(("ascend910b3",), ("tiny",)), {
        "ascend910b3": files.DeviceFacts({"ascendnpu-ir": version}, {
            "gemm default": Point({}, "s", True, kernels=(GOOD,))}, {"shapes": 1, "tuned": 0})})
        for version in ("1.2.0", "1.3.0"))
    told = files.compare(base, head)
    assert [(f.severity, f.rule, f.cause) for f in told] == [("info", "compiler", "the compiler")]
    assert WHEEL in told[0].text


def test_what_moves_the_compilers_output_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a mix kernel: the libc, and addresses where they cannot be fixed."""
    target = load_target("ascend910b3", None)
    fixed = {**target.toolchain(), "libc": " ".join(platform.libc_ver())}
    assert fixed["libc"].startswith("glibc 2.")
    monkeypatch.setattr(process, "fixed_addresses", lambda: True)
    assert toolchain_of(target) == fixed
    monkeypatch.setattr(process, "fixed_addresses", lambda: False)
    assert toolchain_of(target) == {**fixed, "addresses": "random"}
    gpu = load_target("sm_90", None)
    assert toolchain_of(gpu) == gpu.toolchain()


def test_the_file_keeps_a_memory_plan(tmp_path: Path) -> None:
    point = Point({"rows": 16}, "s", True, "", (replace(GOOD, fallbacks=("off",)),), 10, 20)
    made = files.Baseline(files.Scope(("ascend910b3",), ("tiny",)), {
        "ascend910b3": files.DeviceFacts({}, {"gemm default": point}, {"shapes": 1, "tuned": 0})})
    files.write(tmp_path / "b.json", made)
    assert files.read(tmp_path / "b.json") == made


@pytest.mark.parametrize("device", NPU_ARCHS)
def test_every_operator_is_named_once_for_each_dtype(device: str, tmp_path: Path) -> None:
    target = load_target(device, tmp_path)
    tasks = tasks_of(target, ("tiny",), (), False, ())
    kinds = [(op.name, *(v for axis, v in shape.items() if "dtype" in axis))
             for _, op, shape, _ in tasks]
    assert len(kinds) == len(set(kinds))
    assert {op.name for _, op, _, _ in tasks} >= {"fused_moe", "gemm_nt", "mla_decode"}
    assert len(tasks_of(target, ("tiny",), (), True, ())) > 2 * len(tasks)


def test_a_real_compile_says_the_same_twice_and_another_config_does_not(tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    if load_target("ascend910b3", tmp_path).evidence() != "L1 lowered":
        pytest.skip("needs ascendnpu-ir")
    op = ops.load("silu_mul")
    shape = {"h": 256, "dtype": "float32", "tokens": 16}
    first, second = (load_target("ascend910b3", tmp_path / name) for name in ("a", "b"))
    configs = list(first.space(op, shape))
    one = examine(first, op, shape, configs[0])
    assert one.legal and one.kernels[0].task_type == "vector" and one.kernels[0].memory["ub"] > 0
    assert any("gm_to_ubuf" in call for call in one.kernels[0].calls)
    assert compare_points("x", one, examine(second, op, shape, configs[0]), "") == []
    other = examine(first, op, shape, configs[-1])
    rules = {f.rule for f in compare_points("x", one, other, "")}
    assert other.legal and "config" in rules and rules & {"memory", "calls", "code"}
