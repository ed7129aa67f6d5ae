"""Kernels for aarch64, cross-compiled here and run under qemu, against the reference."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from expertile import ops, targets
from expertile.bench.static.disasm import text_of
from expertile.opt.checks import run_once
from expertile.targets.cpu.artifacts import built
from expertile.targets.cpu.emulated import EmulatedCpu, _Emulated, runner, why_not
from expertile.targets.cpu.levels import LEVELS

from ..conformance import check

OPS = [name for name in ops.names() if ops.has_lowering(name, "tvm")]


def emulated(arch: str) -> EmulatedCpu:
    made = targets.load("cpu", unit="2", arch=arch, emulate=True)
    assert isinstance(made, EmulatedCpu)
    why = made.available()
    assert why is None, why              # `make test` installs what tests/debian-packages.txt names
    return made


@pytest.mark.parametrize("name", OPS)
def test_every_operator_is_right_on_a_kunpeng_class_cpu(name: str) -> None:
    op, target = ops.load(name), emulated("aarch64-dotprod")
    shape = op.odd_shapes[0]
    check(op, target.build_kernel(op, shape, target.space(op, shape).default()), shape)


@pytest.mark.parametrize("name", ["gemm_nt", "mla_decode", "per_token_group_quant_fp8"])
def test_the_first_aarch64_needs_no_extension(name: str) -> None:
    op, target = ops.load(name), emulated("aarch64")
    shape = op.odd_shapes[0]
    check(op, target.build_kernel(op, shape, target.space(op, shape).default()), shape)


@pytest.mark.parametrize("arch", ["aarch64", "aarch64-dotprod"])
def test_float16_operands(arch: str) -> None:
    op, target = ops.load("gemm_nt"), emulated(arch)
    shape = next(s for s in op.odd_shapes if s["w_dtype"] == "float16")
    check(op, target.build_kernel(op, shape, target.space(op, shape).default()), shape)


def test_examining_compiles_an_object_of_that_machine() -> None:
    op, target = ops.load("silu_mul"), targets.load("cpu:aarch64-dotprod:2")
    shape = op.odd_shapes[0]
    config = target.space(op, shape).default()
    assert target.examine(op, shape, config).evidence == "L2 native object"
    path = built(target, op.name, op.static_of(shape), config)
    assert text_of(path.read_bytes(), str(path))[0] == "aarch64"
    with pytest.raises(RuntimeError, match="holds aarch64-dotprod code"):
        run_once(target.build_kernel(op, shape, config), op, op.inputs(shape, 0))


def test_a_store_past_a_tensor_is_reported(tmp_path: Path) -> None:
    target = replace(emulated("aarch64"), cache_dir=tmp_path)
    source = tmp_path / "bad.c"
    source.write_text("""
        struct any { int kind, pad; struct { signed char *data; } *tensor; };
        int __tvm_ffi_main(void *self, struct any *args, int count, void *result) {
          args[0].tensor->data[8] = 1;
          return 0;
        }""")
    library = tmp_path / "bad.so"
    subprocess.run([f"{target.level.triple}-gcc", "-shared", "-fPIC", str(source), "-o",
                    str(library)], check=True)
    program = runner(target.level, tmp_path)
    kernel = _Emulated(library, target.level, 1, program)["main"]
    inside = torch.zeros(16, dtype=torch.int8)
    kernel(inside[:8])                   # a view: what stands behind it is its storage too
    assert inside[8] == 1
    with pytest.raises(RuntimeError, match="outside its tensors: 0 bytes past"):
        kernel(torch.zeros(8, dtype=torch.int8))


def test_levels_without_an_emulator_say_so() -> None:
    assert why_not(LEVELS["x86-amx"]) == "no emulator here has the features of this level of x86_64"
    with pytest.raises(RuntimeError, match="times would mean nothing"):
        emulated("aarch64").time_us(lambda: None, 1)


def test_an_emulated_cpu_traps_on_what_it_does_not_have() -> None:
    """So a kernel that runs proves that it needs no more than its level."""
    op, target = ops.load("gemm_nt"), emulated("aarch64-dotprod")
    shape = next(s for s in op.odd_shapes if s["a_dtype"] == s["w_dtype"] == "int8")
    args, config = op.inputs(shape, 0), target.space(op, shape).default()
    run_once(target.build_kernel(op, shape, config), op, args)
    path = built(target, op.name, op.static_of(shape), config)

    class Older(EmulatedCpu):
        """The same artifacts on a CPU without dot products."""

        def compile(self, *asked: object) -> object:
            return _Emulated(path, LEVELS["aarch64"], 2, runner(LEVELS["aarch64"], self.cache_dir))

    older = Older(target.threads, target.cache_dir, target.arch)
    with pytest.raises(RuntimeError, match="Illegal instruction|status -4|status 132"):
        run_once(older.build_kernel(op, shape, config), op, args)
