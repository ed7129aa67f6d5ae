"""With what was measured: versions, command, machine; nothing that names a host or a user."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..targets.base import Target
from ..tuning_db.record import Provenance


@cache
def machine() -> str:
    """The processor, its threads and the memory."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} threads, {gb:.0f} GiB, {platform.system()}"


@cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def tool_version() -> str:
    """Of this package."""
    return _version("expertile")


def provenance(target: Target, seed: int, command: str, budget: dict[str, float] | None = None,
               trials: int = 0, pool: int = 0, origin: Mapping[str, str] | None = None
               ) -> Provenance:
    """The provenance of a measurement made now; `origin` says which bundle its kernels are of."""
    return Provenance(
        tool=tool_version(), time=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        command=command, seed=seed, machine=machine(),
        versions={**target.toolchain(), "torch": _version("torch"),
                  "python": platform.python_version(), **(origin or {})},
        budget=budget or {}, trials=trials, pool=pool)
