"""Gate b: the MLIR that bishengir-compile gets, executed on this CPU and not on an NPU.

bishengir-opt lowers the module to the LLVM dialect, libtriton's MLIR reader turns that into LLVM
IR, llvmlite compiles and runs it; none needs a system LLVM. Each step has a process of its own: the
three carry three LLVMs, and a kernel that reads past its arrays dies there, at a guard page.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ..base import BuildError, RunFailed
from ..child import Child, ChildCrashed, ChildFailed, ChildTimeout
from .compiler import run_tool, unusable

_TIMEOUT_S = 120.0
_MEMORY_GB = 8.0
# To memrefs first; then, with copies that need no runtime library, to the LLVM dialect.
_TO_MEMREFS = (
    "--execution-engine-convert-hfusion-to-upstream", "--execution-engine-convert-hivm-to-upstream",
    "--convert-elementwise-to-linalg", "--canonicalize", "--empty-tensor-to-alloc-tensor",
    "--one-shot-bufferize=bufferize-function-boundaries "
    "function-boundary-type-conversion=identity-layout-map allow-return-allocs-from-loops",
    "--buffer-deallocation-pipeline", "--convert-bufferization-to-memref",
    "--finalizing-bufferize", "--annotation-lowering")
_TO_LLVM = (
    "--expand-strided-metadata", "--convert-linalg-to-loops", "--convert-scf-to-cf",
    "--lower-affine", "--arith-expand=include-bf16=true", "--convert-vector-to-llvm",
    "--convert-math-to-llvm", "--finalize-memref-to-llvm", "--convert-func-to-llvm",
    "--convert-cf-to-llvm", "--convert-index-to-llvm", "--convert-arith-to-llvm",
    "--reconcile-unrealized-casts")
_CAST = re.compile(
    r"(?P<out>%[\w-]+) = hfusion\.cast \{round_mode = #hfusion\.round_mode<(?P<mode>\w+)>\} "
    r"ins\((?P<value>%[\w-]+) : tensor<(?P<shape>[0-9x]+)x(?P<from>\w+)>\) "
    r"outs\(.*?\) -> tensor<[0-9x]+x(?P<to>\w+)>")
_COPY = re.compile(r"memref\.copy (%[\w#-]+), (%[\w#-]+) : (memref<.*>) to (memref<.*>)$", re.M)
_HEAD = re.compile(r"func\.func @(\w+)\((.*?)\)\s*attributes", re.S)
_FIXED_ARGUMENTS = 8                 # lock, workspace; at the end grid and program ids


@dataclass(frozen=True)
class CpuKernel:
    """A kernel as LLVM IR of this CPU."""

    name: str
    arguments: int                   # tensors and scalars of its own
    llvm_ir: str


@cache
def _reader() -> Child:
    return Child(_MEMORY_GB)


@cache
def _runner() -> Child:
    return Child(_MEMORY_GB)


@lru_cache(maxsize=64)
def build(module: str) -> CpuKernel:
    """Lower a module for this CPU; BuildError says what stands in the way.

    Kept by text: configs that differ in the compiler's flags alone are one kernel here.
    """
    if why := unusable():
        raise BuildError(why, "build_error")
    head = _HEAD.search(module)
    if head is None:
        raise BuildError("the module has no kernel: func.func @name(...) attributes {...}",
                         "build_error")
    if "f8E" in module:
        raise BuildError("fp8 cannot be executed on the CPU: bishengir-opt has no lowering of its "
                         "casts to x86; check an fp8 kernel on its int8 or bfloat16 twin",
                         "build_error")
    text = _explicit_rounding(module).replace(
        'global_kernel = "local"', 'llvm.emit_c_interface, global_kernel = "local"')
    text = _lowered(text, _TO_MEMREFS)
    # memref.copy would call into MLIR's runner library, which no package here has
    text = _lowered(_COPY.sub(r"linalg.copy ins(\1 : \3) outs(\2 : \4)", text), _TO_LLVM)
    text = _without_attributes(text)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "kernel.mlir"
        source.write_text(text)
        llvm_ir = _in_child(_reader(), "read_llvm_dialect", path=str(source))
    return CpuKernel(head[1], head[2].count("%") - _FIXED_ARGUMENTS, llvm_ir)


def _lowered(text: str, passes: tuple[str, ...]) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch) / "in.mlir", Path(scratch) / "out.mlir"
        source.write_text(text)
        ran = run_tool("bishengir-opt", [str(source), *passes, "--mlir-disable-threading", "-o",
                                         str(target)], _TIMEOUT_S, _MEMORY_GB)
        if ran.status is None:
            raise BuildError(f"bishengir-opt ran longer than {_TIMEOUT_S:g} s", "timeout")
        if ran.status or not target.is_file():
            errors = re.findall(r"error: (.*)", ran.output) or ran.output.splitlines()[-1:]
            raise BuildError(f"bishengir-opt could not lower the module to this CPU: "
                             f"{' | '.join(errors[:2])}", "build_error")
        return target.read_text()


def _explicit_rounding(module: str) -> str:
    """Write hfusion.cast out in upstream MLIR: bishengir-opt drops its round mode."""
    def spelled(cast: re.Match[str]) -> str:
        before, after = (f"tensor<{cast['shape']}x{cast[t]}>" for t in ("from", "to"))
        out, kind = cast["out"], (cast["mode"], cast["from"], cast["to"])
        match kind:
            case ("rint", "f32", "i32"):
                return (f"{out}_even = math.roundeven {cast['value']} : {before}\n"
                        f"    {out} = arith.fptosi {out}_even : {before} to {after}")
            case (_, "i32", "i16" | "i8"):
                return f"{out} = arith.trunci {cast['value']} : {before} to {after}"
        raise BuildError(
            f"hfusion.cast {cast['mode']} from {cast['from']} to {cast['to']}: only rint from f32 "
            "to i32, and i32 to i16 or i8, mean the same on the device (bishengir-compile 1.2.0 "
            "truncates f32 to i8 in every mode); cast in two steps", "build_error")

    return _CAST.sub(spelled, module)


def _without_attributes(text: str) -> str:
    """Drop what libtriton's reader does not know: attributes of Huawei's dialects."""
    lines = []
    for line in text.splitlines():
        if line.startswith("module"):
            line = "module {"
        elif "llvm.func" in line:
            line = re.sub(r"attributes \{[^{}]*\}", "attributes {llvm.emit_c_interface}", line)
        lines.append(line)
    return "\n".join(lines)


def run(kernel: CpuKernel, arguments: Sequence[Tensor | int], grid: tuple[int, int, int],
        timeout_s: float = _TIMEOUT_S) -> tuple[Tensor, ...]:
    """Execute every program of the grid, one after the other, on copies of the arguments.

    Returns the tensors among the arguments as the kernel left them. RunFailed says "illegal" when
    the kernel left its arrays.
    """
    if len(arguments) != kernel.arguments:
        raise ValueError(f"{kernel.name} takes {kernel.arguments} arguments, got {len(arguments)}")
    with tempfile.TemporaryDirectory() as scratch:
        described: list[dict[str, int | str]] = []
        for i, value in enumerate(arguments):
            if isinstance(value, int):
                described.append({"scalar": value})
                continue
            path = Path(scratch) / f"{i}.bin"
            path.write_bytes(value.detach().contiguous().cpu().reshape(-1)
                             .view(torch.uint8).numpy().tobytes())
            described.append({"path": str(path), "elements": value.numel()})
        source = Path(scratch) / "kernel.ll"
        source.write_text(kernel.llvm_ir)
        try:
            _in_child(_runner(), "run_programs", timeout_s, ir_path=str(source), name=kernel.name,
                      arguments=described, grid=list(grid))
        except BuildError as e:
            if e.status == "build_error":
                raise RunFailed(str(e), "illegal" if "SIGSEGV" in str(e) else "run_error") from e
            raise RunFailed(str(e), e.status) from e
        results = []
        for value, what in zip(arguments, described, strict=True):
            if isinstance(value, Tensor):
                raw = bytearray(Path(str(what["path"])).read_bytes())
                flat = torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(
                    0, dtype=torch.uint8)
                results.append(flat.view(value.dtype).reshape(value.shape))
        return tuple(results)


def _in_child(child: Child, function: str, timeout_s: float = _TIMEOUT_S,
              **arguments: object) -> str:
    try:
        answer: str = child.call(f"{__package__}.cpu_child:{function}", timeout_s, **arguments)
        return answer
    except ChildTimeout as e:
        raise BuildError(str(e), "timeout") from e
    except ChildFailed as e:
        raise BuildError(str(e), "oom" if e.kind == "MemoryError" else "build_error") from e
    except ChildCrashed as e:
        raise BuildError(str(e), "build_error") from e
