"""Recorded landscapes: every config and its time, in Kernel Tuner's formats and ours."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...ops.space import Config, Knob, Space, config_text
from ...targets.replay import FORMAT
from ..pool import Pool

MAX_BYTES = 2 << 30                  # of an unpacked file: a small one can unpack without end


@dataclass(frozen=True)
class Landscape:
    """A pool and the time of each of its configs, inf where it failed."""

    name: str
    pool: Pool
    times: tuple[float, ...]
    has_default: bool                # whether the first config is a default, or just the first

    def time(self, config: Config) -> float:
        """Of a config of the pool; inf: it failed."""
        return self.times[self.pool.index[config_text(config)]]

    @cached_property
    def optimum(self) -> float:
        """The shortest time."""
        return min(self.times)

    @property
    def failing(self) -> int:
        """How many configs failed."""
        return sum(math.isinf(t) for t in self.times)


def read(path: str | Path) -> Landscape:
    """A landscape from Kernel Tuner's cache (open or closed) or T4, or ours; plain or gzip.

    Times keep the file's unit. Anything else is a ValueError that names the file.
    """
    path = Path(path)
    try:
        data = _json(_text(path))
        if not isinstance(data, dict):
            raise ValueError("it holds no JSON object")
        if data.get("format") == FORMAT:
            rows = ((e["config"], e.get("us")) for e in data["entries"])
            return _landscape(path, rows, data["knobs"])
        if "cache" in data:
            return _landscape(path, _cache_rows(data), None)
        if "results" in data:
            return _landscape(path, _t4_rows(data), None)
        raise ValueError(f"it is neither Kernel Tuner's cache, nor T4, nor {FORMAT}")
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError) as e:
        why = f"{type(e).__name__} {e}" if isinstance(e, KeyError | TypeError) else str(e)
        raise ValueError(f"{path} is no landscape that can be replayed: {why}") from e


def _text(path: Path) -> str:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else path.open("rb") as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES >> 30} GiB")
    return raw.decode()


def _json(text: str) -> Any:
    """The JSON value; a cache that Kernel Tuner has not closed yet ends after an entry."""
    try:
        return json.loads(text)
    except ValueError:
        if '"cache"' not in text:
            raise
    # One entry is one line. The last may be half written: a killed tuner loses no more than it.
    lines = text.rstrip().splitlines()
    for cut in (len(lines), len(lines) - 1):
        try:
            return json.loads("\n".join(lines[:cut]).rstrip().rstrip(",") + "}}")
        except ValueError:
            continue
    raise ValueError("its JSON is broken before the last entry")


def _cache_rows(data: dict[str, Any]) -> Iterable[tuple[Config, Any]]:
    keys, objective = data["tune_params_keys"], data.get("objective", "time")
    for entry in data["cache"].values():
        yield {k: entry[k] for k in keys}, entry.get(objective, entry.get("time"))


def _t4_rows(data: dict[str, Any]) -> Iterable[tuple[Config, Any]]:
    for result in data["results"]:
        objective = (result.get("objectives") or ["time"])[0]
        value = None
        if result.get("invalidity", "correct") == "correct":
            found = [m["value"] for m in result["measurements"] if m["name"] == objective]
            value = found[0] if found else None
        yield result["configuration"], value


def _landscape(path: Path, rows: Iterable[tuple[Config, Any]],
               knobs: dict[str, list[Knob]] | None) -> Landscape:
    """Knobs: as the file declares them, first choice = default; or what occurs."""
    found: dict[str, tuple[dict[str, Knob], float]] = {}
    for config, time in rows:
        good = isinstance(time, int | float) and math.isfinite(time) and time > 0
        found[config_text(config)] = dict(config), float(time) if good else math.inf
    if all(math.isinf(time) for _, time in found.values()):
        raise ValueError("no config in it has a time")
    configs = [config for config, _ in found.values()]
    has_default = knobs is not None
    if knobs is None:
        knobs = {k: list(dict.fromkeys(c[k] for c in configs)) for k in configs[0]}
    space = Space({k: tuple(choices) for k, choices in knobs.items()})
    if has_default:
        for config in configs:
            if why := space.why_not(config):
                raise ValueError(why)
        default = config_text(space.default())
        if default not in found:
            raise ValueError(f"it must hold its default config {default}")
        configs.sort(key=lambda c: config_text(c) != default)
    times = tuple(found[config_text(c)][1] for c in configs)
    return Landscape(path.name.split(".")[0], Pool(space, configs), times, has_default)
