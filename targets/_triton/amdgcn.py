"""Facts of an AMD kernel, read from the assembly text that Triton keeps of it."""

from __future__ import annotations

import re
from collections import Counter

from .facts import Facts, ToolError, opcode_hash

# Prefixes of what is counted; LDS is what NVIDIA calls shared memory, scratch what it calls local.
# gfx90a and older spill through buffer_load and buffer_store: there "load" and "store" have both.
_COUNTED = {
    "load": ("global_load", "buffer_load", "flat_load"),
    "store": ("global_store", "buffer_store", "flat_store"),
    "lds_read": ("ds_read", "ds_load"),
    "lds_write": ("ds_write", "ds_store"),
    "scratch_load": ("scratch_load",),
    "scratch_store": ("scratch_store",),
    "barrier": ("s_barrier",),
    "exp": ("v_exp_",),
    "dot": ("v_dot",),
}
# An instruction is indented and starts with its unit; directives start with a dot, labels stand
# at the margin.
_INSTRUCTION = re.compile(r"^[ \t]+((?:v|s|ds|buffer|global|flat|scratch|tbuffer)_[a-z0-9_]+)(.*)$",
                          re.MULTILINE)
_MFMA = re.compile(r"v_s?mfmac?_(?:scale_)?[a-z0-9]+_\d+x\d+x\d+_?(?:\d+b_)?(\w+)")
_RESOURCES = ("vgpr_count", "agpr_count", "sgpr_count", "vgpr_spill_count", "sgpr_spill_count",
              "private_segment_fixed_size")


def parse(text: str, shared_bytes: int) -> Facts:
    """Facts of an amdgcn text; `shared_bytes` is metadata.shared: LDS is asked for at launch."""
    resources = {name: _resource(text, name) for name in _RESOURCES}
    found = _INSTRUCTION.findall(text)
    if not found:
        raise ToolError(f"the amdgcn text has no instruction: {text.strip()[:200]!r}")
    names = [name for name, _ in found]
    to_lds = sum("_lds_" in name or " lds" in rest.partition(";")[0] for name, rest in found
                 if name.startswith(_COUNTED["load"]))
    counts = {kind: sum(name.startswith(prefixes) for name in names)
              for kind, prefixes in _COUNTED.items()}
    shapes = Counter(name for name in names if "mfma" in name)
    families: Counter[str] = Counter()
    for name, count in shapes.items():
        families[_family(name)] += count
    return Facts(
        registers=resources["vgpr_count"], stack_bytes=resources["private_segment_fixed_size"],
        shared_bytes=shared_bytes, instructions=len(names),
        counts={**counts, "load_to_lds": to_lds}, mma=dict(sorted(families.items())),
        mma_shapes=dict(sorted(shapes.items())), opcode_hash=opcode_hash(names), extra={
            "vgprs": resources["vgpr_count"] - resources["agpr_count"],
            "agprs": resources["agpr_count"], "sgprs": resources["sgpr_count"],
            "vgpr_spills": resources["vgpr_spill_count"],
            "sgpr_spills": resources["sgpr_spill_count"]})


def _resource(text: str, name: str) -> int:
    """A number of the kernel's metadata; archs without accumulation registers do not name them."""
    found = re.findall(rf"^[ \t-]*\.{name}:\s+(\d+)", text, re.MULTILINE)
    if not found and name != "agpr_count":
        raise ToolError(f"the amdgcn text has no .{name}: it is not a whole compiled kernel")
    return max(map(int, found), default=0)


def _family(name: str) -> str:
    """By what it multiplies: "v_mfma_f32_32x32x16_fp8_fp8" -> "mfma_fp8"."""
    match = _MFMA.match(name)
    operands = match[1] if match else name
    if "f8" in operands or "fp8" in operands:            # f8f6f4 and bf8 among them
        return "mfma_fp8"
    if operands.startswith(("bf16", "f16")):
        return "mfma_16"                 # one rate, as in NVIDIA's HMMA
    for kind in ("xf32", "f32", "f64", "i8"):
        if operands.startswith(kind):
            return f"mfma_{kind}"
    return "mfma_other"
