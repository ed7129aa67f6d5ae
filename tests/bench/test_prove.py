"""The proofs of the gate: the injected slow-down is real work, and the count is honest."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from expertile.bench import prove
from expertile.bench.outputs.names import short_names
from expertile.bench.result import Case, Machine, Result
from expertile.bench.suite import Suite

LOWERING = '''
CALLS = []


def build(target, shape, config):
    """Remembers how many rows it was given."""
    return lambda *args, out: CALLS.append((len(args[0]), args[1], len(out[0])))
'''


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One commit with one lowering."""
    (tmp_path / "ops" / "moe_route").mkdir(parents=True)
    (tmp_path / "ops" / "moe_route" / "tvm.py").write_text(LOWERING)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=n@x"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("percent", "calls"), [
    (0, [(200, 4, 200)]), (3, [(200, 4, 200), (6, 4, 6)]), (10, [(200, 4, 200), (20, 4, 20)])])
def test_head_does_more_rows_and_base_does_not(repository: Path, percent: float,
                                               calls: list[tuple[int, int, int]]) -> None:
    rows = torch.zeros(200, 8)
    with prove.trees(percent, "moe_route") as (base, head):
        for tree, want in ((base, calls[:1]), (head, calls)):
            found: dict[str, Any] = {}
            exec((tree.root / "ops" / "moe_route" / "tvm.py").read_text(), found)
            found["build"](None, {"tokens": 200}, {})(rows, 4, out=(rows,))
            assert found["CALLS"] == want


def row(percent: float, verdict: str, code: int, **more: Any) -> dict[str, Any]:
    return {"percent": percent, "verdict": verdict, "exit_code": code, "ratio": 1 + percent / 100,
            "seconds": 9.0, "false_alarms": 0, **more}


def test_the_count_and_its_goals() -> None:
    good = [*[row(10, "SLOW", 1)] * 20, *[row(5, "SLOW", 1)] * 18, *[row(5, "AMBG", 3)] * 2,
            *[row(3, "AMBG", 3)] * 4, *[row(0, "SAME", 0)] * 20]
    text, met = prove.summary(good)
    assert met and "5 % | 20 | 18 | 2 | 1.0500 | 9" in text and "3 % | 4 | 0 | 4" in text
    for bad in (row(10, "SAME", 0), row(5, "SAME", 0), row(0, "SAME", 1),
                row(3, "AMBG", 1, false_alarms=1)):
        assert not prove.summary([*good, bad])[1]


def test_runs_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, int]] = []

    def fake(percent: float, number: int, rounds: int, threshold: float) -> dict[str, Any]:
        asked.append((percent, number))
        return row(percent, "SLOW" if percent else "SAME", int(percent > 0), number=number,
                   rounds=rounds, threshold=threshold)

    monkeypatch.setattr(prove, "inject", fake)
    out = tmp_path / "o.jsonl"
    assert prove._inject_all(out, [0.0, 10.0], 1, 40, 1e9, 3.0)
    assert prove._inject_all(out, [0.0, 10.0], 2, 40, 1e9, 3.0)
    assert asked == [(0.0, 0), (10.0, 0), (0.0, 1), (10.0, 1)]
    assert prove._inject_all(out, [10.0], 5, 40, 1.0, 3.0) and len(asked) == 4     # no time left


def test_a_recording_says_where_it_is_from(repository: Path, monkeypatch: pytest.MonkeyPatch
                                           ) -> None:
    machine = Machine("AMD EPYC", "x86-avx512-t1", 1, "0123456789ab")

    def fake(suite: Suite, trees: dict[str, Any], *rest: Any) -> Result:
        cases = tuple(Case(c.name, c.group, "ok", dict.fromkeys(trees, ((123.456789, 1.0),)))
                      for c in suite.cases)
        return Result(machine, {}, cases, "2026-11-22T09:00:00Z", "0.1.0", "prove noise")

    monkeypatch.setattr(prove, "measure", fake)
    found = prove.record(2, 10)
    assert found.machine == machine and found.created.startswith("2026-11-22")
    assert len(found.cases) == 2 * (len(prove.INJECTED) + len(prove._NOISE))
    assert found.cases[0].name.endswith("set 0") and found.cases[-1].name.endswith("set 1")
    assert found.cases[0].samples["base"][0][0] == 123.46


def test_short_names_keep_what_tells_cases_apart() -> None:
    names = ["gemm_nt[n=8,k=4,tokens=1]", "gemm_nt[n=8,k=2,tokens=1]", "silu_mul[h=4]",
             "bench_ops.py::bench_softmax"]
    cases = [Case(n, "g", "ok") for n in names]
    assert list(short_names(cases).values()) == [
        "gemm_nt k=4", "gemm_nt k=2", "silu_mul", "bench_ops.py::bench_softmax"]
    twins = [Case("a[n=1]", "g", "ok"), Case("a", "g", "ok")]
    assert short_names(twins) == {"a[n=1]": "a n=1", "a": "a"}
