"""Holds one case in the environment that is measured and times it, a block at a time.

The same file runs in every environment, so that base and head are measured by the same code; it
finds `expertile` and the user's modules by that environment's path and needs of them only what an
operator and a target have had from the first.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from itertools import cycle
from pathlib import Path
from typing import Any

ARGUMENT_SETS = 8                    # rotated, so that routed weights are as cold as in a model
_held: dict[str, Any] = {}


def _expertile(name: str) -> Any:
    return import_module(f"expertile.{name}")


def prepare(case: dict[str, Any], check: bool) -> dict[str, Any]:
    """Make a case ready, and say whether it is right; {"status": "new"} when there is none."""
    _held.clear()
    if case["name"] == "anchor":
        _held["call"] = _anchor()
        return {"status": "ok"}
    made = _prepare_user(case, check) if "file" in case else _prepare_operator(case, check)
    if wrong := _imported_from(case.get("foreign", ())):
        return {"status": "failed", "error": f"{wrong} came from the other side's tree; give this "
                                             "side its own environment (--base-python)"}
    return made


def _imported_from(roots: Any) -> str:
    """A module that stands in another side's tree: measuring it would compare code with itself."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if name != __name__ and "site-packages" not in file and any(
                file.startswith(f"{root}/") for root in roots):
            return name
    return ""


def time_block(inner: int, samples: int) -> list[float]:
    """Microseconds a call of `samples` samples; one more before them is not counted."""
    clock, call = _held["clock"], _held["call"]
    clock(call, inner)
    return [clock(call, inner) for _ in range(samples)]


def calibrate(sample_us: float) -> int:
    """Calls of one sample: long against the clock, short against a scheduler's slice."""
    clock, call = _held["clock"], _held["call"]
    us = float(min(clock(call, 1) for _ in range(3)))
    return max(1, min(10_000, round(sample_us / max(us, 1e-3))))


def versions() -> dict[str, str]:
    """What of the environment changes speed."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": sys.version.split()[0]}
    for package in ("torch", "numpy", "triton", "apache-tvm", "expertile"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def describe(device: str, cache_dir: str, ops: list[str]) -> dict[str, Any]:
    """The target of this environment, its limits and its tool versions. Imports what the
    operators need, which takes seconds, while the other sides do the same."""
    target = _expertile("targets").load(device, cache_dir=cache_dir)
    for op in ops:
        with suppress(Exception):        # `prepare` says what is wrong with it
            _expertile("ops").lowering(op, target.lang)
    limits = {name: figure.value for name, figure in target.limits().items()}
    return {"device": target.device, "arch": target.arch, "evidence": target.evidence(),
            "threads": int(getattr(target, "threads", 0)), "why_not": target.available(),
            "limits": limits, "toolchain": {**versions(), **target.toolchain()}}


def _wall_us(call: Callable[[], object], inner: int) -> float:
    start = time.perf_counter_ns()
    for _ in range(inner):
        call()
    return (time.perf_counter_ns() - start) / inner / 1e3


def _anchor() -> Callable[[], object]:
    """A constant reference on one thread, inside its cache: a sum of products of 8192 floats."""
    import numpy as np

    a, b, c = (np.full(8192, x, dtype=np.float32) for x in (1.0, 0.5, 0.0))
    _held["clock"] = _wall_us

    def call() -> None:
        np.multiply(a, b, out=c)
        np.add(c, a, out=c)

    return call


def _prepare_user(case: dict[str, Any], check: bool) -> dict[str, Any]:
    """A function `bench_*` of a user's file: it returns the call to time, or (call, check)."""
    path = Path(case["file"])
    if not path.exists():
        return {"status": "new", "error": f"{path.name} is not there"}
    try:
        spec = spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        make = getattr(module, case["function"], None)
        if make is None:
            return {"status": "new", "error": f"{path.name} has no {case['function']}"}
        made = make()
    except Exception as e:               # whatever a user's set-up raises is one row
        return {"status": "failed", "error": f"{type(e).__name__}: {e}"[-2000:]}
    call, verify = made if isinstance(made, tuple) else (made, None)
    _held.update(call=call, clock=_wall_us)
    return _first_calls(call, verify if check else None)


def _first_calls(call: Callable[[], object], verify: Callable[[Any], object] | None
                 ) -> dict[str, Any]:
    try:
        answer = call()
        call()
    except Exception as e:
        return {"status": "failed", "error": f"{type(e).__name__}: {e}"[-2000:]}
    try:
        right = verify is None or verify(answer) is not False
    except Exception as e:               # an assertion of the user's check, as a rule
        return {"status": "wrong", "error": f"{type(e).__name__}: {e}"[-2000:]}
    return {"status": "ok"} if right else {"status": "wrong", "error": "its check said False"}


def _prepare_operator(case: dict[str, Any], check: bool) -> dict[str, Any]:
    ops, shape = _expertile("ops"), case["shape"]
    if case["op"] not in ops.names():
        return {"status": "new", "error": f"no operator {case['op']}"}
    op = ops.load(case["op"])
    target = _expertile("targets").load(case["device"], cache_dir=case["cache_dir"])
    if missing := [axis for axis in (*op.static, *op.dynamic) if axis not in shape]:
        return {"status": "new", "error": f"{op.name} has axes {missing} besides"}
    try:
        config, by = _config(op, target, shape, case)
        kernel = target.build_kernel(op, shape, config)
        call, first = _caller(op, target, kernel, shape, case["seed"])
    except Exception as e:               # whatever a compiler raises is one row
        return {"status": "failed", "error": f"{type(e).__name__}: {e}"[-2000:]}
    why = None
    if check and getattr(target, "computes", True):
        checks = _expertile("opt.checks")
        want = checks.run_once(op.reference, op, first)
        why = checks.why_wrong(op, kernel, "realistic inputs", first, want)
    _held.update(call=call, clock=target.time_us)
    work = op.work(shape)
    return {"status": "wrong" if why else "ok", "error": why or "", "config": dict(config),
            "answered_by": by, "evidence": target.evidence(), "flops": work.flops,
            "bytes": work.bytes, "floor_us": _expertile("opt.floor").floor_us(op, target, shape)}


def _config(op: Any, target: Any, shape: Any, case: dict[str, Any]) -> tuple[Any, str]:
    """The default, or what this environment's databases answer."""
    default = target.space(op, shape).default()
    if case["configs"] == "default":
        return default, "default"
    lookup = _expertile("tuning_db.lookup")
    snapshot = lookup.load_snapshot(case["db"], user=_path(case["user_db"]))
    answer = snapshot.answer(op, target, shape)
    if answer.config is None:
        return default, "default"
    return answer.config, f"record ({answer.tier})"


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _caller(op: Any, target: Any, kernel: Any, shape: Any, seed: int) -> tuple[Any, Any]:
    if target.name == "null":
        return (lambda: kernel(out=())), ()
    first = op.inputs(shape, seed)
    drawn = [op.redraw(first, seed + i) for i in range(1, ARGUMENT_SETS)]
    sets = [first, *(args for args in drawn if args is not first)]
    where = getattr(target, "torch_device", "cpu")
    sets = [tuple(x.to(where) if hasattr(x, "to") and hasattr(x, "device") else x for x in args)
            for args in sets] if where != "cpu" else sets
    outs = [op.empty(*args) for args in sets]
    for args, out in zip(sets, outs, strict=True):
        kernel(*args, out=out)
    following = cycle(list(zip(sets, outs, strict=True))).__next__

    def call() -> None:
        args, out = following()
        kernel(*args, out=out)

    return call, sets[0]
