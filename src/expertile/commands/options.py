"""Options that several verbs share."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .. import ops, settings, targets
from ..ops.spec import Shape
from ..targets.base import Target

Device = Annotated[str, typer.Option(
    "--device", help="cpu, cpu:N (threads), cuda, cuda:N, hip, or a device to compile for: an arch "
                     "such as sm_90 or gfx942, a product such as h100. npu:N is an Ascend card.")]
Preset = Annotated[str | None, typer.Option(
    "--preset", help="Shapes of a named model: tiny, v2-lite, v2, v3, kimi-k2, moonlight, "
                     "glm-lite.")]
Model = Annotated[Path | None, typer.Option(
    "--model", help="Shapes of a model directory or config.json.")]
Op = Annotated[list[str] | None, typer.Option(
    "--op", help="Only these operators (repeatable, or a,b,c); by default all. The beginning of a "
                 "name means all that begin so: per_token_group_quant.")]
Tp = Annotated[int, typer.Option("--tp", help="Tensor-parallel split.")]
Ep = Annotated[int, typer.Option("--ep", help="Expert-parallel split.")]
Tokens = Annotated[str | None, typer.Option("--tokens", help="Token counts, e.g. 1,16,256.")]
Batch = Annotated[str | None, typer.Option("--batch", help="Decode batch sizes, e.g. 1,8.")]
Ctx = Annotated[str | None, typer.Option("--ctx", help="Context lengths, e.g. 1024,4096.")]
WeightDtype = Annotated[str | None, typer.Option(
    "--weight-dtype", help="bfloat16, float16, float32, float8_e4m3fn or int8; by default the "
                           "model's. float8_e5m2: its cast (per_token_group_quant_fp8_e5m2) "
                           "alone.")]
ActDtype = Annotated[str | None, typer.Option(
    "--act-dtype", help="Activations: float32, bfloat16 or (GEMMs, casts) float16; by default "
                        "float32 on CPUs, where bfloat16 is storage only.")]
Db = Annotated[str | None, typer.Option(
    "--db", help="Tuning database: a SQLite path or a PostgreSQL URL; by default the user's.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def load_target(device: str, cache_dir: Path | None = None) -> Target:
    """The target that --device names; what it compiles and measures stands in our cache.

    Or below `cache_dir`, and then Triton's binaries do too.
    """
    found = settings.read()
    options: dict[str, object] = {"cache_dir": cache_dir or found.cache_dir}
    if cache_dir is not None and targets.takes(device, "kernels"):
        options["kernels"] = cache_dir / "triton"
    for name in ("worker_python", "cann_home"):
        value = getattr(found, name)
        if value and targets.takes(device, name):
            options[name] = value
    return targets.load(device, **options)


def wanted_ops(only: list[str] | None) -> tuple[str, ...]:
    """Operators by name or by whole words of its beginning: repeated, comma-separated, or "all"."""
    named = [name.strip() for text in only or ["all"] for name in text.split(",")]
    known = ops.names()
    if "all" in named:
        return known
    found: list[str] = []
    for name in named:
        meant = [name] if name in known else [k for k in known if k.startswith(f"{name}_")]
        if not meant:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            raise ValueError(f"--op must name operators, got {name!r}; "
                             + (f"did you mean {' or '.join(near)}?" if near else
                                f"there are {', '.join(known)}"))
        found += meant
    return tuple(dict.fromkeys(found))


def shape_text(shape: Shape) -> str:
    """A shape in one line."""
    return " ".join(f"{axis}={value}" for axis, value in shape.items())


_SHORT = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "float8_e4m3fn": "fp8"}


def short_shape(shape: Shape) -> str:
    """What tells a model's shapes apart, for tables: sizes and weight dtype. JSON has it all."""
    dtype = shape.get("w_dtype") or shape.get("kv_dtype") or shape.get("dtype") or ""
    sizes = [f"{axis}={value}" for axis, value in shape.items()
             if isinstance(value, int) and not isinstance(value, bool)
             and axis not in ("block_n", "block_k", "group_size", "block_size")]
    return " ".join([*sizes, _SHORT.get(str(dtype), str(dtype))])


def console() -> Console:
    """A console for tables: wide where nobody has said how wide the screen is."""
    made = Console()
    return made if made.is_terminal else Console(width=140)
