"""A long-lived child process that may crash, spin or eat memory without taking us with it.

Compilers and candidate kernels run here. Jobs are (dotted function, JSON arguments) and answers
are JSON, one line each, so nothing but data crosses the pipe.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from typing import IO, Any

_PR_SET_PDEATHSIG = 1
DIED = "the child process died"      # how the message of a crash begins


class ChildFailed(Exception):
    """The job raised: `kind` is the exception's type name."""

    def __init__(self, kind: str, message: str):
        super().__init__(f"{kind}: {message}")
        self.kind = kind


class ChildCrashed(Exception):
    """The child died; the message says how, with the tail of its stderr."""


class ChildTimeout(Exception):
    """The job ran past its time limit; the child was killed."""


class Child:
    """One child, started on first use and again after a crash. Safe to share between threads.

    Args:
        memory_gb: limit of its address space; 0 sets none.
        python: the interpreter it runs in, by default ours.
        env: environment variables besides ours.
    """

    def __init__(self, memory_gb: float = 16.0, python: str = sys.executable,
                 env: Mapping[str, str] | None = None):
        self._memory_gb, self._python = memory_gb, python
        self._env = {**os.environ, **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: IO[bytes] | None = None
        self._lock = threading.Lock()

    def call(self, function: str, timeout_s: float, **kwargs: Any) -> Any:
        """Run `package.module:function(**kwargs)` in the child and return its JSON result."""
        with self._lock:
            process = self._started()
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps([function, kwargs]).encode() + b"\n")
                process.stdin.flush()
            except BrokenPipeError:
                raise ChildCrashed(self._obituary()) from None
            answer = self._answer(process, time.monotonic() + timeout_s)
        if answer is None:
            raise ChildTimeout(f"{function} ran longer than {timeout_s:g} s and was killed")
        if "error" in answer:
            raise ChildFailed(*answer["error"])
        return answer["result"]

    def close(self) -> None:
        """Stop the child now."""
        with self._lock:
            self._kill()

    def abort(self) -> None:
        """Kill the child even while another thread waits for it; that thread gets ChildCrashed."""
        process = self._process
        if process is not None:
            process.kill()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._kill()
            self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
            self._process = subprocess.Popen(
                [self._python, "-m", __spec__.name, str(self._memory_gb)], env=self._env,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr)
        return self._process

    def _answer(self, process: subprocess.Popen[bytes], deadline: float) -> dict[str, Any] | None:
        assert process.stdout is not None
        line = b""
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                self._kill()
                return None
            part = os.read(process.stdout.fileno(), 1 << 20)
            if not part:
                raise ChildCrashed(self._obituary())
            line += part
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _obituary(self) -> str:
        assert self._process is not None and self._stderr is not None
        code = self._process.wait()
        self._stderr.seek(0)
        tail = self._stderr.read().decode(errors="replace").strip().splitlines()[-3:]
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        self._kill()
        return f"{DIED} ({how}): {' | '.join(tail) or 'it printed nothing'}"

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout, self._stderr):
                if pipe is not None:
                    with suppress(BrokenPipeError):  # an unflushed job for a dead child
                        pipe.close()
        self._process = self._stderr = None


def _serve(memory_gb: float) -> None:
    """The child's main loop: read a job, run it, answer."""
    if sys.platform == "linux":      # die with the parent even when busy
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if memory_gb:
        limit = int(memory_gb * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)                    # what a compiler prints must not look like an answer
    for line in sys.stdin.buffer:
        path, kwargs = json.loads(line)
        module, _, name = path.partition(":")
        try:
            answer = {"result": getattr(import_module(module), name)(**kwargs)}
        except BaseException as e:   # a job's failure is data for the parent
            answer = {"error": [type(e).__name__, str(e)[-4000:]]}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)   # Ctrl-C is the parent's to handle
    _serve(float(sys.argv[1]))
