"""Fixtures: a CPU target whose kernels are cached in the user's cache, as in real use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from expertile import targets
from expertile.targets.base import Target

from .triton_child import Interpreter


@pytest.fixture(scope="session")
def cpu() -> Target:
    """This machine's CPU with all its threads."""
    return targets.load("cpu")


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Interpreter]:
    """Runs Triton kernels in Triton's interpreter."""
    made = Interpreter()
    yield made
    made.close()
