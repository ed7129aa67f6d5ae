"""What runs in a suite's child processes: ours with the limits, torch's forms, or ggml's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from ... import ops
from ...ops.space import Config
from ...ops.spec import Args, Operator, Shape
from ...opt.checks import run_once, why_wrong
from ...targets.cpu import CpuTarget
from ...targets.cpu import target as cpu_target
from ...tuning_db.lookup import Snapshot, load_snapshot
from ..peers import ggml, ggml_library, torch_moe, torch_rest
from ..peers.form import turns
from . import levels, limits
from .data import Data
from .probe import Call, Make, always, clock, close, probe, wake

_CHECK_FLOPS = 3e8                   # the float64 truth of more takes longer than the measurement
_APART = 7                           # argument sets between variants that share weights
_SLOW_BF16 = 8.0                     # times float32's product: CPUs without bfloat16 arithmetic
_calls: dict[str, Callable[[], Any]] = {}
_threads: dict[str, int] = {}
_data = Data()
_held: dict[Any, Any] = {}           # converted weights, for the token counts that follow


@cache
def _limits(unit: str) -> dict[str, limits.Limit]:
    return limits.kernels(cpu_target(unit))


def describe_limits(unit: str) -> dict[str, float]:
    """Every limit's amount (bytes or flops of a call); its kernels are ready from then on."""
    return {name: limit.amount for name, limit in _limits(unit).items()}


def time_limit(unit: str, name: str, samples: int) -> list[float]:
    """Microseconds of a limit's kernel."""
    kernel = _limits(unit)[name].call
    wake(kernel)
    return [clock(kernel, 1) for _ in range(samples)]


def hold_torch(arch: str, compiles: bool) -> dict[str, str]:
    """What torch computes with in this process."""
    return levels.hold(arch, compiles)


def compile_ours(op: str, shapes: dict[str, Shape], unit: str, cache_dir: str, db: str | None,
                 user_db: str | None, configs: str) -> None:
    """Put the kernels of a case into the disk cache; what does not compile is told later."""
    target = cpu_target(unit, cache_dir=cache_dir)
    for shape in shapes.values():
        config, _ = _config(ops.load(op), target, shape, (db, user_db, configs))
        with suppress(Exception):    # whatever a compiler raises; `prepare_ours` meets it again
            target.compile_here(ops.load(op), shape, config)


def prepare_ours(op: str, shapes: dict[str, Shape], unit: str, cache_dir: str, db: str | None,
                 user_db: str | None, configs: str) -> dict[str, Any]:
    """Make our kernels ready, one for each named variant of the shape."""
    target = _ready(shapes.values(), unit, cache_dir)
    found: dict[str, Any] = {}
    for name, shape in shapes.items():
        try:
            chosen = _config(ops.load(op), target, shape, (db, user_db, configs))
            found[name] = _ours(ops.load(op), target, name, shape, *chosen)
        except Exception as e:       # whatever a compiler raises is this variant's answer
            found[name] = {"error": f"{type(e).__name__}: {e}"[-800:]}
    return found


def default_config(op: str, shape: dict[str, Any], unit: str, cache_dir: str) -> Config:
    """The config that answers where nothing is recorded."""
    return dict(cpu_target(unit, cache_dir=cache_dir).space(ops.load(op), shape).default())


def prepare_configs(op: str, shape: dict[str, Any], unit: str, cache_dir: str,
                    configs: dict[str, dict[str, Any]], seed: int) -> dict[str, Any]:
    """Make kernels of one shape ready, by name of their configs, on data of that seed."""
    target = _ready([shape], unit, cache_dir)
    return {name: _ours(ops.load(op), target, name, shape, config, "named", seed)
            for name, config in configs.items()}


def _ready(shapes: Iterable[Shape], unit: str, cache_dir: str) -> CpuTarget:
    """The target, and room for the data of these shapes."""
    _calls.clear()
    _data.only(shapes)
    torch.set_num_threads(1)         # one pool at a time: torch does not work here
    return cpu_target(unit, cache_dir=cache_dir)


@cache
def _snapshot(db: str | None, user_db: str | None) -> Snapshot:
    return load_snapshot(db, user=Path(user_db) if user_db else None)


def _config(op: Operator, target: CpuTarget, shape: Shape,
            where: tuple[str | None, str | None, str]) -> tuple[Config, str]:
    """The default, or what the tuning databases answer."""
    db, user_db, configs = where
    if configs == "recorded":
        answer = _snapshot(db, user_db).answer(op, target, shape)
        if answer.config is not None:
            return dict(answer.config), f"record ({answer.tier})"
    return target.space(op, shape).default(), "default"


def _ours(op: Operator, target: CpuTarget, name: str, shape: Shape, config: Config, by: str,
          seed: int = 0) -> dict[str, Any]:
    kernel = target.build_kernel(op, shape, config)
    sets = _data.sets(op, shape, seed)
    work = op.work(shape)
    if work.flops < _CHECK_FLOPS and (
            why := why_wrong(op, kernel, "suite inputs", sets[0], run_once(op.reference, op,
                                                                          sets[0]))):
        return {"error": f"wrong: {why}"}
    outs = [op.empty(*args) for args in sets[:8]]
    pairs = [(args, outs[i % len(outs)]) for i, args in enumerate(sets)]
    apart = _APART * len(_calls) % len(pairs)    # else it finds what the one before it has read
    pairs = pairs[apart:] + pairs[:apart]
    _calls[name] = turns(lambda args, out: kernel(*args, out=out), pairs)
    return {"config": dict(config), "by": by, "flops": work.flops, "bytes": work.bytes,
            "sets": len(sets), "first_us": clock(_calls[name], 1)}


def prepare_torch(op: str, shape: dict[str, Any], threads: int, dtypes: list[str],
                  compiled: bool) -> dict[str, Any]:
    """Probe every form of torch's, the fastest also with fewer threads, and keep it ready."""
    _start(op, shape)
    torch._dynamo.reset()            # else a ninth shape would not be compiled any more
    torch.set_num_threads(threads)
    sets = _data.sets(ops.load(op), shape)
    casts = op not in ("fused_moe", "gemm_nt", "mla_decode", "mla_prefill")
    worth = [d for d in dtypes if d != "bfloat16" or _bf16_costs() < _SLOW_BF16]
    forms = _torch_forms(op, sets, tuple(getattr(torch, d) for d in worth), compiled)
    answer, best = probe(((name, always(call)) for name, call in forms), threads,
                         torch.set_num_threads, casts)
    _keep(best)
    if worth != dtypes:
        answer["failed"]["torch bf16"] = (
            f"not tried: its product takes {_bf16_costs():.0f} times as long as float32's")
    return answer


def _keep(best: dict[str, tuple[Call, int]]) -> None:
    """Hold a peer's fastest calls, with the thread counts that they want."""
    for name, (call, threads) in best.items():
        _calls[name], _threads[name] = call, threads


_bf16_costs = cache(levels.bf16_product_costs)


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
    """Probe ggml, plain and repacked, the fastest also with fewer threads, and keep it ready."""
    _start(op, shape)
    sets = _data.sets(ops.load(op), shape)
    failed: dict[str, str] = {}

    def layers() -> Iterator[tuple[str, Make]]:
        for repacked in (False, True):
            name = f"ggml {kind}" + (" repacked" if repacked else "")
            try:
                if name not in _held:
                    _held[name] = ggml.Experts(sets[0], kind, repacked)
            except ValueError as e:
                failed[name] = str(e)
                continue
            yield name, partial(ggml.Layer, _held[name], sets)

    attention = [("ggml flash attention f16", partial(ggml.Decode, sets))]
    answer, best = probe(attention if op == "mla_decode" else layers(), threads)
    _keep(best)
    answer["failed"] |= failed
    return answer


def describe_ggml() -> dict[str, str]:
    """Version and build of ggml."""
    return ggml_library.describe()


def _start(op: str, shape: dict[str, Any]) -> None:
    """Free what belonged to other weights, and every call."""
    for call in _calls.values():
        close(call)
    _calls.clear()
    key = (op, *(shape.get(a) for a in ("e", "inter", "hidden", "w_dtype")))
    if _held.get("key") != key:
        for held in _held.values():
            close(held)
        _held.clear()
        _held["key"] = key
    _data.only([shape])


def time_block(side: str, inner: int, samples: int, warm: bool) -> list[float]:
    """Microseconds a call; with `warm` what wakes the threads comes before and is not counted."""
    call = _calls[side]
    if side in _threads:
        torch.set_num_threads(_threads[side])
    if warm:
        wake(call)
    return [clock(call, inner) for _ in range(samples)]


def release() -> None:
    """Give all memory of cases back."""
    _start("", {})
