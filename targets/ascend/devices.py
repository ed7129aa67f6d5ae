"""Which Ascend devices there are, and what the compiler and public notes say of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..base import Figure

# On-chip spaces, by the compiler's own names: unified buffer (vector), L1 ("cbuf"), L0C ("cc").
Space = Literal["ub", "cbuf", "cc"]
# What a family is called in the compiler's library of device functions (meta_op.*.c220.bc).
Family = Literal["c220", "c310"]

_KIB = 1024


@dataclass(frozen=True)
class Device:
    """One device as bishengir-compile knows it. Sizes in bytes."""

    name: str                        # what --target takes: "Ascend910B3"
    family: Family
    cube_cores: int                  # AI cores: one cube core each
    vector_cores: int
    ub: int                          # per vector core
    l0c: int                         # this and what follows: per cube core
    l1: int = 512 * _KIB
    l0a: int = 64 * _KIB
    l0b: int = 64 * _KIB
    ub_align: int = 32
    l1_align: int = 32
    l0c_align: int = 512

    @property
    def arch(self) -> str:
        """The name of the shipped records: "ascend910b3"."""
        return self.name.lower()

    @property
    def has_fp8(self) -> bool:
        """910B refuses fp8 ("Current hardware doesn't support fp8 type"); 950 takes it."""
        return self.family == "c310"

    def capacity(self, space: Space) -> int:
        """Bytes of an on-chip space of one core."""
        return {"ub": self.ub, "cbuf": self.l1, "cc": self.l0c}[space]

    def peaks(self) -> Mapping[str, Figure]:
        """Peaks that a public source states; empty where none was found, never guessed."""
        return _PEAKS.get(self.name, {})


# (cores, names): read from the target table that bishengir-compile 1.2.0 writes into every module
# (dlti.target_system_spec); a test reads it again for every name.
_C220 = ((24, "910B1 910B2 910B2C 910_9381 910_9382 910_9391 910_9392"),
         (20, "910B3 910B4 910B4-1 910_9362 910_9372"))
_C310 = ((4, "910_950z 950PR_950z"),
         (8, "950DT_950x 950DT_950y"),
         (28, "910_9579 910_957b 910_957d 950PR_9579 950PR_957a 950PR_957b 950PR_957c 950PR_957d "
              "950DT_9571 950DT_9572 950DT_9573 950DT_9574 950DT_9575 950DT_9576 950DT_9577 "
              "950DT_9578"),
         (32, "910_9581 910_9589 910_958a 910_958b 950PR_9589 950PR_958a 950PR_958b 950PR_958c "
              "950PR_958d 950DT_9581 950DT_9582 950DT_9583 950DT_9584 950DT_9585 950DT_9586 "
              "950DT_9587 950DT_9588"),
         (36, "910_9599 950PR_9599 950PR_959a 950PR_959b 950DT_9591 950DT_9592 950DT_9595 "
              "950DT_9596 950DT_95A1 950DT_95A2"))


def _devices() -> dict[str, Device]:
    made = [Device(f"Ascend{name}", "c220", cores, 2 * cores, ub=192 * _KIB, l0c=128 * _KIB)
            for cores, names in _C220 for name in names.split()]
    made += [Device(f"Ascend{name}", "c310", cores, 2 * cores, ub=248 * _KIB, l0c=256 * _KIB)
             for cores, names in _C310 for name in names.split()]
    return {device.name: device for device in made}


DEVICES: Mapping[str, Device] = _devices()

_INI = "cube_freq of CANN's platform_config/Ascend{}.ini, as public repositories quote it"
# Notes of owners, not Huawei's data sheet; other pages disagree (400 GB/s, 1.2 TB/s). None was
# found for the other parts, nor for L2, GM to UB, the vector unit or the 950.
_PEAKS: Mapping[str, Mapping[str, Figure]] = {
    "Ascend910B3": {
        "flops_f16": Figure(
            294_912.0, "GFLOP/s", "20 cores x 8192 FLOP a cycle x 1.8 GHz; clock from npu-smi in a "
            "public benchmark script, which itself quotes 313 TFLOP/s", "reported"),
        "bandwidth": Figure(
            1638.4, "GB/s", "4 HBM2e stacks x 409.6 GB/s, two independent public notes; "
            "ascend-dmi is said to measure 1538-1540", "reported"),
        "clock": Figure(1.8, "GHz", "npu-smi in the same public benchmark script", "reported"),
    },
    "Ascend910B1": {"clock": Figure(1.85, "GHz", _INI.format("910B1"), "documented")},
    "Ascend910B4": {"clock": Figure(1.5, "GHz", _INI.format("910B4"), "documented")},
}


def aliases(device: Device) -> tuple[str, ...]:
    """Other ways to write a device: "ascend910b3", "910b3"."""
    return (device.arch, device.arch.removeprefix("ascend"))


def find(name: str) -> Device:
    """The device called `name` in any spelling of `aliases`, case and "-"/"_" aside."""
    wanted = name.lower().replace("-", "_").removeprefix("ascend").lstrip("_")
    for device in DEVICES.values():
        if device.arch.replace("-", "_").removeprefix("ascend") == wanted:
            return device
    raise ValueError(f"an Ascend device must be one of {', '.join(DEVICES)}, got {name!r}")
