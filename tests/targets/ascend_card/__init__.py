"""A CANN that is none: its libraries record and execute, its compiler compiles for this CPU."""

from __future__ import annotations

import ctypes
import json
import platform
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
# What --help of ascendnpu-ir 1.2.0 lists, as far as we use it.
FLAGS = """  --enable-hfusion-compile
  --enable-hivm-compile  --enable-triton-kernel-compile  --enable-auto-multi-buffer
  --enable-code-motion  --set-workspace-multibuffer=<uint>  --target=<value>
"""


def install(home: Path, *defines: str, rt: bool = True, compiler: bool = True) -> Path:
    """Put libraries, a compiler and a version file where CANN 8.5 has them."""
    (home / "lib64").mkdir(parents=True)
    library = home / "lib64" / "libascendcl.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-O1", "-fvisibility=hidden",
                    *(f"-D{d}" for d in (*defines, *(() if rt else ("NO_RT",)))),
                    "-o", str(library), str(HERE / "recorder.c"), "-ldl"], check=True)
    if rt:                           # one library under two names shares its state
        (home / "lib64" / "libruntime.so").symlink_to(library)
    info = home / f"{platform.machine()}-linux" / "ascend_toolkit_install.info"
    info.parent.mkdir()
    info.write_text("package_name=Ascend-cann-toolkit\nversion=8.5.0\n")
    tools = home / "tools" / "bishengir" / "bin"
    tools.mkdir(parents=True)
    if compiler:
        program = tools / "bishengir-compile"
        program.write_text(f"#!{sys.executable}\n" + (HERE / "compiler.py").read_text())
        program.chmod(0o755)
        (tools / "help.txt").write_text(FLAGS)
    return home


class Recorder:
    """The recording side of an installation, in this process."""

    def __init__(self, home: Path):
        self.home = home
        self.tools = home / "tools" / "bishengir" / "bin"
        self._library = ctypes.CDLL(str(home / "lib64" / "libascendcl.so"))
        self._library.recorder_log.restype = ctypes.c_char_p
        self._library.recorder_flags.restype = ctypes.c_uint64
        self._library.recorder_reset()

    @property
    def calls(self) -> list[str]:
        """What was called since the reset, in order."""
        return self._library.recorder_log().decode().splitlines()

    @property
    def live(self) -> int:
        """Device buffers that nobody has freed."""
        return int(self._library.recorder_live())

    @property
    def flags(self) -> int:
        """The address that stands for the cores' flags."""
        return int(self._library.recorder_flags())

    def fail(self, name: str, code: int, after: int = 0) -> None:
        """Let a function answer with a code, after so many good answers."""
        self._library.recorder_fail(name.encode(), code, after)

    def reset(self) -> None:
        """Forget the calls and the failure."""
        self._library.recorder_reset()

    def kernel(self, name: str, source: str = "", **settings: int) -> None:
        """What the compiler makes of a kernel: C of npu_block, workspace, locks."""
        if source:
            (self.tools / f"{name}.c").write_text(source)
        (self.tools / f"{name}.json").write_text(json.dumps(settings))

    def compiled(self) -> list[list[str]]:
        """The compiler's command lines."""
        log = self.tools / "compiled.log"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
