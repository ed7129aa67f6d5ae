"""Facts of an NVIDIA binary, read with the tools that ship inside the triton package."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

from .facts import Facts, ToolError, opcode_hash

COUNTED = ("LDGSTS", "UTMALDG", "UTMASTG", "USETMAXREG", "LDL", "STL", "LDSM", "STSM", "LDG", "STG",
           "BAR", "SYNCS", "MUFU")
_TIMEOUT_S = 60.0                    # a 5000-instruction kernel takes 0.1 s

# "/*0040*/  @!UP0 QGMMA.64x128x32.F32.E4M3.E4M3 R24, ...": address, a predicate or none, the name
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,6}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)",
                          re.MULTILINE)
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


def tools_in(triton_package: Path) -> Path:
    """The folder of NVIDIA's tools in an installed triton package."""
    return triton_package / "backends" / "nvidia" / "bin"


def read(cubin: bytes, shared_bytes: int, tools: Path) -> Facts:
    """Facts of a cubin; `shared_bytes` is metadata.shared, which the binary does not hold."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _run(tools / "cuobjdump", "-res-usage", path)
        try:
            sass = _run(tools / "nvdisasm", "-c", path)
        except ToolError:            # older nvdisasm refuse some new archs that cuobjdump reads
            sass = _run(tools / "cuobjdump", "-sass", path)
    return parse(usage, sass, shared_bytes)


def parse(usage: str, sass: str, shared_bytes: int) -> Facts:
    """Facts from what `cuobjdump -res-usage` and `nvdisasm -c` (or `cuobjdump -sass`) print.

    Where a kernel comes with functions of its own, the largest need counts.
    """
    needs = [tuple(map(int, found)) for found in _USAGE.findall(usage)]
    if not needs:
        raise ToolError(f"cuobjdump -res-usage names no function: {usage.strip()[:200]!r}")
    names = _INSTRUCTION.findall(sass)
    if not names:
        raise ToolError(f"the disassembly has no instruction: {sass.strip()[:200]!r}")
    families = Counter(name.partition(".")[0] for name in names)
    registers, stack, _, local = (max(column) for column in zip(*needs, strict=True))
    return Facts(
        registers=registers, stack_bytes=stack + local, shared_bytes=shared_bytes,
        instructions=len(names), counts={name: families[name] for name in COUNTED},
        mma={name: families[name] for name in sorted(families) if name.endswith("MMA")},
        mma_shapes=dict(sorted(Counter(
            n for n in names if n.partition(".")[0].endswith("MMA")).items())),
        opcode_hash=opcode_hash(names), extra={"stack_bytes": stack, "local_bytes": local})


def _run(tool: Path, flag: str, path: Path) -> str:
    if not tool.is_file():
        raise ToolError(f"{tool} is missing; reinstall triton, whose Linux wheels carry it")
    try:
        done = subprocess.run([str(tool), flag, str(path)], capture_output=True, text=True,
                              timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired as e:
        raise ToolError(f"{tool.name} {flag} did not end within {_TIMEOUT_S:.0f} s") from e
    if done.returncode:
        raise ToolError(f"{tool.name} {flag} failed ({done.returncode}); it may be older than the "
                        f"binary's arch: {done.stderr.strip()[-300:]}")
    return done.stdout
