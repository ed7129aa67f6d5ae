"""How a tune searches, for which routing, and with whom: the options of `tune` about that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .. import ops
from ..ops.routing import Routing, from_json, parse
from ..ops.spec import Operator, Shape
from .options import wanted_ops
from .shapes import Sizes

if TYPE_CHECKING:
    from ..opt.job import Method

Sampler = Literal["auto", "portfolio", "tpe", "gp", "ga", "random", "exhaustive"]
SamplerOption = Annotated[Sampler, typer.Option("--sampler", help="The search.")]
StopGain = Annotated[float, typer.Option(
    "--stop-gain", min=0.0, max=50.0,
    help="Stop before the budget ends when the search's model expects less than this many percent "
         "from anything untried; 0 uses the whole budget.")]
RoutingOption = Annotated[str | None, typer.Option(
    "--routing", help="How tokens spread over experts: uniform, zipf-S, or a file of `expertile "
                      "collect`.")]
Collected = Annotated[Path | None, typer.Option(
    "--collected", help="Instead of --preset or --model: the shapes, and the routing, in a file "
                        "of `expertile collect`.")]
Storage = Annotated[str | None, typer.Option(
    "--storage", help="postgresql://user@host/database that any number of hosts share: start the "
                      "same command on each. Records go there too, unless --db says otherwise.")]


@contextmanager
def method_of(sampler: Sampler, stop_gain: float, routing: Routing, storage: str | None
              ) -> Iterator[Method]:
    """The method that the options name, its storage open."""
    from ..opt.job import Method

    if storage is None:
        yield Method(sampler, stop_gain / 100, routing)
        return
    try:
        from ..opt.shared import Storage as Shared
    except ModuleNotFoundError as e:
        raise ValueError(f"--storage needs {e.name}; run: pip install 'expertile[postgresql]'"
                         ) from None
    shared = Shared(storage)
    try:
        yield Method(sampler, stop_gain / 100, routing, shared)
    finally:
        shared.close()


def collected_work(file: Path, only: list[str] | None
                   ) -> tuple[list[tuple[Operator, tuple[Shape, ...]]], Routing]:
    """Shapes in what `expertile collect` wrote, the most called first, and its routing."""
    try:
        found = json.loads(file.read_text())
        rows = [(str(r["op"]), dict(r["shape"])) for r in found["shapes"]]
    except (json.JSONDecodeError, KeyError, TypeError) as e:
        raise ValueError(f"--collected takes a file of `expertile collect`; {file} is none "
                         f"({type(e).__name__}: {e})") from None
    wanted = wanted_ops(only)
    work: dict[str, list[Shape]] = {}
    for name, shape in rows:
        if name in wanted:
            work.setdefault(name, []).append(shape)
    if not work:
        raise ValueError(f"{file} has no shape of {', '.join(wanted)}")
    routing = from_json(found, str(file)) if "routing" in found else Routing()
    return [(ops.load(name), tuple(shapes)) for name, shapes in work.items()], routing


def work_of(collected: Path | None, sizes: Sizes, device: str, op: list[str] | None
            ) -> tuple[list[tuple[Operator, tuple[Shape, ...]]], Routing]:
    """The operators and shapes that the options name, and the routing that was collected."""
    if collected is not None and (sizes.preset or sizes.model):
        raise ValueError("give one of --collected, --preset and --model")
    if collected is not None:
        return collected_work(collected, op)
    return sizes.shapes(device, op), Routing()


def chosen_routing(text: str | None, collected: Routing) -> Routing:
    """--routing when it was given, else what was collected."""
    return parse(text) if text is not None else collected
