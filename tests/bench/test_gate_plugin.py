"""The pytest plugin: times marked tests, fails the slow ones, refuses another machine's base."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from expertile.bench import result as results

TEST = '''
import time
import pytest

@pytest.mark.expertile_bench(threshold=20)
def test_wait(expertile_bench):
    end = {us} * 1000
    def call():
        start = time.perf_counter_ns()
        while time.perf_counter_ns() - start < end:
            pass
        return 7
    assert expertile_bench(call) == 7
'''


def run(folder: Path, us: int, *options: str) -> tuple[int, str]:
    (folder / "test_wait.py").write_text(TEST.format(us=us))
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p",
                           "expertile.bench.pytest_plugin", "--strict-markers", "test_wait.py",
                           *options], cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_a_slower_test_fails(tmp_path: Path) -> None:
    assert run(tmp_path, 100)[0] == 0                # nothing is timed without an option
    code, said = run(tmp_path, 100, "--expertile-bench-out", "base.json")
    assert code == 0, said
    case, = results.read(tmp_path / "base.json").cases
    assert case.name == "test_wait" and case.us("head") == pytest.approx(100, rel=0.1)
    code, said = run(tmp_path, 200, "--expertile-bench-base", "base.json")
    assert code == 1 and "slower than the base" in said and "limit" in said


def test_another_machine_is_no_baseline(tmp_path: Path) -> None:
    run(tmp_path, 20, "--expertile-bench-out", "base.json")
    data = json.loads((tmp_path / "base.json").read_text())
    data["machine"]["model"] = "another"
    (tmp_path / "base.json").write_text(json.dumps(data))
    code, said = run(tmp_path, 20, "--expertile-bench-base", "base.json")
    assert code == 5 and "model: another" in said
    assert run(tmp_path, 20, "--expertile-bench-base", "absent.json")[0] == 5
