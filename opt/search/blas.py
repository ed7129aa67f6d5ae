"""One thread for numpy's and scipy's BLAS while a model of a few hundred points is fitted.

OpenBLAS starts as many threads as there are cores and lets them spin: on a busy machine with 2
cores 1,000 proposals then took 41 s of CPU time instead of 5. numpy has no switch for it.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

_NAMES = tuple((f"{prefix}openblas_get_num_threads{suffix}",
                f"{prefix}openblas_set_num_threads{suffix}")
               for prefix in ("scipy_", "") for suffix in ("64_", ""))


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, OpenBLAS uses the calling thread only; no change where it cannot be told to."""
    before = [(put, get()) for get, put in _switches()]
    for put, _ in before:
        put(1)
    try:
        yield
    finally:
        for put, threads in before:
            put(threads)


@cache
def _switches() -> tuple[tuple[Any, Any], ...]:
    """Getter and setter of each OpenBLAS that this process has loaded (Linux)."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return ()
    found = []
    for path in sorted(set(re.findall(r"/\S*openblas\S*\.so\S*", maps.read_text()))):
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        for get, put in _NAMES:
            if hasattr(library, get) and hasattr(library, put):
                found.append((getattr(library, get), getattr(library, put)))
                break
    return tuple(found)
