"""One thread pool at a time: what the policy does, and that the bundled model keeps it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

import expertile
from expertile.model import LLM
from expertile.targets.cpu.pools import fighting, one_pool, pools

TINY = Path(expertile.__file__).parent / "model" / "checkpoint" / "tiny-v3"


@pytest.fixture
def two_threads() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_torch_has_one_thread_inside_and_its_own_again_after_an_error(two_threads: None) -> None:
    with pytest.raises(KeyError), one_pool():
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == 2


def test_a_process_whose_pools_fight_is_told_so(two_threads: None,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    assert "2 threads" in fighting(os.environ)
    assert "set_num_threads(1)" in pools(os.environ)["your_program"]
    with one_pool():
        assert fighting(os.environ) == "" and pools(os.environ)["your_program"] == ""
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    assert fighting(os.environ) == ""
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000000")
    assert fighting(os.environ)


def test_the_bundled_model_keeps_the_policy_while_it_runs(two_threads: None) -> None:
    llm = LLM(TINY, threads=2)
    with llm._active():                  # around every step of generate, stream, logits
        assert torch.get_num_threads() == 1 and fighting(os.environ) == ""
    assert torch.get_num_threads() == 2
