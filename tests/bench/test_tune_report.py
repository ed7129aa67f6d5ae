"""The report of a tune: numbers from a database, legible plots, a page without network."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from expertile import ops
from expertile.bench.outputs.tune_compare import equivalence
from expertile.bench.outputs.tune_drawing import Drawing
from expertile.bench.outputs.tune_page import Page, render
from expertile.commands.tune_report import label, report
from expertile.ops.space import Config, config_text
from expertile.ops.spec import Operator, Shape
from expertile.opt import Budget, tune
from expertile.opt.decide import RACE_ROUNDS
from expertile.opt.importance import FEWEST_RESULTS, importance
from expertile.opt.report import Finalist, ShapeReport, read
from expertile.opt.roof import roofs
from expertile.opt.stats import Ratio
from expertile.targets.base import Examined, Figure, Recipe
from expertile.targets.null import NullTarget, formula_us
from expertile.tuning_db.record import Record
from expertile.tuning_db.store import TuningDB

from .test_browser import CHROMIUM, opened

OP = ops.load("silu_mul")
SHAPES: list[Shape] = [{"h": 512, "dtype": "float32", "tokens": t} for t in (1, 16)]
TOO_LARGE = "needs 4096 of 2048 bytes"


class Refusing(NullTarget):
    """The null target, whose largest tile does not compile."""

    def compile_here(self, op: Operator, shape: Shape, config: Config) -> Examined:
        if config["tile"] == 16:
            return Examined(False, TOO_LARGE.replace("4096", str(64 * int(config["split"]))), "L0 "
                            "described")
        return super().compile_here(op, shape, config)

    def limits(self) -> dict[str, Figure]:
        return {"bandwidth": Figure(20.0, "GB/s", "test", "measured"),
                "flops": Figure(90.0, "GFLOP/s", "test", "measured")}

    def recipe(self) -> Recipe:
        return f"{__name__}:target", {}


def target() -> Refusing:
    return Refusing()


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "x.sqlite"
    tune(OP, target(), SHAPES, path, Budget(trials=30))
    return path


def _rows(path: Path) -> list[Record]:
    with TuningDB(path, read_only=True) as opened_db:
        return opened_db.records()


@pytest.fixture(scope="module")
def reports(db: Path) -> list[ShapeReport]:
    return read(_rows(db), lambda key: target().space(OP, key.shape))


@pytest.fixture(scope="module")
def page(reports: list[ShapeReport]) -> Page:
    return render(reports, "x.sqlite", label)


def test_the_data_are_the_databases(reports: list[ShapeReport]) -> None:
    assert [r.key.shape["tokens"] for r in reports] == [1, 16]
    one = reports[0]
    default = target().space(OP, SHAPES[0]).default()
    shares = [formula_us(r.config) / formula_us(default) if r.status == "ok" else None
              for r in one.trials]
    assert len(shares) == 30 and one.default == default
    best = [min((s for s in shares[:i] if s), default=None) for i in range(1, 31)]
    assert [b and round(b, 3) for b in one.best_so_far] == [b and round(b, 3) for b in best]
    (refusal,) = one.refusals
    assert refusal.count == sum(s is None for s in shares) > 1 and refusal.status == "illegal"
    values = {(v.knob, v.value): v for v in one.coverage}
    for (knob, value), seen in values.items():
        rows = [r for r in one.trials if str(r.config[knob]) == value]
        assert (seen.ok, seen.refused) == (sum(r.us is not None for r in rows),
                                           sum(r.status == "illegal" for r in rows))
        assert seen.valid and seen.valid >= seen.tried
    assert values["tile", "16"].ok == 0 and values["tile", "16"].best is None


def test_finalists_are_the_stored_race_against_the_default(reports: list[ShapeReport]) -> None:
    one = reports[0]
    assert one.winner is not None and one.winner.decision == "tuned"
    by_text = {config_text(f.config): f for f in one.finalists}
    assert set(by_text) == set(one.winner.race)
    (pick,) = [f for f in one.finalists if f.picked]
    (default,) = [f for f in one.finalists if f.is_default]
    assert pick.tied and pick.config == one.winner.config and default.ratio.value == 1.0
    assert pick.ratio.value == pytest.approx(
        formula_us(default.config) / formula_us(pick.config), rel=1e-4)
    assert default.rounds == RACE_ROUNDS or default.rounds == pick.rounds


def test_importance_names_the_knob_that_decides_and_says_when_it_cannot(
        reports: list[ShapeReport]) -> None:
    rows = [replace(r, us=10.0 + 5.0 * int(r.config["unroll"]), default_us=20.0)
            for r in reports[0].trials if r.us]
    found = importance(rows)
    assert next(iter(found.shares)) == "unroll" and "PED-ANOVA" in found.method
    assert sum(found.shares.values()) == pytest.approx(1.0)
    few = importance(rows[:FEWEST_RESULTS - 1])
    assert few.shares == {} and "too few" in few.why_not


def test_the_roof_is_what_the_floors_imply(reports: list[ShapeReport]) -> None:
    (roof,) = roofs(reports)
    assert roof.bandwidth == pytest.approx(20.0) and roof.peak is None
    work = OP.work(SHAPES[0])
    first = roof.points[0]
    assert first.intensity == work.flops / work.bytes
    assert first.best == pytest.approx(work.flops / (reports[0].winner.us or 0) / 1e3)  # type: ignore[union-attr]
    assert first.floor == pytest.approx(20.0 * first.intensity)
    heavy = {r.key.hash: r for r in reports}
    peak = replace(reports[1].winner, floor_us=work.flops * 16 / 1e3)   # type: ignore[type-var]
    both = roofs([reports[0], replace(heavy[reports[1].key.hash], winner=peak)])
    assert both[0].peak == pytest.approx(1.0) and both[0].limit(1e9) == both[0].peak


def _texts(drawing: Drawing) -> list[tuple[str, tuple[float, float, float, float]]]:
    """Every text that is drawn, and its box in pixels."""
    from matplotlib.axis import Tick, XTick
    from matplotlib.text import Text

    figure = drawing.figure
    figure.canvas.draw()
    renderer, hidden = figure.canvas.get_renderer(), set()
    for tick in figure.findobj(Tick):    # matplotlib keeps ticks beyond the axis, undrawn
        axis = tick.axes.xaxis if isinstance(tick, XTick) else tick.axes.yaxis
        low, high = sorted(axis.get_view_interval())
        if not low <= tick.get_loc() <= high:
            hidden |= {id(tick.label1), id(tick.label2)}
    return [(t.get_text(), t.get_window_extent(renderer).extents) for t in figure.findobj(Text)
            if t.get_text() and t.get_visible() and id(t) not in hidden]


def _noisy(report: ShapeReport) -> ShapeReport:
    """The same with two finalists of wide intervals and many knobs."""
    configs = [{f"a_long_knob_{i}": 128 + i + j for i in range(6)} for j in range(2)]
    return replace(report, finalists=tuple(
        Finalist(c, Ratio(1.0 + j / 10, 0.1, 200.0), 5, True, j == 1, j == 0)
        for j, c in enumerate(configs)))


def test_every_label_of_every_plot_can_be_read(page: Page, reports: list[ShapeReport]) -> None:
    kinds = {d.name.rpartition("-")[2] for d in page.drawings}
    assert kinds == {"convergence", "importance", "coverage", "equivalence", "roofline"}
    wide_one = equivalence(_noisy(reports[0]), "noisy")
    assert wide_one is not None
    for drawing in (*page.drawings, wide_one):
        texts = _texts(drawing)
        wide, high = drawing.figure.bbox.size
        for name, (x0, y0, x1, y1) in texts:
            assert x0 >= -1 and y0 >= -1 and x1 <= wide + 1 and y1 <= high + 1, (drawing.name, name)
        for i, (a, (ax0, ay0, ax1, ay1)) in enumerate(texts):
            for b, (bx0, by0, bx1, by1) in texts[:i]:
                assert (min(ax1, bx1) - max(ax0, bx0) <= 1
                        or min(ay1, by1) - max(ay0, by0) <= 3), (drawing.name, a, b)


def test_the_page_is_one_file_that_says_it_in_words_too(page: Page) -> None:
    html = page.html
    assert not re.findall(r'(?:src|href)="(?!data:|#)', html) and "<script" not in html
    assert len(re.findall(r'<img alt="[^"]{20,}"', html)) == len(page.drawings) == 9
    assert TOO_LARGE.split(" of ")[1] in html and "never tried" not in html
    assert all(d.png().startswith(b"\x89PNG") for d in page.drawings[:2])
    ids = re.findall(r'id="([^"]+)"', html)
    assert {h[1:] for h in re.findall(r'href="(#[^"]+)"', html)} == set(ids)
    assert len(set(ids)) == len(ids)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")
def test_a_browser_shows_it(page: Page, tmp_path: Path) -> None:
    seen, console = opened(page.html, tmp_path)
    assert console == [] and seen["wide"] <= 0   # type: ignore[operator]


def test_the_command_and_what_it_says_of_nothing(
        db: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(str(db), None, tmp_path / "a" / "r.html", tmp_path / "png")
    assert "2 shapes, 60 trials" in capsys.readouterr().out
    assert len(list((tmp_path / "png").iterdir())) == 9
    assert (tmp_path / "a" / "r.html").read_text().startswith("<!doctype html>")
    empty, bare = tmp_path / "empty.sqlite", tmp_path / "bare.sqlite"
    TuningDB(empty).close()
    with TuningDB(bare) as store:
        store.add(*(r for r in _rows(db) if r.role == "winner"))
    for source, op, out, says in (
            (empty, None, "r.html", "holds no records; fill it with: expertile tune --db"),
            (tmp_path / "none.sqlite", None, "r.html", "does not exist"),
            (db, ["silu_mull"], "r.html", "did you mean silu_mul"),
            (db, ["moe_route"], "r.html", "has no record of moe_route; it has silu_mul"),
            (db, None, "a", "cannot be written")):
        with pytest.raises(ValueError, match=re.escape(says)) as error:
            report(str(source), op, tmp_path / out, None)
        assert "\n" not in str(error.value)
    report(str(bare), None, tmp_path / "bare.html", None)
    assert "records and no trials" in capsys.readouterr().out
    assert "records and no trials" in (tmp_path / "bare.html").read_text()


def test_a_bad_call_ends_with_code_2_and_one_line(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "expertile", "tune", "report", "--db",
                           str(tmp_path / "none.sqlite")], capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
