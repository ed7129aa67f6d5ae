"""The gates before a record of an Ascend config: what they say, keep, refuse and survive."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("ascendnpuir", reason="needs expertile[ascend]")
pytest.importorskip("tvm", reason="needs expertile[ascend]")
pytest.importorskip("triton", reason="needs triton: its MLIR reader")
pytest.importorskip("llvmlite", reason="needs llvmlite: its JIT")

from expertile import ops, targets
from expertile.ops.models import Load, preset
from expertile.opt.check import check_many
from expertile.targets.ascend import compiler, examine, launches, verify
from expertile.targets.ascend.verify import GATES, PASSED, Verified, small_shape
from expertile.targets.base import BuildError

QUANT, SILU = ops.load("per_token_group_quant_fp8"), ops.load("silu_mul")


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    examine._compiled.cache_clear()


def verified(device: str, name: str, shape: dict[str, object], cache: Path, **config: object
             ) -> Verified:
    op, target = ops.load(name), targets.load("ascend", unit=device, cache_dir=cache)
    return target.verify(op, shape, {**target.space(op, shape).default(), **config})


def test_a_config_that_is_right_passes_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                           ) -> None:
    first = verified("910b3", SILU.name, SILU.odd_shapes[0], tmp_path)
    assert first.ok and dict(first.gates) == dict.fromkeys(GATES, PASSED)
    assert first.note == "passed: compiled, linked, executed, simulated"

    def no_child(*_: object, **__: object) -> None:
        raise AssertionError("it is kept on disk")

    monkeypatch.setattr(verify.Child, "call", no_child)
    assert verified("910b3", SILU.name, SILU.odd_shapes[0], tmp_path) == first


def test_what_does_not_fit_is_refused_with_numbers(tmp_path: Path) -> None:
    shape = ops.load("silu_mul").shapes(preset("v3"), Load())[-1]
    said = verified("910b3", "silu_mul", shape, tmp_path, rows=16, columns=1024)
    assert not said.ok and "ub overflow: needs" in said.gates["compiled"]
    assert said.gates["executed"].startswith("not run") and "of 1572864 bits" in said.reason


def test_a_gate_that_cannot_tell_says_so(tmp_path: Path) -> None:
    said = verified("950pr_9599", "silu_mul", ops.load("silu_mul").odd_shapes[1], tmp_path)
    assert said.ok and said.gates["executed"] == PASSED
    assert said.gates["simulated"].startswith("not modelled: Ascend950PR_9599")
    assert "simulated: not modelled" in said.note and not said.wrong


def test_the_compilers_mistakes_keep_a_config_out(tmp_path: Path) -> None:
    """Of a tile whose rows are gathered one by one only the first is multiplied."""
    op = ops.load("mla_decode")
    shape = next(s for s in op.odd_shapes if s["kv_dtype"] == "fp8" and int(s["page"]) < 16)
    said = verified("910b3", op.name, shape, tmp_path)
    assert not said.ok and "only the first row" in said.wrong


@pytest.mark.parametrize(("line", "why"), (
    ("pipe_barrier[<PIPE_V>]", "Fault: line"), ("call @vdiv", "case '")), ids=("sync", "numbers"))
def test_what_the_compiler_got_wrong_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                              line: str, why: str) -> None:
    """A compiler that forgets a barrier, or an operation, does not pass the simulator."""
    real = launches.compile_module

    def forgetful(*args: object, **kwargs: object) -> object:
        made = real(*args, **kwargs)
        first = next(x for x in made.text.splitlines() if line in x)
        return replace(made, text=made.text.replace(first + "\n", "", 1))

    target = targets.load("ascend", unit="910b3", mode="simulate", cache_dir=tmp_path)
    shape = QUANT.odd_shapes[1]
    config = target.space(QUANT, shape).default()
    cases = verify.launching(QUANT.cases(shape, 0))[:2]
    assert verify.first_wrong(target, QUANT, shape, config, cases) == PASSED
    launches._for_device.cache_clear()
    monkeypatch.setattr(launches, "compile_module", forgetful)
    assert why in verify.first_wrong(target, QUANT, shape, config, cases)


def test_small_shapes_are_of_the_same_kernel() -> None:
    target = targets.load("ascend", unit="910b3")
    for name in ("gemm_nt", "m_grouped_gemm_nt_contiguous", "mla_decode", "silu_mul", "moe_route"):
        op = ops.load(name)
        for shape in (op.shapes(preset("v3"), Load())[-1], op.odd_shapes[1]):
            for config in list(target.space(op, shape))[::37]:
                small = small_shape(target, op, shape, config)
                assert target.space(op, small).why_not(config) is None
                tile = max(v for v in config.values() if isinstance(v, int))
                for axis in ("n", "k", "h"):
                    if axis in shape:
                        assert int(small[axis]) % tile == int(shape[axis]) % tile
                assert all(small[a] == v for a, v in shape.items() if isinstance(v, str))


def test_two_examinations_are_of_the_same_artifact(tmp_path: Path) -> None:
    hashes = []
    for folder in ("one", "two"):
        target = targets.load("ascend", unit="910b3", cache_dir=tmp_path / folder)
        for name in ("mla_decode", "m_grouped_gemm_nt_contiguous"):
            op = ops.load(name)
            shape = op.odd_shapes[0]
            seen = target.compile_here(op, shape, target.space(op, shape).default())
            hashes.append(tuple(k["sha256"] for k in seen.kernels))
    assert hashes[:2] == hashes[2:] and all(hashes)


def test_what_fails_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    target = targets.load("ascend", unit="910b3", cache_dir=tmp_path)
    shape = SILU.odd_shapes[0]
    done: list[str] = []
    found = check_many([(SILU, {**shape, "dtype": "float64"}), (SILU, shape)], target, 1,
                       lambda checked: done.append(checked.op))
    assert len(done) == 2 and not found[0].ok and found[1].ok
    assert "takes float16, bfloat16, float32" in found[0].examined.reason
    assert found[1].to_json()["gates"] == dict.fromkeys(GATES, PASSED)


@pytest.mark.parametrize(("output", "status", "why"), (
    ("", -9, "died (SIGKILL)"), ("", None, "ran longer than")), ids=("killed", "hangs"))
def test_a_dead_compiler_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str,
                                      status: int | None, why: str) -> None:
    target = targets.load("ascend", unit="910b3", cache_dir=tmp_path)
    real, calls = compiler.run_tool, []

    def first_dies(*args: object) -> object:
        calls.append(args)
        return compiler.Run(status, output) if len(calls) == 1 else real(*args)

    monkeypatch.setattr(compiler, "run_tool", first_dies)
    space = list(target.space(QUANT, QUANT.odd_shapes[0]))
    with pytest.raises(BuildError, match=why.replace("(", r"\(").replace(")", r"\)")):
        target.compile_here(QUANT, QUANT.odd_shapes[0], space[0])
    assert target.compile_here(QUANT, QUANT.odd_shapes[0], space[1]).legal    # the next one
    assert target.compile_here(QUANT, QUANT.odd_shapes[0], space[0]).legal    # nothing bad is kept


def test_without_the_compiler_nothing_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                  ) -> None:
    monkeypatch.setattr(compiler, "tool_path", lambda tool: None)
    target = targets.load("ascend", unit="910b3", cache_dir=tmp_path)
    config = target.space(QUANT, QUANT.odd_shapes[0]).default()
    with pytest.raises(BuildError, match=r"pip install 'expertile\[ascend\]'"):
        target.compile_here(QUANT, QUANT.odd_shapes[0], config)
    closed = replace(target)             # examined here, as its child would
    object.__setattr__(closed, "examine", target.compile_here)
    said = verify.verify(closed, QUANT, QUANT.odd_shapes[0], config)
    assert not said.ok and "pip install" in said.gates["compiled"]


def test_missing_tools_leave_a_gate_unrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = verify.find_spec
    monkeypatch.setattr(verify, "find_spec", lambda n: None if n == "llvmlite" else found(n))
    said = verified("910b3", SILU.name, SILU.odd_shapes[0], tmp_path)
    assert said.gates["executed"].startswith("not run: llvmlite not installed")
    assert not said.ok and not said.wrong and said.gates["simulated"] == PASSED
