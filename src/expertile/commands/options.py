"""Options that several verbs share, and how they become operator shapes."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .. import ops, settings, targets
from ..ops.models import TINY_LOAD, Load, ModelDims, from_hf_config, preset
from ..ops.numerics import as_dtype
from ..ops.spec import Operator, Shape
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


def ladder(text: str | None, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """"1,16,256" as numbers."""
    if text is None:
        return default
    parts = [p.strip() for p in text.split(",")]
    if not all(p.isdigit() and int(p) > 0 for p in parts):
        raise ValueError(f"--{name} takes positive whole numbers like 1,16,256, got {text!r}")
    return tuple(sorted({int(p) for p in parts}))


def model_dims(named: str | None, path: Path | None, weight_dtype: str | None,
               act_dtype: str | None, device: str) -> ModelDims:
    """The model whose operators are meant."""
    if (named is None) == (path is None):
        raise ValueError("give exactly one of --preset NAME and --model DIR_OR_CONFIG")
    if named is not None:
        model = preset(named)
    else:
        assert path is not None
        model = from_hf_config(_config_json(path), path.resolve().stem)
    if act_dtype or device.partition(":")[0] == "cpu":
        model = replace(model, act_dtype=act_dtype or "float32")
    if weight_dtype:
        model = replace(model, weight_dtype=weight_dtype)
    for dtype in (model.act_dtype, model.weight_dtype):
        as_dtype(dtype)
    return model


def _config_json(path: Path) -> dict[str, object]:
    file = path / "config.json" if path.is_dir() else path
    try:
        config: dict[str, object] = json.loads(file.read_text())
    except json.JSONDecodeError as e:
        raise ValueError(f"{file} must be JSON; {e}") from None
    return config


def load_of(model: ModelDims, tokens: str | None, batch: str | None, ctx: str | None) -> Load:
    """The ladder of sizes: the model's own, with what was given on the command line."""
    base = TINY_LOAD if model.name == "tiny" else Load()
    return Load(ladder(tokens, "tokens", base.tokens), ladder(batch, "batch", base.batch),
                ladder(ctx, "ctx", base.ctx))


def shapes_of(model: ModelDims, only: list[str] | None, tokens: str | None, batch: str | None,
              ctx: str | None) -> list[tuple[Operator, tuple[Shape, ...]]]:
    """Every wanted operator with the shapes that the model makes of it, duplicates removed."""
    load = load_of(model, tokens, batch, ctx)
    found = []
    for name in wanted_ops(only):
        op = ops.load(name)
        unique = {json.dumps(dict(s), sort_keys=True): s for s in op.shapes(model, load)}
        check_dtypes(op, tuple(unique.values()))
        found.append((op, tuple(unique.values())))
    return found


def check_dtypes(op: Operator, shapes: Iterable[Shape]) -> None:
    """Raise unless an operator takes the dtypes that options gave its shapes."""
    by_dtypes = {tuple(v for v in s.values() if isinstance(v, str)): s for s in shapes}
    for shape in by_dtypes.values():
        try:
            op.shape_of(*op.signature(shape))
        except TypeError as e:
            raise ValueError(f"{op.name} does not take these dtypes: {e}; give others with "
                             "--act-dtype and --weight-dtype, or other operators with --op"
                             ) from None


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
