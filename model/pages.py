"""Weights in large pages on CPUs: reading them runs 1.1 to 1.3 times as fast (docs/facts.md)."""

from __future__ import annotations

import math
import mmap
from contextlib import suppress

import torch
from torch import Tensor

_LEAST = 4 << 20                     # bytes: two large pages


def zeros(*shape: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None
          ) -> Tensor:
    """Zeros, in large pages where they are big, on a CPU, and Linux may be asked for them.

    Pages are zero until they are written: nothing is touched here.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    on_cpu = device is None or device.type == "cpu"
    if not on_cpu or nbytes < _LEAST or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(*shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, nbytes)
    with suppress(OSError):          # a kernel built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8).view(dtype).view(shape)
