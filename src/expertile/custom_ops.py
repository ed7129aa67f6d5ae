"""Operators as torch custom ops, so that torch.compile, export and opcheck see them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import ops
from .ops.spec import Args, Operator
from .runtime import run, runtime_for

_PLAIN = (Tensor, torch.nn.Parameter)


def is_plain(args: Args) -> bool:
    """Whether a call needs nothing of torch's dispatcher: no tracing, no subclass, no gradient.

    Such a call goes straight to our runtime, for the dispatcher costs more than a small kernel
    (docs/facts.md).
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    tensors = [a for a in args if isinstance(a, Tensor)]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return False
    return all(type(t) in _PLAIN for t in tensors)


def _public(eager: Callable[..., Any], traced: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        return eager(*args) if is_plain(args) else traced(*args)

    return call


def custom_op(name: str, schema: str) -> Callable[..., Any]:
    """A functional custom op `expertile::<name>` over the operator of that name.

    The schema's arguments are the operator's canonical arguments; its returns are its outputs.
    """
    def eager(*args: Any) -> Any:
        return _returned(run(ops.load(name), args))

    def fake(*args: Any) -> Any:
        return _returned(ops.load(name).empty(*args))

    made = torch.library.custom_op(f"expertile::{name}", eager, mutates_args=(), schema=schema)
    made.register_fake(fake)
    return _public(eager, made)


def custom_op_out(name: str, schema: str) -> Callable[..., Any]:
    """The same operator writing into a given `out`, the last argument of the schema."""
    def eager(*args: Any) -> None:
        *inputs, out = args
        runtime_for(tuple(inputs))(ops.load(name), tuple(inputs), (out,))

    made = torch.library.custom_op(f"expertile::{name}_out", eager, mutates_args=("out",),
                                   schema=schema)
    made.register_fake(lambda *args: None)
    return _public(eager, made)


def custom_op_in_place(name: str, schema: str, mutates: tuple[str, ...]) -> Callable[..., Any]:
    """An operator without outputs that writes into some of its arguments."""
    def eager(*args: Any) -> None:
        runtime_for(args)(ops.load(name), args, ())

    made = torch.library.custom_op(f"expertile::{name}", eager, mutates_args=mutates,
                                   schema=schema)
    made.register_fake(lambda *args: None)
    return _public(eager, made)


def _returned(out: tuple[Tensor, ...]) -> Any:
    return out[0] if len(out) == 1 else out


def check_out(op: Operator, args: Args, out: Tensor) -> None:
    """Check a call, and that its `out` is what the operator would have made."""
    op.shape_of(*args)
    device = next(a.device for a in args if isinstance(a, Tensor))
    like, = op.empty(*(a.to("meta") if isinstance(a, Tensor) else a for a in args))
    if (out.shape, out.dtype, out.device) != (like.shape, like.dtype, device):
        raise ValueError(f"out must be {like.dtype}{list(like.shape)} on {device}, got "
                         f"{out.dtype}{list(out.shape)} on {out.device}")
    if not out.is_contiguous():
        raise ValueError(f"out must be contiguous, got strides {out.stride()}")
