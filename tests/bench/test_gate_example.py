"""The example repository, from a clean clone, step by step as its action runs it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
SLOW = """    e = np.exp(x - x.max(axis=-1, keepdims=True))
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    e = np.exp(x - x.max(axis=-1, keepdims=True))
"""
FAST = "    e = np.exp(x - x.max(axis=-1, keepdims=True))\n"


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(folder), "-c", "user.name=n", "-c", "user.email=n@x", *words],
                   check=True, capture_output=True)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clean clone of the example with one commit."""
    origin, cloned = tmp_path / "origin", tmp_path / "clone"
    shutil.copytree(EXAMPLES / "own-operators", origin, ignore=shutil.ignore_patterns(
        "__pycache__", ".pytest_cache"))
    git(tmp_path, "init", "-q", str(origin))
    git(origin, "add", "-A")
    git(origin, "commit", "-qm", "operators")
    git(tmp_path, "clone", "-q", str(origin), str(cloned))
    return cloned


def commit(clone: Path, before: str, after: str) -> None:
    """A pull request: one change on top."""
    path = clone / "operators.py"
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))
    git(clone, "commit", "-qam", "change")


def run_action(clone: Path, **given: str) -> tuple[int, str]:
    """The action's shell steps with its inputs, except the one that installs us from an index."""
    action = yaml.safe_load((EXAMPLES / "gate-action" / "action.yml").read_text())
    workflow = yaml.safe_load((clone / ".github" / "workflows" / "perf.yml").read_text())
    used = next(s for s in workflow["jobs"]["gate"]["steps"] if "gate-action" in s.get("uses", ""))
    inputs = {k: v.get("default", "") for k, v in action["inputs"].items()} | used["with"] | given
    for step in action["runs"]["steps"]:
        if "run" not in step or step["name"] == "install":
            continue
        env = {k: re.sub(r"\$\{\{ inputs\.(\w+) }}", lambda m: inputs[m[1]], v)
               for k, v in step["env"].items()}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", step["run"]], cwd=clone, text=True,
            capture_output=True, env={**os.environ, **env, "PATH": path,
                                      "GITHUB_STEP_SUMMARY": str(clone.parent / "step.md")})
        return done.returncode, done.stdout + done.stderr
    raise AssertionError("the action has no gate step")


def test_a_seeded_regression_fails_the_workflow(clone: Path) -> None:
    commit(clone, FAST, SLOW)
    code, said = run_action(clone, base="HEAD~1", rounds="20")
    assert code == 1, said
    verdicts = (clone / "perf" / "summary.md").read_text()
    assert re.search(r"bench_softmax.*\*\*SLOW\*\*", verdicts)
    assert not re.search(r"bench_rms_norm.*\*\*SLOW\*\*", verdicts)
    assert (clone.parent / "step.md").read_text() == verdicts
    result = json.loads((clone / "perf" / "result.json").read_text())
    assert len(result["cases"][0]["samples"]["base"]) >= 20
    assert "<failure" in (clone / "perf" / "junit.xml").read_text()


def test_an_innocent_change_passes(clone: Path) -> None:
    commit(clone, '"""Over the last axis."""', '"""Along the last axis."""')
    code, said = run_action(clone, base="HEAD~1", rounds="20")
    assert code == 0, said


def test_wrong_results_and_missing_bases(clone: Path) -> None:
    assert run_action(clone, base="no-such-branch")[0] == 5
    assert run_action(clone, base="HEAD", suite="absent.py")[0] == 2
    commit(clone, "return e / e.sum", "return e / 2 / e.sum")
    code, said = run_action(clone, base="HEAD~1", rounds="10")
    assert code == 4 and "AssertionError" in said, said
