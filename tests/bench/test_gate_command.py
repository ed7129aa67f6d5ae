"""The command line: one clear line and the right exit code for whatever is wrong."""

from __future__ import annotations

import json
import subprocess
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
    made = {"base": run_result({"a": 100.0}), "slow": run_result({"a": 112.0}, 300),
            "same": run_result({"a": 100.0}, 600),
            "other": run_result({"a": 100.0}, machine=replace(MACHINE, threads=4)),
            "gate": gate_result({"a": 1.2, "b": 1.0})}
    for name, result in made.items():
        results.write(tmp_path / f"{name}.json", result)
    (tmp_path / "bad.json").write_text("{")
    return {name: tmp_path / f"{name}.json" for name in (*made, "bad", "absent")}


@pytest.mark.parametrize(("base", "head", "code"), [
    ("base", "same", 0), ("base", "slow", 1), ("base", "bad", 2), ("base", "absent", 2),
    ("other", "same", 5), ("bad", "same", 5), ("absent", "same", 5)])
def test_compare(stored: dict[str, Path], base: str, head: str, code: int) -> None:
    got, said = invoke("compare", stored[base], stored[head])
    assert got == code, said
    if code in (2, 5):
        assert len(said.strip().splitlines()) == 1, said


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
    assert invoke("history", "export", tmp_path / "o.html", "--format", "html", "--db", db)[0] == 0
    assert "<svg" in (tmp_path / "o.html").read_text()
