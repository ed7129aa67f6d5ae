"""Vector kernels of random expressions: the simulator and the CPU run must agree on them."""

from __future__ import annotations

import random

from tests.targets.data.ascend import kernels

ROWS, COLS = 16, 64
_SHAPE = f"{ROWS}x{COLS}"
_F32, _I32, _MASK = (f"tensor<{_SHAPE}x{t}>" for t in ("f32", "i32", "i1"))
BINARY = ("addf", "subf", "mulf", "maximumf", "minimumf")
COMPARE = ("olt", "oge", "oeq", "ogt", "ole")
STEPS = ("binary", "scalar", "quotient", "abs", "exp", "sqrt", "select", "masks", "row", "column",
         "f16", "bf16", "integer", "bits", "ragged")


def program(seed: int, steps: int = 12) -> tuple[str, list[str]]:
    """A kernel R[16, 64] of X, Y[16, 64] and N[1], a number of rows; and the steps it takes."""
    pick = random.Random(seed)
    chosen = [pick.choice(STEPS) for _ in range(steps)]
    body = kernels.load("x0", "X", "c0", (ROWS, COLS), (COLS, 1), "f32")
    body += kernels.load("y0", "Y", "c0", (ROWS, COLS), (COLS, 1), "f32")
    body += ("    %n32 = memref.load %N[%c0] : memref<?xi32>\n"
             "    %n = arith.index_cast %n32 : i32 to index\n")
    values = ["x0", "y0"]
    for i, step in enumerate(chosen):
        a, b = pick.sample(values, 2) if len(values) > 1 else values * 2
        body += _STEPS[step](f"t{i}", a, b, pick)
        # bounded, so that no step runs away to infinity
        body += kernels.full(f"u{i}", "8.0", _SHAPE, "f32")
        body += f"    %s{i} = arith.minimumf %t{i}, %u{i} : {_F32}\n"
        body += kernels.full(f"l{i}", "-8.0", _SHAPE, "f32")
        body += f"    %r{i} = arith.maximumf %s{i}, %l{i} : {_F32}\n"
        values = [*values, f"r{i}"][-3:]
    body += kernels.store(values[-1], "R", "c0", (ROWS, COLS), (COLS, 1), "f32")
    return kernels.module("expression", "X: f32, Y: f32, N: i32, R: f32", "aiv", body), chosen


def _line(name: str, op: str, operands: str, kind: str = _F32) -> str:
    return f"    %{name} = {op} {operands} : {kind}\n"


def _binary(name: str, a: str, b: str, pick: random.Random) -> str:
    return _line(name, f"arith.{pick.choice(BINARY)}", f"%{a}, %{b}")


def _scalar(name: str, a: str, b: str, pick: random.Random) -> str:
    operands = pick.choice((f"%{a}, %{name}_c", f"%{name}_c, %{a}"))
    return kernels.full(f"{name}_c", f"{pick.uniform(-2, 2):.4f}", _SHAPE, "f32") + _line(
        name, f"arith.{pick.choice(BINARY)}", operands)


def _quotient(name: str, a: str, b: str, pick: random.Random) -> str:
    return (_line(f"{name}_abs", "math.absf", f"%{b}")
            + kernels.full(f"{name}_one", "1.0", _SHAPE, "f32")
            + _line(f"{name}_safe", "arith.addf", f"%{name}_abs, %{name}_one")
            + _line(name, "arith.divf", f"%{a}, %{name}_safe"))


def _abs(name: str, a: str, b: str, pick: random.Random) -> str:
    return _line(name, "math.absf", f"%{a}")


def _exp(name: str, a: str, b: str, pick: random.Random) -> str:
    return _line(name, "math.exp", f"%{a}")


def _sqrt(name: str, a: str, b: str, pick: random.Random) -> str:
    return _abs(f"{name}_abs", a, b, pick) + _line(name, "math.sqrt", f"%{name}_abs")


def _select(name: str, a: str, b: str, pick: random.Random) -> str:
    return (_line(f"{name}_m", f"arith.cmpf {pick.choice(COMPARE)},", f"%{a}, %{b}")
            + f"    %{name} = arith.select %{name}_m, %{a}, %{b} : {_MASK}, {_F32}\n")


def _masks(name: str, a: str, b: str, pick: random.Random) -> str:
    return (kernels.full(f"{name}_c", "0.25", _SHAPE, "f32")
            + _line(f"{name}_m", f"arith.cmpf {pick.choice(COMPARE)},", f"%{a}, %{name}_c")
            + _line(f"{name}_k", f"arith.cmpf {pick.choice(COMPARE)},", f"%{b}, %{a}")
            + _line(f"{name}_b", f"arith.{pick.choice(('andi', 'ori'))}", f"%{name}_m, %{name}_k",
                    _MASK)
            + f"    %{name} = arith.select %{name}_b, %{name}_c, %{b} : {_MASK}, {_F32}\n")


def _row(name: str, a: str, b: str, pick: random.Random) -> str:
    return (kernels.full(f"{name}_0", "0.0", str(ROWS), "f32")
            + _abs(f"{name}_abs", a, b, pick)    # from 0 on, the neutral start of both
            + kernels.reduce(f"{name}_v", f"{name}_abs", _SHAPE, f"{name}_0", ROWS,
                             pick.choice(("addf", "maximumf")))
            + kernels.spread(f"{name}_w", f"{name}_v", ROWS, _SHAPE, 1)
            + _line(name, "arith.subf", f"%{b}, %{name}_w"))


def _column(name: str, a: str, b: str, pick: random.Random) -> str:
    return (kernels.full(f"{name}_0", "0.0", str(COLS), "f32")
            + kernels.reduce(f"{name}_v", a, _SHAPE, f"{name}_0", COLS, "addf")
            .replace("dimensions = [1]", "dimensions = [0]")
            + kernels.spread(f"{name}_w", f"{name}_v", COLS, _SHAPE, 0)
            + _line(name, "arith.subf", f"%{b}, %{name}_w"))


def _through(kind: str) -> str:
    return f"tensor<{_SHAPE}x{kind}>"


def _f16(name: str, a: str, b: str, pick: random.Random, kind: str = "f16") -> str:
    return (_line(f"{name}_h", "arith.truncf", f"%{a}", f"{_F32} to {_through(kind)}")
            + _line(name, "arith.extf", f"%{name}_h", f"{_through(kind)} to {_F32}"))


def _bf16(name: str, a: str, b: str, pick: random.Random) -> str:
    return _f16(name, a, b, pick, "bf16")


def _rounded(name: str, a: str) -> str:
    return (f"    %{name}_e = tensor.empty() : {_I32}\n    %{name} = hfusion.cast {{round_mode = "
            f"#hfusion.round_mode<rint>}} ins(%{a} : {_F32}) outs(%{name}_e : {_I32}) -> {_I32}\n")


def _integer(name: str, a: str, b: str, pick: random.Random) -> str:
    return (_rounded(f"{name}_i", a) + _line(f"{name}_j", "arith.fptosi", f"%{b}",
                                             f"{_F32} to {_I32}")
            + _line(f"{name}_k", f"arith.{pick.choice(('addi', 'subi', 'muli'))}",
                    f"%{name}_i, %{name}_j", _I32)
            + _line(name, "arith.sitofp", f"%{name}_k", f"{_I32} to {_F32}"))


def _bits(name: str, a: str, b: str, pick: random.Random) -> str:
    return (_rounded(f"{name}_i", a) + _rounded(f"{name}_j", b)
            + kernels.full(f"{name}_c", "1", _SHAPE, "i32")
            + _line(f"{name}_k", f"arith.{pick.choice(('andi', 'ori', 'xori'))}",
                    f"%{name}_i, %{name}_j", _I32)
            + _line(f"{name}_s", f"arith.{pick.choice(('shli', 'shrsi'))}",
                    f"%{name}_k, %{name}_c", _I32)
            + _line(name, "arith.sitofp", f"%{name}_s", f"{_I32} to {_F32}"))


def _ragged(name: str, a: str, b: str, pick: random.Random) -> str:
    return (kernels.load(f"{name}_x", "X", "c0", (ROWS, COLS), (COLS, 1), "f32", "n")
            + _line(name, "arith.mulf", f"%{a}, %{name}_x"))


_STEPS = {"binary": _binary, "scalar": _scalar, "quotient": _quotient, "abs": _abs, "exp": _exp,
          "sqrt": _sqrt, "select": _select, "masks": _masks, "row": _row, "column": _column,
          "f16": _f16, "bf16": _bf16, "integer": _integer, "bits": _bits, "ragged": _ragged}
