"""An Ascend NPU as a target: lowerings launch tile programs, which are compiled or emulated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...ops.space import Config
from ...ops.spec import Operator, Shape
from .. import examination
from ..base import Evidence, Examined, Figure, FromLowering, Recipe, Verdict
from ..child import Child
from . import examine
from .compiler import compiler_version, unusable
from .devices import Device, aliases
from .launches import Launch, emulate, record, simulate_on
from .process import surroundings
from .runtime.open import Here, open_card

if TYPE_CHECKING:
    from .runtime.card import Card
    from .verify import Verified

Mode = Literal["compile", "emulate", "simulate", "device"]


@cache
def tvm_version() -> str:
    """Of the installed package, or "absent"."""
    try:
        return version("apache-tvm")
    except PackageNotFoundError:
        return "absent"


@dataclass(frozen=True)
class AscendTarget(FromLowering):
    """An NPU that kernels are compiled for ("compile"), or whose kernels this CPU executes.

    "emulate" runs the MLIR that the compiler gets: it says what a kernel computes, nothing of the
    device. "simulate" runs what the compiler made of it, address by address (910B, small shapes).
    "device" runs kernels on a card of this machine.
    """

    npu: Device
    mode: Mode
    cache_dir: Path
    name: str = "ascend"
    lang: str = "ascend"
    here: Here | None = None         # the card, in mode "device"
    recorded: list[Launch] | None = field(default=None, compare=False)

    @property
    def arch(self) -> str:
        """The device's name: "ascend910b3"."""
        return self.npu.arch

    @property
    def device(self) -> str:
        """What a record's validity depends on."""
        npu = self.npu
        return (f"{npu.arch}-{npu.family}-{npu.cube_cores}c{npu.vector_cores}v-"
                f"ub{npu.ub >> 10}-l0c{npu.l0c >> 10}")

    @property
    def torch_device(self) -> str:
        """Where tensors must live."""
        if self.here is not None:
            return self.here.torch_device
        return "meta" if self.mode == "compile" else "cpu"

    @property
    def computes(self) -> bool:
        """Whether kernels write results, be it slowly on this CPU."""
        return self.mode != "compile"

    @property
    def aliases(self) -> tuple[str, ...]:
        """Other ways to write the device."""
        return aliases(self.npu)

    @property
    def fp8(self) -> Literal["native", "bits"]:
        """e4m3fn in hardware, or as bytes that the vector cores decode."""
        return "native" if self.npu.has_fp8 else "bits"

    @property
    def cores(self) -> int:
        """Cube cores."""
        return self.npu.cube_cores

    @property
    def vector_cores(self) -> int:
        """Vector cores."""
        return self.npu.vector_cores

    @property
    def ub_bytes(self) -> int:
        """Unified buffer of a vector core."""
        return self.npu.ub

    @property
    def l1_bytes(self) -> int:
        """L1 of a cube core."""
        return self.npu.l1

    @property
    def l0c_bytes(self) -> int:
        """The cube's accumulators."""
        return self.npu.l0c

    def toolchain(self) -> dict[str, str]:
        """Versions that change the generated text."""
        hivmc = "absent" if self.here is None else f"CANN {self.here.version}"
        return {"ascendnpu-ir": compiler_version(), "tvm": tvm_version(), "hivmc": hivmc}

    def surroundings(self) -> dict[str, str]:
        """The libc under the compiler, and whether its addresses are fixed."""
        return surroundings()

    def available(self) -> str | None:
        """Why no kernel runs here and what to do about it."""
        if find_spec("tvm") is None:
            return "TVM is not installed; run: pip install 'expertile[ascend]'"
        if self.here is not None:
            return None
        return unusable() or (
            f"no kernel can run on {self.npu.name} here: kernels are compiled to the input of "
            "CANN's hivmc; on a machine with the card and CANN, npu:0 runs them")

    def evidence(self) -> Evidence:
        """Timed where the card is, else lowered and accepted by the device's compiler."""
        if self.here is not None and find_spec("tvm") is not None:
            return "L4 timed"
        ready = find_spec("tvm") is not None and unusable() is None
        return "L1 lowered" if ready else "L0 described"

    def limits(self) -> Mapping[str, Figure]:
        """What public sources state."""
        return self.npu.peaks()

    def legal(self, op: Operator, shape: Shape, config: Config) -> Verdict:
        """A config must belong to its space; what fits the chip shows once it is compiled."""
        why = self.space(op, shape).why_not(config)
        return Verdict(why is None, why or "")

    def launch(self, program: Any, grid: tuple[int, ...], *args: Any, **flags: str) -> None:
        """Run a tile program (a PrimFunc) for every block of `grid`; none for an empty grid.

        `flags` are the compiler's own, with "_" for "-".
        """
        made = Launch.of(program, grid, args, flags)
        if 0 in made.grid:
            return
        if self.recorded is not None:
            self.recorded.append(made)
        elif self.mode == "emulate":
            emulate(made)
        elif self.mode == "simulate":
            simulate_on(made, self.npu)
        elif self.here is not None:
            self.card.launch(made)
        else:
            raise ValueError(self.available())

    def launches(self, op: Operator, shape: Shape, config: Config) -> tuple[Launch, ...]:
        """What one call of a kernel launches, on tensors without data."""
        return record(self, op, shape, config)

    def recording(self, into: list[Launch]) -> AscendTarget:
        """The same target, but launches are only listed."""
        return replace(self, recorded=into)

    def compile_here(self, op: Operator, shape: Shape, config: Config) -> Examined:
        """Compile in this process (the compiler itself is a child) and keep what it says."""
        path = examine.path_of(self, op, shape, config)
        found = examination.load(path)
        if found is None:
            found = self._examine_now(op, shape, config)
            examination.keep(path, found)
        return found

    def _examine_now(self, op: Operator, shape: Shape, config: Config) -> Examined:
        if self.here is None:
            return examine.examine_here(self, op, shape, config)
        from .runtime.prepare import examined

        seen = examine.examine_here(self, op, shape, config) if unusable() is None else None
        return examined(seen, self.launches(op, shape, config), self.npu, self.card.tools,
                        self.cache_dir)

    def examine(self, op: Operator, shape: Shape, config: Config) -> Examined:
        """What the compiler says of a config, and the memory plan; kept on disk."""
        found = examination.load(examine.path_of(self, op, shape, config))
        return found or examination.in_child(self, op, shape, config)

    def verify(self, op: Operator, shape: Shape, config: Config) -> Verified:
        """Take a config through the gates that a record of it must pass (verify.py)."""
        from .verify import verify

        return verify(self, op, shape, config)

    def recipe(self) -> Recipe:
        """How a child process makes this target again; only one that launches uses the card."""
        made = {"unit": self.npu.name, "mode": self.mode, "cache_dir": str(self.cache_dir)}
        if self.here is not None:
            made |= {"unit": f"npu:{self.here.index}", "soc": self.npu.name,
                     "cann_home": str(self.here.home)}
        return f"{__package__}:target", made

    def worker(self, memory_gb: float) -> Child:
        """Without a memory limit where a driver reserves addresses."""
        return Child(memory_gb if self.here is None else 0)

    @cached_property
    def card(self) -> Card:
        """The card, ready to launch."""
        if self.here is None:
            raise ValueError(self.available())
        return open_card(self.here, self.cache_dir)

    def time_us(self, fn: Callable[[], object], inner: int) -> float:
        """Device time with a cold L2, on a card: emulation says nothing of its speed."""
        if self.here is not None:
            return self.card.time_us(fn, inner)
        raise ValueError(f"{self.npu.name} cannot be timed here: {self.available()}")
