"""Programs as child processes: with limits, at fixed addresses, and without sight of this machine.

bishengir-compile 1.2.0 walks sets of pointers, so what it writes (the order of a workspace's
regions, which vector functions it merges, and thereby memory plans) follows from the addresses of
its heap. Without randomisation those follow from the sizes of all that it allocates before, and
the paths of its own file, of its source and of its working folder are among that: a clone in a
folder with a longer name got other code. Environment, stack and threads do not matter (measured,
docs/facts.md); the libc does.
"""

from __future__ import annotations

import ctypes
import fcntl
import io
import os
import platform
import resource
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = "/proc/self/fd/0"             # what a program that runs unseeing calls its folder
_ADDR_NO_RANDOMIZE = 0x0040000       # personality(2)
_MFD_EXEC = 0x10                     # memfd_create(2): Linux 6.3 and newer know it
_STACK = 8 << 20                     # where mappings start depends on the stack's limit


@dataclass(frozen=True)
class Run:
    """How a program ended."""

    status: int | None               # negative: the signal; None: it ran past its time
    output: str


def run_program(path: Path, arguments: list[str], timeout_s: float, memory_gb: float,
                search: Sequence[Path], inherit: bool = False) -> Run:
    """Run a program with limits, at fixed addresses; `search` is its PATH.

    With `inherit` it stands before ours, and the rest of our environment goes along.
    """
    folders = [*map(str, search), *os.get_exec_path()] if inherit else map(str, search)
    env = {**(os.environ if inherit else {}), "PATH": os.pathsep.join(folders)}
    return _run([str(path), *arguments], str(path), env, timeout_s, memory_gb)


def run_unseeing(path: Path, arguments: list[str], timeout_s: float, memory_gb: float,
                 folder: Path) -> Run:
    """Run a program that knows `folder` as HERE, and of no other path, not even its own.

    It runs as a copy in memory, which has no path: else it asks the kernel for its own, and for
    the 950 even writes that of its libraries into what it makes. Where the kernel does not run
    such copies it runs from its place, and its output then depends on that.
    """
    here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    env = {"TMPDIR": HERE}           # no PATH: a hivmc found by chance would change its output
    try:
        copy = _in_memory(path)
        return _run([path.name, *arguments], f"/proc/self/fd/{copy.fileno()}", env, timeout_s,
                    memory_gb, here, copy.fileno(), "/")
    except OSError:                  # vm.memfd_noexec, a security module
        return _run([str(path), *arguments], str(path), env, timeout_s, memory_gb, here,
                    folder="/")
    finally:
        os.close(here)


def surroundings() -> dict[str, str]:
    """What still moves bishengir-compile's output: the libc, and addresses that cannot be fixed.

    glibc 2.41 in the place of 2.36 changed three of four sensitive kernels (docs/facts.md).
    """
    random = {} if fixed_addresses() else {"addresses": "random"}
    return {"libc": " ".join(platform.libc_ver()), **random}


@cache
def fixed_addresses() -> bool:
    """Whether programs may start without randomised addresses: Docker's filter forbids it.

    Without, what bishengir-compile writes for mix kernels differs from run to run.
    """
    allowed: list[bool] = []

    def ask() -> None:               # it holds for a thread and what that one starts
        allowed.append(ctypes.CDLL(None).personality(_ADDR_NO_RANDOMIZE) != -1)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return allowed == [True]


@cache
def _in_memory(path: Path) -> io.FileIO:
    """A read-only copy of a program without a path: 94 MiB of the 910B's compiler, in 50 ms."""
    def made(flags: int) -> int:
        return os.memfd_create(path.name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)

    try:
        copy = made(_MFD_EXEC)
    except OSError:
        copy = made(0)
    with io.FileIO(copy, "w") as written, path.open("rb") as program:
        size, done = path.stat().st_size, 0
        while done < size:
            done += os.sendfile(copy, program.fileno(), done, size - done)
        fcntl.fcntl(copy, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK
                    | fcntl.F_SEAL_GROW)
        # opened again: what is open for writing cannot be executed
        return io.FileIO(os.open(f"/proc/self/fd/{written.fileno()}", os.O_RDONLY), "r")


def _run(command: list[str], program: str, env: Mapping[str, str], timeout_s: float,
         memory_gb: float, stdin: int = subprocess.DEVNULL, kept: int | None = None,
         folder: str | None = None) -> Run:
    libc = ctypes.CDLL(None)         # opened here: nothing may be allocated between fork and exec
    memory = int(memory_gb * 2**30)
    most = resource.getrlimit(resource.RLIMIT_STACK)[1]
    stack = _STACK if most == resource.RLIM_INFINITY else min(_STACK, most)

    def prepare() -> None:
        libc.personality(_ADDR_NO_RANDOMIZE)
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_STACK, (stack, most))

    process = subprocess.Popen(
        command, executable=program, stdin=stdin, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, env=env, cwd=folder, preexec_fn=prepare, start_new_session=True,
        pass_fds=() if kept is None else (kept,))
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return Run(None, "")
    return Run(process.returncode, output.decode(errors="replace"))
