"""Bundles: planned in one place, measured in another; what comes from outside is checked."""

from __future__ import annotations

import hashlib
import json
import random
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expertile import ops, targets
from expertile.ops.routing import Routing, parse
from expertile.ops.spec import Operator
from expertile.opt import Budget
from expertile.opt.bundle import BundleError
from expertile.opt.bundle_file import read, unpack
from expertile.opt.bundle_plan import Plan, plan_bundle
from expertile.opt.bundle_run import Ran, run_bundle, why_not
from expertile.targets.base import Target
from expertile.targets.child import Child
from expertile.targets.null import NullTarget
from expertile.tuning_db.key import key_of
from expertile.tuning_db.store import TuningDB
from tests.opt import bundle_child

OP = ops.load("fused_moe")
SHAPE = OP.odd_shapes[0]
Edit = Callable[[dict[str, Any]], object]


def plan_of(op: Operator, folder: Path, load: Callable[[Path], Target], trials: int, asked: str,
            routing: Routing) -> Path:
    """A bundle of one shape."""
    out = folder / "x.bundle"
    with TuningDB(folder / "empty.sqlite") as db:
        plan_bundle(Plan([(op, op.odd_shapes[0])], asked, Budget(trials=trials), routing=routing),
                    load, db, folder / "plans", out)
    assert not any((folder / "plans").iterdir())
    return out


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the null target, all of its pool."""
    return plan_of(OP, tmp_path_factory.mktemp("planned"), lambda at: NullTarget(), 44, "null",
                   parse("zipf-1.2"))


def run(bundle: Path, folder: Path, target: Target | None = None, **options: Any) -> Ran:
    """Its measurement, by default on the null target."""
    with TuningDB(folder / "x.sqlite") as db:
        return run_bundle(read(bundle), lambda at: target or NullTarget(), folder / "cache", db,
                          **options)


def edited(bundle: Path, folder: Path, edit: Edit, extra: dict[str, bytes] | None = None) -> Path:
    """The bundle with another manifest."""
    out = folder / "edited.bundle"
    with zipfile.ZipFile(bundle) as old, zipfile.ZipFile(out, "w") as new:
        manifest = json.loads(old.read("manifest.json"))
        edit(manifest)
        new.writestr("manifest.json", json.dumps(manifest))
        for name, data in (extra or {}).items():
            new.writestr(name, data)
    return out


def test_a_run_of_a_bundle_decides_and_says_where_it_is_from(bundle: Path, tmp_path: Path) -> None:
    (done,) = run(bundle, tmp_path).outcomes
    assert done.record.key == key_of(OP, NullTarget(), SHAPE, "zipf-1.2")
    assert done.record.config == {"tile": 128, "unroll": 4, "split": 1}
    assert done.record.decision == "tuned" and done.record.speedup == pytest.approx(1.9)
    assert done.trials == 44
    with TuningDB(tmp_path / "x.sqlite") as db:
        rows = db.records()
    digest = read(bundle).origin.digest
    assert len(rows) == 45
    assert all(r.provenance.versions["bundle"].startswith(digest[:16]) for r in rows)
    (again,) = run(bundle, tmp_path).outcomes
    assert again.resumed and again.record == done.record


def test_what_was_refused_when_planned_is_a_row_and_is_not_tried(tmp_path: Path) -> None:
    knobs = {"m": [1, 2, 3, 4]}
    entries = [{"config": {"m": m}, **rest} for m, rest in (
        (1, {"us": 9.0}), (2, {"us": 5.0}), (3, {"status": "build_error", "error": "no room"}),
        (4, {"status": "run_error"}))]
    land = tmp_path / "land.json"
    land.write_text(json.dumps({"format": "expertile-landscape-1", "knobs": knobs,
                                "entries": entries}))
    target = targets.load(f"replay:{land}")
    bundle = plan_of(OP, tmp_path, lambda at: target, 44, f"replay:{land}", Routing())
    assert {c.config["m"]: c.status for c in read(bundle).manifest.shapes[0].candidates} == {
        1: "ok", 2: "ok", 3: "build_error", 4: "ok"}
    (done,) = run(bundle, tmp_path, target).outcomes
    assert dict(done.record.config) == {"m": 2} and done.trials == 4
    with TuningDB(tmp_path / "x.sqlite") as db:
        rows = {r.config["m"]: r for r in db.records(role="candidate")}
    assert {m: r.status for m, r in rows.items()} == {
        1: "ok", 2: "ok", 3: "build_error", 4: "run_error"}
    assert rows[3].error == "when planned: no room"


def _set(*path: Any, to: Any) -> Edit:
    def edit(manifest: Any) -> None:
        for step in path[:-1]:
            manifest = manifest[step]
        manifest[path[-1]] = to

    return edit


@pytest.mark.parametrize(("edit", "says"), [
    (_set("format", to=2), "has format 2, and this version reads format 1"),
    (_set("kind", to="zip"), "it is none"),
    (_set("seed", to="0"), "damaged"),
    (_set("shapes", to=[]), "damaged"),
    (_set("shapes", 0, "candidates", 0, "config", to={"tile": [1]}), "damaged"),
    (_set("shapes", 0, "candidates", 0, "status", to="fast"), "damaged"),
    (_set("target", "toolchain", to=None), "damaged"),
    (_set("files", to={"kernels/a.so": "0"}), "differs in"),
    (_set("files", to={"../x.so": "0"}), "tampered"),
    (_set("files", to={"/etc/x": "0"}), "tampered"),
    (_set("files", to={"kernels/../../x.so": "0"}), "tampered"),
    (_set("files", to={"kernels\\x.so": "0"}), "tampered"),
    (_set("files", to={"home/x.so": "0"}), "tampered")])
def test_a_manifest_of_another_kind_is_one_error(edit: Edit, says: str, bundle: Path,
                                                 tmp_path: Path) -> None:
    bundle = edited(bundle, tmp_path, edit)
    with pytest.raises(BundleError, match=says) as e:
        read(bundle)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(("edit", "says"), [
    (_set("target", "arch", to="sm_90"), "is compiled for sm_90"),
    (_set("target", "device", to="null-2"), "null-2"),
    (_set("target", "lang", to="triton"), "mean nothing to null"),
    (_set("target", "toolchain", to={"triton": "3.6.0"}), "triton 3.6.0, here absent"),
    (_set("shapes", 0, "source", to="0123"), "kernels of fused_moe are not those"),
    (_set("shapes", 0, "op", to="fused_moo"), "does not know"),
    (_set("shapes", 0, "shape", to={"e": 4}), "lacks"),
    (_set("routing", to={"name": 3}), "routing")])
def test_a_bundle_for_something_else_is_one_error(edit: Edit, says: str, bundle: Path,
                                                 tmp_path: Path) -> None:
    bundle = edited(bundle, tmp_path, edit)
    with pytest.raises(BundleError, match=says):
        run(bundle, tmp_path)
    with TuningDB(tmp_path / "x.sqlite") as db:
        assert db.records() == []


def test_recompile_uses_the_configs_only(bundle: Path, tmp_path: Path) -> None:
    bundle = edited(bundle, tmp_path, _set("target", "toolchain", to={"triton": "3.6.0"}))
    with pytest.raises(BundleError):
        run(bundle, tmp_path)
    ran = run(bundle, tmp_path, recompile=True)
    assert ran.compiled is None and ran.outcomes[0].record.us == pytest.approx(100.0)
    assert not (tmp_path / "cache" / "bundles").exists()


def test_what_a_compiler_had_not_is_left_to_the_device(bundle: Path, tmp_path: Path) -> None:
    """Ascend's hivmc is part of CANN, which stands where the card is."""
    bundle = edited(bundle, tmp_path, _set("target", "toolchain", to={"x": "absent"}))
    assert why_not(read(bundle), NullTarget()) is None


def test_files_that_are_not_listed_or_not_the_listed_ones_are_refused(bundle: Path, tmp_path: Path
                                                                      ) -> None:
    with pytest.raises(BundleError, match="differs in"):
        read(edited(bundle, tmp_path, lambda m: None, {"kernels/a.so": b"a"}))
    with pytest.raises(BundleError, match="differs in"):
        read(edited(bundle, tmp_path, lambda m: None, {"../../escaped.so": b"a"}))
    wrong = edited(bundle, tmp_path, _set("files", to={"kernels/a.so": "00"}),
                   {"kernels/a.so": b"a"})
    with pytest.raises(BundleError, match=r"kernels/a.so .* is not what its manifest says"):
        unpack(read(wrong), tmp_path / "below")
    assert list((tmp_path / "below").iterdir()) == []
    assert not list(tmp_path.rglob("escaped.so"))


def test_damage_anywhere_is_one_error_or_harmless(bundle: Path, tmp_path: Path) -> None:
    whole = bundle.read_bytes()
    chance, bad = random.Random(0), tmp_path / "bad.bundle"
    damaged = [whole[:n] for n in (0, 1, 30, len(whole) // 2, len(whole) - 1)]
    for _ in range(150):
        at = chance.randrange(len(whole))
        damaged.append(whole[:at] + bytes([whole[at] ^ 1 << chance.randrange(8)])
                       + whole[at + 1:])
    refused = 0
    for data in damaged:
        bad.write_bytes(data)
        try:
            unpack(read(bad), tmp_path / "below")
        except BundleError as e:
            refused += 1
            assert "\n" not in str(e)
    assert refused > len(damaged) / 2            # the rest are times and flags that mean nothing
    for text in (b"[" * 100_000, b"{}", b"\xff"):
        with zipfile.ZipFile(bad, "w") as archive:
            archive.writestr("manifest.json", text)
        with pytest.raises(BundleError):
            read(bad)


def test_links_in_an_archive_are_plain_files(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "linked.bundle"
    with zipfile.ZipFile(bundle) as old, zipfile.ZipFile(out, "w") as new:
        manifest = json.loads(old.read("manifest.json"))
        manifest["files"] = {"kernels/a.so": hashlib.sha256(b"/etc/passwd").hexdigest()}
        new.writestr("manifest.json", json.dumps(manifest))
        link = zipfile.ZipInfo("kernels/a.so")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        new.writestr(link, b"/etc/passwd")
    made = unpack(read(out), tmp_path / "below") / "kernels" / "a.so"
    assert not made.is_symlink() and made.read_bytes() == b"/etc/passwd"


@pytest.mark.parametrize(("device", "suffix"), [("sm_90", "cubin"), ("gfx942", "hsaco")])
def test_triton_finds_its_kernels_where_a_bundle_was_unpacked(device: str, suffix: str,
                                                              tmp_path: Path) -> None:
    """Its own lists name absolute paths; and cases of other alignments are compiled as well."""
    op = ops.load("silu_mul")
    opened = read(plan_of(op, tmp_path, lambda at: targets.load(
        device, mode="compile", cache_dir=at, kernels=at / "triton"), 2, device, Routing()))
    (shape,) = opened.manifest.shapes
    assert len(shape.wanted) == 2 and {c.evidence for c in shape.candidates} == {"L2 native object"}
    assert all(c.modelled_us and c.kernels[0]["registers"] > 0 for c in shape.candidates)
    place = unpack(opened, tmp_path / "elsewhere")
    kernels = {p: p.read_bytes() for p in place.glob(f"triton/*/*.{suffix}")}
    assert len(kernels) >= 2
    child = Child()
    try:
        said = child.call(f"{bundle_child.__name__}:compile_all", 120, device=device,
                          folder=str(place), op_name=op.name, shape=dict(shape.shape),
                          configs=[dict(c.config) for c in shape.wanted])
    finally:
        child.close()
    assert said["made"] == 0 and said["found"] == len(kernels) and all(said["bytes"])
    assert {p: p.read_bytes() for p in place.glob(f"triton/*/*.{suffix}")} == kernels
    target = targets.load(device, mode="compile", cache_dir=place)
    why = why_not(opened, target)
    assert why is not None and f"no {target.name} device here is {device}" in why
