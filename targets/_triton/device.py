"""What is known of a GPU without asking it: the limits of its arch, the figures of its product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..base import Figure, Fp8


@dataclass(frozen=True)
class Arch:
    """What every GPU of an arch lets a kernel use; sizes in bytes, registers of 32 bits."""

    name: str                        # "sm_90", "gfx942"
    source: str
    warp: int                        # threads of a warp (NVIDIA) or wave (AMD)
    shared_per_block: int            # the most one block may ask for
    shared_per_sm: int
    shared_reserved: int             # what the driver takes for each block besides
    shared_step: int                 # allocation granularity
    registers_per_sm: int
    registers_per_thread: int
    registers_step: int              # allocation granularity, registers of a thread
    warps_per_sm: int
    blocks_per_sm: int
    fp8: Fp8
    fp8_types: tuple[str, ...]       # Triton's names of the fp8 types its matrix unit takes
    mma_bf16: str                    # family of the best bf16 matrix instruction; "" = none
    mma_fp8: str
    has_tma: bool = False
    tmem_columns: int = 0            # tensor memory of sm_100
    partitions: int = 4              # schedulers (SIMDs) of an SM, each with its own registers
    threads_per_block: int = 1024
    grid: tuple[int, int, int] = (2**31 - 1, 65535, 65535)
    threads_per_axis: int | None = None          # AMD counts a grid in threads too


@dataclass(frozen=True)
class Device:
    """One product. A figure that no source gives is None: nothing is guessed."""

    spec: Arch
    name: str                        # "h100-sxm"
    aliases: tuple[str, ...]         # what torch.cuda.get_device_name and users call it
    cores: int                       # multiprocessors or compute units
    bandwidth: Figure | None = None  # GB/s
    bf16: Figure | None = None       # GFLOP/s, dense, accumulated in float32
    fp8_peak: Figure | None = None   # the same for e4m3
    measured_bandwidth: Figure | None = None     # what a large copy reaches
    measured_bf16: Figure | None = None          # what a large matrix product reaches

    @property
    def arch(self) -> str:
        """The compiler's name of the architecture."""
        return self.spec.name

    @property
    def fp8(self) -> Fp8:
        """How kernels hold e4m3fn."""
        return self.spec.fp8

    @property
    def warp_size(self) -> int:
        """Threads of a warp or wave."""
        return self.spec.warp

    @property
    def shared_bytes(self) -> int:
        """Shared memory that one program may have."""
        return self.spec.shared_per_block

    @property
    def has_tma(self) -> bool:
        """Whether tensor descriptors are hardware."""
        return self.spec.has_tma

    @property
    def fingerprint(self) -> str:
        """Arch, cores and memory class: what a tuned config depends on, whatever it is sold as."""
        memory = f"-{self.bandwidth.value / 1e3:.1f}TBs" if self.bandwidth else ""
        return f"{self.arch}-{self.cores}{memory}"

    @property
    def limits(self) -> Mapping[str, Figure]:
        """Everything known, with its source; an unknown peak is absent.

        "flops" is the highest known peak, so that a floor made of it holds for every dtype.
        """
        spec = self.spec
        known = {name: Figure(float(value), unit, spec.source, "documented")
                 for name, value, unit in (
                     ("shared_per_block", spec.shared_per_block, "bytes"),
                     ("shared_per_sm", spec.shared_per_sm, "bytes"),
                     ("registers_per_sm", spec.registers_per_sm, "registers"),
                     ("warps_per_sm", spec.warps_per_sm, "warps"),
                     ("threads_per_block", spec.threads_per_block, "threads"))}
        peaks = {"bandwidth": self.bandwidth, "bf16": self.bf16, "fp8": self.fp8_peak,
                 "flops": self.fp8_peak or self.bf16,
                 "bandwidth_measured": self.measured_bandwidth,
                 "bf16_measured": self.measured_bf16}
        return known | {name: figure for name, figure in peaks.items() if figure is not None}


def product(spec: Arch, name: str, aliases: tuple[str, ...], cores: int,
            bandwidth: float | None = None, bf16: float | None = None, fp8: float | None = None, *,
            source: str, confidence: Literal["documented", "reported"] = "documented",
            measured: tuple[float, float] | None = None, measured_how: str = "") -> Device:
    """A product as its data sheet puts it: GB/s and dense TFLOP/s."""

    def figure(value: float | None, scale: float, unit: str) -> Figure | None:
        return None if value is None else Figure(value * scale, unit, source, confidence)

    seen = () if measured is None else (
        Figure(measured[0], "GB/s", measured_how, "measured"),
        Figure(measured[1] * 1e3, "GFLOP/s", measured_how, "measured"))
    return Device(spec, name, aliases, cores, figure(bandwidth, 1.0, "GB/s"),
                  figure(bf16, 1e3, "GFLOP/s"), figure(fp8, 1e3, "GFLOP/s"), *seen)


def _plain(text: str) -> str:
    """A name without what writers add or drop: "NVIDIA_H100_80GB_HBM3" -> "h10080gbhbm3"."""
    words = text.lower().replace("_", " ").replace("-", " ").split()
    return "".join(w for w in words if w not in ("nvidia", "amd", "geforce", "instinct", "tesla"))


def _is_called(device: Device, text: str) -> bool:
    return _plain(text) in (_plain(name) for name in (device.name, *device.aliases))


def find_in(devices: Sequence[Device], text: str) -> Device:
    """The device called `text`: its name, an alias, or an arch (the first product of it).

    Only whole names match, so that an "H20" never becomes an "H200".
    """
    for device in devices:
        if text == device.arch:
            return device
    for device in devices:
        if _is_called(device, text):
            return device
    archs = dict.fromkeys(d.arch for d in devices)
    raise ValueError(f"a device must be an arch ({', '.join(archs)}) or a product "
                     f"({', '.join(d.name for d in devices)}), got {text!r}")


def detect_in(devices: Sequence[Device], name: str, arch: str, cores: int) -> Device:
    """The device that torch reports as `name`, of `arch`, with `cores` multiprocessors.

    An unknown product, or a slice of a known one (MIG, a partition), has the limits of its arch,
    its own `cores`, and no figures.
    """
    of_arch = [d for d in devices if d.arch == arch]
    if not of_arch:
        archs = dict.fromkeys(d.arch for d in devices)
        raise ValueError(f"an arch must be one of {', '.join(archs)}, got {arch!r} ({name})")
    for device in of_arch:
        if _is_called(device, name) and device.cores == cores:
            return device
    return replace(of_arch[0], name=f"{arch}-{cores}", aliases=(name,), cores=cores,
                   bandwidth=None, bf16=None, fp8_peak=None, measured_bandwidth=None,
                   measured_bf16=None)
