"""What is concluded from a binary's facts: legality, occupancy, warnings, a modelled time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from expertile.targets._triton.facts import Facts
from expertile.targets._triton.legality import LaunchShape, legal, occupancy, warnings
from expertile.targets._triton.model import modelled_us
from expertile.targets.cuda.devices import find as nvidia
from expertile.targets.hip.devices import find as amd

NONE = Facts(64, 0, 0, 100, {}, {}, {}, "0" * 16, {})


@pytest.mark.parametrize("device,shared,limit", [
    # "Required: 147456, Hardware limit: 101376": the fp8 default 128x256x128 with 8 warps and 4
    # stages on Ada and consumer Blackwell (sgl-project/sglang issues 28019, 28038, 24975)
    ("sm_89", 147456, 101376), ("sm_120", 147456, 101376), ("sm_121", 147456, 101376),
    ("sm_100", 352816, 232448),       # MLA, 64 heads, blocks of 64, as triton 3.6.0 compiles it
    ("gfx942", 73728, 65536)])
def test_too_much_shared_memory_is_illegal(device: str, shared: int, limit: int) -> None:
    found = amd(device) if device.startswith("gfx") else nvidia(device)
    verdict = legal(found, replace(NONE, shared_bytes=shared), LaunchShape((132,), 8))
    assert not verdict.legal and str(shared) in verdict.reason and str(limit) in verdict.reason
    assert verdict.facts == {"need": shared, "limit": limit}
    assert legal(found, replace(NONE, shared_bytes=limit), LaunchShape((132,), 8)).legal


@pytest.mark.parametrize("device,registers,launch,words", [
    ("sm_90", 64, LaunchShape((1, 65536), 4), ("65536 programs along y", "65535")),
    ("sm_90", 64, LaunchShape((2**31,), 4), ("2147483648 programs along x", "2147483647")),
    ("sm_90", 64, LaunchShape((1, 1, 70000), 4), ("70000 programs along z", "65535")),
    ("sm_90", 32, LaunchShape((1,), 64), ("2048 threads", "1024")),
    ("gfx942", 32, LaunchShape((1,), 32), ("2048 threads", "1024")),
    ("gfx942", 32, LaunchShape((2**24,), 8), ("8589934592 threads along x", "4294967295")),
    ("sm_90", 255, LaunchShape((1,), 16), ("131072 registers", "65536")),
    ("gfx942", 512, LaunchShape((1,), 8), ("262144 registers", "131072")),
    ("gfx906", 300, LaunchShape((1,), 4), ("300 registers a thread", "256")),
    ("sm_100", 64, LaunchShape((1,), 4, tmem_columns=768), ("768 columns", "512")),
    ("sm_90", 64, LaunchShape((4, 0), 4), ("grid=(4, 0)", "empty")),
    ("sm_90", 64, LaunchShape((1, 1, 1, 1), 4), ("1 to 3",)),
    ("sm_90", 64, LaunchShape((1,), 0), ("warps=0",))])
def test_illegal_launches_say_the_numbers(device: str, registers: int, launch: LaunchShape,
                                          words: tuple[str, ...]) -> None:
    found = amd(device) if device.startswith("gfx") else nvidia(device)
    verdict = legal(found, replace(NONE, registers=registers), launch)
    assert not verdict.legal and all(word in verdict.reason for word in words), verdict.reason


@pytest.mark.parametrize("device,registers,shared,warps,blocks,by", [
    ("sm_90", 183, 98304, 8, 1, "registers"),    # 16384 // (184*32) = 2 warps a partition
    ("sm_90", 255, 221184, 8, 1, "registers"),
    ("sm_90", 168, 131672, 12, 1, "registers"),  # warp-specialised: 3 warps a partition
    ("sm_90", 32, 0, 4, 16, "warps"),
    ("sm_90", 80, 73728, 4, 3, "shared"),        # 233472 // (73728 + 1024)
    ("sm_86", 24, 0, 1, 16, "blocks"),
    ("sm_80", 100, 36864, 4, 4, "registers"),
    ("gfx942", 166, 32768, 8, 1, "registers"),   # 512 // 168 = 3 waves a SIMD; LLVM: Occupancy 3
    ("gfx942", 90, 16384, 4, 4, "shared"),
    ("gfx950", 118, 66528, 8, 2, "registers"),
    ("gfx906", 29, 4096, 4, 8, "registers")])    # 256 // 32
def test_occupancy(device: str, registers: int, shared: int, warps: int, blocks: int,
                   by: str) -> None:
    found = amd(device) if device.startswith("gfx") else nvidia(device)
    full = occupancy(found, replace(NONE, registers=registers, shared_bytes=shared),
                     LaunchShape((1000,), warps))
    assert (full.blocks_per_sm, full.warps_per_sm, full.limited_by) == (blocks, blocks * warps, by)
    assert full.waves == -(-1000 // (found.cores * blocks))


def test_a_tail_wave_is_seen() -> None:
    h100, facts = nvidia("h100"), replace(NONE, registers=183, shared_bytes=98304)
    assert occupancy(h100, facts, LaunchShape((132,), 8)).balance == 1.0
    late = occupancy(h100, facts, LaunchShape((133,), 8))
    assert late.waves == 2 and late.balance == pytest.approx(133 / 264)
    assert legal(h100, facts, LaunchShape((19, 7), 8)).facts["waves"] == 2


def test_warnings_name_spills_and_lower_paths() -> None:
    h100 = nvidia("sm_90")
    clean = replace(NONE, mma={"QGMMA": 4})
    assert warnings(h100, clean, "fp8") == () == warnings(h100, NONE, "none")
    (low,) = warnings(h100, replace(NONE, mma={"HMMA": 32}), "fp8")
    assert "HMMA 32 where sm_90 has QGMMA for fp8" in low
    (mixed,) = warnings(h100, replace(NONE, mma={"HGMMA": 8, "HMMA": 2}), "bf16")
    assert "HMMA 2" in mixed and "HGMMA 8" not in mixed
    (missing,) = warnings(h100, NONE, "bf16")
    assert "no matrix instruction" in missing
    spilling = replace(NONE, stack_bytes=192, registers=255, counts={"LDL": 40, "STL": 39},
                       mma={"HMMA": 1})
    spills, _ = warnings(h100, spilling, "bf16")
    assert "192 bytes a thread at 255 registers, LDL 40, STL 39" in spills
    (no_fp8,) = warnings(nvidia("sm_80"), replace(NONE, mma={"HMMA": 4}), "fp8")
    assert "sm_80 multiplies no fp8 in hardware" in no_fp8
    (upcast,) = warnings(amd("gfx942"), replace(NONE, mma={"mfma_16": 48}), "fp8")
    assert "mfma_16 48 where gfx942 has mfma_fp8" in upcast


def test_modelled_time_is_the_roofline_and_orders_configs() -> None:
    h100 = nvidia("h100")
    good = replace(NONE, registers=183, shared_bytes=98304, mma={"QGMMA": 4})
    even = LaunchShape((1320,), 8)

    def us(facts: Facts, launch: LaunchShape = even, flops: float = 4e12,
           moved: float = 1e8) -> float:
        made = modelled_us(h100, flops, moved, "fp8", facts, launch)
        assert made is not None
        return made

    assert us(good) == pytest.approx(4e12 / (1978.9e12 * 798 / 989.4) * 1e6)
    assert us(good, flops=0, moved=3e9) == pytest.approx(1000.0)      # 3.0 TB/s measured
    assert us(replace(good, mma={"HMMA": 32})) == pytest.approx(4e12 / (798e12 * 0.63) * 1e6)
    upcast = replace(NONE, mma={"mfma_16": 48}, shared_bytes=65536)    # at the bf16 rate of CDNA
    assert modelled_us(amd("mi300x"), 1e13, 0, "fp8", upcast, LaunchShape((304,), 8)) == (
        pytest.approx(1e13 / 1307.4e12 * 1e6))
    assert us(replace(good, stack_bytes=183)) == pytest.approx(1.25 * us(good))
    assert us(good, LaunchShape((1321,), 8)) == pytest.approx(us(good) * 1452 / 1321)
    thin = replace(good, shared_bytes=1024)
    assert us(thin, LaunchShape((132,), 1), 0, 3e9) > 10 * us(good, LaunchShape((132,), 8), 0, 3e9)


def test_nothing_is_modelled_from_an_unknown_peak() -> None:
    launch = LaunchShape((100,), 8)
    gemm = replace(NONE, mma={"QMMA": 64}, shared_bytes=65536)
    assert modelled_us(nvidia("gb10"), 1e9, 1e6, "fp8", gemm, launch) is None
    assert modelled_us(nvidia("gb10"), 0.0, 1e6, "none", NONE, launch) is not None
    mig = nvidia("h100").spec
    assert modelled_us(replace(nvidia("gb10"), spec=mig, bandwidth=None), 0.0, 1e6, "none", NONE,
                       launch) is None
