"""The command line: bad input is one clear line and exit code 2; good input is JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def expertile(*args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    return subprocess.run([sys.executable, "-m", "expertile", *args], capture_output=True,
                          text=True, timeout=300, env={**os.environ, **(env or {})})


def refused(*args: str, says: str, env: dict[str, str] | None = None) -> None:
    """Exit code 2, one line on stderr that says why, no traceback."""
    done = expertile(*args, env=env)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error:")]) == 1


TUNE = ("tune", "--device", "cpu", "--preset", "tiny", "--op", "silu_mul", "--tokens", "16")


@pytest.mark.parametrize(("args", "says"), [
    ((*TUNE, "--budget", "-5s"), "budget"),
    ((*TUNE, "--budget", "soon"), "budget"),
    ((*TUNE, "--trials", "0"), "at least 1 trial"),
    ((*TUNE, "--budget", "5s", "--trials", "4"), "one of"),
    ((*TUNE, "--trials", "4", "--db", "/proc/nowhere/x.sqlite"), "/proc/nowhere/x.sqlite"),
    (("tune", "--device", "abacus", "--preset", "tiny", "--trials", "4"), "abacus"),
    (("tune", "--preset", "v9", "--trials", "4"), "v9"),
    (("tune", "--trials", "4"), "--preset"),
    (("tune", "--preset", "tiny", "--op", "sort", "--trials", "4"), "sort"),
    (("check", "--device", "sm_90", "--preset", "tiny", "--op", "fused_moe", "--act-dtype",
      "float16"), "fused_moe does not take these dtypes: hidden must be float32 or bfloat16"),
    (("tune", "--preset", "v3", "--tp", "3", "--dry-run"), "divisible"),
    (("tune", "--preset", "tiny", "--tokens", "0", "--dry-run"), "--tokens"),
    (("tune", "--model", "/nonexistent", "--dry-run"), "/nonexistent"),
    (("explain", "sort", "--preset", "tiny"), "sort"),
    (("run", "--model", "/nonexistent"), "/nonexistent"),
], ids=lambda v: " ".join(v) if isinstance(v, tuple) else v)
def test_bad_input_is_one_line_and_exit_code_2(args: tuple[str, ...], says: str) -> None:
    refused(*args, says=says)


def test_a_negative_budget_loses_nothing(tmp_path: Path) -> None:
    db = tmp_path / "x.sqlite"
    refused(*TUNE, "--budget", "-1s", "--db", str(db), says="budget")
    assert not db.exists()


def test_an_unknown_model_type_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    refused("run", "--model", str(tmp_path), says="llama")


def test_dry_run_prints_keys_and_space_sizes() -> None:
    done = expertile(*TUNE, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)["plan"]
    assert plan and all(row["op"] == "silu_mul" and row["configs"] > 1 for row in plan)


def test_doctor_says_what_this_machine_can_do() -> None:
    report = json.loads(expertile("doctor", "--json").stdout)
    cpu = next(t for t in report["targets"] if t["target"] == "cpu")
    assert cpu["usable"] and cpu["evidence"] == "L4 timed"
    assert cpu["operators"] == cpu["of"]
    assert cpu["limits"]["bandwidth"]["value"] > 1 and cpu["limits"]["flops"]["value"] > 1


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A small tune through the command line."""
    db = tmp_path_factory.mktemp("tune") / "x.sqlite"
    done = expertile(*TUNE, "--trials", "6", "--db", str(db), "--json")
    assert done.returncode == 0, done.stderr
    return db, json.loads(done.stdout)


def test_tune_reports_each_shape(tuned: tuple[Path, dict[str, Any]]) -> None:
    _, result = tuned
    for record in result["records"]:
        assert record["op"] == "silu_mul" and record["status"] == "ok"
        assert record["decision"] in ("tuned", "default kept")
        assert record["floor_us"] > 0 and 0 < record["us"] <= record["default_us"] * 1.05
        assert record["evidence"] == "L4 timed"


def test_tuning_again_measures_nothing(tuned: tuple[Path, dict[str, Any]]) -> None:
    db, first = tuned
    done = expertile(*TUNE, "--trials", "6", "--db", str(db), "--json")
    again = json.loads(done.stdout)
    assert [r["us"] for r in again["records"]] == [r["us"] for r in first["records"]]
    assert all(r["resumed"] for r in again["records"])


def test_explain_says_which_record_answers(tuned: tuple[Path, dict[str, Any]]) -> None:
    db, first = tuned
    done = expertile("explain", "silu_mul", "--preset", "tiny", "--tokens", "16", "--db", str(db),
                     "--json")
    rows = json.loads(done.stdout)["answers"]
    assert len(rows) == len(first["records"])
    assert all(r["tier"] == "exact" for r in rows), rows


def test_db_ls_and_export(tuned: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    db, first = tuned
    listed = json.loads(expertile("db", "ls", "--db", str(db), "--json").stdout)["records"]
    assert len(listed) == len(first["records"])
    out = tmp_path / "out.jsonl"
    assert expertile("db", "export", str(out), "--db", str(db)).returncode == 0
    other = tmp_path / "other.sqlite"
    assert expertile("db", "import", str(out), "--db", str(other)).returncode == 0
    again = json.loads(expertile("db", "ls", "--db", str(other), "--json").stdout)["records"]
    assert again == listed
