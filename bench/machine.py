"""Which machine this is: enough to refuse a comparison with another one, and no host's name."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path

from ..opt.provenance import machine as model
from .result import Machine

_SALT = "expertile-bench"            # the digest must not be the same as another program's


def host() -> str:
    """A digest of what tells this host from another of the same model."""
    identity = Path("/etc/machine-id")
    text = identity.read_text().strip() if identity.exists() else ""
    return hashlib.sha256(f"{_SALT}:{text}:{platform.node()}".encode()).hexdigest()[:12]


def here(device: str, threads: int) -> Machine:
    """This machine, as a target sees it."""
    return Machine(model(), device, threads, host())
