"""What a maker's installed Triton and torch say of themselves: asked in their own interpreter."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from ..base import Fp8
from ..child import Child, ChildCrashed, ChildFailed, ChildTimeout

_PACKAGE_FOLDER = str(Path(__file__).absolute().parents[3])      # what must be importable there
_WARPS = (1, 2, 4, 8, 16, 32)


class StackError(Exception):
    """The stack cannot be used; the message says what is missing."""


@dataclass(frozen=True)
class Stack:
    """A stack that answered; plain JSON throughout."""

    triton: str
    torch: str
    backend: str
    arch: str
    warp_size: int
    shared_bytes: int                # that one program may have
    cores: int                       # 0: the driver does not say
    fp8: Fp8
    options: Mapping[str, Any]       # launch options and their defaults
    num_warps: tuple[int, ...]       # those that the backend accepts; (): it has no such option
    why_no_run: str                  # "" when kernels can run, else why they only compile


def describe(backend: str, torch_module: str, torch_device: str) -> dict[str, Any]:
    """The stack of this very interpreter; StackError says what it lacks."""
    try:
        import triton
        from triton.compiler.compiler import make_backend
        from triton.runtime.driver import driver
    except ImportError as e:
        raise StackError(f"{sys.executable} cannot import triton ({e})") from e
    import torch

    why_no_run = _no_device(torch_module, torch_device)
    try:
        target = driver.active.get_current_target()
    except (RuntimeError, AttributeError) as e:
        raise StackError(f"its Triton {triton.__version__} has no active driver ({e})") from e
    if target.backend != backend:
        raise StackError(f"its Triton {triton.__version__} drives {target.backend!r}, not "
                         f"{backend!r}: it is not the maker's")
    compiler = make_backend(target)
    options = _options(compiler)
    says = _properties(driver.active)
    if "max_shared_mem" not in says:
        raise StackError("its driver's get_device_properties() has no 'max_shared_mem' (it has "
                         f"{sorted(says) or 'nothing'}), without which no tile can be chosen")
    types = options.get("supported_fp8_dtypes") or ()
    fp8 = "native" if "fp8e4nv" in types else "fnuz" if "fp8e4b8" in types else "bits"
    return asdict(Stack(
        triton.__version__, torch.__version__, target.backend, str(target.arch),
        int(target.warp_size), int(says["max_shared_mem"]),
        int(says.get("multiprocessor_count", 0)), cast(Fp8, fp8),
        {k: v if isinstance(v, int | float | str | bool | None) else str(v)
         for k, v in options.items()}, _accepted_warps(compiler, options), why_no_run))


def _no_device(torch_module: str, torch_device: str) -> str:
    """Why tensors cannot live on the device here, or ""."""
    import torch

    if torch_module:
        if find_spec(torch_module) is None:
            return f"{sys.executable} has no {torch_module}"
        import_module(torch_module)
    module = getattr(torch, torch_device, None)
    if module is None or not module.is_available():
        return f"torch sees no {torch_device} device"
    return ""


def _options(compiler: Any) -> dict[str, Any]:
    parsed = compiler.parse_options({})
    return {f.name: getattr(parsed, f.name) for f in fields(parsed)}


def _accepted_warps(compiler: Any, options: Mapping[str, Any]) -> tuple[int, ...]:
    """Backends have no list of them: each is tried."""
    found = []
    for warps in _WARPS if "num_warps" in options else ():
        try:
            if compiler.parse_options({"num_warps": warps}).num_warps == warps:
                found.append(warps)
        except (AssertionError, ValueError, RuntimeError, TypeError):
            continue                 # this is how a backend refuses
    return tuple(found)


def _properties(active: Any) -> Mapping[str, Any]:
    """Where they stand depends on the fork: with the driver or with its `utils`."""
    for holder in (getattr(active, "utils", None), active):
        ask = getattr(holder, "get_device_properties", None)
        if ask is not None:
            return cast(Mapping[str, Any], ask(active.get_current_device()))
    return {}


def worker(python: str | None, env: Mapping[str, str] | None = None) -> Child:
    """A process of the stack's interpreter (ours if None) which finds our package.

    `env` are variables besides ours. No memory limit: drivers reserve far more address space than
    memory.
    """
    path = os.pathsep.join([_PACKAGE_FOLDER, *filter(None, [os.environ.get("PYTHONPATH")])])
    return Child(0, python or sys.executable, {**(env or {}), "PYTHONPATH": path})


def ask(child: Child, python: str, backend: str, torch_module: str, torch_device: str,
        answer_s: float) -> Stack:
    """The stack of an interpreter, described by a process of it."""
    who = f"the worker {python}"
    if not Path(python).is_file():
        raise StackError(f"worker_python must be the path of a Python interpreter, got {python!r}")
    try:
        answer = child.call(f"{__name__}:describe", answer_s, backend=backend,
                            torch_module=torch_module, torch_device=torch_device)
    except ChildFailed as e:
        raise StackError(f"{who} answered: {str(e).removeprefix('StackError: ')}") from e
    except ChildCrashed as e:
        raise StackError(f"{who} died while it described itself; {e}") from e
    except ChildTimeout as e:
        raise StackError(f"{who} did not describe itself within {answer_s:g} s; does its driver "
                         "hang?") from e
    try:
        return Stack(**{**answer, "num_warps": tuple(answer["num_warps"])})
    except (TypeError, KeyError) as e:
        raise StackError(f"{who} gave an incomplete description ({e}); is it another version of "
                         "this package?") from e
