"""Where a maker's stack is looked for: in this interpreter, else in a worker's."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

from ..child import Child
from .stack import Stack, StackError, ask, describe, worker
from .target import VendorTarget
from .vendor import Chip, Vendor

ANSWER_S = 60.0                      # importing torch and a driver takes some seconds


OPTIONS = ("worker_python",)         # besides those that every target takes


def choose(vendor: Vendor, unit: str = "", mode: str | None = None,
           cache_dir: str | Path | None = None, worker_python: str | None = None,
           answer_s: float = ANSWER_S) -> VendorTarget:
    """The target for a unit: "" or an index, an arch ("mp_31") or a product.

    Args:
        mode: "live" insists on this interpreter's stack; None takes what there is.
        worker_python: path of an interpreter with the maker's torch and triton, which replace the
            packages of the same name and so cannot always stand beside ours.
        answer_s: how long the worker may take to describe itself.
    """
    if mode not in (None, "live"):
        raise ValueError(f"mode must be None or 'live' for {vendor.name}, got {mode!r}: kernels "
                         "are compiled by the maker's stack alone")
    index = int(unit) if unit.isdigit() and len(unit) == 1 else None
    chip = vendor.find("" if index is not None else unit)
    here = mode == "live" or worker_python is None and _installed(vendor)
    child = worker(worker_python)
    stack, problem = _find(vendor, here, worker_python, child, answer_s)
    if stack is not None:
        arch = vendor.prefix + stack.arch
        known = {c.arch: c for c in vendor.chips}
        if vendor.shares_backend and arch not in known:
            stack, problem = None, f"the chip here is {arch}, which is not {vendor.maker}'s"
        elif unit and index is None and arch != chip.arch:
            stack, problem = None, f"the stack's chip is {arch}, not {chip.arch}"
        else:
            chip = known.get(arch) or Chip(arch, stack.warp_size, stack.fp8)
    if mode == "live" and stack is None:
        raise ValueError(f"{vendor.name} is not usable in this interpreter: {problem}")
    if here and stack is not None and not stack.why_no_run and index is not None:
        getattr(torch, vendor.torch_device).set_device(index)
    if cache_dir is None:
        from platformdirs import user_cache_path

        cache_dir = user_cache_path("expertile")
    return VendorTarget(vendor, chip, stack, problem, here, worker_python, unit, Path(cache_dir),
                        child)


def _installed(vendor: Vendor) -> bool:
    if vendor.torch_module:
        return find_spec(vendor.torch_module) is not None
    return torch.version.hip is not None


def _find(vendor: Vendor, here: bool, python: str | None, child: Child, answer_s: float
          ) -> tuple[Stack | None, str]:
    """The stack, or why there is none and what to do."""
    if not here and python is None:
        return None, (f"{vendor.maker}'s Triton is not installed; {vendor.install}, and if that is "
                      "in an environment of its own, give the path of its interpreter as "
                      "worker_python")
    questions = vendor.backend, vendor.torch_module, vendor.torch_device
    try:
        if here or python is None:
            found = describe(*questions)
            return Stack(**{**found, "num_warps": tuple(found["num_warps"])}), ""
        return ask(child, python, *questions, answer_s), ""
    except StackError as e:
        return None, f"{e}; {vendor.install}"
