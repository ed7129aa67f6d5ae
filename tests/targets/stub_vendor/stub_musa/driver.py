"""The driver: says what it is, or misbehaves as STUB_VENDOR tells it to."""

from __future__ import annotations

import os
import time
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

_HOW = os.environ.get("STUB_VENDOR", "")


class _Utils:
    def get_device_properties(self, device: int) -> dict[str, int]:
        """As the forks name them."""
        return {"multiprocessor_count": 56, **(
            {} if _HOW == "no shared" else {"max_shared_mem": 196608})}


class StubDriver(DriverBase):
    """Triton takes the one driver that is active."""

    def __init__(self) -> None:
        self.utils = _Utils()

    @classmethod
    def is_active(cls) -> bool:
        """Here is where real ones open the device."""
        return _HOW != "inactive"

    def get_current_target(self) -> GPUTarget:
        """MTT S5000, by the numbers of its fork."""
        if _HOW == "crash":
            os.abort()
        if _HOW == "hang":
            time.sleep(60)
        return GPUTarget("cuda" if _HOW == "cuda" else "musa", 31, 32)

    def get_current_device(self) -> int:
        """The only one."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """None is needed: nothing runs."""
        return 0

    def get_active_torch_device(self) -> Any:
        """Not reached without torch_musa."""
        raise NotImplementedError

    def map_python_to_cpp_type(self, ty: str) -> str:
        """Not reached: nothing is launched."""
        raise NotImplementedError

    def get_benchmarker(self) -> Any:
        """Not reached: nothing is timed."""
        raise NotImplementedError
