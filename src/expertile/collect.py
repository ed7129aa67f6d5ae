"""What a running model asks of its operators: shapes, how often, and where its tokens go."""

from __future__ import annotations

import atexit
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from .ops.spec import Args, Operator, Shape

FORMAT = "expertile collected 1"
WRITE_EVERY_S = 30.0                 # a server is rarely stopped in an orderly way
MOST_LAYERS = 1024                   # beyond that, weights come and go and name no layer


@dataclass
class Collector:
    """Counts calls by operator and shape, and tokens by layer and expert.

    Args:
        path: where it writes, every half minute and when the process ends.
    """

    path: Path
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    loads: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    written: float = field(default_factory=time.monotonic)

    def __call__(self, op: Operator, shape: Shape, args: Args) -> None:
        """Count one call; reading the experts of a call on a GPU waits for the GPU."""
        self.calls[op.name, json.dumps(dict(shape))] += 1
        if op.experts_of is not None and not _is_capturing():
            weights, ids = op.experts_of(args)
            experts = weights.shape[0]
            kept = ids[(ids >= 0) & (ids < experts)].long()
            slot = experts, weights.data_ptr()
            if slot in self.loads or len(self.loads) < MOST_LAYERS:
                here = torch.bincount(kept.flatten(), minlength=experts).cpu()
                self.loads[slot] = self.loads.get(slot, torch.zeros_like(here)) + here
        if time.monotonic() - self.written > WRITE_EVERY_S:
            self.write()

    def write(self) -> None:
        """Replace the file by what was seen so far."""
        self.written = time.monotonic()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Plain data: each layer's load, heaviest expert first."""
        loads = [sorted(load.tolist(), reverse=True) for load in self.loads.values()]
        return {"format": FORMAT,
                "shapes": [{"op": op, "shape": json.loads(shape), "calls": n}
                           for (op, shape), n in self.calls.items()],
                "layers": [load for load in loads if any(load)]}


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a whole file or nothing."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(data) + "\n")
    part.replace(path)


def _is_capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


@cache
def collector_in(folder: Path) -> Collector:
    """This process's collector, of which `expertile collect` gathers the files of all processes."""
    made = Collector(folder / f"{platform.node()}-{os.getpid()}.json")
    atexit.register(made.write)
    return made


def merge(files: Iterable[Path]) -> dict[str, Any]:
    """One answer from what several processes wrote.

    The routing is the mean over layers of their loads, each sorted: layers have different heavy
    experts, and a mean by expert would look even. Of several numbers of experts the one that saw
    the most tokens is kept.

    Raises:
        ValueError: a file is not what a collector writes.
    """
    calls: Counter[tuple[str, str]] = Counter()
    layers: list[list[int]] = []
    for file in files:
        data = json.loads(file.read_text())
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError(f"{file} must have the format {FORMAT!r}; collect again")
        for row in data["shapes"]:
            calls[row["op"], json.dumps(row["shape"])] += row["calls"]
        layers += data["layers"]
    tokens: Counter[int] = Counter()
    for load in layers:
        tokens[len(load)] += sum(load)
    shapes = [{"op": op, "shape": json.loads(shape), "calls": n}
              for (op, shape), n in calls.most_common()]
    found: dict[str, Any] = {"format": FORMAT, "shapes": shapes, "layers": layers}
    if tokens:
        experts = max(tokens, key=lambda e: tokens[e])
        same = [torch.tensor(load, dtype=torch.float64) for load in layers if len(load) == experts]
        mean = torch.stack([load / load.sum() for load in same]).mean(0)
        found["routing"] = {"experts": experts, "layers": len(same), "tokens": tokens[experts],
                            "counts": [float(f"{x:.6g}") for x in mean.tolist()]}
    return found
