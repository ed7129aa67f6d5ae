"""The child processes of a tune: two that compile, one that checks and times."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from ..ops.space import Config
from ..targets.base import Target
from ..targets.child import Child, ChildCrashed, ChildFailed, ChildTimeout
from . import jobs
from .budget import Guard
from .session import Site

CPU_BUILDERS, MOST_BUILDERS = 2, 8   # TVM's own threads share the cores; Triton compiles on one


@dataclass(frozen=True)
class Tried:
    """What came of one candidate."""

    status: str
    error: str = ""
    samples: tuple[float, ...] = ()
    baseline: tuple[float, ...] = ()     # the baseline's samples of the same rounds
    anchor: tuple[float, ...] = ()       # a fixed kernel's of the same rounds
    modelled_us: float | None = None     # of a build, where the target has a model


@dataclass(frozen=True)
class Raced:
    """Samples of each finalist in the order in which they were given, the baseline last."""

    samples: list[list[float]]
    anchor: Sequence[float] = ()         # of a fixed kernel, one a round


class Workers:
    """Compiles in parallel, then measures alone: nothing else runs while a candidate is timed."""

    def __init__(self, guard: Guard, target: Target):
        self._guard = guard
        on_cpu = target.torch_device == "cpu"
        count = CPU_BUILDERS if on_cpu else min(MOST_BUILDERS, max(2, (os.cpu_count() or 2) // 2))
        self.batch = 2 * count       # candidates worth compiling together
        self._builders = [target.worker(guard.memory_gb("build")) for _ in range(count)]
        self._bench = target.worker(guard.memory_gb("run", target.torch_device))
        # A child dies with the thread that started it, so these threads live as long as we do.
        self._threads = ThreadPoolExecutor(count + 1)
        self._prepared: Site | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for child in (*self._builders, self._bench):
            child.abort()                # first: a thread may be waiting for an answer
        self._threads.shutdown(cancel_futures=True)
        for child in (*self._builders, self._bench):
            child.close()

    def build(self, site: Site, configs: Sequence[Config], warm: bool = True) -> list[Tried]:
        """Compile configs; the i-th answer is the i-th config's.

        Meanwhile (`warm`) the measuring child makes the inputs; `measure` asks whether it could.
        """
        count = len(self._builders)
        lanes = [list(range(i, len(configs), count)) for i in range(count)]
        built: dict[int, Tried] = {}

        def work(child: Child, lane: list[int]) -> None:
            for i in lane:
                built[i] = self._call(child, self._guard.build_s, "build_error", "build", site,
                                      config=dict(configs[i]))

        prepared = self._threads.submit(self.prepare, site) if warm else None
        for done in [self._threads.submit(work, child, lane)
                     for child, lane in zip(self._builders, lanes, strict=True)]:
            done.result()
        if prepared is not None:
            prepared.result()
        return [built[i] for i in range(len(configs))]

    def prepare(self, site: Site) -> Tried:
        """Give the measuring child the shape's inputs and expected outputs, if it lacks them."""
        if self._prepared == site:
            return Tried("ok")
        tried = self._call(self._bench, self._guard.prepare_s, "run_error", "prepare", site)
        if tried.status == "ok":
            self._prepared = site
        return tried

    def measure(self, site: Site, config: Config, baseline: Config | None, seconds: float) -> Tried:
        """Check one built config and time it against the baseline."""
        ready = self.prepare(site)
        if ready.status != "ok":
            return ready
        tried = self._call(self._bench, self._guard.run_s, "run_error", "measure", site,
                           config=dict(config), baseline=baseline and dict(baseline),
                           seconds=seconds)
        if tried.status in ("wrong", "run_error") and self._prepared and baseline:
            self._check_bench(site, baseline)
        return tried

    def renew(self) -> None:
        """Measure in a new process from now on: its stack and buffers lie elsewhere."""
        self._bench.close()
        self._prepared = None

    def race(self, site: Site, configs: Sequence[Config], rounds: int, seconds: float
             ) -> Raced | None:
        """Samples of finalists, the baseline last; None when the child did not live to tell."""
        if self.prepare(site).status != "ok":
            return None
        try:
            return Raced(**self._bench.call(
                f"{jobs.__name__}:race", self._guard.run_s + 4 * seconds, site=site.to_json(),
                configs=[dict(c) for c in configs], rounds=rounds, seconds=seconds))
        except (ChildTimeout, ChildCrashed, ChildFailed):
            self._prepared = None
            return None

    def _check_bench(self, site: Site, baseline: Config) -> None:
        """Start the measuring child afresh when a bad candidate wrote over its data."""
        try:
            sound = self._bench.call(f"{jobs.__name__}:is_sound", self._guard.run_s,
                                     site=site.to_json(), config=dict(baseline))
        except (ChildTimeout, ChildCrashed, ChildFailed):
            sound = False
        if not sound:
            self.renew()

    def _call(self, child: Child, timeout_s: float, crash_status: str, job: str, site: Site,
              **kwargs: Any) -> Tried:
        """One job; whatever happens to the child is a status."""
        try:
            answer = child.call(f"{jobs.__name__}:{job}", timeout_s, site=site.to_json(), **kwargs)
        except (ChildTimeout, ChildCrashed, ChildFailed) as e:
            if child is self._bench:
                self._prepared = None
            if isinstance(e, ChildTimeout):
                return Tried("timeout", str(e))
            text = str(e)
            killed = isinstance(e, ChildCrashed) and "SIGKILL" in text   # the kernel's OOM killer
            no_memory = isinstance(e, ChildFailed) and ("MemoryError" in text
                                                        or "allocate memory" in text)
            return Tried("oom" if killed or no_memory else crash_status, text)
        return Tried(answer.get("status", "ok"), answer.get("error", ""),
                     tuple(answer.get("samples", ())), tuple(answer.get("baseline", ())),
                     tuple(answer.get("anchor", ())), answer.get("modelled_us"))
