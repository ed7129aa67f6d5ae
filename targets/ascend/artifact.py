"""What a compile answers: the text that CANN's hivmc reads and what stands in it, or a refusal."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

TaskType = Literal["vector", "cube", "mix"]

_ELEMENT_BITS = {"i1": 1, "i8": 8, "f8E4M3FN": 8, "f8E5M2": 8, "i16": 16, "f16": 16, "bf16": 16,
                 "i32": 32, "f32": 32, "i64": 64}       # masks stand packed

_TASK_TYPES: Mapping[str, TaskType] = {"aiv": "vector", "aic": "cube", "mix": "mix"}


@dataclass(frozen=True)
class Buffer:
    """One on-chip buffer of the memory plan."""

    function: str                    # "mla_mix_aic": a mix kernel has one per kind of core
    space: str                       # "ub", "cbuf" (L1), "cc" (L0C)
    address: int                     # bytes from the start of the space
    size: int                        # bytes; 0 where a library call wants no scratch
    type: str                        # "16x4x16x16xf16"


@dataclass(frozen=True)
class Artifact:
    """A kernel that the compiler accepted: lowered to hivmc's input, not run on a device."""

    name: str
    device: str
    text: str                        # module.hivm.opt.mlir
    flags: Mapping[str, str]         # in effect: differs from the request after a fallback
    fallbacks: tuple[str, ...]       # the compiler's own words on what it switched off
    buffers: tuple[Buffer, ...]
    workspace_bytes: int             # in GM, for each block of the grid
    task_type: TaskType
    calls: Mapping[str, str]         # library function -> "AIC" or "AIV", the core it runs on
    compiler: str                    # its version

    @property
    def sha256(self) -> str:
        """The identity of what hivmc would read."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def peak(self, space: str) -> int:
        """Bytes used of an on-chip space, up to the highest address."""
        return max((b.address + b.size for b in self.buffers if b.space == space), default=0)


@dataclass(frozen=True)
class Refused:
    """A kernel that the compiler does not take, and why, with the numbers where it is a size."""

    reason: str
    status: Literal["illegal", "build_error", "timeout", "oom"]
    space: str | None = None         # "ub", "cbuf", "cc" of an overflow
    need_bits: int | None = None
    have_bits: int | None = None


_FUNCTION = re.compile(r"^  func\.func (?!private)@(\w+)\(")
# The 950's modules have the second form.
_CONSTANT = re.compile(r"(%[\w-]+) = (?:arith\.constant |llvm\.mlir\.constant\()(-?\d+) : "
                       r"(?:i\d+|index)")
_POINTER = re.compile(r"hivm\.hir\.pointer_cast\((.*?)\)(?: \[.*?\])? : "
                      r"memref<([^,>]+), (?:strided<.*?>, )?#hivm\.address_space<(\w+)>>")
_LIBRARY = re.compile(r"^  func\.func private @(\w+)\(.*func_core_type<(\w+)>", re.M)
_CALL = re.compile(r"(?:func\.)?call @(\w+)\(")
_SPEC = re.compile(r'#dlti\.dl_entry<"(\w+)", (\d+) : i32>')
_WORKSPACE_ARG = re.compile(r"(%\w+): memref<[^{]*> \{hacc\.arg_type = "
                            r"#hacc\.arg_type<workspace>\}")
_MIX_MODE = re.compile(r'mix_mode = "(\w+)"')


def functions(text: str) -> dict[str, list[str]]:
    """The lines of each defined function by its name, the line of its head first."""
    found: dict[str, list[str]] = {}
    lines: list[str] | None = None
    for line in text.splitlines():
        if head := _FUNCTION.match(line):
            lines = found.setdefault(head[1], [])
        if lines is not None:
            lines.append(line)
        if line == "  }":
            lines = None
    return found


def kernels(text: str) -> dict[str, list[str]]:
    """The functions that a launch starts: one, or of a mix kernel one for each kind of core."""
    return {f: lines for f, lines in functions(text).items() if "hacc.entry" in lines[0]}


def target_spec(text: str) -> dict[str, int]:
    """The compiler's own figures of the device: cores, and sizes in bits."""
    return {key: int(value) for key, value in _SPEC.findall(text)}


def _workspace_bytes(name: str, text: str) -> int:
    """What infer_workspace_shape_function returns; without one (950) nothing may use the space."""
    stated = functions(text).get(f"{name}_infer_workspace_shape_function")
    if stated is not None:
        return next(int(m[2]) for line in stated if (m := _CONSTANT.search(line)))
    for function, body in kernels(text).items():
        argument = _WORKSPACE_ARG.search(body[0])
        if argument and any(re.search(rf"{argument[1]}\b", line) for line in body[1:]):
            raise ValueError(f"{function} uses a workspace whose size the module does not state")
    return 0


def _size(type_text: str) -> int:
    *dims, element = type_text.split("x")
    if "?" in dims:
        raise ValueError(f"a buffer of unknown size cannot be planned: memref<{type_text}>")
    return (prod(int(d) for d in dims) * _ELEMENT_BITS[element] + 7) // 8


def _buffers(name: str, lines: list[str]) -> list[Buffer]:
    constants = {m[1]: int(m[2]) for line in lines if (m := _CONSTANT.search(line))}
    return [Buffer(name, pointer[3], constants[operand.strip()], _size(pointer[2]), pointer[2])
            for line in lines if (pointer := _POINTER.search(line))
            for operand in pointer[1].split(",")]


def parse(text: str, device: str, flags: Mapping[str, str], fallbacks: tuple[str, ...],
          compiler: str) -> Artifact:
    """Read memory plan, workspace, task type and library calls out of a module."""
    entries = kernels(text)
    modes = {m[1] for lines in entries.values() if (m := _MIX_MODE.search(lines[0]))}
    if len(modes) != 1:
        raise ValueError(f"a module must hold one kernel, got {sorted(entries)} of modes {modes}")
    task = _TASK_TYPES[modes.pop()]
    name = next(iter(entries)).removesuffix("_mix_aic").removesuffix("_mix_aiv")
    called = {m[1] for lines in functions(text).values() for line in lines
              if (m := _CALL.search(line))}
    return Artifact(
        name, device, text, dict(flags), fallbacks,
        tuple(b for f, lines in entries.items() for b in _buffers(f, lines)),
        _workspace_bytes(name, text), task,
        {f: core for f, core in _LIBRARY.findall(text) if f in called}, compiler)
