"""A bundle for Ascend: judged by the compiler here, made a binary where the card is."""

from __future__ import annotations

from pathlib import Path

import pytest

from expertile import ops, targets
from expertile.opt import Budget
from expertile.opt.bundle import BundleError
from expertile.opt.bundle_file import read
from expertile.opt.bundle_plan import Plan, plan_bundle
from expertile.opt.bundle_run import run_bundle
from expertile.tuning_db.store import TuningDB
from tests.targets.ascend_card import Recorder, install

OP = ops.load("silu_mul")
SHAPE = OP.odd_shapes[0]             # 7 x 77 in float32
SILU = """
#include <math.h>
int npu_block(const arguments_t *a, uint32_t block) {
    const float *x = a->a1;
    float *y = a->a2;
    for (int r = 0; !block && r < a->a0; r++)
        for (int j = 0; j < 77; j++) {
            float g = x[r * 154 + j], u = x[r * 154 + 77 + j];
            y[r * 77 + j] = g / (1.0f + expf(-g)) * u;
        }
    return 0;
}
"""


def test_what_the_compiler_took_is_finished_and_timed_on_the_card(tmp_path: Path) -> None:
    """The card is one that runs kernels on this CPU: nothing is said of a real one."""
    out = tmp_path / "x.bundle"
    with TuningDB(tmp_path / "e.sqlite") as db:
        plan_bundle(Plan([(OP, SHAPE)], "ascend910b3", Budget(trials=3)),
                    lambda at: targets.load("ascend910b3", cache_dir=at), db, tmp_path / "plans",
                    out)
    bundle = read(out)
    (planned,) = bundle.manifest.shapes
    assert {c.evidence for c in planned.wanted} == {"L1 lowered"} and len(planned.wanted) == 3
    assert all(c.modelled_us for c in planned.wanted)
    assert bundle.manifest.target.toolchain["hivmc"] == "absent"

    home = install(tmp_path / "latest")
    Recorder(home).kernel("silu_mul", SILU)
    with TuningDB(tmp_path / "x.sqlite") as db:
        with pytest.raises(BundleError, match="on a machine with the card and CANN, npu:0"):
            run_bundle(bundle, lambda at: targets.load("ascend910b3"), tmp_path / "c", db)
        ran = run_bundle(bundle, lambda at: targets.load(
            "npu:0", cann_home=home, cache_dir=at or tmp_path / "c"), tmp_path / "c", db)
        rows = db.records(role="candidate")
    (outcome,) = ran.outcomes
    assert (outcome.record.status, outcome.record.evidence) == ("ok", "L4 timed")
    assert outcome.record.key.toolchain["hivmc"] == "CANN 8.5.0"
    assert ran.compiled == len(Recorder(home).compiled()) > 0
    assert {r.status for r in rows} == {"ok"} and len(rows) == 3
