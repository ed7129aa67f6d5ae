"""A fixed small computation, timed in every block: what it does, the machine did.

No config changes it, so a drift of its times is the clock's or the neighbours', not a kernel's.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ..targets.base import Target

CPU_SIZE = 16_384                    # elements: 128 KB in and out
GPU_SIZE = 1 << 22                   # long against a launch
SAMPLE_US = 250.0                    # a tenth of what two candidates take


class Anchor:
    """The same exponentials over and over, on the target's device.

    On a CPU by numpy, which uses the calling thread only: torch's would wake a pool of its own, and
    its spinning threads would disturb the kernels. So it sees throttling and what takes that core
    away, not what happens to the others; that shows in the default's own samples.
    """

    def __init__(self, target: Target):
        self._clock = target.time_us
        self._run: Callable[[], object]
        if target.torch_device == "cpu":
            numbers = np.linspace(-2.0, 2.0, CPU_SIZE, dtype=np.float32)
            into = np.empty_like(numbers)
            self._run = lambda: np.exp(numbers, out=into)
        else:
            x = torch.linspace(-2.0, 2.0, GPU_SIZE, device=target.torch_device)
            out = torch.empty_like(x)
            self._run = lambda: torch.exp(x, out=out)
        self._run()
        self._inner = max(1, min(1000, round(SAMPLE_US / max(self._clock(self._run, 1), 1e-3))))

    def sample(self) -> float:
        """Microseconds of one computation."""
        return self._clock(self._run, self._inner)


def anchor_of(target: Target) -> Anchor | None:
    """The anchor of a target; None where nothing computes, or torch cannot on the device.

    Nor where the device's clock sees only kernels of ours: it says 0 then.
    """
    if not target.computes:
        return None
    try:
        made = Anchor(target)
    except RuntimeError:             # NotImplementedError of a backend is one too
        return None
    return made if made.sample() > 0 else None
