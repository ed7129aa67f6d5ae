"""A target behind a maker's own Triton: here, in a worker's interpreter, or only described."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...ops.space import Config, Space
from ...ops.spec import Kernel, Operator, Shape
from .. import examination
from .._triton import live
from .._triton.aot import Launch, Recorder
from ..base import BuildError, Evidence, Examined, Figure, Fp8, FromLowering, Recipe, Verdict
from ..child import Child
from .facts import facts_of
from .narrow import narrowed
from .stack import Stack
from .stack import worker as stack_worker
from .timing import events_us
from .vendor import Chip, Vendor


@dataclass(frozen=True)
class VendorTarget(FromLowering):
    """A chip whose kernels only its maker's stack can compile and run."""

    vendor: Vendor
    chip: Chip
    stack: Stack | None              # what answered, if anything did
    problem: str                     # why nothing did
    here: bool                       # the stack is this interpreter's
    worker_python: str | None
    unit: str
    cache_dir: Path
    compiler: Child = field(compare=False)         # of that interpreter; its first job starts it
    lang: str = "triton"
    has_tma: bool = False
    recorder: Recorder | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """The family."""
        return self.vendor.name

    @property
    def arch(self) -> str:
        """Of the chip that answered, else of the one described."""
        return self.vendor.prefix + self.stack.arch if self.stack else self.chip.arch

    @property
    def device(self) -> str:
        """What a record's validity depends on."""
        cores = f"-{self.stack.cores}" if self.stack and self.stack.cores else ""
        return self.arch + cores

    @property
    def torch_device(self) -> str:
        """Where tensors must live."""
        return self.vendor.torch_device if self.computes else "meta"

    @property
    def aliases(self) -> tuple[str, ...]:
        """Names under which the same silicon is sold."""
        return self.chip.products

    @property
    def computes(self) -> bool:
        """Only where the device is this process's."""
        return self.here and self.stack is not None and not self.stack.why_no_run

    @property
    def fp8(self) -> Fp8:
        """How kernels hold e4m3fn."""
        return self.stack.fp8 if self.stack else self.chip.fp8

    @property
    def warp_size(self) -> int:
        """Threads of a warp; 32 where there are none, so that lowerings size tiles as for a GPU."""
        said = self.stack.warp_size if self.stack else self.chip.warp_size
        return said if said > 1 else 32

    @property
    def cores(self) -> int:
        """Multiprocessors; 1 where the driver does not say."""
        return max(1, self._answered().cores)

    @property
    def shared_bytes(self) -> int:
        """On-chip memory that one program may have, as the driver says."""
        return self._answered().shared_bytes

    def _answered(self) -> Stack:
        if self.stack is None:
            raise BuildError(self.problem, "build_error")
        return self.stack

    def toolchain(self) -> dict[str, str]:
        """Versions that change the generated code."""
        known = self.stack
        return {"triton": known.triton if known else "absent",
                "torch": known.torch if known else "absent"}

    def available(self) -> str | None:
        """None, or what is missing for kernels to run, and what to install."""
        if self.stack is None:
            return self.problem
        if self.stack.why_no_run:
            return f"kernels can only be compiled: {self.stack.why_no_run}; {self.vendor.install}"
        return None

    def evidence(self) -> Evidence:
        """Nothing but a description, until a stack has answered."""
        if self.stack is None:
            return "L0 described"
        return "L1 lowered" if self.stack.why_no_run else "L4 timed"

    def limits(self) -> Mapping[str, Figure]:
        """What sources say, and what the driver says."""
        if self.stack is None:
            return self.chip.figures
        source = f"get_device_properties of the driver of triton {self.stack.triton}"
        return {**self.chip.figures, "shared_per_block": Figure(
            float(self.stack.shared_bytes), "bytes", source, "documented")}

    def space(self, op: Operator, shape: Shape) -> Space:
        """The lowering's space without the launch options that the backend refuses."""
        known = self._answered()
        return narrowed(FromLowering.space(self, op, shape), known.options, known.num_warps)

    def legal(self, op: Operator, shape: Shape, config: Config) -> Verdict:
        """A config must belong to the space; the rest shows once it is compiled."""
        if self.stack is None:
            return Verdict(False, self.problem)
        why = self.space(op, shape).why_not(config)
        return Verdict(why is None, why or "")

    def build_kernel(self, op: Operator, shape: Shape, config: Config) -> Kernel:
        """A kernel of this process; BuildError where the device is not this process's."""
        if why := self.available():
            raise BuildError(f"{self.name} kernels cannot run: {why}", "build_error")
        if not self.here:
            raise BuildError(f"{self.name} kernels run only in the worker {self.worker_python}; "
                             "start this program with that interpreter", "build_error")
        return FromLowering.build_kernel(self, op, shape, config)

    def launch(self, kernel: Any, grid: tuple[int, ...], *args: Any, **meta: Any) -> None:
        """Run or record `kernel`, without options that the backend does not have."""
        known = self._answered().options
        parameters = set(kernel.arg_names)
        meta = {k: v for k, v in meta.items() if k in known or k in parameters}
        if 0 in grid:
            return
        if self.recorder is None:
            live.launch(kernel, grid, args, meta)
        else:
            self.recorder.launches.append(Launch(
                kernel.__name__, grid, kernel.warmup(*args, grid=grid, **meta)))

    def launches(self, op: Operator, shape: Shape, config: Config) -> tuple[Launch, ...]:
        """The kernels of one call, compiled by the stack of this very process."""
        recorder, args = Recorder(), op.signature(shape)
        recording = replace(self, recorder=recorder)
        FromLowering.build_kernel(recording, op, shape, config)(*args, out=op.empty(*args))
        return tuple(recorder.launches)

    def compile_here(self, op: Operator, shape: Shape, config: Config) -> Examined:
        """Compile in this process, which must have the stack, and say what came out."""
        if not self.here:
            raise BuildError(self.problem or f"only {self.worker_python} compiles for {self.name}",
                             "build_error")
        verdict = self.legal(op, shape, config)
        if not verdict.legal:
            return Examined(False, verdict.reason, "L0 described")
        kernels = [facts_of(launch) for launch in self.launches(op, shape, config)]
        over = [f"{k['name']} needs {k['shared_bytes']} bytes of {self.shared_bytes} on chip"
                for k in kernels if k["shared_bytes"] > self.shared_bytes]
        binary = all(k["binary"] for k in kernels)
        return Examined(not over, "; ".join(over), "L2 native object" if binary else "L1 lowered",
                        kernels=tuple(kernels))

    def examine(self, op: Operator, shape: Shape, config: Config) -> Examined:
        """`compile_here` in a process of the stack's interpreter."""
        verdict = self.legal(op, shape, config)
        if self.stack is not None and not verdict.legal:
            return Examined(False, verdict.reason, "L0 described")
        self._answered()
        return examination.in_child(self, op, shape, config, child=self.compiler)

    def recipe(self) -> Recipe:
        """How a process of the stack's interpreter makes this target again."""
        return (f"{__name__.removesuffix('._vendor.target')}.{self.name}:target",
                {"unit": self.unit, "mode": "live", "cache_dir": str(self.cache_dir)})

    def worker(self, memory_gb: float) -> Child:
        """A process of the interpreter that has the maker's stack; its driver bounds memory."""
        return stack_worker(self.worker_python)

    def time_us(self, fn: Callable[[], object], inner: int) -> float:
        """Device time of a call in microseconds, by the events of torch's module of the device."""
        return events_us(self.vendor.torch_device, fn, inner)
