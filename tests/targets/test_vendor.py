"""The adapter to makers' own Tritons, against a stub that registers a backend named musa.

All of it goes through real processes; nothing here says anything about a real device.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from expertile import ops, targets
from expertile.ops.space import Space
from expertile.targets._vendor.narrow import narrowed
from expertile.targets._vendor.target import VendorTarget
from expertile.targets.base import BuildError

STUB = Path(__file__).parent / "stub_vendor"
FAMILIES = ("musa", "mlu", "gcu", "txda", "dcu")


@pytest.fixture(autouse=True)
def nothing_compiled_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def described(monkeypatch: pytest.MonkeyPatch, how: str = "", unit: str = "",
              answer_s: float = 60.0) -> VendorTarget:
    """The target with the stub's interpreter as its worker."""
    monkeypatch.setenv("PYTHONPATH", str(STUB))
    monkeypatch.setenv("STUB_VENDOR", how)
    made = targets.load("musa", unit=unit, worker_python=sys.executable, answer_s=answer_s)
    assert isinstance(made, VendorTarget)
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_stack_it_is_only_described(family: str) -> None:
    target = targets.load(family)
    assert target.evidence() == "L0 described"
    assert not target.computes and target.torch_device == "meta"
    assert "worker_python" in str(target.available())
    assert "install" in str(target.available())
    op = ops.load("silu_mul")
    shape = op.odd_shapes[0]
    assert not target.legal(op, shape, {}).legal
    with pytest.raises(BuildError, match="install"):
        target.space(op, shape)
    with pytest.raises(BuildError, match="cannot run"):
        target.build_kernel(op, shape, {})


@pytest.mark.parametrize("family", FAMILIES)
def test_every_figure_has_a_source(family: str) -> None:
    made = targets.load(family)
    assert isinstance(made, VendorTarget)
    for chip in made.vendor.chips:
        for figure in chip.figures.values():
            assert figure.value > 0 and figure.source and figure.confidence != "measured"


def test_units_are_arches_and_products() -> None:
    assert targets.load("musa:mp_22").arch == "mp_22"
    assert targets.load("musa:22").arch == "mp_22"
    assert targets.load("MTT S4000").arch == "mp_22"
    assert targets.load("dcu:k100_ai").arch == "gfx928"
    assert targets.load("MTT S5000").arch == "mp_31"
    with pytest.raises(ValueError, match="mp_31.*got 'mp_99'"):
        targets.load("musa:mp_99")


def test_describes_compiles_and_refuses_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    target = described(monkeypatch)
    assert target.stack is not None, target.problem
    assert (target.arch, target.device, target.aliases) == ("mp_31", "mp_31-56", ("MTT S5000",))
    assert (target.warp_size, target.shared_bytes, target.cores) == (32, 196608, 56)
    assert target.fp8 == "native" and target.stack.num_warps == (1, 4, 16)
    assert "en_wmma" in target.stack.options
    assert target.evidence() == "L1 lowered"           # no torch_musa: nothing can run
    assert "torch_musa" in str(target.available())
    assert target.limits()["shared_per_block"].value == 196608
    op = ops.load("silu_mul")
    shape = op.odd_shapes[0]
    space = target.space(op, shape)
    assert {c["warps"] for c in space} <= {1, 4, 16}
    found = target.examine(op, shape, space.default())
    assert found.legal and found.evidence == "L1 lowered"
    kernel, = found.kernels
    assert kernel["stages"] == ["ttir"] and not kernel["binary"]
    assert kernel["shared_bytes"] == 1024 and kernel["warps"] == space.default()["warps"]
    other = next(c for c in space if c["warps"] != space.default()["warps"])
    assert target.examine(op, shape, other).kernels[0]["warps"] == other["warps"]
    wrong = target.examine(op, shape, {**space.default(), "warps": 8})
    assert not wrong.legal and "warps must be one of" in wrong.reason
    with pytest.raises(BuildError, match="cannot run.*torch_musa"):
        target.build_kernel(op, shape, space.default())


@pytest.mark.parametrize(("how", "message"), [
    ("inactive", "no active driver"), ("cuda", "drives 'cuda', not 'musa'"),
    ("no shared", "no 'max_shared_mem'"), ("crash", "SIGABRT")])
def test_a_stack_that_is_not_right(monkeypatch: pytest.MonkeyPatch, how: str, message: str
                                   ) -> None:
    target = described(monkeypatch, how)
    assert target.evidence() == "L0 described"
    assert message in str(target.available()) and "Moore Threads" in str(target.available())


def test_a_worker_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    target = described(monkeypatch, "hang", answer_s=1.0)
    assert "within 1 s" in str(target.available())


def test_another_chip_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "mp_31, not mp_22" in str(described(monkeypatch, unit="mp_22").available())


def test_a_compiler_that_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    target = described(monkeypatch, "crash in compile")
    op = ops.load("silu_mul")
    shape = op.odd_shapes[0]
    with pytest.raises(BuildError, match="SIGABRT"):
        target.examine(op, shape, target.space(op, shape).default())


def test_an_option_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without num_stages it is neither searched nor passed."""
    target = described(monkeypatch, "no stages")
    op = ops.load("mla_prefill")
    shape = {**op.odd_shapes[0], "heads": 1}
    space = target.space(op, shape)
    assert len({c["stages"] for c in space}) == 1 and len({c["block_n"] for c in space}) > 1
    assert [k["name"] for k in target.examine(op, shape, space.default()).kernels] == [
        "list_blocks", "mla_prefill"]


def test_an_interpreter_that_is_none(tmp_path: Path) -> None:
    target = targets.load("musa", worker_python=str(tmp_path / "python"))
    assert "must be the path of a Python interpreter" in str(target.available())
    with pytest.raises(ValueError, match="not usable in this interpreter"):
        targets.load("musa", mode="live")
    with pytest.raises(ValueError, match="got 'interpret'"):
        targets.load("musa", mode="interpret")


def test_a_narrowed_space_keeps_what_it_can() -> None:
    space = Space({"tile": (8, 16), "warps": (8, 4, 2), "stages": (3, 2)},
                  lambda c: int(c["tile"]) >= 2 * int(c["warps"]) or c["warps"] == 8)
    same = narrowed(space, {"num_warps": 4, "num_stages": 2}, (1, 2, 4, 8))
    assert list(same) == list(space)
    fewer = narrowed(space, {"num_warps": 4}, (1, 4))
    assert list(fewer) == [{"tile": 8, "warps": 4, "stages": 3}, {"tile": 16, "warps": 4,
                                                                 "stages": 3}]
    strict = Space({"tile": (8, 16), "warps": (8, 4)}, lambda c: c["warps"] == 8)
    alone = narrowed(strict, {"num_warps": 4}, (4,))
    assert alone.default() == {"tile": 8, "warps": 4} and len(list(alone)) == 1
    with pytest.raises(BuildError, match="accepts none"):
        narrowed(space, {"num_warps": 4}, (32,))
