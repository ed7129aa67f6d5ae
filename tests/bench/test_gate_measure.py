"""Real measurement: processes, trees, crashes; nothing here says how fast anything is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from expertile import targets
from expertile.bench.gate import OK, WRONG, decide
from expertile.bench.measure import Plan, measure
from expertile.bench.result import NoBaseline
from expertile.bench.suite import CaseSpec, Suite, case_name, user_cases
from expertile.bench.tree import Tree, checked_out, commit, working
from expertile.bench.verdict import Rules
from expertile.targets.base import Target

HERE = Tree(Path(__file__).resolve().parents[2], "", sys.executable)
SILU = {"h": 128, "dtype": "float32", "tokens": 1}
BASE = """
import lib
def bench_same():
    return lib.call
def bench_dies():
    return lib.call
"""
HEAD = """
import os
import lib
def bench_same():
    return lib.call
def bench_dies():
    return lambda: os._exit(3)
def bench_new():
    return lib.call, lambda answer: answer == 499500
"""
LIB = "def call():\n    return sum(range(1000))\n"


def env() -> dict[str, str]:
    return dict(os.environ)


def test_an_operator_on_this_cpu(cpu: Target, tmp_path: Path) -> None:
    spec = CaseSpec(case_name("silu_mul", SILU), "silu_mul", SILU)
    cache = str(getattr(cpu, "cache_dir", tmp_path))
    suite = Suite((spec, CaseSpec("absent", "no_such_operator", {})), "cpu", cache_dir=cache)
    result = measure(suite, {"head": HERE, "head_again": HERE}, Plan(3, 1), env(), "test")
    case, absent = result.cases
    assert case.status == "ok" and case.name == "silu_mul[h=128,dtype=float32,tokens=1]"
    assert len(case.samples["head"]) == len(case.samples["head_again"]) == 3
    op_target = targets.load("cpu", cache_dir=cache)
    assert result.machine.device == op_target.device and case.evidence == "L4 timed"
    assert case.config["head"]["lanes"] and case.answered_by["head"] == "default"
    percent = case.percent_of_floor("head")
    assert percent is not None and 0 < percent < 200
    assert absent.status == "failed" and not absent.samples


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two commits: in the second a benchmark dies and one is new."""
    root = tmp_path / "repository"
    root.mkdir()
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    for bench in (BASE, HEAD):
        (root / "bench_lib.py").write_text(bench)
        (root / "lib.py").write_text(LIB)
        subprocess.run(["git", "-C", str(root), "add", "-A"], check=True)
        subprocess.run(["git", "-C", str(root), "-c", "user.name=n", "-c", "user.email=n@x",
                        "commit", "-qm", "x"], check=True)
    return root


def test_base_and_head_are_what_they_say(repository: Path) -> None:
    suite = Suite(user_cases(repository / "bench_lib.py", repository))
    assert [c.function for c in suite.cases] == ["bench_same", "bench_dies", "bench_new"]
    before = subprocess.run(["git", "-C", str(repository), "worktree", "list"],
                            capture_output=True, text=True).stdout
    with checked_out(repository, "HEAD~1", sys.executable) as old:
        assert (old.root / "bench_lib.py").read_text() == BASE
        new = working(repository, sys.executable)
        trees = {"base": old, "base_again": old, "head": new}
        result = measure(suite, trees, Plan(12, 1), env(), "test")
    assert not old.root.exists()
    assert before == subprocess.run(["git", "-C", str(repository), "worktree", "list"],
                                    capture_output=True, text=True).stdout
    same, dies, fresh = result.cases
    assert same.status == "ok" and set(same.samples) == {"base", "base_again", "head"}
    assert dies.status == "failed" and "exit status 3" in dies.error
    assert fresh.status == "new" and set(fresh.samples) == {"head"}
    assert decide(result, Rules()).code == WRONG
    assert result.revision["base"] == commit(repository, "HEAD~1")


def test_a_side_may_not_measure_the_other_sides_code(repository: Path) -> None:
    """base has lost lib.py, and what its path leads to is head's."""
    with checked_out(repository, "HEAD~1", sys.executable) as old:
        (old.root / "lib.py").unlink()
        new = working(repository, sys.executable)
        suite = Suite(user_cases(repository / "bench_lib.py", repository)[:1])
        leaking = {**env(), "PYTHONPATH": str(repository)}
        result = measure(suite, {"base": old, "head": new}, Plan(3, 1), leaking, "test")
    assert result.cases[0].status == "new"
    assert "lib came from the other side's tree" in result.cases[0].error


def test_equal_trees_on_the_null_device() -> None:
    """Virtual time without noise: the same to the last bit, and nothing to retest."""
    spec = CaseSpec(case_name("silu_mul", SILU), "silu_mul", SILU)
    trees = {"base": HERE, "base_again": HERE, "head": HERE}
    result = measure(Suite((spec,), "null"), trees, Plan(12, 2), env(), "test")
    outcome = decide(result, Rules(), lambda names: pytest.fail(f"retested {names}"))
    assert outcome.code == OK and outcome.judgement.cases[0].ratio == 1.0


def test_an_unknown_revision_is_no_baseline(repository: Path) -> None:
    with pytest.raises(NoBaseline, match="fetch"):
        commit(repository, "no-such-branch")
