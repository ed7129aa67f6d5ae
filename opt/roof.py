"""The roofline of an operator's tuned shapes: limits as the records' floors imply them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .. import ops
from .report import ShapeReport

_CLEAR = 1.25                        # floors so far below the bandwidth's line are the peak's


@dataclass(frozen=True)
class Point:
    """One shape; speeds in GFLOP/s."""

    key: str                         # hash of its key
    intensity: float                 # flops a byte
    default: float
    best: float
    floor: float | None              # what the machine's limits allow


@dataclass(frozen=True)
class Roof:
    """The shapes of an operator on one device, and the device's limits in GB/s and GFLOP/s.

    A floor is max(bytes / bandwidth, flops / peak). So floors imply the bandwidth where some shape
    is bound by memory, and the peak where some is bound by arithmetic; else they are None.
    """

    device: str
    points: tuple[Point, ...]
    bandwidth: float | None
    peak: float | None
    is_modelled: bool

    @property
    def name(self) -> str:
        """The device in a file name."""
        plain = re.sub(r"[^A-Za-z0-9]+", "_", self.device)
        return f"{plain}-modelled" if self.is_modelled else plain

    @property
    def text(self) -> str:
        """The limits in words."""
        parts = [f"{self.bandwidth:.4g} GB/s"] if self.bandwidth else []
        parts += [f"{self.peak:.4g} GFLOP/s"] if self.peak else []
        return f"limit: {', '.join(parts)}"

    def limit(self, intensity: float) -> float | None:
        """GFLOP/s that are possible; None where no limit is known."""
        found = [x for x in (self.bandwidth and self.bandwidth * intensity, self.peak) if x]
        return min(found, default=None)


def roofs(reports: Sequence[ShapeReport]) -> list[Roof]:
    """One roofline a device, of the shapes whose winner has a time; of one operator."""
    groups: dict[tuple[str, bool], list[Point]] = {}
    for report in reports:
        if (point := _point(report)) is not None:
            groups.setdefault((report.key.device, report.is_modelled), []).append(point)
    return [Roof(device, tuple(points), *_limits(points), modelled)
            for (device, modelled), points in groups.items()]


def _point(report: ShapeReport) -> Point | None:
    winner = report.winner
    if winner is None or not winner.us or report.key.op not in ops.names():
        return None
    try:
        work = ops.load(report.key.op).work(report.key.shape)
    except KeyError:                 # of another release, with other axes
        return None
    if work.flops <= 0 or work.bytes <= 0:
        return None
    floor = work.flops / winner.floor_us / 1e3 if winner.floor_us else None
    return Point(report.key.hash, work.flops / work.bytes,
                 work.flops / (winner.default_us or winner.us) / 1e3,
                 work.flops / winner.us / 1e3, floor)


def _limits(points: Iterable[Point]) -> tuple[float | None, float | None]:
    known = [(p.intensity, p.floor) for p in points if p.floor]
    if not known:
        return None, None
    bandwidth = max(floor / intensity for intensity, floor in known)
    peaks = [floor for intensity, floor in known if floor * _CLEAR < bandwidth * intensity]
    return bandwidth, max(peaks, default=None)
