"""A GPU that is here: make it current, and measure what it can reach at most."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base import BuildError, Figure
from .timing import median_us

_COPY_BYTES = 1 << 30                # far beyond any cache
_SIDE = 8192                         # of the square matrix product
_REPEATS = 20
_may_allocate: ContextVar[bool] = ContextVar("expertile_may_allocate", default=False)


def use_device(index: int | None) -> None:
    """Launch on this GPU from here on."""
    if index is not None:
        torch.cuda.set_device(index)


def _allocate(size: int, alignment: int, stream: int | None) -> Tensor:
    return torch.empty(size, dtype=torch.int8, device="cuda")


def _let_allocate() -> None:
    """Give kernels that make tensor descriptors their memory; Triton keeps this by thread."""
    import triton

    triton.set_allocator(_allocate)
    _may_allocate.set(True)


@cache                               # on the path of every launch: imported once
def _errors() -> tuple[type[Exception], type[Exception]]:
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources

    return CompilationError, OutOfResources


def launch(kernel: Any, grid: tuple[int, ...], args: Sequence[Any], meta: Mapping[str, Any]
           ) -> None:
    """Run a kernel; BuildError when it does not compile or asks for more than the GPU has."""
    compilation_error, out_of_resources = _errors()
    if not _may_allocate.get():
        _let_allocate()
    try:
        kernel[grid](*args, **meta)
    except compilation_error as e:
        raise BuildError(f"{kernel.__name__}: {e}", "build_error") from e
    except out_of_resources as e:
        raise BuildError(f"{kernel.__name__}: {e}", "illegal") from e


def load_or_measure(fingerprint: str, cache_dir: Path) -> Mapping[str, Figure]:
    """Copy bandwidth and matrix peaks of the current GPU, measured once a fingerprint."""
    path = cache_dir / "limits" / f"{fingerprint}.json"
    try:
        return {name: Figure(**figure) for name, figure in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError):
        figures = measure()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump({name: asdict(figure) for name, figure in figures.items()}, file)
    Path(file.name).replace(path)
    return figures


def measure() -> dict[str, Figure]:
    """What torch reaches: a 1 GiB copy (bytes read and written), 8192^3 products."""
    a = torch.empty(_COPY_BYTES, dtype=torch.int8, device="cuda").random_(-9, 9)
    b = torch.empty_like(a)
    found = {"bandwidth": _figure(partial(b.copy_, a), 2 * _COPY_BYTES, "GB/s", "copy of 1 GiB")}
    del a, b
    x, y = (torch.randn(_SIDE, _SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    flops = 2 * _SIDE**3
    found["bf16"] = _figure(lambda: x @ y, flops, "GFLOP/s", f"torch bf16 matmul {_SIDE}^3")
    found["flops"] = found["bf16"]
    if torch.version.cuda and torch.cuda.get_device_capability() >= (8, 9):
        xq, yq = x.to(torch.float8_e4m3fn), y.to(torch.float8_e4m3fn).t()
        one = torch.ones((), device="cuda")
        found["fp8"] = found["flops"] = _figure(
            lambda: torch._scaled_mm(xq, yq, one, one, out_dtype=torch.bfloat16), flops, "GFLOP/s",
            f"torch._scaled_mm e4m3 {_SIDE}^3")
    return found


def _figure(fn: Callable[[], object], amount: int, unit: str, what: str) -> Figure:
    for _ in range(3):
        fn()
    us = median_us(fn, _REPEATS)
    return Figure(amount / us / 1e3, unit, f"measured {datetime.now(UTC):%Y-%m-%d}: {what}",
                  "measured")
