"""Checkpoints of every variant with transformers' answers, made once per session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from expertile.model.llm import LLM

from .oracle import Made, make

Checkpoints = Callable[..., Made]
Models = Callable[..., LLM]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """checkpoint(variant, fp8=None) -> Made."""
    return cache(lambda variant, fp8=None: make(tmp_path_factory.mktemp("model"), variant, fp8))


@pytest.fixture(scope="session")
def load(checkpoint: Checkpoints) -> Models:
    """load(variant, fp8=None) -> its LLM with small pages, shared by the tests."""
    return cache(lambda variant, fp8=None: LLM(checkpoint(variant, fp8).path, page_size=16))
