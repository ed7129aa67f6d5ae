"""Linking kernels for a machine of another kind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from shutil import which
from typing import Any

from .levels import Level

# What GNU ld calls the machines' formats.
_EMULATIONS = {"aarch64": "aarch64linux", "x86_64": "elf_x86_64"}


def cross_linker(level: Level) -> list[str] | None:
    """A command that links shared objects of that kind: Debian's gcc, or an lld, or zig's."""
    gcc = which(f"{level.triple}-gcc")
    if gcc:
        return [gcc]
    if which("ld.lld"):
        return ["ld.lld", "-m", _EMULATIONS[level.machine]]
    if find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "ld.lld", "-m", _EMULATIONS[level.machine]]
    return None


def linker(level: Level) -> Callable[..., None] | None:
    """How TVM links a kernel of a level; None: as it does on its own, for this machine."""
    if level.is_ours:
        return None
    command = cross_linker(level)
    if command is None:
        raise ValueError(f"nothing here links {level.machine} code; install a linker: apt-get "
                         f"install gcc-{level.triple.replace('_', '-')}, or pip install ziglang")
    return _Link(command)


class _Link:
    """TVM's `fcompile`: kernels need nothing but what the loading process brings."""

    output_format = "so"

    def __init__(self, command: Sequence[str]):
        self._command = command

    def __call__(self, output: str, objects: Sequence[str], **options: Any) -> None:
        done = subprocess.run([*self._command, "-shared", "-o", output, *objects],
                              capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"{self._command[0]} failed on {output}: {done.stderr[-2000:]}")
