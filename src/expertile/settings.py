"""The edge where the environment and the file system's conventions are read, once, by nobody else.

Argument beats environment beats default. Below the front door nothing reads the environment.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

COLLECT = "EXPERTILE_COLLECT"


@dataclass(frozen=True)
class Settings:
    """Where things are and what is switched off."""

    db: str | None                   # EXPERTILE_DB: a layer above all others (path or URL)
    project_db: Path | None          # ./expertile.sqlite when it exists
    user_db: Path                    # where `expertile tune` writes by default
    cache_dir: Path                  # EXPERTILE_CACHE_DIR: compiled kernels, measured limits
    worker_python: str | None        # EXPERTILE_WORKER_PYTHON: has the vendor's torch and triton
    cann_home: str | None            # ASCEND_HOME_PATH or ASCEND_TOOLKIT_HOME, as set_env.sh sets
    collect_dir: Path | None         # EXPERTILE_COLLECT: where processes write the calls they saw
    modelled: bool                   # EXPERTILE_MODELLED=serve: modelled records answer too
    routing: str                     # EXPERTILE_ROUTING: whose records are wanted; "uniform"
    disabled: bool                   # EXPERTILE_DISABLE=1: every operator is the torch reference


def _directory(variable: str, xdg: str, fallback: str) -> Path:
    """A directory by our variable, else by XDG's, else below the home directory."""
    if own := os.environ.get(variable):
        return Path(own)
    return Path(os.environ.get(xdg) or Path.home() / fallback) / "expertile"


def read() -> Settings:
    """The settings of this process."""
    data = _directory("EXPERTILE_DATA_DIR", "XDG_DATA_HOME", ".local/share")
    project = Path("expertile.sqlite")
    return Settings(
        db=os.environ.get("EXPERTILE_DB"),
        project_db=project if project.exists() else None,
        user_db=data / "tuning.sqlite",
        cache_dir=_directory("EXPERTILE_CACHE_DIR", "XDG_CACHE_HOME", ".cache"),
        worker_python=os.environ.get("EXPERTILE_WORKER_PYTHON"),
        cann_home=os.environ.get("ASCEND_HOME_PATH") or os.environ.get("ASCEND_TOOLKIT_HOME"),
        collect_dir=Path(collect) if (collect := os.environ.get(COLLECT)) else None,
        modelled=os.environ.get("EXPERTILE_MODELLED", "") == "serve",
        routing=os.environ.get("EXPERTILE_ROUTING") or "uniform",
        disabled=os.environ.get("EXPERTILE_DISABLE", "") not in ("", "0"),
    )
