"""What changed in the compiled kernels, how grave that is, and what is to blame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from . import diff_ascend
from .points import Kernel, Point

Severity = Literal["fail", "warn", "info"]
INSTRUCTIONS = 0.05                  # a change of the count that is worth a look
# The lowest rows of a tile that the arch's best matrix unit takes: wgmma's are 64 (PTX ISA).
WGMMA_ROWS = 64
_WGMMA = ("HGMMA", "QGMMA", "IGMMA")
_TILE = ("block_m", "block_n", "block_k", "block_h", "BLOCK_M", "BLOCK_N", "BLOCK_K")
_STAGES, _WARPS = ("stages", "num_stages"), ("warps", "num_warps")


@dataclass(frozen=True)
class Finding:
    """One difference."""

    severity: Severity
    rule: str                        # "spills", "mma", "async", "occupancy" ...
    where: str                       # device, point and kernel
    text: str                        # the numbers, before -> after
    cause: str                       # what is to blame, as far as the facts say

    def line(self) -> str:
        """For people."""
        return f"{self.severity} [{self.rule}] {self.where}: {self.text}; cause: {self.cause}"


def _knob(config: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((config[n] for n in names if n in config), None)


def _changed(base: Mapping[str, Any], head: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {base.get(k)} -> {head.get(k)}" for k in sorted({*base, *head})
                     if base.get(k) != head.get(k))


def _tile_grew(base: Point, head: Point) -> bool:
    pairs = [(base.config.get(t), head.config.get(t)) for t in _TILE]
    return any(isinstance(a, int) and isinstance(b, int) and b > a for a, b in pairs)


def _why_spilled(base: Point, head: Point, old: Kernel, new: Kernel) -> str:
    if old.async_copies and not new.async_copies:
        return _why_no_copies(base, head)
    if old.warps > new.warps:
        return f"warps {old.warps} -> {new.warps}: the tile's accumulators no longer fit"
    if _tile_grew(base, head):
        return f"the tile is too large for its registers ({_changed(base.config, head.config)})"
    return "register pressure of the kernel's own code"


def _why_no_copies(base: Point, head: Point) -> str:
    before, after = _knob(base.config, _STAGES), _knob(head.config, _STAGES)
    if isinstance(after, int) and after <= 1 and before != after:
        return f"stages {before} -> {after}: nothing is fetched ahead"
    return ("loads are no longer 16 bytes wide: a size or a stride has lost its divisibility by "
            "16 (do_not_specialize, tl.multiple_of, an unaligned stride)")


def _why_mma(base: Point, head: Point, old: Kernel, new: Kernel) -> str:
    if old.operands != new.operands:
        return f"the dot multiplies {new.operands}, it was {old.operands}"
    lost = any(m in old.mma for m in _WGMMA) and not any(m in new.mma for m in _WGMMA)
    rows = _knob(head.config, ("block_m", "BLOCK_M", "block_h"))
    if lost and isinstance(rows, int) and rows < WGMMA_ROWS:
        return f"a tile of {rows} rows is below the {WGMMA_ROWS} of wgmma"
    if lost and new.warps % 4:
        return f"{new.warps} warps are no whole warp group of 4"
    return "the layout of the dot's operands"


def _blame(base: Point, head: Point, tools: str, what: str) -> str:
    """The likeliest cause: the compiler when only it changed, else what the facts say."""
    if tools and base.source == head.source and base.config == head.config:
        return f"the compiler, the source is the same ({tools})"
    config = _changed(base.config, head.config)
    said = [what] if not config or config in what else [what, f"config {config}"]
    if tools:
        said.append(f"the compiler changed as well ({tools})")
    return "; ".join(said)


def compare_kernels(where: str, base: Point, head: Point, old: Kernel, new: Kernel, tools: str
                    ) -> list[Finding]:
    """The differences of one launch."""
    if old.opcode_hash == new.opcode_hash and old == new:
        return []
    found = []

    def add(severity: Severity, rule: str, text: str, what: str) -> None:
        found.append(Finding(severity, rule, where, text, _blame(base, head, tools, what)))

    for one in diff_ascend.changes(old, new):
        add(*one)
    if new.spill_bytes > old.spill_bytes:
        add("fail", "spills", f"spills {old.spill_bytes} -> {new.spill_bytes} bytes a thread",
            _why_spilled(base, head, old, new))
    if set(old.mma) != set(new.mma):
        add("fail" if old.mma else "info", "mma",
            f"matrix unit {_listed(old.mma)} -> {_listed(new.mma)}", _why_mma(base, head, old, new))
    if old.async_copies and not new.async_copies:
        add("fail", "async", f"async copies {old.async_copies} -> 0", _why_no_copies(base, head))
    for kind in sorted(old.counts):
        if not old.text_bytes or kind == "call" or not old.counts[kind] or new.counts.get(kind):
            continue
        add("fail", "instructions", f"{kind} instructions {old.counts[kind]} -> 0",
            "the code generator no longer emits them")
    if 0 < new.blocks_per_sm < old.blocks_per_sm:
        add("warn", "occupancy",
            f"blocks a multiprocessor {old.blocks_per_sm} -> {new.blocks_per_sm} (registers "
            f"{old.registers} -> {new.registers}, shared {old.shared_bytes} -> "
            f"{new.shared_bytes} bytes)", "more registers or shared memory")
    elif new.shared_bytes != old.shared_bytes:
        add("warn" if new.shared_bytes > old.shared_bytes else "info", "shared",
            f"shared memory {old.shared_bytes} -> {new.shared_bytes} bytes",
            "tiles, stages or layouts")
    change = new.instructions / old.instructions - 1 if old.instructions else 0.0
    if abs(change) > INSTRUCTIONS:
        add("warn", "size", f"instructions {old.instructions} -> {new.instructions} "
                            f"({100 * change:+.0f} %)", "another code path or unrolling")
    if not found:
        what = "input of hivmc" if new.task_type else "instructions"
        add("info", "code", f"other {what} ({old.opcode_hash} -> {new.opcode_hash}), none of "
                            "the gated facts", "the source")
    return found


def _listed(mma: Mapping[str, int]) -> str:
    return " ".join(f"{name}:{count}" for name, count in mma.items()) or "none"


def compare_points(where: str, base: Point, head: Point, tools: str) -> list[Finding]:
    """The differences of one named config."""
    if base.legal and not head.legal:
        return [Finding("fail", "legal", where, f"is refused: {head.reason}",
                        _blame(base, head, tools, "its binary needs what the device lacks, or it "
                                                  "does not compile"))]
    if not head.legal:
        return []
    if not base.legal:
        return [Finding("info", "legal", where, f"compiles again, was refused: {base.reason}",
                        _blame(base, head, tools, "the source"))]
    found = []
    if config := _changed(base.config, head.config):
        found.append(Finding("info", "config", where, f"{config}",
                             "another winner" if where.endswith(" record") else
                             "the space's default changed"))
    if (base.flops, base.bytes) != (head.flops, head.bytes):
        found.append(Finding("warn", "work", where, f"flops {base.flops} -> {head.flops}, bytes "
                             f"{base.bytes} -> {head.bytes}", "the operator's definition"))
    if len(base.kernels) != len(head.kernels):
        more = len(head.kernels) > len(base.kernels)
        found.append(Finding("warn" if more else "info", "launches", where,
                             f"launches {len(base.kernels)} -> {len(head.kernels)}",
                             _blame(base, head, tools, "the lowering")))
    left = list(head.kernels)
    for old in base.kernels:
        new = next((k for k in left if k.name == old.name), left[0] if left else None)
        if new is not None:
            left.remove(new)
            found += compare_kernels(f"{where} {new.name}", base, head, old, new, tools)
    return found
