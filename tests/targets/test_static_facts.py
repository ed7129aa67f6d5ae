"""Facts read from binaries: from recorded text of the tools, and from one tiny kernel compiled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expertile.targets._triton import amdgcn, sass
from expertile.targets._triton.facts import ToolError
from expertile.targets._triton.legality import LaunchShape, legal, warnings
from expertile.targets.cuda.devices import find as nvidia
from expertile.targets.hip.devices import find as amd

# Lines of our own kernels as the tools of triton 3.9.0 print them.
USAGE = """
Resource usage:
 Common:
  GLOBAL:11 CONSTANT[4]:8
 Function grouped_gemm_tma_dev:
  REG:168 STACK:16 SHARED:1024 LOCAL:8 CONSTANT[0]:608 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
SASS = """	.target	sm_90a
.text.grouped_gemm_tma_dev:
        /*0010*/                   S2R R0, SR_TID.X ;
        /*0070*/               @P0 BRA `(.L_x_0) ;
.L_x_1:
        /*0090*/                   USETMAXREG.TRY_ALLOC.CTAPOOL UP0, 0x100 ;
        /*00b0*/              @!P0 BRA `(.L_x_1) ;
        /*00d0*/                   STL [R1+0x18], R200 ;
        /*0a60*/                   BAR.SYNC.DEFER_BLOCKING 0x0, 0x80 ;
        /*1180*/                   MUFU.RCP R2, R2 ;
        /*14f0*/                   LDGSTS.E.BYPASS.128 [R203], desc[UR4][R8.64], P4 ;
        /*2180*/                   @UP0 UTMALDG.2D [UR24], [UR20] ;
        /*35f0*/                   LDL.64 R8, [R1+0x70] ;
        /*4190*/                   QGMMA.64x128x32.F32.E4M3.E4M3 R24, gdesc[UR12], RZ, !UPT ;
        /*4270*/                   QGMMA.64x128x32.F32.E4M3.E4M3 R24, gdesc[UR12], R24 ;
        /*4ac0*/                   STSM.16.M88.4 [R2+0x18000], R4 ;
        /*14bb0*/                  @UP1 UTMASTG.2D [UR8], [UR4] ;
"""
# cuobjdump -sass prints the encoding too, over two lines.
SASS_120 = """	code for sm_120a
        /*1320*/     LDSM.16.M88.4 R44, [R84+UR19+0xc000] ;           /* 0x000000005454783b */
                                                                      /* 0x002ff60000002cff */
        /*2490*/     QMMA.16832.F32.E4M3.E4M3 R96, R120, R48, RZ ;    /* 0x000000307860727a */
                                                                      /* 0x000ff60000002cff */
        /*24a0*/     FFMA2 R62, R167.reuse.F32, R62.F32x2.HI_LO, R2 ; /* 0x000000347864727a */
"""
AMDGCN = """	.amdgcn_target "amdgpu9.42-amd-amdhsa-unknown-gfx942"
	.type	grouped_gemm,@function
grouped_gemm:                            ; @grouped_gemm
	.loc	1 166 0 prologue_end            ; kern.py:166:0
	s_load_dwordx2 s[2:3], s[0:1], 0x0
	buffer_load_dwordx4 v[2:5], v1, s[20:23], 0 offen
	buffer_load_dword v9, s[20:23], 0 offen lds ; into LDS
	global_load_lds_dwordx4 v[20:21], off
	global_load_dwordx2 v[6:7], v8, s[4:5]
	ds_write2st64_b64 v112, v[2:3], v[6:7] offset1:16
	s_barrier
	ds_read_b64 v[76:77], v121 offset:16384
	v_mfma_f32_32x32x16_fp8_fp8 v[16:31], v[76:77], v[48:49], 0
	v_mfma_f32_32x32x16_fp8_fp8 v[16:31], v[78:79], v[52:53], v[16:31]
	v_mfma_f32_16x16x16bf16_1k v[102:105], v[98:99], v[106:107], 0
	v_exp_f32_e32 v66, v66
	scratch_store_dwordx4 off, v[10:13], off offset:108 ; 16-byte Folded Spill
	scratch_load_dword v100, off, off offset:788 ; 4-byte Folded Reload
	buffer_store_dwordx4 v[2:5], v1, s[20:23], 0 offen
	s_endpgm
; NumVgprs: 256
amdhsa.kernels:
  - .agpr_count:     32
    .max_flat_workgroup_size: 512
    .private_segment_fixed_size: 892
    .sgpr_count:     62
    .sgpr_spill_count: 3
    .vgpr_count:     288
    .vgpr_spill_count: 222
"""


def test_sass_is_counted() -> None:
    facts = sass.parse(USAGE, SASS, shared_bytes=131672)
    assert (facts.registers, facts.stack_bytes, facts.shared_bytes) == (168, 24, 131672)
    assert facts.instructions == 14 and facts.extra == {"stack_bytes": 16, "local_bytes": 8}
    assert facts.mma == {"QGMMA": 2}
    assert facts.mma_shapes == {"QGMMA.64x128x32.F32.E4M3.E4M3": 2}
    assert facts.counts == {"LDGSTS": 1, "UTMALDG": 1, "UTMASTG": 1, "USETMAXREG": 1, "LDL": 1,
                            "STL": 1, "LDSM": 0, "STSM": 1, "LDG": 0, "STG": 0, "BAR": 1,
                            "SYNCS": 0, "MUFU": 1}
    assert json.loads(json.dumps(facts.json()))["mma"] == {"QGMMA": 2}


def test_cuobjdump_text_is_read_too() -> None:
    facts = sass.parse("REG:242 STACK:0 SHARED:1024 LOCAL:0", SASS_120, 65536)
    assert facts.instructions == 3 and facts.mma == {"QMMA": 1} and facts.counts["LDSM"] == 1


def test_the_hash_knows_instructions_not_registers() -> None:
    was = sass.parse(USAGE, SASS, 0).opcode_hash
    assert len(was) == 16 and int(was, 16) >= 0
    assert sass.parse(USAGE, SASS.replace("R24", "R28"), 0).opcode_hash == was
    assert sass.parse(USAGE, SASS.replace("64x128x32", "64x64x32"), 0).opcode_hash != was
    assert sass.parse(USAGE, SASS.replace("@P0 BRA", "@P0 NOP"), 0).opcode_hash != was


def test_amdgcn_is_counted() -> None:
    facts = amdgcn.parse(AMDGCN, shared_bytes=32768)
    assert (facts.registers, facts.stack_bytes, facts.shared_bytes) == (288, 892, 32768)
    assert facts.extra == {"vgprs": 256, "agprs": 32, "sgprs": 62, "vgpr_spills": 222,
                           "sgpr_spills": 3}
    assert facts.instructions == 16
    assert facts.counts == {"load": 4, "load_to_lds": 2, "store": 1, "lds_read": 1, "lds_write": 1,
                            "scratch_load": 1, "scratch_store": 1, "barrier": 1, "exp": 1, "dot": 0}
    assert facts.mma == {"mfma_16": 1, "mfma_fp8": 2}
    assert facts.mma_shapes["v_mfma_f32_32x32x16_fp8_fp8"] == 2
    without = AMDGCN.replace("  - .agpr_count:     32\n", "")
    assert amdgcn.parse(without, 0).extra["agprs"] == 0        # gfx906 has none


@pytest.mark.parametrize("name,family", [
    ("v_mfma_f32_32x32x64_f8f6f4", "mfma_fp8"), ("v_mfma_f32_16x16x32_bf8_fp8", "mfma_fp8"),
    ("v_mfma_scale_f32_16x16x128_f8f6f4", "mfma_fp8"), ("v_mfma_f32_32x32x8_bf16", "mfma_16"),
    ("v_mfma_f32_16x16x16_f16", "mfma_16"), ("v_mfma_f32_16x16x4_f32", "mfma_f32"),
    ("v_mfma_f32_16x16x8_xf32", "mfma_xf32"), ("v_mfma_i32_32x32x16_i8", "mfma_i8")])
def test_mfma_families(name: str, family: str) -> None:
    text = AMDGCN.replace("v_mfma_f32_16x16x16bf16_1k", name)
    assert amdgcn.parse(text, 0).mma.get(family, 0) == 1 + 2 * (family == "mfma_fp8")


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="names no function"):
        sass.parse("", SASS, 0)
    with pytest.raises(ToolError, match="no instruction"):
        sass.parse(USAGE, "nvdisasm fatal", 0)
    with pytest.raises(ToolError, match=r"no \.vgpr_count"):
        amdgcn.parse("s_endpgm", 0)
    with pytest.raises(ToolError, match="cuobjdump is missing; reinstall triton"):
        sass.read(b"", 0, tmp_path)
    tool = tmp_path / "cuobjdump"
    tool.write_text("#!/bin/sh\necho unknown arch >&2; exit 3\n")
    tool.chmod(0o755)
    with pytest.raises(ToolError, match=r"cuobjdump -res-usage failed \(3\).*unknown arch"):
        sass.read(b"", 0, tmp_path)


TTIR = """module {
  tt.func public @product(%x: !tt.ptr<bf16>, %y: !tt.ptr<f32>) {
    %zero = arith.constant dense<0.0> : tensor<64x64xf32>
    %rows = arith.constant dense<64> : tensor<64x1xi32>
    %i = tt.make_range {end = 64 : i32, start = 0 : i32} : tensor<64xi32>
    %r = tt.expand_dims %i {axis = 1 : i32} : tensor<64xi32> -> tensor<64x1xi32>
    %r64 = arith.muli %r, %rows : tensor<64x1xi32>
    %c = tt.expand_dims %i {axis = 0 : i32} : tensor<64xi32> -> tensor<1x64xi32>
    %rb = tt.broadcast %r64 : tensor<64x1xi32> -> tensor<64x64xi32>
    %cb = tt.broadcast %c : tensor<1x64xi32> -> tensor<64x64xi32>
    %at = arith.addi %rb, %cb : tensor<64x64xi32>
    %xs = tt.splat %x : !tt.ptr<bf16> -> tensor<64x64x!tt.ptr<bf16>>
    %xp = tt.addptr %xs, %at : tensor<64x64x!tt.ptr<bf16>>, tensor<64x64xi32>
    %a = tt.load %xp : tensor<64x64x!tt.ptr<bf16>>
    %d = tt.dot %a, %a, %zero : tensor<64x64xbf16> * tensor<64x64xbf16> -> tensor<64x64xf32>
    %ys = tt.splat %y : !tt.ptr<f32> -> tensor<64x64x!tt.ptr<f32>>
    %yp = tt.addptr %ys, %at : tensor<64x64x!tt.ptr<f32>>, tensor<64x64xi32>
    tt.store %yp, %d : tensor<64x64x!tt.ptr<f32>>
    tt.return
  }
}
"""


@pytest.mark.parametrize("arch,family", [
    ("sm_80", "HMMA"), ("sm_90", "HGMMA"), ("sm_120", "HMMA"), ("gfx942", "mfma_16")])
def test_a_real_binary(arch: str, family: str, tmp_path: Path,
                       monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    source = tmp_path / "product.ttir"
    source.write_text(TTIR)
    target = (GPUTarget("hip", arch, 64) if arch.startswith("gfx")
              else GPUTarget("cuda", int(arch[3:]), 32))
    compiled = triton.compile(str(source), target=target,
                              options={"num_warps": 4, "enable_fp_fusion": True})
    shared = compiled.metadata.shared
    if arch.startswith("gfx"):
        device, facts = amd(arch), amdgcn.parse(compiled.asm["amdgcn"], shared)
    else:
        device = nvidia(arch)
        tools = sass.tools_in(Path(triton.__file__).parent)
        facts = sass.read(compiled.asm["cubin"], shared, tools)
    assert list(facts.mma) == [family] == [device.spec.mma_bf16]
    assert 16 <= facts.registers <= 255 and facts.stack_bytes == 0 < facts.instructions
    assert warnings(device, facts, "bf16") == ()
    verdict = legal(device, facts, LaunchShape((1,), compiled.metadata.num_warps))
    assert verdict.legal and verdict.facts["shared_bytes"] == shared > 0
