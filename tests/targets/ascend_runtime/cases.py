"""What these tests launch: one small kernel, in real and in marked form."""

from __future__ import annotations

import torch

from expertile import ops
from expertile.targets.ascend.launches import Launch
from expertile.targets.ascend.target import AscendTarget

SILU = ops.load("silu_mul")
SHAPE = SILU.odd_shapes[0]           # 7 x 77 in float32
# y = block + 0.5 in the block's first output, whatever x is
MARK = """
int npu_block(const arguments_t *a, uint32_t block) {
    ((float *)a->a2)[block] = block + 0.5f;
    return 0;
}
"""


def silu_launch(target: AscendTarget, x: torch.Tensor, y: torch.Tensor) -> Launch:
    """One launch of silu_mul on real tensors."""
    found: list[Launch] = []
    recording = target.recording(found)
    recording.build_kernel(SILU, SHAPE, target.space(SILU, SHAPE).default())(x, out=(y,))
    return found[0]


def tensors() -> tuple[torch.Tensor, torch.Tensor]:
    """x [7, 154] and y [7, 77]."""
    return torch.randn(7, 154), torch.zeros(7, 77)
