"""Outputs with guard bytes around them: a kernel that writes past its output is caught."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.spec import Outputs

GUARD_BYTES = 8192                   # on either side; a multiple of every alignment that is asked
_PATTERN = 0xA5                      # as float32 -2.9e-16, as float8_e4m3fn -0.20: no kernel's zero


class Guarded:
    """Fresh outputs like the given ones: shapes, strides and all, between guards."""

    def __init__(self, like: Outputs):
        self._raw: list[Tensor] = []
        self.outputs: Outputs = tuple(self._guarded(t) for t in like)

    def _guarded(self, like: Tensor) -> Tensor:
        size = like.untyped_storage().nbytes()
        size += -size % like.element_size()
        raw = torch.full((size + 2 * GUARD_BYTES,), _PATTERN, dtype=torch.uint8,
                         device=like.device)
        self._raw.append(raw)
        first = like.storage_offset() + GUARD_BYTES // like.element_size()
        return torch.empty(0, dtype=like.dtype, device=like.device).set_(
            raw.untyped_storage(), first, like.shape, like.stride())

    def why_broken(self) -> str | None:
        """Which output was overrun, and by how much at least; None when none was."""
        for place, raw in enumerate(self._raw):
            before = (raw[:GUARD_BYTES] != _PATTERN).nonzero()
            after = (raw[-GUARD_BYTES:] != _PATTERN).nonzero()
            if len(before):
                return (f"wrote {GUARD_BYTES - int(before[0])} bytes or more before the start of "
                        f"output {place}")
            if len(after):
                return f"wrote {int(after[-1]) + 1} bytes or more past the end of output {place}"
        return None
