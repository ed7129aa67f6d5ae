"""The emitter: what each construct of a tile program computes, and what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("ascendnpuir", reason="needs expertile[ascend]")
pytest.importorskip("tvm", reason="needs expertile[cpu]")
pytest.importorskip("triton", reason="needs triton: its MLIR reader")
pytest.importorskip("llvmlite", reason="needs llvmlite: its JIT")

from tvm.script.ir_builder import tirx as T

from expertile import targets
from expertile.ops._ascend.fp8 import decoded, encoded
from expertile.ops._ascend.tile import Kernel, constant, kernel
from expertile.ops.numerics import same_bits
from expertile.targets.ascend.artifact import Artifact
from expertile.targets.ascend.compiler import compile_module
from expertile.targets.ascend.devices import find
from expertile.targets.ascend.emit import emit
from expertile.targets.ascend.emit_text import CannotEmit

C220, C310 = find("910b3"), find("950pr_9599")


def run(program: Any, grid: Sequence[int], *args: Any) -> None:
    """Execute a program on the CPU; results stand in its tensors."""
    targets.load("ascend", mode="emulate").launch(program, tuple(grid), *args)


def compiled(program: Any) -> Artifact:
    """The 910B's kernel; the 950's compiler must take it too."""
    for device in (C310, C220):
        made = compile_module(emit(program, "device").text, device)
        assert isinstance(made, Artifact), made.reason
    return made


def test_ragged_tiles_scalars_and_masks() -> None:
    with kernel("edges") as k:
        rows, bias = k.scalar("rows"), k.float_scalar("bias")
        x, y = k.tensor("x", (rows, 50), "float16"), k.tensor("y", (rows, 50), "float32")
        r = k.block("x", T.ceildiv(rows, 16)) * 16

        def inside(i: Any, j: Any) -> Any:
            return T.And(r + i < rows, j < 50)

        t = k.new((16, 64), "float16", lambda i, j: T.if_then_else(
            inside(i, j), x[r + i, j], constant(-1, "float16")))
        wide = k.new((16, 64), "float32", lambda i, j: T.Cast("float32", t[i, j]))
        low = k.fill((16,), "float32", 100.0)
        k.reduce("max", low, (16, 64), lambda i, j: T.float32(0) - wide[i, j])
        k.store(y, (16, 64), lambda i, j: (r + i, j), lambda i, j: T.Select(
            j < i + 3, T.max(wide[i, j], bias), low[i]), inside)
    x = torch.randn(37, 50).half()
    y = torch.full((37, 50), 7.0)
    run(k.func, (3,), 37, 0.25, x, y)
    row, column = torch.arange(37)[:, None] % 16, torch.arange(50)
    assert torch.equal(y, torch.where(column < row + 3, x.float().clamp_min(0.25), 100.0))
    assert compiled(k.func).task_type == "vector"
    assert emit(k.func, "device").written == (3,)


def test_gathered_and_scattered_rows() -> None:
    with kernel("shuffle") as k:
        rows, some = k.scalar("rows"), k.scalar("some")
        take, put = (k.tensor(name, (rows,), "int32") for name in ("take", "put"))
        x, y = (k.tensor(name, (rows, 24), "float32") for name in ("x", "y"))
        r = k.block("x", T.ceildiv(rows, 8)) * 8
        t = k.new((8, 24), "float32", lambda i, j: x[
            T.min(T.max(take[r + i], 0), rows - 1), j], lambda i, j: r + i < some)
        k.store(y, (8, 24), lambda i, j: (put[r + i], j), lambda i, j: t[i, j] * T.float32(2),
                lambda i, j: r + i < some)
    x = torch.randn(20, 24)
    take, put = torch.randint(-5, 30, (20,)).int(), torch.randperm(20).int()
    y = torch.full((20, 24), 7.0)
    run(k.func, (3,), 20, 13, take, put, x, y)
    want = torch.full((20, 24), 7.0)
    want[put[:13].long()] = 2 * x[take[:13].long().clamp(0, 19)]
    assert torch.equal(y, want)
    compiled(k.func)


def test_nothing_is_read_where_nothing_is_stored() -> None:
    with kernel("straight") as k:
        rows = k.scalar("rows")
        x, y = (k.tensor(name, (rows, 16), "float32") for name in ("x", "y"))
        r = k.block("x", T.ceildiv(rows, 8)) * 8
        k.store(y, (8, 16), lambda i, j: (r + i, j), lambda i, j: T.exp(x[r + i, j]),
                lambda i, j: r + i < rows)
    x, y = torch.randn(9, 16), torch.empty(9, 16)
    run(k.func, (2,), 9, x, y)
    assert torch.allclose(y, x.exp(), rtol=1e-6)
    text = emit(k.func, "cpu").text
    assert text.count("memref.subview") == 3             # source, tile, target: all of r rows


def integer_gemm() -> Any:
    """c = bf16((a @ b.T) * scale_a[m] * scale_b[n]) of int8; loop bounds from a table."""
    m, n, block = 32, 48, 64
    with kernel("w8a8") as k:
        depth = k.tensor("depth", (1,), "int32")
        a, b = k.tensor("a", (m, 256), "int8"), k.tensor("b", (n, 256), "int8")
        sa, sb = k.tensor("sa", (m,), "float32"), k.tensor("sb", (n,), "float32")
        c = k.tensor("c", (m, n), "bfloat16")
        k.block("x", 1)
        acc = k.fill((m, n), "int32", 0)
        with k.loop(depth[0] // block) as s:
            left = k.new((m, block), "int8", lambda i, j: a[i, s * block + j])
            right = k.new((n, block), "int8", lambda i, j: b[i, s * block + j])
            k.matmul(acc, left, right, transposed=True)
        rows = k.new((m,), "float32", lambda i: sa[i])
        columns = k.new((n,), "float32", lambda j: sb[j])
        k.store(c, (m, n), lambda i, j: (i, j), lambda i, j: T.Cast("bfloat16", T.Cast(
            "float32", acc[i, j]) * rows[i] * columns[j]))
    return k.func


def test_integer_products_and_a_loop_of_unknown_length() -> None:
    program = integer_gemm()
    a, b = (torch.randint(-127, 128, (r, 256)).to(torch.int8) for r in (32, 48))
    sa, sb, c = torch.rand(32) + 0.5, torch.rand(48) + 0.5, torch.empty(32, 48).bfloat16()
    for depth in (0, 64, 192):
        run(program, (1,), torch.tensor([depth]).int(), a, b, sa, sb, c)
        exact = a[:, :depth].int() @ b[:, :depth].int().T
        assert torch.equal(c, (exact.float() * sa[:, None] * sb).bfloat16())
    made = compiled(program)
    assert made.task_type == "mix" and any("int8_t_to_int32_t" in call for call in made.calls)


def test_products_alone_need_no_vector_core() -> None:
    with kernel("cube") as k:
        a, b = k.tensor("a", (64, 32), "float16"), k.tensor("b", (32, 64), "float16")
        c = k.tensor("c", (64, 64), "float16")
        k.block("x", 1)
        acc = k.fill((64, 64), "float32", 0)
        k.matmul(acc, k.new((64, 32), "float16", lambda i, j: a[i, j]),
                 k.new((32, 64), "float16", lambda i, j: b[i, j]))
        k.store(c, (64, 64), lambda i, j: (i, j), lambda i, j: T.Cast("float16", acc[i, j]))
    a, b, c = torch.randn(64, 32).half(), torch.randn(32, 64).half(), torch.empty(64, 64).half()
    run(k.func, (1,), a, b, c)
    assert torch.allclose(c.float(), (a.double() @ b.double()).float(), atol=2e-3, rtol=1e-3)
    made = compiled(k.func)
    assert made.task_type == "cube" and not set(made.calls.values()) - {"AIC"}


def fp8_casts(native: bool) -> Any:
    """y = float32(codes), q = codes of x: with the device's type, or by bits in the program."""
    dtype = "float8_e4m3fn" if native else "int8"
    with kernel("fp8") as k:
        codes, x = k.tensor("codes", (4, 64), dtype), k.tensor("x", (64, 256), "float32")
        y, q = k.tensor("y", (4, 64), "float32"), k.tensor("q", (64, 256), dtype)
        k.block("x", 1)
        raw = k.new((4, 64), dtype, lambda i, j: codes[i, j])
        wide = k.new((4, 64), "float32", lambda i, j: T.Cast("float32", raw[i, j])) if native \
            else decoded(k, (4, 64), lambda i, j: raw[i, j], "float32", nan=True)
        k.store(y, (4, 64), lambda i, j: (i, j), lambda i, j: wide[i, j])
        t = k.new((64, 256), "float32", lambda i, j: x[i, j])
        if native:
            k.store(q, (64, 256), lambda i, j: (i, j), lambda i, j: T.Cast(dtype, t[i, j]))
        else:
            made = encoded(k, (64, 256), t)
            k.store(q, (64, 256), lambda i, j: (i, j), lambda i, j: made[i, j])
    return k.func


@pytest.mark.parametrize("native", (True, False))
def test_fp8_is_exact(native: bool) -> None:
    fp8 = torch.float8_e4m3fn
    codes = torch.arange(256).to(torch.uint8).view(4, 64)
    x = torch.randn(64, 256) * torch.exp2(torch.randint(-14, 10, (64, 256)).float())
    x[0] = torch.arange(256).view(torch.uint8).view(-1, 8)[:, 0].view(fp8).float()
    halves = x[0][x[0].isfinite()].sort().values
    x[1, :len(halves) - 1] = (halves[1:] + halves[:-1]) / 2      # every tie
    x[2, :6] = torch.tensor([torch.nan, 0.0, -0.0, 1e30, -torch.inf, 1e-30])
    y, q = torch.empty(4, 64), torch.empty(64, 256).to(fp8)
    given, out = (codes.view(fp8), q) if native else (codes.view(torch.int8), q.view(torch.int8))
    run(fp8_casts(native), (1,), given, x, y, out)
    assert same_bits(y, codes.view(fp8).float()).all()
    assert same_bits(q, x.clamp(-448, 448).to(fp8)).all()


def test_fp8_by_bits_compiles_without_fp8_hardware() -> None:
    made = compile_module(emit(fp8_casts(False), "device").text, C220)
    assert isinstance(made, Artifact), made.reason
    made = compile_module(emit(fp8_casts(True), "device").text, C310)
    assert isinstance(made, Artifact), made.reason


def refused(write: Any) -> str:
    """Why a program with this statement cannot be emitted."""
    with kernel("refused") as k:
        x = k.tensor("x", (8, 8), "float32")
        k.block("x", 1)
        write(k, x, k.new((8, 8), "float32", lambda i, j: x[i, j]))
    with pytest.raises(CannotEmit) as raised:
        emit(k.func, "device")
    return str(raised.value)


def test_what_it_cannot_emit_it_names() -> None:
    def part(k: Kernel, x: Any, t: Any) -> None:
        k.store(x, (4, 8), lambda i, j: (i, j), lambda i, j: t[i + 2, j])

    def sine(k: Kernel, x: Any, t: Any) -> None:
        k.put(t, lambda i, j: T.sin(t[i, j]))

    def unwritten(k: Kernel, x: Any, t: Any) -> None:
        k.put(t, lambda i, j: k.tile((8, 8), "float32")[i, j])

    def diagonal(k: Kernel, x: Any, t: Any) -> None:
        k.new((8, 8), "float32", lambda i, j: x[i, j], lambda i, j: i + j < 5)

    assert "read whole" in refused(part)
    assert "sin cannot be emitted" in refused(sine)
    assert "read before it is written" in refused(unwritten)
    assert "must bound one axis" in refused(diagonal)


def test_launches_are_checked() -> None:
    program, npu = integer_gemm(), targets.load("ascend", mode="emulate")
    with pytest.raises(ValueError, match="takes 6 arguments, got 1"):
        npu.launch(program, (1,), torch.empty(1))
    strided: list[Tensor] = [torch.empty(4, 4).t()] * 6
    with pytest.raises(ValueError, match="contiguous"):
        npu.launch(program, (1,), *strided)
    with pytest.raises(ValueError, match="no kernel can run on Ascend910B3 here"):
        targets.load("ascend").launch(program, (1,), *[torch.empty(4)] * 6)


@pytest.mark.parametrize("name", ("ascend910b3", "910B3", "ascend:910b3", "Ascend910B3"))
def test_names(name: str) -> None:
    found = targets.load(name)
    assert (found.name, found.arch, found.lang) == ("ascend", "ascend910b3", "ascend")
    assert found.device == "ascend910b3-c220-20c40v-ub192-l0c128" and not found.computes
    assert found.evidence() == "L1 lowered" and "no kernel can run" in str(found.available())
    assert targets.load("ascend950pr_9599").arch == "ascend950pr_9599"
