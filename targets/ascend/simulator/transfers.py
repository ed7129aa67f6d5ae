"""The library functions that move data: GM, L1, L0C and UB."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from .memory import DTYPES
from .work import Value, Work, need, tiled, untiled

_BLOCK = 32                          # bytes that the vector unit and its loads work in


def nd2nz(m: re.Match[str], args: Sequence[Value]) -> Work:
    """GM rows into L1 fractals; a fractal's rows past the source are left alone, columns get 0."""
    source, target = args
    rows = source.sizes[0]
    if target.sizes[1] == 1:         # rows of one fractal: no other is touched, whatever its size
        columns, _, r, c = target.sizes
        target = target.shaped(target.offset, (columns, 1, min(rows, r), c), target.strides)

    def compute(x: list[Tensor]) -> Tensor:
        whole = untiled(target.read())
        whole[:rows] = 0
        whole[:rows, :x[0].shape[1]] = x[0]
        return tiled(whole, target)

    return Work("MTE2", (source,), target, compute)


def fixpipe(m: re.Match[str], args: Sequence[Value]) -> Work:
    """L0C fractals to GM rows, cast on the way."""
    source, target, _quant, *scale, relu, channel_split, unit_flag = args
    need(not (relu or channel_split or unit_flag), "fixpipe with relu, split or unit flag")
    need(scale in ([], [1.0]), f"fixpipe with a scale of {scale}")       # 950
    rows, columns = target.sizes
    return Work("FIX", (source,), target, lambda x: untiled(x[0])[:rows, :columns])


def load(m: re.Match[str], args: Sequence[Value]) -> Work:
    """GM to UB: `left` pad values before each row, and more behind it up to a whole block.

    As in Template/lib/DMA/Ubuf of Ascend/AscendNPU-IR: rows that cannot be block-aligned are copied
    one element after the other, without what comes behind; the pad value is 0 in mode 0.
    """
    source, target, pad_mode, value, left, *_ = args         # 950: then a hint to the cache
    need(pad_mode in (0, 2), f"load_gm_to_ubuf with pad mode {pad_mode}")
    if prod(source.sizes) == 0:
        return Work("MTE2", (source,), target, lambda x: x[0])
    width = DTYPES[target.dtype].itemsize
    sizes, strides = target.sizes, target.strides
    if strides[-1] != 1 and sizes[-1] != 1:      # every element is a row of its own
        need(left == 0, "load_gm_to_ubuf with padding between elements")
        sizes, strides = (*sizes, 1), (*strides, 1)
    right = _behind(target.start + target.offset * width, sizes, strides, width, left)
    wide = (*sizes[:-1], left + sizes[-1] + right)
    need(all(n == 1 or s >= wide[-1] for n, s in zip(wide, strides[:-1], strict=False)),
         "a row's padding that reaches into the next row")
    return Work("MTE2", (source,), target.shaped(target.offset - left, wide, (*strides[:-1], 1)),
                lambda x: torch.nn.functional.pad(x[0].reshape(sizes), (left, right),
                                                  value=value if pad_mode else 0))


def _behind(address: int, sizes: Sequence[int], strides: Sequence[int], width: int, left: int
            ) -> int:
    """Elements that a load writes behind each row."""
    aligned = all(n == 1 or s == 1 or s * width % _BLOCK == 0
                  for n, s in zip(sizes, strides, strict=True))
    head = -(address - left * width) % _BLOCK // width       # these go one by one
    if not aligned or (head and head >= left + sizes[-1]):
        return 0
    return -(address + sizes[-1] * width) % _BLOCK // width


def store(m: re.Match[str], args: Sequence[Value]) -> Work:
    """UB to GM."""
    source, target, atomic = args
    need(atomic == 0, "store_ubuf_to_gm that adds to memory")
    return Work("MTE3", (source,), target, lambda x: x[0])


def copy(m: re.Match[str], args: Sequence[Value]) -> Work:
    """UB to UB, by the vector unit."""
    source, target, *padding = args  # none on the 950
    need(not padding or padding[0] == 0, "copy_ubuf_to_ubuf with padding")
    return Work("V", (source,), target, lambda x: x[0])
