"""What a compiled kernel says of itself, on any GPU: numbers that need no device to be read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


class ToolError(Exception):
    """A binary could not be read; the message says by which tool and why."""


@dataclass(frozen=True)
class Facts:
    """Facts of one kernel's binary. On AMD, registers are vector registers of both kinds."""

    registers: int                   # of a thread
    stack_bytes: int                 # of a thread in local memory: spills, as Triton has no arrays
    shared_bytes: int                # of a block, as Triton asks for it
    instructions: int
    counts: Mapping[str, int]        # by family of instruction, zero where there is none
    mma: Mapping[str, int]           # matrix instructions by family: "QGMMA", "mfma_fp8"
    mma_shapes: Mapping[str, int]    # the same by full name
    opcode_hash: str                 # the same code has the same one; operands do not count
    extra: Mapping[str, int]         # what only one vendor has

    def json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def opcode_hash(mnemonics: Sequence[str]) -> str:
    """16 hex digits over the instructions' full names, in order."""
    return hashlib.sha256("\n".join(mnemonics).encode()).hexdigest()[:16]
