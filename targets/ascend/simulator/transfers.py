"""The library functions that move data: GM, L1, L0C and UB."""

from __future__ import annotations

import re
from collections.abc import Sequence

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
    source, target, _quant, relu, channel_split, unit_flag = args
    need(not (relu or channel_split or unit_flag), "fixpipe with relu, split or unit flag")
    rows, columns = target.sizes
    return Work("FIX", (source,), target, lambda x: untiled(x[0])[:rows, :columns])


def load(m: re.Match[str], args: Sequence[Value]) -> Work:
    """GM to UB; with PadValue (2) the last 32 bytes of a row are filled up."""
    source, target, pad_mode, value, left = args
    need(pad_mode in (0, 2) and left == 0, f"load_gm_to_ubuf with pad mode {pad_mode}, {left}")
    width = DTYPES[target.dtype].itemsize
    fill = -target.sizes[-1] * width % _BLOCK // width if pad_mode == 2 else 0
    wide = (*target.sizes[:-1], target.sizes[-1] + fill)
    need(not fill or all(s >= wide[-1] for s in target.strides[:-1]), "a row's padding that "
          "reaches into the next row")
    return Work("MTE2", (source,), target.shaped(target.offset, wide, target.strides),
                lambda x: torch.nn.functional.pad(x[0], (0, fill), value=value))


def store(m: re.Match[str], args: Sequence[Value]) -> Work:
    """UB to GM."""
    source, target, atomic = args
    need(atomic == 0, "store_ubuf_to_gm that adds to memory")
    return Work("MTE3", (source,), target, lambda x: x[0])


def copy(m: re.Match[str], args: Sequence[Value]) -> Work:
    """UB to UB, by the vector unit."""
    source, target, pad_mode, *_ = args
    need(pad_mode == 0, "copy_ubuf_to_ubuf with padding")
    return Work("V", (source,), target, lambda x: x[0])
