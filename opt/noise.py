"""What the anchor's samples say of the machine while something was measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .stats import low

DRIFT = 0.03                         # between the halves of a session (research: A/A at load 50)
SPREAD = 0.10                        # of the median over the low quantile
FEWEST = 8                           # samples that a verdict needs

Word = Literal["quiet", "busy", "drifting"]


@dataclass(frozen=True)
class Noise:
    """A session's noise. `busy`: often interrupted, which low quantiles of interleaved samples
    bear; `drifting`: its second half ran at another speed than the first."""

    verdict: Word
    drift: float                     # low quantile of the second half over the first's, less 1
    spread: float                    # median over the low quantile, less 1
    anchor_us: float                 # low quantile: compares machines, and days of one
    samples: int

    def to_json(self) -> dict[str, float | str]:
        """Flat, as records hold it."""
        return {"verdict": self.verdict, "drift": round(self.drift, 4),
                "spread": round(self.spread, 4), "anchor_us": float(f"{self.anchor_us:.6g}"),
                "samples": self.samples}


def noise_of(anchor: Sequence[float]) -> Noise | None:
    """The verdict on a session; None when the anchor was not timed often enough."""
    if len(anchor) < FEWEST:
        return None
    half = len(anchor) // 2
    drift = low(anchor[half:]) / low(anchor[:half]) - 1
    spread = statistics.median(anchor) / low(anchor) - 1
    verdict: Word = "quiet"
    if abs(drift) > DRIFT:
        verdict = "drifting"
    elif spread > SPREAD:
        verdict = "busy"
    return Noise(verdict, drift, spread, low(anchor), len(anchor))


def noise_text(noise: object) -> str:
    """A record's noise in a line; "" when it has none."""
    if not isinstance(noise, dict) or "verdict" not in noise:
        return ""
    return (f"{noise['verdict']}: the anchor drifted by {100 * noise['drift']:+.1f} % between the "
            f"halves, its median was {100 * noise['spread']:.1f} % above its low quantile of "
            f"{noise['anchor_us']:.4g} us ({noise['samples']} samples)")
