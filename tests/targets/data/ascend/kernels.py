"""Block-level MLIR of small kernels of our own, by tile size: what the emitter will write one day.

Arguments: lock and workspace pointers, tensors, scalars, the grid's extents, the program ids.
"""

from __future__ import annotations

ZERO = {"f16": "0.0", "bf16": "0.0", "f32": "0.0", "i32": "0"}


def module(name: str, tensors: str, mode: str, body: str) -> str:
    """One kernel. `tensors` is "A: f16, B: f32"; `mode` "aiv" (vector), "aic" (cube) or "mix"."""
    arguments = [f"%{n.strip()}: memref<?x{t.strip()}>"
                 for n, t in (part.split(":") for part in tensors.split(","))]
    ids = [f"%{x}: i32" for x in ("gx", "gy", "gz", "px", "py", "pz")]
    signature = ", ".join(["%lock: memref<?xi8>", "%space: memref<?xi8>", *arguments, *ids])
    return f"""module {{
  func.func @{name}({signature}) attributes {{SyncBlockLockArgIdx = 0 : i64,
      WorkspaceArgIdx = 1 : i64, global_kernel = "local", mix_mode = "{mode}",
      parallel_mode = "simd"}} {{
    %c0 = arith.constant 0 : index
    %x = arith.index_cast %px : i32 to index
    %y = arith.index_cast %py : i32 to index
{body}    return
  }}
}}
"""


def product(name: str, a: str, value: int) -> str:
    """%name = %a * value."""
    return (f"    %{name}_by = arith.constant {value} : index\n"
            f"    %{name} = arith.muli %{a}, %{name}_by : index\n")


def load(name: str, source: str, offset: str, sizes: tuple[int, ...], strides: tuple[int, ...],
         dtype: str, rows: str = "") -> str:
    """%name = a tile of %source as a tensor; of `rows` only that many are read, the rest is 0."""
    shape = "x".join(map(str, sizes))
    at = f"strided<{list(strides)}, offset: ?>"
    text = (f"    %{name}_view = memref.reinterpret_cast %{source} to offset: [%{offset}], sizes: "
            f"{list(sizes)}, strides: {list(strides)} : memref<?x{dtype}> to "
            f"memref<{shape}x{dtype}, {at}>\n"
            f"    %{name}_to = memref.alloc() : memref<{shape}x{dtype}>\n")
    if not rows:
        text += (f"    memref.copy %{name}_view, %{name}_to : memref<{shape}x{dtype}, {at}> to "
                 f"memref<{shape}x{dtype}>\n")
    else:
        part, inner = f"memref<?x{sizes[1]}x{dtype}, {at}>", f"strided<[{sizes[1]}, 1]>"
        cut = f"[0, 0] [%{rows}, {sizes[1]}] [1, 1]"
        text += (f"    %{name}_full = arith.constant {sizes[0]} : index\n"
                 f"    %{name}_cut = arith.cmpi slt, %{rows}, %{name}_full : index\n"
                 f"    scf.if %{name}_cut {{\n"
                 f"      %{name}_zero = arith.constant 0.0 : {dtype}\n"
                 f"      linalg.fill ins(%{name}_zero : {dtype}) outs(%{name}_to : "
                 f"memref<{shape}x{dtype}>)\n    }}\n"
                 f"    %{name}_from = memref.subview %{name}_view{cut} : memref<{shape}x{dtype}, "
                 f"{at}> to {part}\n"
                 f"    %{name}_into = memref.subview %{name}_to{cut} : memref<{shape}x{dtype}> to "
                 f"memref<?x{sizes[1]}x{dtype}, {inner}>\n"
                 f"    memref.copy %{name}_from, %{name}_into : {part} to "
                 f"memref<?x{sizes[1]}x{dtype}, {inner}>\n")
    return text + (f"    %{name} = bufferization.to_tensor %{name}_to restrict writable : "
                   f"memref<{shape}x{dtype}>\n")


def store(value: str, target: str, offset: str, sizes: tuple[int, ...], strides: tuple[int, ...],
          dtype: str, rows: str = "") -> str:
    """Write a tile; of `rows` only that many."""
    shape = "x".join(map(str, sizes))
    at = f"memref<{shape}x{dtype}, strided<{list(strides)}, offset: ?>>"
    name, tensor, to = f"{target}_{value}", f"tensor<{shape}x{dtype}>", at
    text = (f"    %{name} = memref.reinterpret_cast %{target} to offset: [%{offset}], sizes: "
            f"{list(sizes)}, strides: {list(strides)} : memref<?x{dtype}> to {at}\n")
    if rows:
        cut = f"[0, 0] [%{rows}, {sizes[1]}] [1, 1]"
        tensor = f"tensor<?x{sizes[1]}x{dtype}>"
        to = f"memref<?x{sizes[1]}x{dtype}, strided<{list(strides)}, offset: ?>>"
        text += (f"    %{name}_rows = memref.subview %{name}{cut} : {at} to {to}\n"
                 f"    %{value}_rows = tensor.extract_slice %{value}{cut} : "
                 f"tensor<{shape}x{dtype}> to {tensor}\n")
        name, value = f"{name}_rows", f"{value}_rows"
    return text + (f"    bufferization.materialize_in_destination %{value} in writable %{name} : "
                   f"({tensor}, {to}) -> ()\n")


def full(name: str, value: str, shape: str, dtype: str) -> str:
    """%name = a tensor of one value, a literal or "%scalar"."""
    literal = value if value.startswith("%") else f"%{name}_value"
    text = "" if value.startswith("%") else (
        f"    %{name}_value = arith.constant {value} : {dtype}\n")
    return text + (f"    %{name}_empty = tensor.empty() : tensor<{shape}x{dtype}>\n"
                   f"    %{name} = linalg.fill ins({literal} : {dtype}) outs(%{name}_empty : "
                   f"tensor<{shape}x{dtype}>) -> tensor<{shape}x{dtype}>\n")


def spread(name: str, value: str, length: int, shape: str, over: int, dtype: str = "f32") -> str:
    """%name = a vector repeated along dimension `over`."""
    return (f"    %{name}_empty = tensor.empty() : tensor<{shape}x{dtype}>\n"
            f"    %{name} = linalg.broadcast ins(%{value} : tensor<{length}x{dtype}>) "
            f"outs(%{name}_empty : tensor<{shape}x{dtype}>) dimensions = [{over}]\n")


def reduce(name: str, value: str, shape: str, start: str, rows: int, op: str) -> str:
    """%name = the rows of a float32 tensor reduced with `op`, from %start."""
    return (f"    %{name} = linalg.reduce ins(%{value} : tensor<{shape}xf32>) outs(%{start} : "
            f"tensor<{rows}xf32>) dimensions = [1] (%lhs: f32, %rhs: f32) {{\n"
            f"      %red = arith.{op} %lhs, %rhs : f32\n      linalg.yield %red : f32\n    }}\n")


def matmul(name: str, a: str, b: str, c: str, m: int, k: int, n: int, dtype: str, acc: str) -> str:
    """%name = %c + %a @ %b."""
    return (f"    %{name} = linalg.matmul ins(%{a}, %{b} : tensor<{m}x{k}x{dtype}>, "
            f"tensor<{k}x{n}x{dtype}>) outs(%{c} : tensor<{m}x{n}x{acc}>) -> "
            f"tensor<{m}x{n}x{acc}>\n")


def transpose(name: str, value: str, rows: int, cols: int, dtype: str) -> str:
    """%name = %value.T."""
    return (f"    %{name}_empty = tensor.empty() : tensor<{cols}x{rows}x{dtype}>\n"
            f"    %{name} = linalg.transpose ins(%{value} : tensor<{rows}x{cols}x{dtype}>) "
            f"outs(%{name}_empty : tensor<{cols}x{rows}x{dtype}>) permutation = [1, 0]\n")


def group_quant(cols: int, tile: int, dtype: str = "f16") -> str:
    """x[M, cols] -> int8 q, f32 s[M, cols/128]; grid (M / tile, cols / 128)."""
    shape, body = f"{tile}x128", product("row", "x", tile * cols) + product("col", "y", 128)
    body += "    %at = arith.addi %row, %col : index\n"
    body += load("v", "X", "at", (tile, 128), (cols, 1), dtype)
    body += f"    %f = arith.extf %v : tensor<{shape}x{dtype}> to tensor<{shape}xf32>\n"
    body += full("eps", "1.0e-10", str(tile), "f32") + full("zero", "0.0", str(tile), "f32")
    body += f"    %abs = math.absf %f : tensor<{shape}xf32>\n"
    body += reduce("top", "abs", shape, "zero", tile, "maximumf")
    body += f"    %amax = arith.maximumf %top, %eps : tensor<{tile}xf32>\n"
    body += full("limit", "127.0", str(tile), "f32")
    body += f"    %scale = arith.divf %amax, %limit : tensor<{tile}xf32>\n"
    body += product("srow", "x", tile * (cols // 128))
    body += "    %s_at = arith.addi %srow, %y : index\n"
    body += store("scale", "S", "s_at", (tile,), (cols // 128,), "f32")
    body += spread("scales", "scale", tile, shape, 1)
    body += f"    %ratio = arith.divf %f, %scales : tensor<{shape}xf32>\n"
    for name, value, source, target in (("wide", "ratio", "f32", "i32"),
                                        ("q", "wide", "i32", "i8")):
        body += (f"    %{name}_empty = tensor.empty() : tensor<{shape}x{target}>\n"
                 f"    %{name} = hfusion.cast {{round_mode = #hfusion.round_mode<rint>}} "
                 f"ins(%{value} : tensor<{shape}x{source}>) outs(%{name}_empty : "
                 f"tensor<{shape}x{target}>) -> tensor<{shape}x{target}>\n")
    body += store("q", "Q", "at", (tile, 128), (cols, 1), "i8")
    return module("quant", f"X: {dtype}, Q: i8, S: f32", "aiv", body)


def gemm(n: int, k: int, bm: int, bn: int, bk: int, dtype: str = "f16") -> str:
    """C[M, n] = A[M, k] @ B[k, n]; grid (M / bm, n / bn)."""
    body = product("a_row", "x", bm * k) + product("col", "y", bn) + product("c_row", "x", bm * n)
    body += full("init", "0.0", f"{bm}x{bn}", "f32")
    body += (f"    %steps = arith.constant {k // bk} : index\n"
             "    %c1 = arith.constant 1 : index\n"
             f"    %acc = scf.for %i = %c0 to %steps step %c1 iter_args(%sum = %init) -> "
             f"(tensor<{bm}x{bn}xf32>) {{\n")
    body += product("k0", "i", bk) + product("b_row", "i", bk * n)
    body += ("    %a_at = arith.addi %a_row, %k0 : index\n"
             "    %b_at = arith.addi %b_row, %col : index\n")
    body += load("a", "A", "a_at", (bm, bk), (k, 1), dtype)
    body += load("b", "B", "b_at", (bk, bn), (n, 1), dtype)
    body += matmul("next", "a", "b", "sum", bm, bk, bn, dtype, "f32")
    body += f"    scf.yield %next : tensor<{bm}x{bn}xf32>\n    }}\n"
    body += (f"    %out = arith.truncf %acc : tensor<{bm}x{bn}xf32> to tensor<{bm}x{bn}x{dtype}>\n"
             "    %c_at = arith.addi %c_row, %col : index\n")
    body += store("out", "C", "c_at", (bm, bn), (n, 1), dtype)
    return module("gemm", f"A: {dtype}, B: {dtype}, C: {dtype}", "aic", body)


def grouped_gemm(n: int, k: int, bm: int, bn: int, bk: int, dtype: str = "f16") -> str:
    """C[M, n] = A[M, k] @ W[expert, n, k].T; grid (blocks, n / bn).

    T[block] = (expert, first row, rows). With dtype "i8" the sum is int32 and C is bfloat16 after
    the scales SA[M] and SW[expert, n].
    """
    quantised = dtype == "i8"
    acc, out = ("i32", "bf16") if quantised else ("f32", dtype)
    tile = f"{bm}x{bn}"
    body = product("t0", "x", 3)
    for i, what in enumerate(("expert", "row", "rows")):
        body += (f"    %t{what}_add = arith.constant {i} : index\n"
                 f"    %t{what} = arith.addi %t0, %t{what}_add : index\n"
                 f"    %{what}32 = memref.load %T[%t{what}] : memref<?xi32>\n"
                 f"    %{what} = arith.index_cast %{what}32 : i32 to index\n")
    body += product("col", "y", bn) + product("a_row", "row", k) + product("w_all", "expert", n * k)
    body += product("w_col", "col", k) + "    %w_row = arith.addi %w_all, %w_col : index\n"
    body += full("init", ZERO[acc], tile, acc) + f"    %k_end = arith.constant {k} : index\n"
    body += (f"    %k_step = arith.constant {bk} : index\n"
             f"    %acc = scf.for %i = %c0 to %k_end step %k_step iter_args(%sum = %init) -> "
             f"(tensor<{tile}x{acc}>) {{\n"
             "    %a_at = arith.addi %a_row, %i : index\n"
             "    %w_at = arith.addi %w_row, %i : index\n")
    body += (load("a", "A", "a_at", (bm, bk), (k, 1), dtype, "rows")
             .replace("constant 0.0 : i8", "constant 0 : i8"))
    body += load("w", "W", "w_at", (bn, bk), (k, 1), dtype) + transpose("wt", "w", bn, bk, dtype)
    body += matmul("next", "a", "wt", "sum", bm, bk, bn, dtype, acc)
    body += f"    scf.yield %next : tensor<{tile}x{acc}>\n    }}\n"
    if quantised:
        body += f"    %f = arith.sitofp %acc : tensor<{tile}xi32> to tensor<{tile}xf32>\n"
        body += load("sa", "SA", "row", (bm,), (1,), "f32")
        body += product("sw_all", "expert", n) + "    %sw_at = arith.addi %sw_all, %col : index\n"
        body += load("sw", "SW", "sw_at", (bn,), (1,), "f32")
        body += spread("sa2", "sa", bm, tile, 1) + spread("sw2", "sw", bn, tile, 0)
        body += f"    %scaled = arith.mulf %f, %sa2 : tensor<{tile}xf32>\n"
        body += f"    %result = arith.mulf %scaled, %sw2 : tensor<{tile}xf32>\n"
    value = "result" if quantised else "acc"
    body += f"    %out = arith.truncf %{value} : tensor<{tile}xf32> to tensor<{tile}x{out}>\n"
    body += product("c_row", "row", n) + "    %c_at = arith.addi %c_row, %col : index\n"
    body += store("out", "C", "c_at", (bm, bn), (n, 1), out, "rows")
    scales = "SA: f32, SW: f32, " if quantised else ""
    return module("grouped", f"A: {dtype}, W: {dtype}, {scales}T: i32, C: {out}",
                  "mix" if quantised else "aic", body)


def mla_decode(heads: int, bh: int, bs: int, tokens: int, dv: int = 512, rope: int = 64) -> str:
    """out[B, heads, dv] of q[B, heads, dv + rope], kv[B, tokens, dv + rope], lengths[B] (f16).

    Grid (B, heads / bh). Rows of kv past a length are not read.
    """
    d, scores, wide = dv + rope, f"{bh}x{bs}", f"{bh}x{dv}"
    body = ("    %len32 = memref.load %L[%x] : memref<?xi32>\n"
            "    %len = arith.index_cast %len32 : i32 to index\n")
    body += product("q_all", "x", heads * d) + product("q_row", "y", bh * d)
    body += (f"    %q_at = arith.addi %q_all, %q_row : index\n"
             f"    %dv = arith.constant {dv} : index\n"
             f"    %qr_at = arith.addi %q_at, %dv : index\n")
    body += load("q", "Q", "q_at", (bh, dv), (d, 1), "f16")
    body += load("qr", "Q", "qr_at", (bh, rope), (d, 1), "f16")
    body += product("kv_all", "x", tokens * d)
    body += full("low", "-1.0e30", str(bh), "f32") + full("none", "0.0", str(bh), "f32")
    body += full("wide0", "0.0", wide, "f32") + full("s0", "0.0", scores, "f32")
    body += full("factor", str((d / 3) ** -0.5), scores, "f32")
    body += full("never", "-1.0e30", scores, "f32")
    body += (f"    %places_empty = tensor.empty() : tensor<{bs}xi32>\n"
             "    %places = linalg.generic {indexing_maps = [affine_map<(d0) -> (d0)>], "
             f"iterator_types = [\"parallel\"]}} outs(%places_empty : tensor<{bs}xi32>) {{\n"
             "    ^bb0(%unused: i32):\n      %i = linalg.index 0 : index\n"
             "      %i32 = arith.index_cast %i : index to i32\n      linalg.yield %i32 : i32\n"
             f"    }} -> tensor<{bs}xi32>\n    %step = arith.constant {bs} : index\n"
             "    %m, %l, %o = scf.for %s = %c0 to %len step %step iter_args(%mi = %low, "
             f"%li = %none, %oi = %wide0) -> (tensor<{bh}xf32>, tensor<{bh}xf32>, "
             f"tensor<{wide}xf32>) {{\n    %left = arith.subi %len, %s : index\n"
             "    %rows = arith.minsi %left, %step : index\n")
    body += product("s_row", "s", d) + "    %k_at = arith.addi %kv_all, %s_row : index\n"
    body += "    %kr_at = arith.addi %k_at, %dv : index\n"
    body += load("k", "KV", "k_at", (bs, dv), (d, 1), "f16", "rows")
    body += load("kr", "KV", "kr_at", (bs, rope), (d, 1), "f16", "rows")
    body += transpose("kt", "k", bs, dv, "f16") + transpose("krt", "kr", bs, rope, "f16")
    body += matmul("s1", "q", "kt", "s0", bh, dv, bs, "f16", "f32")
    body += matmul("s2", "qr", "krt", "s1", bh, rope, bs, "f16", "f32")
    body += f"    %s3 = arith.mulf %s2, %factor : tensor<{scores}xf32>\n"
    body += "    %rows32 = arith.index_cast %rows : index to i32\n"
    body += full("limit", "%rows32", str(bs), "i32")
    body += f"    %seen = arith.cmpi slt, %places, %limit : tensor<{bs}xi32>\n"
    body += spread("mask", "seen", bs, scores, 0, "i1")
    body += (f"    %s4 = arith.select %mask, %s3, %never : tensor<{scores}xi1>, "
             f"tensor<{scores}xf32>\n")
    body += reduce("top", "s4", scores, "low", bh, "maximumf")
    body += f"    %mn = arith.maximumf %mi, %top : tensor<{bh}xf32>\n"
    body += spread("mb", "mn", bh, scores, 1)
    body += (f"    %s5 = arith.subf %s4, %mb : tensor<{scores}xf32>\n"
             f"    %p = math.exp %s5 : tensor<{scores}xf32>\n")
    body += reduce("ps", "p", scores, "none", bh, "addf")
    body += (f"    %dm = arith.subf %mi, %mn : tensor<{bh}xf32>\n"
             f"    %old = math.exp %dm : tensor<{bh}xf32>\n"
             f"    %l1 = arith.mulf %li, %old : tensor<{bh}xf32>\n"
             f"    %ln = arith.addf %l1, %ps : tensor<{bh}xf32>\n")
    body += spread("oldw", "old", bh, wide, 1)
    body += f"    %o1 = arith.mulf %oi, %oldw : tensor<{wide}xf32>\n"
    body += f"    %ph = arith.truncf %p : tensor<{scores}xf32> to tensor<{scores}xf16>\n"
    body += matmul("pv", "ph", "k", "wide0", bh, bs, dv, "f16", "f32")
    body += (f"    %on = arith.addf %o1, %pv : tensor<{wide}xf32>\n"
             f"    scf.yield %mn, %ln, %on : tensor<{bh}xf32>, tensor<{bh}xf32>, "
             f"tensor<{wide}xf32>\n    }}\n")
    body += spread("lw", "l", bh, wide, 1) + f"    %od = arith.divf %o, %lw : tensor<{wide}xf32>\n"
    body += f"    %out = arith.truncf %od : tensor<{wide}xf32> to tensor<{wide}xf16>\n"
    body += product("o_all", "x", heads * dv) + product("o_row", "y", bh * dv)
    body += "    %o_at = arith.addi %o_all, %o_row : index\n"
    body += store("out", "O", "o_at", (bh, dv), (dv, 1), "f16")
    return module("mla", "Q: f16, KV: f16, L: i32, O: f16", "mix", body)
