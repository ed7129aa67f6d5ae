"""The same by pytest: `pytest -p expertile.bench.pytest_plugin --expertile-bench-out head.json`."""

import numpy as np
import pytest
from operators import softmax


@pytest.mark.expertile_bench(threshold=10)
def test_softmax(expertile_bench):
    x = np.random.default_rng(0).normal(size=(64, 1024)).astype(np.float32)
    np.testing.assert_allclose(expertile_bench(lambda: softmax(x)).sum(axis=-1), 1.0, rtol=1e-4)
