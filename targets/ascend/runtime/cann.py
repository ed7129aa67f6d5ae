"""Where CANN, Huawei's toolkit, stands on this machine, and what of it is missing."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# Where its installer puts it: up to 8.3, from 8.5 on, and without root.
HOMES = ("/usr/local/Ascend/ascend-toolkit/latest", "/usr/local/Ascend/cann",
         "/usr/local/Ascend/latest", "~/Ascend/ascend-toolkit/latest", "~/Ascend/cann")
_DRIVER = ("/usr/local/Ascend/driver/lib64/driver", "/usr/local/Ascend/driver/lib64/common",
           "/usr/local/Ascend/driver/lib64")
_TOOL_FOLDERS = ("tools/bishengir/bin", "bin", "compiler/bishengir/bin",
                 "compiler/ccec_compiler/bin", "tools/ccec_compiler/bin",
                 "tools/bisheng_compiler/bin")
_VERSION = re.compile(r"^\s*(?:toolkit_installed_)?version\s*=\s*\[?([\w.]+)", re.M | re.I)
INSTALL = ("install the card's driver and Huawei's CANN toolkit (8.5 or newer, for it brings "
           "bishengir-compile and hivmc), `source .../set_env.sh`, and give its folder as "
           "ASCEND_HOME_PATH where it stands elsewhere")


class NoCann(ValueError):
    """CANN is missing or incomplete; the message is one line that says what to install."""


@dataclass(frozen=True)
class Cann:
    """An installation."""

    home: Path
    version: str                     # "8.5.0", or "unknown"
    libraries: tuple[Path, ...]      # folders of its and the driver's shared libraries
    tools: tuple[Path, ...]          # folders of its compilers

    def library(self, name: str) -> Path | None:
        """A shared library of it or of the driver, or None."""
        return _first(folder / name for folder in self.libraries)

    def tool(self, name: str) -> Path | None:
        """A program of it, or None."""
        return _first(folder / name for folder in self.tools)


def find(home: Path | None = None) -> Cann:
    """The installation at `home`, else at a standard place; NoCann says what is missing."""
    places = [home] if home is not None else [Path(text).expanduser() for text in HOMES]
    for place in places:
        libraries = tuple(folder for folder in (
            place / "lib64", place / f"{platform.machine()}-linux" / "lib64", *map(Path, _DRIVER))
            if folder.is_dir())
        cann = Cann(place, _version(place), libraries,
                    tuple(place / part for part in _TOOL_FOLDERS if (place / part).is_dir()))
        if cann.library("libascendcl.so") is not None:
            return cann
    where = f"{home}/lib64" if home is not None else f"{', '.join(HOMES)}"
    raise NoCann(f"CANN is not installed here: there is no libascendcl.so in {where}; {INSTALL}")


def _first(paths: Iterable[Path]) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _version(home: Path) -> str:
    arch = f"{platform.machine()}-linux"
    for name in (f"{arch}/ascend_toolkit_install.info", "version.cfg", "compiler/version.info",
                 "runtime/version.info"):
        path = home / name
        if path.is_file() and (stated := _VERSION.search(path.read_text(errors="replace"))):
            return stated[1]
    return "unknown"
