"""The jobs of cpu_run that may crash: they run in a child process."""

from __future__ import annotations

import ctypes
import mmap
import re
import struct
from functools import lru_cache
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

_PROT_NONE = 0
_ENGINES = 8                         # a few hundred kB of machine code each
_FLOAT = re.compile(r"\b(?P<type>double|float|half|bfloat)\b"
                    r"|(?<![\w.%@\"])(?P<value>-?\d+\.\d+(?:e[+-]\d+)?|[+-]inf|f0x[0-9A-F]+)"
                    r"(?![\w\"])")
_LOCK_AND_WORKSPACE = 2              # the first two arguments; nothing on a CPU uses them


def read_llvm_dialect(path: str) -> str:
    """The LLVM IR of a module in MLIR's LLVM dialect; runs in a child."""
    from triton._C.libtriton import ir, llvm

    context = ir.context()
    ir.load_dialects(context)
    llvm.init_targets()
    return _exact_floats(str(llvm.to_module(ir.parse_mlir_module(path, context), llvm.context())))


def _exact_floats(text: str) -> str:
    """Write float constants as the LLVM 22 in llvmlite 0.50 takes them, in hexadecimal.

    The newer LLVM in triton 3.9 writes the shortest decimal that rounds to the constant, which the
    other refuses ("floating point constant invalid for type"), or its bits, as in f0x3E0C378C.
    """
    def line_in_hex(line: str) -> str:
        kind = "double"              # the type before a literal is its type

        def spelled(match: re.Match[str]) -> str:
            nonlocal kind
            if match["type"]:
                kind = match["type"]
                return kind
            return _hex_literal(kind, match["value"])

        return _FLOAT.sub(spelled, line)

    return "\n".join(line if line.lstrip().startswith((";", "target", "source", "!")) else
                     line_in_hex(line) for line in text.splitlines())


def _hex_literal(kind: str, literal: str) -> str:
    code, size = {"half": ("e", 2), "bfloat": ("f", 2), "float": ("f", 4), "double": ("d", 8)}[kind]
    if literal.startswith("f0x"):
        data = int(literal[3:], 16).to_bytes(size, "little")
    else:                            # a bfloat is the upper half of the float32
        data = struct.pack(f"<{code}", float(literal))[-size:]
    if size == 2:
        return f"0x{'H' if kind == 'half' else 'R'}{int.from_bytes(data, 'little'):04X}"
    value: float = struct.unpack(f"<{code}", data)[0]
    return f"0x{int.from_bytes(struct.pack('<d', value), 'little'):016X}"


class _Array:
    """Bytes that end at a page nobody may touch."""

    def __init__(self, data: bytes):
        page, self.size = mmap.PAGESIZE, len(data)
        whole = -(-max(self.size, 1) // page) * page
        self._map = mmap.mmap(-1, whole + 2 * page)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.address = start + page + whole - self.size
        ctypes.memmove(self.address, data, self.size)
        libc = ctypes.CDLL(None, use_errno=True)
        for guard in (start, start + page + whole):
            if libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), _PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect of a guard page failed")

    def bytes(self) -> bytes:
        """What stands there now."""
        return ctypes.string_at(self.address, self.size)


class _Memref(ctypes.Structure):
    """MLIR's descriptor of a memref with one dimension."""

    _fields_ = [("allocated", ctypes.c_void_p), ("aligned", ctypes.c_void_p),
                ("offset", ctypes.c_int64), ("size", ctypes.c_int64), ("stride", ctypes.c_int64)]


@lru_cache(maxsize=_ENGINES)
def _compiled(llvm_ir: str) -> Any:
    """The JIT's engine for a module; an operator's cases run one kernel many times."""
    llvm: Any = import_module("llvmlite.binding")    # it has no type stubs
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(llvm_ir)
    # No passes over the IR: they took 3.1 s for a kernel of a dozen vector steps, and the test
    # shapes are done in less without (docs/facts.md).
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=1)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return engine


def run_programs(ir_path: str, name: str, arguments: list[dict[str, Any]],
                 grid: list[int]) -> str:
    """Compile LLVM IR, run it once for each program id, write the arrays back; in a child."""
    engine = _compiled(Path(ir_path).read_text())
    arrays = {a["path"]: _Array(Path(a["path"]).read_bytes()) for a in arguments if "path" in a}
    spare = _Array(b"")
    values: list[Any] = [ctypes.byref(_Memref(spare.address, spare.address, 0, 0, 1))
                         for _ in range(_LOCK_AND_WORKSPACE)]
    for a in arguments:
        if "scalar" in a:
            values.append(ctypes.c_int32(a["scalar"]))
            continue
        at = arrays[a["path"]].address
        values.append(ctypes.byref(_Memref(at, at, 0, a["elements"], 1)))
    address = engine.get_function_address(f"_mlir_ciface_{name}")
    if not address:
        raise ValueError(f"the LLVM IR defines no _mlir_ciface_{name}")
    call = ctypes.CFUNCTYPE(None)(address)
    extents = [ctypes.c_int32(g) for g in grid]
    for ids in product(*(range(g) for g in grid)):
        call(*values, *extents, *(ctypes.c_int32(i) for i in ids))
    for path, array in arrays.items():
        Path(path).write_bytes(array.bytes())
    return ""
