"""What a kernel compiled by any Triton says of itself, whatever its last stage is."""

from __future__ import annotations

import hashlib
from typing import Any

from .._triton.aot import Launch


def facts_of(launch: Launch) -> dict[str, Any]:
    """Grid, warps, on-chip bytes, the stages that were reached and a hash of the last one.

    `binary` says whether the last stage is the device's code: text is IR.
    """
    metadata, asm = launch.compiled.metadata, launch.compiled.asm
    stages = {name: asm[name] for name in asm if name not in ("source", "json")}
    last = stages[list(stages)[-1]]
    binary = isinstance(last, bytes) and not _is_text(last)
    data = last if isinstance(last, bytes) else last.encode()
    return {"name": launch.name, "grid": list(launch.grid),
            "warps": getattr(metadata, "num_warps", None),
            "shared_bytes": int(getattr(metadata, "shared", 0) or 0), "stages": list(stages),
            "binary": binary, "hash": hashlib.sha256(data).hexdigest()[:16]}


def _is_text(data: bytes) -> bool:
    try:
        return data.decode().isprintable() or "\n" in data.decode()
    except UnicodeDecodeError:
        return False
