"""Memory of a core by the byte: what stands there, who wrote it, and who may still be using it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .clocks import Clock, Fault

DTYPES = {"i8": torch.int8, "i16": torch.int16, "i32": torch.int32, "i64": torch.int64,
          "f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32,
          "f8E4M3FN": torch.float8_e4m3fn, "f8E5M2": torch.float8_e5m2}
_NOBODY = -1


def poison_of(dtype: torch.dtype) -> float:
    """A value that shows wherever it arrives."""
    if dtype.is_floating_point:
        return float("nan")
    return torch.iinfo(dtype).min + 1


class Space:
    """An on-chip memory, or one array in global memory, with a history for each byte."""

    def __init__(self, name: str, data: Tensor, threads: int, align: int = 1,
                 on_chip: bool = True):
        self.name, self.data, self.align, self.on_chip = name, data, align, on_chip
        size = data.numel()
        self.owner = np.full(size, _NOBODY, np.int32)        # the buffer it was written through
        self._writer = np.zeros(size, np.int16)
        self._written = np.zeros(size, np.int32)             # 0: before everything
        self._also: tuple[NDArray[np.int16], NDArray[np.int32]] | None = None
        self._read = np.zeros((threads, size), np.int32)
        self._read_by = np.zeros(threads, bool)

    def check_read(self, span: slice | NDArray[np.int64], began: Clock) -> None:
        """Every write to these bytes has ended when the reader begins."""
        if any(late.any() for late in self._late(span, began)):
            raise Fault(f"{self.name}: bytes are read while a write to them may be going on")

    def _late(self, span: slice | NDArray[np.int64], began: Clock
              ) -> list[NDArray[np.bool_]]:
        pairs = [(self._writer, self._written)] + ([self._also] if self._also else [])
        return [written[span] > began[writer[span]] for writer, written in pairs]

    def check_write(self, span: slice | NDArray[np.int64], began: Clock,
                    changes: Callable[[], bool] = lambda: True) -> None:
        """Every read of and write to these bytes has ended when the writer begins.

        Both vector cores may write the same bytes to global memory: the compiler lets both decode
        what neither splits. A reader must then come after both.
        """
        last, *before = self._late(span, began)
        if last.any():
            if self.on_chip or changes() or any(late.any() for late in before):
                raise Fault(f"{self.name}: bytes are written while another write may be going on")
            if self._also is None:
                self._also = np.zeros_like(self._writer), np.zeros_like(self._written)
            self._also[0][span], self._also[1][span] = self._writer[span], self._written[span]
        elif any(late.any() for late in before):
            raise Fault(f"{self.name}: bytes are written while another write may be going on")
        for thread in np.flatnonzero(self._read_by):
            if (self._read[thread][span] > began[thread]).any():
                raise Fault(f"{self.name}: bytes are written while a read of them may be going on")

    def note_read(self, span: slice | NDArray[np.int64], thread: int, number: int) -> None:
        """Remember that an operation reads these bytes."""
        self._read_by[thread] = True
        self._read[thread][span] = number

    def note_write(self, span: slice | NDArray[np.int64], thread: int, number: int,
                   owner: int) -> None:
        """Remember that an operation writes these bytes."""
        self._writer[span], self._written[span], self.owner[span] = thread, number, owner


@dataclass(frozen=True)
class View:
    """A memref: elements of a space. An i1 is one bit, and stands packed."""

    space: Space
    start: int                       # byte where the buffer begins
    dtype: str
    offset: int                      # elements from there
    sizes: tuple[int, ...]
    strides: tuple[int, ...]         # elements
    owner: int = _NOBODY             # the pointer_cast that it comes from

    def shaped(self, offset: int, sizes: tuple[int, ...], strides: tuple[int, ...]) -> View:
        """Other elements of the same buffer."""
        return replace(self, offset=offset, sizes=sizes, strides=strides)

    def _contiguous(self) -> bool:
        step = 1
        for size, stride in zip(reversed(self.sizes), reversed(self.strides), strict=True):
            if size != 1 and stride != step:
                return False
            step *= size
        return True

    def span(self) -> slice | NDArray[np.int64]:
        """The bytes of the elements; a Fault when they leave the space."""
        count = prod(self.sizes)
        if not count:
            return slice(0, 0)
        width = 1 if self.dtype == "i1" else DTYPES[self.dtype].itemsize
        last = self.offset + sum((s - 1) * t for s, t in zip(self.sizes, self.strides,
                                                             strict=True))
        if self.dtype == "i1":
            first, end = self.start + self.offset // 8, self.start + (last + 8) // 8
        else:
            first, end = self.start + self.offset * width, self.start + (last + 1) * width
        if first < 0 or end > self.space.data.numel():
            raise Fault(f"{self.space.name}: bytes {first} to {end} are used of "
                        f"{self.space.data.numel()}")
        if self.start % max(self.space.align, width):
            raise Fault(f"{self.space.name}: a buffer at {self.start} must be aligned to "
                        f"{max(self.space.align, width)} bytes")
        if self.dtype == "i1" and (self.offset % 8 or not self._contiguous()):
            return self._mask_bytes().reshape(-1)
        if self._contiguous():
            return slice(first, end)
        at = np.zeros((), np.int64)
        for size, stride in zip(self.sizes, self.strides, strict=True):
            at = at[..., None] + np.arange(size) * stride
        return ((self.start + (at.reshape(-1, 1) + self.offset) * width)
                + np.arange(width)).reshape(-1)

    def _mask_row(self) -> tuple[int, int]:
        """Bits that stand side by side, and the bytes that they take."""
        bits = prod(self.sizes) if self._contiguous() else self.sizes[-1]
        return max(bits, 1), -(-max(bits, 1) // 8)

    def _mask_bytes(self) -> NDArray[np.int64]:
        """[rows, bytes] of a mask whose rows stand apart."""
        if self.sizes and self.sizes[-1] != 1 and self.strides[-1] != 1:
            raise Fault(f"{self.space.name}: the bits of a mask must stand side by side")
        at = np.full((), self.offset, np.int64)
        for size, stride in zip(self.sizes[:-1], self.strides[:-1], strict=True):
            at = at[..., None] + np.arange(size) * stride
        if (at % 8).any():
            raise Fault(f"{self.space.name}: a mask must begin on a whole byte")
        found: NDArray[np.int64] = (self.start + at.reshape(-1, 1) // 8
                                    + np.arange(self._mask_row()[1]))
        return found

    def read(self) -> Tensor:
        """The elements in the order of the view; masks as bool.

        On chip, what was not written through the same buffer counts as poison: another buffer's
        data, or nothing at all, which is no fault as long as it reaches no result.
        """
        span = self.span()
        if self.dtype == "i1":
            held = self.space.data.numpy()[span].reshape(-1, self._mask_row()[1])
            bits = np.unpackbits(held, axis=-1, bitorder="little")[:, :self._mask_row()[0]]
            return torch.from_numpy(bits.astype(bool)).reshape(self.sizes)
        value = self._elements().clone()
        if self.space.on_chip:
            foreign = self.space.owner[span] != self.owner
            if foreign.any():
                mask = torch.from_numpy(foreign.reshape(-1, value.element_size()).any(1))
                value[mask.view(self.sizes)] = poison_of(value.dtype)
        return value

    def write(self, value: Tensor) -> None:
        """Put a tensor's elements there."""
        span = self.span()
        if self.dtype == "i1":
            rows = value.numpy().reshape(-1, self._mask_row()[0])
            packed = np.packbits(rows, axis=-1, bitorder="little")
            self.space.data.numpy()[span] = packed.reshape(-1)
            return
        self._elements().copy_(value.to(DTYPES[self.dtype]))

    def would_change(self, value: Tensor) -> bool:
        """Whether writing these elements would leave other bits."""
        new = value.to(DTYPES[self.dtype]).contiguous().view(torch.uint8)
        return not torch.equal(self._elements().contiguous().view(torch.uint8), new)

    def _elements(self) -> Tensor:
        dtype = DTYPES[self.dtype]
        whole = self.space.data[:self.space.data.numel() // dtype.itemsize * dtype.itemsize]
        return whole.view(dtype).as_strided(self.sizes, self.strides,
                                            self.start // dtype.itemsize + self.offset)
