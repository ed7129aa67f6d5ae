"""ggml's C interface, from the shared library inside the prebuilt xllamacpp wheel."""

from __future__ import annotations

import ctypes as C
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

F32, F16, Q8_0, I32, BF16 = 0, 1, 8, 26, 30      # enum ggml_type
_FLAGS = ("avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx_int8", "llamafile")
# The accessor of ggml/src/ggml-cpu/repack.h; it has C++ linkage.
_REPACK = "_Z35ggml_backend_cpu_repack_buffer_typev"

_DATA_EXTRA = (248, 320)             # offsets of those fields in struct ggml_tensor


class _Init(C.Structure):
    _fields_ = [("mem_size", C.c_size_t), ("mem_buffer", C.c_void_p), ("no_alloc", C.c_bool)]


class Plan(C.Structure):
    """struct ggml_cplan, with room for fields that a newer library may append."""

    _fields_ = [("work_size", C.c_size_t), ("work_data", C.c_void_p), ("n_threads", C.c_int),
                ("threadpool", C.c_void_p), ("abort", C.c_void_p), ("abort_data", C.c_void_p),
                ("use_ref", C.c_bool), ("room", C.c_char * 64)]


_P, _I = C.c_void_p, C.c_int
_SIGNATURES: dict[str, tuple[Any, ...]] = {      # result, arguments
    "ggml_init": (_P, _Init), "ggml_free": (None, _P), "ggml_version": (C.c_char_p,),
    "ggml_cpu_init": (None,),
    "ggml_new_tensor": (_P, _P, _I, _I, C.POINTER(C.c_int64)),
    "ggml_get_data": (_P, _P), "ggml_nbytes": (C.c_size_t, _P),
    "ggml_row_size": (C.c_size_t, _I, C.c_int64),
    "ggml_mul_mat_id": (_P, _P, _P, _P, _P), "ggml_swiglu": (_P, _P, _P),
    "ggml_view_4d": (_P, _P, _P, *(C.c_int64,) * 4, *(C.c_size_t,) * 4),
    "ggml_flash_attn_ext": (_P, _P, _P, _P, _P, _P, C.c_float, C.c_float, C.c_float),
    "ggml_new_graph": (_P, _P), "ggml_build_forward_expand": (None, _P, _P),
    "ggml_graph_plan": (Plan, _P, _I, _P), "ggml_graph_compute": (_I, _P, C.POINTER(Plan)),
    "ggml_quantize_chunk": (C.c_size_t, _I, _P, _P, C.c_int64, C.c_int64, C.c_int64, _P),
    "ggml_backend_buft_alloc_buffer": (_P, _P, C.c_size_t),
    "ggml_backend_buft_get_alloc_size": (C.c_size_t, _P, _P),
    "ggml_backend_buffer_get_base": (_P, _P), "ggml_backend_buffer_free": (None, _P),
    "ggml_backend_tensor_alloc": (_I, _P, _P, _P),
    "ggml_backend_tensor_set": (None, _P, _P, C.c_size_t, C.c_size_t),
    "ggml_graph_overhead": (C.c_size_t,), "ggml_tensor_overhead": (C.c_size_t,)}


def find() -> Path | None:
    """The library's file, found without importing the package."""
    spec = find_spec("xllamacpp")
    folders = spec.submodule_search_locations or [] if spec is not None else []
    return next((p for f in folders for p in sorted(Path(f).glob("xllamacpp*.so"))), None)


@cache
def library() -> Any:
    """The loaded library with typed functions; ImportError says how to get it."""
    path = find()
    if path is None:
        raise ImportError("ggml is not there; run: pip install xllamacpp")
    found = C.CDLL(str(path))
    for name, (result, *arguments) in _SIGNATURES.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    found.ggml_cpu_init()
    return found


def describe() -> dict[str, str]:
    """Version and the instructions that the prebuilt library was compiled for."""
    g = library()
    flags = [flag for flag in _FLAGS if getattr(g, f"ggml_cpu_has_{flag}")()]
    return {"ggml": g.ggml_version().decode(), "ggml built for": " ".join(flags)}


def repack_type() -> Any:
    """The buffer type whose tensors are stored interleaved for the CPU's dot products, or None."""
    g = library()
    if not hasattr(g, _REPACK):
        return None
    getattr(g, _REPACK).restype = _P
    return getattr(g, _REPACK)()


def context(nbytes: int, no_alloc: bool = False) -> Any:
    """An arena for tensors and graphs."""
    made = library().ggml_init(_Init(nbytes, None, no_alloc))
    if not made:
        raise MemoryError(f"ggml_init found no {nbytes >> 20} MiB")
    return made


def tensor(ctx: Any, kind: int, sizes: Sequence[int]) -> Any:
    """A tensor; sizes innermost first, as ggml has them."""
    made = library().ggml_new_tensor(ctx, kind, len(sizes), (C.c_int64 * len(sizes))(*sizes))
    assert made                      # ggml itself aborts when the arena is full
    return made


def is_repacked(made: Any) -> bool:
    """Whether ggml keeps an allocated tensor interleaved: `extra` of struct ggml_tensor says so."""
    data, extra = (C.c_void_p.from_address(made + at).value for at in _DATA_EXTRA)
    assert data == library().ggml_get_data(made), "struct ggml_tensor has another layout here"
    return bool(extra)


def fill(to: Any, source: Any) -> None:
    """Copy a contiguous torch tensor's bytes to a tensor of the default buffer."""
    C.memmove(library().ggml_get_data(to), source.data_ptr(),
              source.numel() * source.element_size())


class Graph:
    """A graph that computes one tensor, with its work buffer."""

    def __init__(self, ctx: Any, output: Any, threads: int):
        g = library()
        self._graph, self.output = g.ggml_new_graph(ctx), output
        g.ggml_build_forward_expand(self._graph, output)
        self._plan = g.ggml_graph_plan(self._graph, threads, None)
        self._work = C.create_string_buffer(self._plan.work_size + 64)
        self._plan.work_data = C.addressof(self._work) + (-C.addressof(self._work)) % 64

    def run(self) -> None:
        """Compute."""
        if library().ggml_graph_compute(self._graph, C.byref(self._plan)) != 0:
            raise RuntimeError("ggml_graph_compute failed")
