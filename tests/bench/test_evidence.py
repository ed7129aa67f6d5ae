"""The README says what was swept, no more and no less."""

from __future__ import annotations

import json

from expertile import ops
from expertile.bench.evidence import DEVICES, PRESET, README, SWEEP, readme_with, render
from expertile.ops.models import Load, preset


def test_the_readmes_table_is_generated() -> None:
    text = README.read_text()
    assert readme_with(render(json.loads(SWEEP.read_text())), text) == text, (
        "run: python -m expertile.bench.evidence readme")


def test_every_device_and_operator_was_swept() -> None:
    sweeps = json.loads(SWEEP.read_text())
    assert set(DEVICES) <= set(sweeps)
    for device in DEVICES:
        made = {n for n in ops.names() if ops.load(n).shapes(preset(PRESET), Load())}
        assert set(sweeps[device]["ops"]) == made, device


def test_a_missing_kernel_shows() -> None:
    sweeps = json.loads(SWEEP.read_text())
    sweeps["sm_90"]["ops"]["fused_moe"]["ok"] -= 1
    assert "not all: `fused_moe`" in render(sweeps)
