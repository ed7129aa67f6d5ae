"""Named suites: what they measure, what they say of a goal, and the files they write."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from expertile import ops
from expertile.bench.outputs import suite_page
from expertile.bench.result import BadResult, Case, Machine, Result, from_json
from expertile.bench.suites import goals, growth, points, run, runner, table
from expertile.cli import app


def result(cases: list[Case], **settings: Any) -> Result:
    limits = {"read, 1 threads": 10.0, "FMA float32, 1 threads": 100.0, "bandwidth": 10.0,
              "flops": 100.0}
    return Result(Machine("cpu", "x86-t1", 1, "h"), {"head": {}}, tuple(cases),
                  "2026-11-22T00:00:00Z", "0", "expertile bench run cpu-ops", {}, limits,
                  {"suite": "cpu-ops", "threads": [1], "missing": {}, **settings})


def case(name: str, group: str, **sides: float) -> Case:
    """Five rounds, of which the middle one is half as fast for everybody."""
    samples = {s.replace("_", " "): tuple(((us * f),) for f in (1.0, 1.01, 2.0, 1.02, 1.03))
               for s, us in sides.items()}
    return Case(name, group, "ok", {"head": samples["ours f32"], **samples}, floor_us=1.0,
                flops=1e6, bytes=1e4)


def answer(found: list[goals.Answer], row: str, column: str) -> goals.Answer:
    return next(a for a in found if (a.goal.row, a.goal.column) == (row, column))


def test_cases_are_named_once_and_every_shape_is_a_call_of_its_operator() -> None:
    whole = points.cpu_ops((1, 2), quick=False, dots=True)
    names = [p.name for p in whole]
    assert len(set(names)) == len(names) > 100
    assert {p.name for p in points.cpu_ops((1, 2), quick=True, dots=True)} < set(names)
    plain = points.cpu_ops((1, 2), quick=False, dots=False)
    assert [p.name for p in plain] == names and not any("ours bf16" in p.shapes for p in plain)
    for point in whole:
        op = ops.load(point.op)
        for shape in (*point.shapes.values(), *point.beside.values()):
            assert dict(op.shape_of(*op.signature(shape))) == dict(shape), point.name
    assert {g.row for g in goals.GOALS} <= {p.row for p in whole} <= {r.key for r in goals.ROWS}
    assert all(p.ggml for p in whole if p.row.startswith("moe"))


def test_goals_are_met_missed_or_not_measured_for_a_reason() -> None:
    row = "moe-decode-fp8"
    fast = case(f"{row}[v2-lite,tokens=1,1T]", row, ours_f32=100, torch_f32_loop=500,
                **{"ggml_q8 0": 120, "floor": 95})
    slow = case(f"{row}[v2-lite,tokens=4,1T]", row, ours_f32=100, torch_f32_loop=300,
                **{"floor": 40})
    found = goals.answers(result([fast, slow], missing={"ggml": "not installed"}))
    torch = answer(found, row, "torch")
    assert torch.met is False and (torch.held, torch.of) == (1, 2)
    assert torch.least == pytest.approx(3.0) and torch.most == pytest.approx(5.0)
    assert "tokens=4" in torch.worst and "torch f32 loop" in torch.worst
    ggml = answer(found, row, "ggml")
    assert ggml.met is False and ggml.least == pytest.approx(1.2)
    machine = answer(found, row, "machine")          # asked of one token only
    assert machine.met is True and machine.least == pytest.approx(0.95)
    prefill = answer(found, "mla-prefill", "torch")
    assert prefill.met is None and "no case" in prefill.why


def test_int8_is_asked_to_be_as_fast_as_our_fp8_kernel() -> None:
    one = case("moe-int8[x,1T]", "moe-int8", ours_f32=100, ours_w8a8=80, fp8_weights=90,
               torch_f32_loop=300, floor=70)
    found = answer(goals.answers(result([one])), "moe-int8", "fp8")
    assert found.met is True and found.least == pytest.approx(90 / 80)
    row, = table.cases(result([one])).rows
    assert len(row) == len(table.cases(result([one])).heads)
    assert "w8a8" in row[2] and "3.75x" in row[4] and "1.12x" in row[6]


def test_a_goal_is_judged_by_the_faster_variant_but_the_machine_by_float32() -> None:
    one = case("dense-fp8[x,1T]", "dense-fp8", ours_f32=100, ours_bf16=50, torch_bf16_linear=80,
               torch_f32_linear=150, floor=92)
    found = goals.answers(result([one]))
    assert answer(found, "dense-fp8", "torch").least == pytest.approx(80 / 50)
    assert answer(found, "dense-fp8", "machine").least == pytest.approx(0.92)


def test_a_ratio_of_rounds_forgives_what_slows_both_sides() -> None:
    found = goals.over([(10,), (20,), (40,)], [(5,), (10,), (20,)])
    assert found == goals.Spread(2.0, 2.0, 2.0)
    assert goals.over([], []) is None


def test_cliffs_are_steps_beyond_the_floors() -> None:
    def one(size: int, us: float, floor: float) -> Case:
        name = f"moe-decode-fp8[v2-lite,tokens={size},1T]"
        return Case(name, "moe-decode-fp8", "ok", {"ours f32": ((us,), (us,))}, floor_us=floor)

    cases = [one(1, 100, 90), one(2, 200, 180), one(4, 700, 360), one(8, 1300, 720)]
    series = {c.name: {"series": "s", "tokens": int(c.name.split("=")[1].split(",")[0]),
                       "ctx": 0, "experts": 64, "threads": 1} for c in cases}
    whole = result(cases, series=series)
    found = growth.cliffs(growth.series(whole))
    assert [(c.axis, c.low, c.high) for c in found] == [("tokens", 2, 4)]
    assert found[0].step == pytest.approx(1.75)
    assert ("s", "1T", "tokens 2 to 4", "1.75x") in table.growth(whole).rows


def report_of() -> Result:
    row = "moe-decode-fp8"
    cases = [case(f"{row}[v2-lite,tokens={n},1T]", row, ours_f32=100 * n, torch_f32_loop=500 * n,
                  floor=90 * n) for n in (1, 2)]
    cases.append(Case("dense-fp8[x,1T]", "dense-fp8", "failed", error="no <compiler> & more"))
    series = {c.name: {"series": "tokens", "tokens": n, "ctx": 0, "experts": 64, "threads": 1}
              for n, c in enumerate(cases[:2], 1)}
    return result(cases, series=series, skipped=["casts[x,1T]"])


def test_the_page_holds_goals_plots_and_what_was_skipped() -> None:
    page = suite_page.render(report_of(), {"Roofline": b"\x89PNG"})
    assert "5.00x" in page and "90 %" in page and "not measured" in page
    assert "no &lt;compiler&gt; &amp; more" in page and "casts[x,1T]" in page
    assert 'src="data:image/png;base64,' in page and "http" not in page.replace("http://www.w3", "")
    assert from_json(json.loads(json.dumps(report_of().to_json())), "x").cases


def test_plots_are_png_files_and_an_empty_result_is_told() -> None:
    pytest.importorskip("matplotlib")
    from expertile.bench.outputs import plots

    for draw in (plots.roofline, plots.growth):
        picture = draw(report_of())
        assert picture.startswith(b"\x89PNG\r\n\x1a\n") and len(picture) > 5000
        with pytest.raises(ValueError, match="bench run"):
            draw(result([]))


def test_a_stored_result_becomes_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    stored, picture = tmp_path / "r.json", tmp_path / "r.png"
    stored.write_text(json.dumps(report_of().to_json()))
    done = CliRunner().invoke(app, ["bench", "report", str(stored), "--write", f"png={picture}"])
    assert done.exit_code == 0, done.output
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_suite_runs_interleaves_its_sides_and_names_what_found_no_time(tmp_path: Path) -> None:
    shape = {"k": 256, "group_size": 128, "dtype": "bfloat16", "ue8m0": False, "tokens": 32}
    cast = points.Point("casts", "per_token_group_quant_fp8", "small", 1, {"ours f32": shape},
                        "copy")
    late = points.Point("casts", "per_token_group_quant_fp8", "late", 1, {"ours f32": shape},
                        "copy")
    told: list[str] = []
    saved: list[Result] = []
    options = runner.Options((1,), 1e-3, str(tmp_path), "default", None, None, "none")
    found = run.run([cast, late], options, told.append, "test", "cpu-ops", save=saved.append)
    one = found.cases[0]
    sides = set(one.samples)
    assert one.status == "ok" and {"head", "ours f32", "floor"} < sides, one
    assert any(s.startswith("torch eager") for s in sides)
    assert len({len(blocks) for blocks in one.samples.values()}) == 1     # the same rounds
    assert one.percent_of_floor("head") is not None
    assert found.settings["skipped"] == ["casts[late,1T]"]
    assert found.limits["FMA float32, 1 threads"] > found.limits["read, 1 threads"] > 0.1
    assert any("limits of 1 thread" in line for line in told)
    assert [len(r.cases) for r in saved] == [1]          # a killed run has left this
    goes_on(saved[-1], [cast, late], options)


def goes_on(earlier: Result, wanted: list[points.Point], options: runner.Options) -> None:
    """The second case is added to the first, and an interrupt right after it loses nothing."""
    def stop(text: str) -> None:
        if text.startswith("1/1 "):
            raise KeyboardInterrupt

    whole = run.run(wanted, options, stop, "test", "cpu-ops", earlier)
    assert [c.name for c in whole.cases] == ["casts[small,1T]", "casts[late,1T]"]
    assert whole.cases[0] == earlier.cases[0] and not whole.settings["skipped"]
    assert set(whole.settings["probes"]) == {p.name for p in wanted}
    assert whole.settings["interrupted"] and "interrupted" in " ".join(table.notes(whole))
    with pytest.raises(BadResult, match="the earlier run had arch"):
        run.run(wanted, replace(options, arch="x86"), stop, "test", "cpu-ops", earlier)


@pytest.mark.parametrize("arguments, why", [
    (["cpu-opps"], "must be one of cpu-ops, cpu-limits, model"),
    (["cpu-ops", "--only", "nonsense"], "must name cases"),
    (["--quick"], "belong to a named suite"),
    (["cpu-ops", "--device", "sm_90"], "measures CPUs"),
    (["cpu-ops", "--device", "cpu:aarch64"], "cannot be measured here"),
    (["cpu-ops", "--resume"], "give --report"),
    (["model", "--device", "cpu:x86"], "this machine's own level"),
    (["model", "--only", "gpt"], "bundled, v2-lite-slice")])
def test_a_wrong_command_line_is_refused_before_anything_is_measured(arguments: list[str], why: str
                                                                     ) -> None:
    done = CliRunner().invoke(app, ["bench", "run", *arguments])
    assert done.exit_code != 0
    assert isinstance(done.exception, ValueError) and why in str(done.exception)
