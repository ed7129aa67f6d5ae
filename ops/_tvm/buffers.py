"""Parameters of compiled functions."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from ..numerics import as_dtype


def buffer(handle: Any, shape: tuple[Any, ...], dtype: str) -> Any:
    """A tensor argument of any alignment: TVM takes 64 bytes for granted and faults on a view."""
    return T.match_buffer(handle, shape, dtype, align=as_dtype(dtype).itemsize)


def view(tensor: Any, shape: tuple[Any, ...], dtype: str) -> Any:
    """The memory of a parameter as another element type, which costs the caller nothing."""
    return T.decl_buffer(shape, dtype, data=tensor.data, align=as_dtype(dtype).itemsize)
