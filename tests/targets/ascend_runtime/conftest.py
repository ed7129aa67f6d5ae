"""An installation of CANN that is none, and the card that it opens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from expertile import targets
from expertile.targets.ascend.target import AscendTarget

from ..ascend_card import Recorder, install


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation whose binaries this CPU runs."""
    return install(tmp_path_factory.mktemp("cann") / "latest")


@pytest.fixture
def recorder(home: Path) -> Iterator[Recorder]:
    """Fresh before each test; nothing may leak in between."""
    made = Recorder(home)
    yield made
    for path in (*made.tools.glob("*.c"), *made.tools.glob("*.json")):
        path.unlink()


@pytest.fixture
def target(home: Path, tmp_path: Path) -> AscendTarget:
    """The card as --device npu:0 has it."""
    made = targets.load("npu:0", cache_dir=tmp_path, cann_home=home)
    assert isinstance(made, AscendTarget)
    return made
