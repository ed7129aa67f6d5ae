"""Where Triton keeps what it compiles, for a process that must not use the user's own place."""

from __future__ import annotations

from pathlib import Path


def use(folder: Path) -> None:
    """Let Triton read and write compiled kernels below `folder`, from here on.

    The setting is Triton's own (triton.knobs.cache.dir) and holds for the whole process, so only
    processes of one target do this: compiling and measuring children.
    """
    import triton

    if triton.knobs.cache.dir != str(folder):
        triton.knobs.cache.dir = str(folder)
