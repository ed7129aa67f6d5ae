"""From a result to an exit code: what is measured again, what may not be compared."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest

from expertile.bench import result as results
from expertile.bench.gate import (
    AMBIGUOUS,
    NO_BASELINE,
    OK,
    REGRESSION,
    WRONG,
    decide,
    exit_code,
    join,
)
from expertile.bench.result import BadResult, NoBaseline, Result
from expertile.bench.verdict import Rules

from .fakes import MACHINE, gate_result, run_result

RULES = Rules()


def test_equal_code_passes_and_slow_code_does_not() -> None:
    assert decide(gate_result({"a": 1.0, "b": 1.0}), RULES).code == OK
    outcome = decide(gate_result({"a": 1.0, "b": 1.1}), RULES)
    assert outcome.code == REGRESSION
    assert [c.verdict for c in outcome.judgement.cases] == ["SAME", "SLOW"]
    assert outcome.judgement.power["10 %"] > 0.99


@pytest.mark.parametrize(("second", "code"), [(1.1, REGRESSION), (1.0, OK)])
def test_what_is_slow_must_be_slow_again(second: float, code: int) -> None:
    asked: list[str] = []

    def again(names: Iterable[str]) -> Result:
        asked.extend(names)
        return gate_result({"b": second}, seed=500)

    outcome = decide(gate_result({"a": 1.0, "b": 1.1}), RULES, again)
    assert set(asked) == {"b"} and outcome.code == code
    assert len(asked) == (2 if code else 1)          # slow again: a third time, to be sure
    again_of_b = outcome.result.case("b")
    assert again_of_b is not None and outcome.first_result is not None
    assert again_of_b.us("head") == pytest.approx(500 * second, rel=0.02)
    assert any("measured again" in note for note in outcome.notes)


def test_doubt_is_told_apart_from_success() -> None:
    outcome = decide(gate_result({"a": 1.03}, noise=0.03), RULES)
    assert outcome.code == AMBIGUOUS
    assert [exit_code(outcome.code, how) for how in ("fail", "warn", "pass")] == [AMBIGUOUS, 0, 0]
    assert exit_code(REGRESSION, "pass") == REGRESSION


@pytest.mark.parametrize("status", ["wrong", "failed"])
def test_wrong_results_are_graver_than_slow_ones(status: str) -> None:
    found = gate_result({"a": 1.2, "b": 1.0})
    broken = replace(found.cases[1], status=status, samples={}, error="NaN in row 3")
    outcome = decide(replace(found, cases=(found.cases[0], broken)), RULES)
    assert outcome.code == WRONG and any("NaN in row 3" in note for note in outcome.notes)


def test_a_case_without_a_counterpart_is_told_and_gates_nothing() -> None:
    found = gate_result({"a": 1.0, "b": 1.5})
    new = replace(found.cases[1], status="new", samples={"head": found.cases[1].samples["head"]})
    assert decide(replace(found, cases=(found.cases[0], new)), RULES).code == OK
    assert decide(replace(found, cases=(new,)), RULES).code == NO_BASELINE


def test_changed_tools_and_an_unsteady_machine_are_told() -> None:
    found = gate_result({"a": 1.0})
    tools = {"base": {"tvm": "0.26"}, "head": {"tvm": "0.27"}}
    anchor = tuple((100.0 if i < 8 else 110.0,) for i in range(16))
    notes = decide(replace(found, toolchain=tools, anchor=anchor), RULES).notes
    assert any("tvm 0.26 -> 0.27" in n for n in notes) and any("10.0 %" in n for n in notes)


def test_results_of_one_machine_compare() -> None:
    base, head = run_result({"a": 100.0, "b": 50.0}), run_result({"a": 110.0, "b": 50.0}, 900)
    outcome = decide(join(base, head), RULES)
    assert [c.verdict for c in outcome.judgement.cases] == ["SLOW", "SAME"]
    assert decide(join(base, run_result({"c": 1.0})), RULES).code == NO_BASELINE


@pytest.mark.parametrize(("field", "value"), [
    ("model", "Intel Xeon, 2 threads, 24 GiB, Linux"), ("device", "x86-avx512-t2"),
    ("threads", 4), ("host", "ba9876543210")])
def test_results_of_two_machines_never_compare_silently(field: str, value: object) -> None:
    base = run_result({"a": 100.0}, machine=replace(MACHINE, **{field: value}))
    with pytest.raises(NoBaseline, match=field):
        join(base, run_result({"a": 100.0}))
    if field == "host":
        assert decide(join(base, run_result({"a": 100.0}), any_host=True), RULES).code == OK


def test_a_machine_that_changed_its_speed_is_another_one() -> None:
    base = run_result({"a": 100.0})
    moved = tuple(tuple(1.1 * us for us in block) for block in base.anchor)
    with pytest.raises(NoBaseline, match="reference kernel"):
        join(replace(base, anchor=moved), run_result({"a": 100.0}))


def test_a_result_survives_its_file(tmp_path: Path) -> None:
    made = gate_result({"a": 1.0, "b": 1.1})
    results.write(tmp_path / "r.json", made)
    assert results.read(tmp_path / "r.json") == made


@pytest.mark.parametrize("damage", [
    lambda t: t[:-20], lambda t: "[]", lambda t: "", lambda t: t.replace("expertile-bench/1", "x"),
    lambda t: t.replace('"device":', '"devise":', 1), lambda t: t.replace("500.", "-500.", 1)])
def test_a_damaged_result_is_refused_in_one_line(tmp_path: Path, damage) -> None:
    path = tmp_path / "r.json"
    results.write(path, gate_result({"a": 1.0}))
    path.write_text(damage(path.read_text()))
    with pytest.raises(BadResult, match="expertile bench run") as caught:
        results.read(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(NoBaseline, match="does not exist"):
        results.read(tmp_path / "absent.json")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.json"
    results.write(path, gate_result({"a": 1.0}))
    before = path.read_text()
    full = open("/dev/full", "w")  # noqa: SIM115 - closed by _Full
    monkeypatch.setattr(results.tempfile, "NamedTemporaryFile", lambda *a, **k: _Full(full, path))
    with pytest.raises(OSError, match="No space left"):
        results.write(path, gate_result({"b": 1.0}))
    assert path.read_text() == before and [p.name for p in tmp_path.iterdir()] == ["r.json"]


class _Full:
    """A temporary file on a full disk."""

    def __init__(self, file: IO[str], path: Path):
        self._file, self._path = file, path.with_suffix(".tmp")
        self._path.touch()
        self.name = str(self._path)

    def __enter__(self) -> _Full:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):
            self._file.close()

    def write(self, text: str) -> None:
        """Goes into a buffer."""
        self._file.write(text[:100])

    def flush(self) -> None:
        """Finds no space."""
        self._file.flush()
