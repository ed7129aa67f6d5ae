"""What runs in a suite's child processes: ours with the limits, torch's forms, or ggml's."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from ... import ops
from ...ops.spec import Args, Operator, Shape
from ...opt.checks import run_once, why_wrong
from ...targets.cpu import CpuTarget
from ...targets.cpu import target as cpu_target
from ...tuning_db.lookup import load_snapshot
from ..peers import ggml, ggml_library, torch_moe, torch_rest
from ..peers.form import turns
from . import limits
from .data import Data

_PROBE_S = 0.4                       # of a form, after its first call
_WAKE_S = 0.01                       # two ticks of 4 ms, and spare
_LONG_US = 300_000.0                 # from here on one call is a measurement
_HOPELESS = 1.5                      # slower than the best by this: no further calls
_CHECK_FLOPS = 3e8                   # the float64 truth of more takes longer than the measurement
_SLOW_BF16 = 8.0                     # times float32's product: CPUs without bfloat16 arithmetic
_calls: dict[str, Callable[[], Any]] = {}
_threads: dict[str, int] = {}
_data = Data()
_held: dict[Any, Any] = {}           # converted weights, for the token counts that follow


@cache
def _limits(threads: int) -> dict[str, limits.Limit]:
    return limits.kernels(cpu_target(str(threads)))


def describe_limits(threads: int) -> dict[str, float]:
    """Every limit's amount (bytes or flops of a call); its kernels are ready from then on."""
    return {name: limit.amount for name, limit in _limits(threads).items()}


def time_limit(threads: int, name: str, samples: int) -> list[float]:
    """Microseconds of a limit's kernel."""
    kernel = _limits(threads)[name].call
    _wake(kernel)
    return [_clock(kernel, 1) for _ in range(samples)]


def _wake(kernel: Callable[[], Any]) -> None:
    """Two threads that sleep may wake on one core, and share it until the scheduler's next tick."""
    end = time.perf_counter() + _WAKE_S
    while time.perf_counter() < end:
        kernel()


def prepare_ours(op: str, shapes: dict[str, Shape], threads: int, cache_dir: str, db: str | None,
                 user_db: str | None, configs: str) -> dict[str, Any]:
    """Make our kernels ready, one for each named variant of the shape."""
    _calls.clear()
    target = cpu_target(str(threads), cache_dir=cache_dir)
    torch.set_num_threads(1)         # one pool at a time: torch does not work here
    found: dict[str, Any] = {}
    for name, shape in shapes.items():
        try:
            found[name] = _ours(ops.load(op), target, name, shape, (db, user_db, configs))
        except Exception as e:       # whatever a compiler raises is this variant's answer
            found[name] = {"error": f"{type(e).__name__}: {e}"[-800:]}
    return found


def _ours(op: Operator, target: CpuTarget, name: str, shape: Shape,
          where: tuple[str | None, str | None, str]) -> dict[str, Any]:
    db, user_db, configs = where
    config, by = target.space(op, shape).default(), "default"
    if configs == "recorded":
        snapshot = load_snapshot(db, user=Path(user_db) if user_db else None)
        answer = snapshot.answer(op, target, shape)
        if answer.config is not None:
            config, by = dict(answer.config), f"record ({answer.tier})"
    kernel = target.build_kernel(op, shape, config)
    sets = _data.sets(op, shape)
    work = op.work(shape)
    if work.flops < _CHECK_FLOPS and (
            why := why_wrong(op, kernel, "suite inputs", sets[0], run_once(op.reference, op,
                                                                          sets[0]))):
        return {"error": f"wrong: {why}"}
    outs = [op.empty(*args) for args in sets[:8]]
    pairs = [(args, outs[i % len(outs)]) for i, args in enumerate(sets)]
    _calls[name] = turns(lambda args, out: kernel(*args, out=out), pairs)
    return {"config": dict(config), "by": by, "flops": work.flops, "bytes": work.bytes,
            "sets": len(sets), "first_us": _clock(_calls[name], 1)}


def prepare_torch(op: str, shape: dict[str, Any], threads: int, dtypes: list[str],
                  compiled: bool) -> dict[str, Any]:
    """Probe every form of torch's with every thread count, keep the fastest ready."""
    _start(op, shape)
    torch._dynamo.reset()            # else a ninth shape would not be compiled any more
    torch.set_num_threads(threads)
    sets = _data.sets(ops.load(op), shape)
    casts = op not in ("fused_moe", "gemm_nt", "mla_decode", "mla_prefill")
    worth = [d for d in dtypes if d != "bfloat16" or _bf16_product_costs() < _SLOW_BF16]
    forms = _torch_forms(op, sets, tuple(getattr(torch, d) for d in worth), compiled)
    answer = _probe(((name, call, t) for name, call in forms for t in range(threads, 0, -1)),
                    torch.set_num_threads, casts)
    if worth != dtypes:
        answer["failed"]["torch bf16"] = (
            f"not tried: its product takes {_bf16_product_costs():.0f} times as long as float32's")
    return answer


@cache
def _bf16_product_costs() -> float:
    """Time of torch's bfloat16 product over the float32 one's."""
    a, b = torch.ones(256, 512), torch.ones(512, 512)
    pairs = [(a, b), (a.bfloat16(), b.bfloat16())]
    least = [min(_clock(partial(torch.mm, *pair), 1) for _ in range(4)) for pair in pairs]
    return least[1] / least[0]


def _torch_forms(op: str, sets: list[Args], dtypes: tuple[torch.dtype, ...], compiled: bool
                 ) -> Iterable[tuple[str, Callable[[], Any]]]:
    if op == "fused_moe":
        return torch_moe.forms(sets, _held, dtypes, compiled)
    makers = {"gemm_nt": torch_rest.gemm, "mla_decode": torch_rest.decode,
              "mla_prefill": torch_rest.prefill}
    if op in makers:
        return makers[op](sets, dtypes, compiled)
    return torch_rest.casts(op, sets, compiled)


def prepare_ggml(op: str, shape: dict[str, Any], threads: int, kind: str) -> dict[str, Any]:
    """Probe ggml, plain and repacked, with every thread count, keep the fastest ready."""
    _start(op, shape)
    sets = _data.sets(ops.load(op), shape)
    if op == "mla_decode":
        return _probe((("ggml flash attention f16", ggml.Decode(sets, t), t)
                       for t in range(threads, 0, -1)), _ignore)
    failed: dict[str, str] = {}

    def layers() -> Iterator[tuple[str, Callable[[], Any], int]]:
        for repacked in (False, True):
            name = f"ggml {kind}" + (" repacked" if repacked else "")
            try:
                if name not in _held:
                    _held[name] = ggml.Experts(sets[0], kind, repacked)
            except ValueError as e:
                failed[name] = str(e)
                continue
            for t in range(threads, 0, -1):
                yield name, ggml.Layer(_held[name], sets, t), t

    answer = _probe(layers(), _ignore)
    answer["failed"] |= failed
    return answer


def describe_ggml() -> dict[str, str]:
    """Version and build of ggml."""
    return ggml_library.describe()


def _start(op: str, shape: dict[str, Any]) -> None:
    """Free what belonged to other weights."""
    for call in _calls.values():
        getattr(call, "close", lambda: None)()
    _calls.clear()
    key = (op, *(shape.get(a) for a in ("e", "inter", "hidden", "w_dtype")))
    if _held.get("key") != key:
        for held in _held.values():
            getattr(held, "close", lambda: None)()
        _held.clear()
        _held["key"] = key


def _ignore(threads: int) -> None:
    """ggml's thread count is part of its graph."""


def _probe(forms: Iterator[tuple[str, Callable[[], Any], int]], use: Callable[[int], None],
           each: bool = False) -> dict[str, Any]:
    """Microseconds of every form and thread count; the fastest (of `each` form) stays ready."""
    probes: dict[str, float] = {}
    failed: dict[str, str] = {}
    kept: dict[str, str] = {}        # form, or "" for all -> its fastest
    for form, call, threads in forms:
        full = f"{form}, {threads} thread{'s' if threads > 1 else ''}"
        best = kept.get(form if each else "", "")
        try:
            use(threads)
            probes[full] = _quick(call, probes.get(best, math.inf))
        except Exception as e:       # a form that cannot do this shape
            failed[full] = f"{type(e).__name__}: {str(e)[:200]}"
            continue
        loser: Callable[[], Any] | None = call
        if not best or probes[full] < probes[best]:
            loser = _calls.pop(best, None)
            kept[form if each else ""] = full
            _calls[full], _threads[full] = call, threads
        if loser is not call or loser not in _calls.values():
            getattr(loser, "close", _nothing)()
    return {"best": list(kept.values()), "probes": probes, "failed": failed}


def _nothing() -> None:
    """What a form that holds no memory of its own does at its end."""


def _quick(call: Callable[[], Any], best_us: float) -> float:
    """Least of a few calls; a slow form that is not the best gets one or two."""
    found = [_clock(call, 1)]
    if found[0] > max(_LONG_US, _HOPELESS * best_us):
        return found[0]
    end = time.perf_counter() + _PROBE_S
    found = [_clock(call, 1)]        # the first one compiled, or filled caches
    while found[0] < _HOPELESS * best_us and time.perf_counter() < end and len(found) < 9:
        found.append(_clock(call, 1))
    return min(found)


def _clock(call: Callable[[], Any], inner: int) -> float:
    start = time.perf_counter_ns()
    for _ in range(inner):
        call()
    return (time.perf_counter_ns() - start) / inner / 1e3


def time_block(side: str, inner: int, samples: int, warm: bool) -> list[float]:
    """Microseconds a call; with `warm` what wakes the threads comes before and is not counted."""
    call = _calls[side]
    if side in _threads:
        torch.set_num_threads(_threads[side])
    if warm:
        _wake(call)
    return [_clock(call, inner) for _ in range(samples)]


def release() -> None:
    """Give all memory of cases back."""
    _start("", {})
    _data.drop()
