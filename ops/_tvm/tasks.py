"""A kernel's loops: over tasks, with IR functions known and frames aligned; over columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from . import stack


def _importing(functions: str, lanes: int) -> Any:
    return T.attr(T.int32(0), "pragma_import_llvm", f"{functions}\n{stack.functions(lanes)}")


def each_task(count: Any, lanes: int, functions: str, body: Callable[..., None], *args: Any
              ) -> None:
    """body(*args, task) for each of so many tasks, in parallel."""
    with _importing(functions, lanes), T.parallel(count) as task:
        stack.align()
        body(*args, task)


def each_row(count: Any, rows: int, serial: int, lanes: int, functions: str,
             body: Callable[..., None], *args: Any, after: Callable[[], None] | None = None
             ) -> None:
    """body(*args, row) for each row: `rows` of them a task, or on one thread for `serial` and less.

    Waking threads costs more than few rows do. `after` follows a task's last row.
    """
    with _importing(functions, lanes), T.If(count <= serial):
        with T.Then():
            stack.align()
            with T.serial(count) as row:
                body(*args, row)
        with T.Else(), T.parallel((count + (rows - 1)) // rows) as task:
            stack.align()
            with T.serial(T.min(rows, count - task * rows)) as i:
                body(*args, task * rows + i)
            if after:
                after()


def each_vector(width: int, lanes: int, body: Callable[..., None], *args: Any) -> None:
    """body(*args, column, w) for runs of columns: `lanes` at once, then 8, then single ones.

    So a width that is no multiple of a vector's is not scalar code.
    """
    for first, count, w in ((0, width, lanes), (width // lanes * lanes, width % lanes, 8),
                            (width // 8 * 8, width % 8, 1)):
        if count // w:
            with T.serial(count // w) as i:
                body(*args, first + i * w, w)
