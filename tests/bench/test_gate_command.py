"""The command line: one clear line and the right exit code for whatever is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from expertile.bench import result as results
from expertile.cli import app

from .fakes import MACHINE, gate_result, run_result


def invoke(*words: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["bench", *map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        return 2, str(done.exception)    # what __main__ prints as one line
    return done.exit_code, done.output


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, Path]:
    wrong = run_result({"a": 100.0})
    wrong = replace(wrong, cases=(replace(wrong.cases[0], status="wrong", error="NaN"),))
    made = {"base": run_result({"a": 100.0}), "slow": run_result({"a": 112.0}, 300),
            "same": run_result({"a": 100.0}, 600), "unclear": run_result({"a": 103.0}, 900),
            "wrong": wrong, "apart": run_result({"b": 100.0}),
            "other": run_result({"a": 100.0}, machine=replace(MACHINE, threads=4)),
            "gate": gate_result({"a": 1.2, "b": 1.0})}
    for name, result in made.items():
        results.write(tmp_path / f"{name}.json", result)
    (tmp_path / "bad.json").write_text("{")
    return {name: tmp_path / f"{name}.json" for name in (*made, "bad", "absent")}


@pytest.mark.parametrize(("base", "head", "code"), [
    ("base", "same", 0), ("base", "slow", 1), ("base", "bad", 2), ("base", "absent", 2),
    ("base", "unclear", 3), ("base", "wrong", 4), ("base", "apart", 5), ("other", "same", 5),
    ("bad", "same", 5), ("absent", "same", 5)])
def test_compare(stored: dict[str, Path], base: str, head: str, code: int) -> None:
    got, said = invoke("compare", stored[base], stored[head])
    assert got == code, said
    if code in (2, 5) and head != "apart":
        assert len(said.strip().splitlines()) == 1, said


def test_doubt_may_be_let_through(stored: dict[str, Path]) -> None:
    for how, code in (("fail", 3), ("warn", 0), ("pass", 0)):
        assert invoke("compare", stored["base"], stored["unclear"], "--ambiguous", how)[0] == code
    assert invoke("compare", stored["base"], stored["slow"], "--ambiguous", "pass")[0] == 1


def test_a_full_disk_is_one_line_after_the_verdict(stored: dict[str, Path]) -> None:
    """A device file is written to and never replaced."""
    code, said = invoke("compare", stored["base"], stored["same"], "--write", "json=/dev/full")
    assert code == 2 and "/dev/full could not be written (No space left" in said
    assert Path("/dev/full").is_char_device()


def test_ctrl_c_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """In the middle of a measurement that would take minutes."""
    root = tmp_path / "repository"
    root.mkdir()
    (root / "bench_x.py").write_text("def bench_a():\n    return lambda: sum(range(1000))\n")
    git = ["git", "-C", str(root), "-c", "user.name=n", "-c", "user.email=n@x"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    run = subprocess.Popen(
        [sys.executable, "-m", "expertile", "bench", "gate", "--base", "HEAD", "--suite",
         "bench_x.py", "--rounds", "100000", "--out", "r.json"], cwd=root, text=True,
        env={**os.environ, "TMPDIR": str(temporary)}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,      # a shell's background job starts with Ctrl-C ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end and len(_children(run.pid)) < 4:    # three sides, the anchor
            time.sleep(0.1)
        time.sleep(0.5)
        children = _children(run.pid)
        run.send_signal(signal.SIGINT)
        out, said = run.communicate(timeout=60)
    finally:
        run.kill()
    assert (run.returncode, out, said) == (130, "", "interrupted; nothing was written\n")
    assert len(children) == 4 and not any(Path(f"/proc/{pid}").exists() for pid in children)
    assert not (root / "r.json").exists() and not list(temporary.iterdir())


def _children(pid: int) -> list[int]:
    """Of all its threads."""
    return [int(p) for children in Path(f"/proc/{pid}/task").glob("*/children")
            for p in children.read_text().split()]


def test_no_baseline_in_json(stored: dict[str, Path]) -> None:
    code, said = invoke("compare", stored["other"], stored["same"], "--json")
    assert code == 5 and json.loads(said.splitlines()[0])["exit_code"] == 5


def test_report_writes_every_format(stored: dict[str, Path], tmp_path: Path) -> None:
    code, said = invoke("report", stored["gate"], "--write", f"junit={tmp_path / 'j.xml'}",
                        "--write", f"html={tmp_path / 'r.html'}")
    assert code == 0 and "Chance to" in said
    assert "<failure" in (tmp_path / "j.xml").read_text()
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")


def test_the_step_summary_is_appended_to(stored: dict[str, Path], tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    invoke("compare", stored["base"], stored["slow"])
    text = summary.read_text()
    assert text.startswith("before\n## Performance: slower") and "**SLOW**" in text


@pytest.mark.parametrize("words", [
    ("gate",), ("gate", "--static", "--base", "HEAD"), ("run", "--write", "nonsense=x"),
    ("run", "--write", "html"), ("gate", "--base", "HEAD", "--threshold", "0"),
    ("run", "--rounds", "1", "--op", "silu_mul")])
def test_misuse(words: tuple[str, ...]) -> None:
    assert invoke(*words)[0] == 2


def test_a_gate_outside_a_repository_or_without_the_base(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = invoke("gate", "--base", "HEAD")
    assert code == 5 and "git" in said
    subprocess.run(["git", "init", "-q", "."], check=True)
    code, said = invoke("gate", "--base", "main")
    assert code == 5 and "fetch-depth" in said


def test_history(stored: dict[str, Path], tmp_path: Path) -> None:
    db = tmp_path / "t.sqlite"
    assert invoke("history", "show", "--db", db)[0] == 5
    for number in range(1, 17):
        night = run_result({"a": 100.0 if number < 10 else 110.0}, seed=number)
        path = tmp_path / "night.json"
        results.write(path, replace(night, created=f"2026-11-{number:02d}T03:00:00Z"))
        assert invoke("history", "add", path, "--db", db)[0] == 0
    code, said = invoke("history", "show", "--db", db)
    assert code == 1 and "+10" in said
    assert invoke("history", "show", "--db", db, "--recent", "3")[0] == 0
    assert invoke("history", "export", tmp_path / "o.csv", "--db", db)[0] == 0
    assert len((tmp_path / "o.csv").read_text().splitlines()) == 17
    config = json.loads((tmp_path / "o.yaml").read_text())["tests"]["expertile"]
    assert config["file"] == str(tmp_path / "o.csv")
    assert config["metrics"] == {"a": {"column": "a", "direction": -1}}
    assert invoke("history", "export", tmp_path / "o.html", "--format", "html", "--db", db)[0] == 0
    assert "<svg" in (tmp_path / "o.html").read_text()
