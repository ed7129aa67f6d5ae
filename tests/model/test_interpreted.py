"""The bundled model on Triton's kernels, every operator in the interpreter: the same logits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from expertile.commands.run import TINY
from expertile.model.llm import LLM
from expertile.targets.child import Child

from ..triton_child import triton_env

IDS = [[11, 200, 45]]
PREFILL = 2                          # then one step of decode


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    made = Child(memory_gb=12.0, env=triton_env())
    yield made
    made.close()


def test_logits_on_triton_kernels_are_those_of_the_cpu(child: Child) -> None:
    want = LLM(TINY).logits(torch.tensor(IDS), prefill=PREFILL)
    answer = child.call(f"{__name__}:logits", 400.0, device="cuda:sm_90")
    got = torch.tensor(answer["logits"])
    assert answer["answered_by"] == ["default"] and set(answer["ops"]) >= {
        "fused_moe", "gemm_nt", "mla_decode", "mla_kv_append", "mla_prefill", "moe_route",
        "silu_mul"}
    assert float((got - want).abs().max()) < 1e-3, float((got - want).abs().max())


def logits(device: str) -> dict[str, object]:
    """Runs in the child: the runtime of CPU tensors answers from an interpreted GPU target."""
    from expertile import targets
    from expertile.targets._triton.target import TritonTarget

    TritonTarget.available = lambda self: None   # type: ignore[method-assign] # for once it may
    llm = LLM(TINY)
    llm.runtime.__dict__["target"] = targets.load(device, mode="interpret")
    made = llm.logits(torch.tensor(IDS), prefill=PREFILL)
    rows = llm.op_report()
    return {"logits": made.tolist(), "ops": sorted({r["op"] for r in rows}),
            "answered_by": sorted({r["answered_by"] for r in rows})}
