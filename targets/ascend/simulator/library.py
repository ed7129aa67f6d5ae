"""What the compiler's library functions compute, by name, in torch; products are in machine.py.

Modelled from their names, operands and the dialect's own documentation (HIVMVectorOps.td,
HIVMAttrs.td of Ascend/AscendNPU-IR); a function or a mode that is not modelled is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import transfers
from .memory import DTYPES, View
from .work import NotModelled, Value, Work, need

_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div,
    "max": torch.maximum, "min": torch.minimum}
_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs, "exp": torch.exp, "ln": torch.log, "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt, "rec": torch.reciprocal, "relu": torch.relu}
_BITWISE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "and": torch.bitwise_and, "or": torch.bitwise_or, "xor": torch.bitwise_xor}
_COMPARE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "eq": torch.eq, "ne": torch.ne, "lt": torch.lt, "gt": torch.gt, "ge": torch.ge, "le": torch.le}
_REDUCE: dict[str, Callable[[Tensor, int], Tensor]] = {
    "max": lambda x, dim: x.amax(dim, keepdim=True),
    "min": lambda x, dim: x.amin(dim, keepdim=True),
    "sum": lambda x, dim: x.sum(dim, keepdim=True)}
# RoundMode of HIVMAttrs.td; odd (5) is not modelled
_ROUND: dict[int, Callable[[Tensor], Tensor]] = {
    0: torch.round, 1: lambda x: torch.trunc(x + torch.copysign(torch.tensor(0.5), x)),
    2: torch.floor, 3: torch.ceil, 4: torch.trunc}
_TRUNC_WITH_OVERFLOW = 6


def work(name: str, args: Sequence[Value]) -> Work:
    """The meaning of a call; NotModelled when it has none here."""
    for pattern, meaning in _FUNCTIONS:
        if match := re.fullmatch(pattern, name):
            return meaning(match, args)
    raise NotModelled(f"the library function {name} is not modelled")


def _fill(pipe: str) -> Callable[[re.Match[str], Sequence[Value]], Work]:
    def meaning(m: re.Match[str], args: Sequence[Value]) -> Work:
        value, target = args
        return Work(pipe, (), target, lambda _: torch.full(target.sizes, value,
                                                           dtype=DTYPES[target.dtype]))
    return meaning


def _repeat(m: re.Match[str], args: Sequence[Value]) -> Work:
    source, target, *scratch = args
    return Work("V", (source,), target, lambda x: x[0].expand(target.sizes), tuple(scratch))


def _arange(m: re.Match[str], args: Sequence[Value]) -> Work:
    target, first, step = args
    return Work("V", (), target, lambda _: first + step * torch.arange(target.sizes[0]))


def _binary(m: re.Match[str], args: Sequence[Value]) -> Work:
    a, b, target, scratch = args
    return Work("V", (a, b), target, lambda x: _BINARY[m["op"]](x[0], x[1]), (scratch,))


def _with_scalar(m: re.Match[str], args: Sequence[Value]) -> Work:
    first, second, target, scratch = args
    view, scalar = (second, first) if m["order"] == "sv" else (first, second)

    def compute(x: list[Tensor]) -> Tensor:
        constant = torch.tensor(scalar, dtype=x[0].dtype)
        operands = (constant, x[0]) if m["order"] == "sv" else (x[0], constant)
        return _BINARY[m["op"]](*operands)

    return Work("V", (view,), target, compute, (scratch,))


def _unary(m: re.Match[str], args: Sequence[Value]) -> Work:
    source, target, scratch = args
    return Work("V", (source,), target, lambda x: _UNARY[m["op"]](x[0]), (scratch,))


def _not(m: re.Match[str], args: Sequence[Value]) -> Work:
    source, target, scratch = args
    return Work("V", (source,), target, lambda x: ~x[0], (scratch,))


def _bitwise(m: re.Match[str], args: Sequence[Value]) -> Work:
    a, b, target, *scratch = args
    return Work("V", (a, b), target, lambda x: _BITWISE[m["op"]](x[0], x[1]), tuple(scratch))


def _shift(m: re.Match[str], args: Sequence[Value]) -> Work:
    source, count, target = args
    return Work("V", (source,), target,
                lambda x: x[0] << count if m["way"] == "l" else x[0] >> count)


def _transpose(m: re.Match[str], args: Sequence[Value]) -> Work:
    source, target, *scratch = args
    return Work("V", (source,), target, lambda x: x[0].T, tuple(scratch))


def _compare(m: re.Match[str], args: Sequence[Value]) -> Work:
    a, b, target = args
    if isinstance(b, View):
        return Work("V", (a, b), target, lambda x: _COMPARE[m["op"]](x[0], x[1]))
    return Work("V", (a,), target,
                lambda x: _COMPARE[m["op"]](x[0], torch.tensor(b, dtype=x[0].dtype)))


def _select(m: re.Match[str], args: Sequence[Value]) -> Work:
    mask, a, b, target, scratch = args
    views = tuple(x for x in (a, b) if isinstance(x, View))
    dtype = DTYPES[target.dtype]

    def compute(x: list[Tensor]) -> Tensor:
        given = iter(x[1:])
        yes, no = (next(given) if isinstance(v, View) else torch.tensor(v, dtype=dtype)
                   for v in (a, b))
        return torch.where(x[0], yes, no)

    return Work("V", (mask, *views), target, compute, (scratch,))


def _cast(m: re.Match[str], args: Sequence[Value]) -> Work:
    source, target, *scratch, mode = args
    to = DTYPES[target.dtype]

    def compute(x: list[Tensor]) -> Tensor:
        if x[0].dtype.is_floating_point and not to.is_floating_point:
            need(mode in _ROUND, f"{m[0]} with round mode {mode}")
            return _ROUND[mode](x[0].float()).to(to)
        if x[0].dtype == to and to.is_floating_point:        # to whole numbers
            need(mode in _ROUND, f"{m[0]} with round mode {mode}")
            return _ROUND[mode](x[0])
        narrowing = x[0].dtype.itemsize > to.itemsize
        need(not narrowing or mode == (0 if to.is_floating_point else _TRUNC_WITH_OVERFLOW),
              f"{m[0]} with round mode {mode}")
        return x[0].to(to)

    return Work("V", (source,), target, compute, tuple(scratch))


def _every_nth(m: re.Match[str], args: Sequence[Value]) -> Work:
    source, target = args
    step = max(source.sizes[-1] // max(target.sizes[-1], 1), 1)
    return Work("V", (source,), target, lambda x: x[0][..., ::step])


def _reduce(m: re.Match[str], args: Sequence[Value]) -> Work:
    """Overwrites the target: an initial value other than the neutral one is not relied on."""
    source, target, scratch, _neutral = args
    dim = 0 if m["axes"] == "ra" else -1
    return Work("V", (source,), target,
                lambda x: _REDUCE[m["op"]](x[0], dim).view(target.sizes), (scratch,))


_TYPE = r"(?:half|float|bfloat16_t|u?int\d+_t|bool|float8_e\dm\d_t)"
_FUNCTIONS: tuple[tuple[str, Callable[[re.Match[str], Sequence[Value]], Work]], ...] = (
    (rf"nd2nz_{_TYPE}", transfers.nd2nz),
    (rf"set_l1_2d_{_TYPE}", _fill("MTE2")),
    (rf"fixpipe_nz2nd_{_TYPE}_to_{_TYPE}_4d_to_2d(?:_gm)?", transfers.fixpipe),
    (rf"load_gm_to_ubuf_\dd_{_TYPE}", transfers.load),
    (rf"store_ubuf_to_gm_\dd_{_TYPE}", transfers.store),
    (rf"copy_ubuf_to_ubuf_\dd_{_TYPE}", transfers.copy),
    (rf"broadcast_scalar_{_TYPE}_to_\dd", _fill("V")),
    (rf"broadcast_(?:(?:first|last)_axis(?:_align|_unalign)?_)?\dd_{_TYPE}", _repeat),
    (rf"arange_1d_{_TYPE}", _arange),
    (rf"v(?P<op>add|sub|mul|div|max|min)_\dd_{_TYPE}", _binary),
    (rf"v(?P<op>add|sub|mul|div|max|min)s?_(?P<order>vs|sv)_\dd_{_TYPE}", _with_scalar),
    (rf"v(?P<op>abs|exp|ln|sqrt|rsqrt|rec|relu)_\dd_{_TYPE}", _unary),
    (rf"vnot_\dd_{_TYPE}", _not),
    (rf"v(?P<op>and|or|xor)_\dd_{_TYPE}", _bitwise),
    (r"vsh(?P<way>l|r)s_vs_\dd_int\d+_t", _shift),      # to the right with the sign
    (rf"transpose_2d_with_last_axis_{_TYPE}", _transpose),
    (rf"vcmps?_(?P<op>eq|ne|lt|gt|ge|le)_\dd_{_TYPE}", _compare),
    (rf"vsel_[sv][sv]_\dd_(?:bool_)?{_TYPE}", _select),
    (rf"vcast_{_TYPE}_to_{_TYPE}_\dd_with_(?:mode|overflow|temp)", _cast),
    (rf"deinterleave_channel_0_from_n_channels_\dd_{_TYPE}", _every_nth),
    (rf"(?:enablevcg?_)?reduce_(?P<op>max|min|sum)_(?P<axes>ar|ra|r)_{_TYPE}", _reduce),
)
