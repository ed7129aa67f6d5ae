"""Fixtures: a CPU target whose kernels are cached in the user's cache, as in real use."""

from __future__ import annotations

import pytest

from expertile import targets
from expertile.targets.base import Target


@pytest.fixture(scope="session")
def cpu() -> Target:
    """This machine's CPU with all its threads."""
    return targets.load("cpu")
