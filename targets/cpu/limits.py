"""What this CPU can do at most, measured: read bandwidth and float32 FMA peak."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base import Figure
from ..child import Child, ChildCrashed, ChildFailed, ChildTimeout
from .pages import ENVIRONMENT

if TYPE_CHECKING:
    from . import CpuTarget

FORMAT = 4                           # of the cache file, and of the method below
STREAMS = 8                          # one stream per core reads 15-19 GB/s here, eight 23-26
CHAINS = 12                          # independent FMAs in flight: latency 4 x 2 ports, and spare
FMA_STEPS = 500_000                  # 2 ms a run: waking the threads does not count
_TIMEOUT_S = 120.0


def load_or_measure(target: CpuTarget) -> Mapping[str, Figure]:
    """The figures in the cache of these versions, threads and machine, else measured now (2-3 s).

    "bandwidth" in GB/s and "flops" in GFLOP/s; empty where kernels cannot run. What was measured
    while other work held the cores is too low: it is measured again once they are free.
    """
    if target.available() is not None:
        return {}
    path = _cache_path(target)
    data = _cached(path)
    busy = os.getloadavg()[0] > 0.25 * target.threads
    if data is None or data["busy"] and not busy:
        child = Child(env=ENVIRONMENT)
        try:
            data = {**child.call(f"{__name__}:measure", _TIMEOUT_S, threads=target.threads,
                                 arch=target.arch), "busy": busy}
        except (ChildCrashed, ChildFailed, ChildTimeout):
            return {}                # a figure that cannot be measured is not guessed
        finally:
            child.close()
        _store(path, data)
    source = (f"measured {data['date']}{' on a busy machine' if data['busy'] else ''}: best of "
              f"{data['repeats']} runs, {target.threads} threads")
    return {name: Figure(float(data[name]), unit, f"{source}, {how}", "measured")
            for name, unit, how in (
                ("bandwidth", "GB/s", f"{STREAMS} read streams a thread over "
                                      f"{data['buffer_mb']} MiB"),
                ("flops", "GFLOP/s", f"float32 FMA, {CHAINS} chains of {target.lanes} lanes"))}


def _cache_path(target: CpuTarget) -> Path:
    identity = [FORMAT, target.arch, target.threads, target.toolchain(), _cpu_model()]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    return target.cache_dir / "limits" / f"{target.device}-{digest}.json"


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line for line in lines if line.startswith("model name")), "")


def _cached(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError):
        return None                  # absent or damaged: measured again
    good = isinstance(data, dict) and all(
        isinstance(data.get(k), int | float) and data[k] > 0
        for k in ("bandwidth", "flops", "repeats", "buffer_mb"))
    good = good and isinstance(data.get("date"), str) and isinstance(data.get("busy"), bool)
    return data if good else None


def _store(path: Path, data: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as f:
        json.dump(dict(data), f)
    os.replace(f.name, path)


def _buffer_mb() -> int:
    """Many times the last-level cache, and not more than an eighth of the memory."""
    sizes = [_kib(p.read_text()) for p in
             Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    return max(16, min(max(512, 16 * max(sizes, default=0) >> 10), memory // 8))


def _kib(text: str) -> int:
    number, unit = text.strip()[:-1], text.strip()[-1:]
    return int(number) << {"K": 0, "M": 10, "G": 20}.get(unit, 0) if number.isdigit() else 0


def measure(threads: int, arch: str, seconds: float = 0.8) -> dict[str, Any]:
    """Runs in a child: compile two small kernels, run each for `seconds`, keep the best."""
    import torch
    import tvm

    from . import CpuTarget
    from .artifacts import use_threads
    from .limits_tvm import fma_kernel, read_kernel

    target = CpuTarget(threads, Path(), arch)
    megabytes = _buffer_mb()
    row = (megabytes << 18) // (threads * STREAMS) // 1024 * 1024
    llvm = tvm.target.Target(target.level.llvm(threads))
    with tempfile.TemporaryDirectory() as scratch:
        built = Path(scratch) / "limits.so"
        module = tvm.IRModule({"read": read_kernel(threads, STREAMS, row, target.lanes),
                               "fma": fma_kernel(threads, CHAINS, FMA_STEPS, target.lanes)})
        tvm.compile(module, target=llvm).export_library(str(built))
        library = tvm.runtime.load_module(str(built))
    use_threads(threads)
    data = torch.ones(threads, STREAMS, row)
    sums = torch.empty(threads, target.lanes)
    factors = torch.tensor([0.999, 0.001])
    results = torch.empty(threads, CHAINS, target.lanes)
    read, reads = _best(lambda: library["read"](data, sums), seconds)
    fma, _ = _best(lambda: library["fma"](factors, results), seconds)
    return {"bandwidth": data.nbytes / read / 1e9,
            "flops": 2 * threads * CHAINS * target.lanes * FMA_STEPS / fma / 1e9,
            "repeats": reads, "buffer_mb": data.nbytes >> 20,
            "date": datetime.now(UTC).strftime("%Y-%m-%d")}


def _best(fn: Any, seconds: float) -> tuple[float, int]:
    """The shortest of many runs: a limit is what the machine does when nobody disturbs it."""
    fn()
    best, runs, end = float("inf"), 0, time.perf_counter() + seconds
    while time.perf_counter() < end or runs < 5:
        start = time.perf_counter()
        fn()
        best, runs = min(best, time.perf_counter() - start), runs + 1
    return best, runs
