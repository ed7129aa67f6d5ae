"""Which model's operators in which sizes: options that most verbs share, and what they mean."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from .. import ops
from ..ops.models import TINY_LOAD, Load, ModelDims, from_hf_config, preset
from ..ops.numerics import as_dtype
from ..ops.spec import Operator, Shape
from .options import (
    ActDtype,
    Batch,
    Ctx,
    Ep,
    Model,
    Preset,
    Tokens,
    Tp,
    WeightDtype,
    wanted_ops,
)


@dataclass(frozen=True)
class Sizes:
    """A model, how it is split, and the ladder of sizes."""

    preset: Preset = None
    model: Model = None
    tp: Tp = 1
    ep: Ep = 1
    tokens: Tokens = None
    batch: Batch = None
    ctx: Ctx = None
    weight_dtype: WeightDtype = None
    act_dtype: ActDtype = None

    def dims(self, device: str) -> ModelDims:
        """One rank's share of the model."""
        return model_dims(self.preset, self.model, self.weight_dtype, self.act_dtype, device
                          ).split(self.tp, self.ep)

    def load(self, dims: ModelDims) -> Load:
        """The sizes that were asked for, else the model's own."""
        return load_of(dims, self.tokens, self.batch, self.ctx)

    def shapes(self, device: str, only: list[str] | None
               ) -> list[tuple[Operator, tuple[Shape, ...]]]:
        """Every wanted operator with its shapes."""
        return shapes_of(self.dims(device), only, self.tokens, self.batch, self.ctx)


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
