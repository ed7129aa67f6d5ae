"""What a launch on a GPU that is here does with Triton's refusals; no GPU is asked."""

from __future__ import annotations

from typing import Any

import pytest
from triton.runtime.errors import OutOfResources

from expertile.targets._triton import live
from expertile.targets.base import BuildError


class Kernel:
    """Stands for a jitted kernel whose launch raises."""

    __name__ = "gemm"

    def __init__(self, error: Exception):
        self._error = error

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def run(*args: object, **meta: object) -> None:
            raise self._error

        return run


def test_too_much_shared_memory_is_a_refusal_with_the_numbers() -> None:
    kernel = Kernel(OutOfResources(147456, 101376, "shared memory"))
    with pytest.raises(BuildError, match="147456.*101376") as caught:
        live.launch(kernel, (1,), (), {})
    assert caught.value.status == "illegal"


def test_other_errors_pass_through() -> None:
    with pytest.raises(IndexError):
        live.launch(Kernel(IndexError("mine")), (1,), (), {})
