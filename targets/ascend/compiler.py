"""The compile driver: block-level MLIR through bishengir-compile, up to what CANN's hivmc reads.

The compiler comes from the PyPI package ascendnpu-ir. It always ends with status 1 here because
hivmc is no part of that package; module.hivm.opt.mlir, written just before, is the success.
"""

from __future__ import annotations

import os
import re
import signal
import tempfile
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from .artifact import Artifact, Refused, parse
from .devices import Device, Family
from .process import HERE, Run, run_program, run_unseeing

PACKAGE = "ascendnpu-ir"
# The form that triton-ascend's adapter hands over; the last one doubles what flows through UB, L1.
BASE_FLAGS: Mapping[str, str] = {
    "enable-hfusion-compile": "true", "enable-hivm-compile": "true",
    "enable-triton-kernel-compile": "true", "enable-auto-multi-buffer": "true"}
_TIMEOUT_S = 60.0                    # MLA decode takes 2 s on a busy core
_OVERFLOW = re.compile(r"error: (\w+) overflow, requires (\d+) bits while (\d+) bits available")
_FALLBACK = re.compile(r"^\[NOTE\] Due to (.*)$", re.M)
_SWITCHED = re.compile(r"set ([\w-]+) to (\w+)")
_ERROR = re.compile(r"(?:LLVM ERROR|error): (.*)")
_STACK = re.compile(r"\s*#?\d+\.?\s|Stack dump|PLEASE submit|\[(?:ERROR|WARNING)\].*hivmc")
_NO_MEMORY = ("bad_alloc", "out of memory", "cannot allocate memory", "cannot map",
              "failed to map", "resource temporarily unavailable")
# The second is a compiler of its own; the first would start it for a 950, and hide how it ended.
_COMPILERS: Mapping[Family, str] = {"c220": "bishengir-compile", "c310": "bishengir-compile-a5"}
_START_GB = 0.2                      # measured: it starts from 0.11 on, and dies mute below
_EXPECTED = ("External hivmc run fails", "Failed to run BiShengHIR pipeline")


@cache
def tool_path(tool: str) -> Path | None:
    """Where a program of the compiler package stands, or None when it is not installed."""
    spec = find_spec("ascendnpuir")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "bin" / tool
    return path if path.is_file() else None


def compiler_version() -> str:
    """The version of the compiler package, or "absent"."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return "absent"


def unusable() -> str | None:
    """None, or why the compiler cannot run here and what to do about it."""
    for tool in (*_COMPILERS.values(), "bishengir-opt"):
        path = tool_path(tool)
        if path is None:
            return f"{tool} is not installed; run: pip install 'expertile[ascend]'"
        if not os.access(path, os.X_OK):
            return f"{path} is not executable; run: chmod +x {path}"
    return None


def run_tool(tool: str, arguments: list[str], timeout_s: float, memory_gb: float,
             folder: Path | None = None) -> Run:
    """Run a program of the package; it finds no other than the package's.

    With a `folder` it knows that one as HERE and no other: what it writes then depends on nothing
    but its input.
    """
    path = tool_path(tool)
    assert path is not None, "ask unusable() first"
    if folder is None:
        return run_program(path, arguments, timeout_s, memory_gb, (path.parent,))
    return run_unseeing(path, arguments, timeout_s, memory_gb, folder)


def compile_module(module: str, device: Device, flags: Mapping[str, str] | None = None,
                   fallback: bool = True, timeout_s: float = _TIMEOUT_S,
                   memory_gb: float = 8.0) -> Artifact | Refused:
    """Compile block-level MLIR text for a device; every failure is a `Refused`, never an exception.

    `flags` are bishengir-compile's own, without the dashes, on top of BASE_FLAGS. When a space
    overflows the compiler tries again with code motion and then multi-buffering off: the artifact
    then has the flags that were in effect, or with `fallback=False` it is refused.
    """
    if why := unusable():
        return Refused(why, "build_error")
    wanted = {**BASE_FLAGS, **(flags or {})}
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "kernel.mlir").write_text(module)
        run = run_tool(_COMPILERS[device.family], [
            f"--target={device.name}",
            *(f"--{name}={value}" for name, value in sorted(wanted.items())),
            "--mlir-disable-threading",            # same text, no slower, and no pool of threads
            f"--save-temps={HERE}", f"{HERE}/kernel.mlir", "-o", f"{HERE}/kernel.o"],
            timeout_s, memory_gb, Path(scratch))
        built = Path(scratch) / "module.hivm.opt.mlir"
        text = built.read_text() if built.is_file() else ""
    if run.status is None or run.status < 0 or not text:
        return refusal(run, timeout_s, memory_gb)
    fallbacks = tuple(_FALLBACK.findall(run.output))
    if fallbacks and not fallback:
        return Refused(f"compiled only after a fallback: {'; '.join(fallbacks)}", "illegal")
    effective = {**wanted, **{k: v for note in fallbacks for k, v in _SWITCHED.findall(note)}}
    try:
        return parse(text, device.name, effective, fallbacks, compiler_version())
    except (ValueError, KeyError) as e:
        return Refused(f"the compiler's module could not be read: {e}", "build_error")


def refusal(run: Run, timeout_s: float, memory_gb: float) -> Refused:
    """Name the reason of a compile that left no module."""
    if run.status is None:
        return Refused(f"the compiler ran longer than {timeout_s:g} s and was killed", "timeout")
    if overflows := _OVERFLOW.findall(run.output):   # of several tries the last asks the least
        space, need, have = overflows[-1]
        said = {"cc": "L0C", "cbuf": "L1"}.get(space, space)
        return Refused(f"{said} overflow: needs {need} of {have} bits", "illegal", space,
                       int(need), int(have))
    if any(sign in run.output.lower() for sign in _NO_MEMORY):
        return Refused("the compiler ran out of its memory limit", "oom")
    errors = [e for e in _ERROR.findall(run.output) if not e.startswith(_EXPECTED)]
    said = [line for line in run.output.strip().splitlines() if not _STACK.match(line)]
    how = errors[0] if errors else " | ".join(said[-2:]) or "no output"
    if run.status < 0 and not said and memory_gb < _START_GB:
        return Refused("the memory limit does not let the compiler start", "oom")
    if run.status < 0:
        return Refused(f"the compiler died ({signal.Signals(-run.status).name}): {how}",
                       "build_error")
    return Refused(f"the compiler refused: {how}", "build_error")
