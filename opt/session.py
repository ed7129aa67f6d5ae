"""One shape in the measuring child: inputs, expected outputs and kernels, kept between jobs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib import import_module
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops.routing import UNIFORM, Routing
from ..ops.space import Config, config_text
from ..ops.spec import Args, Kernel, Operator, Outputs, Shape
from ..targets.base import Target
from .anchor import Anchor, anchor_of
from .checks import run_once, why_wrong

SETS_APART = 3                       # between neighbours in a race; prime to ARGUMENT_SETS
ARGUMENT_SETS = 8                    # rotated, so that routed weights are as cold as in a model
WARM_S = 0.25                        # on a CPU, where nothing is compiled in a call
HELD_BYTES = 4 << 30                 # cases' inputs kept between candidates, else made again


@dataclass(frozen=True)
class Site:
    """Where and what a job measures; plain JSON on the way to the child."""

    recipe: tuple[str, dict[str, Any]]
    op: str
    shape: dict[str, Any]
    seed: int
    routing: dict[str, Any] = field(default_factory=dict)    # empty: even

    def to_json(self) -> dict[str, Any]:
        """Keyword `site` of every job."""
        return asdict(self)


def make_target(recipe: tuple[str, dict[str, Any]]) -> Target:
    """The target behind a recipe."""
    module, _, function = recipe[0].partition(":")
    made: Target = getattr(import_module(module), function)(**recipe[1])
    return made


class Session:
    """One shape in the measuring child: its inputs, expected outputs and kernels."""

    def __init__(self, site: Site):
        self.target = make_target(site.recipe)
        self.op: Operator = ops.load(site.op)
        self.shape: Shape = site.shape
        self.seed = site.seed
        self._routing = Routing(**site.routing)
        self.args: list[Args] = [()]
        self.outs: list[Outputs] = [()]
        self._held: list[tuple[str, Args]] | None = []
        self._want: list[Outputs] = []
        self._kernels: dict[str, Kernel] = {}
        if self.target.computes:
            self._make_inputs()

    def _make_inputs(self) -> None:
        first = self.op.inputs(self.shape, self.seed)
        shares = None
        if self._routing.name != UNIFORM:
            shares = self._routing.shares(int(self.shape["e"]))
            first = self.op.redraw(first, self.seed, shares)
        drawn = [self.op.redraw(first, self.seed + i, shares) for i in range(1, ARGUMENT_SETS)]
        self.args = self._on_device([first, *(args for args in drawn if args is not first)])
        self.outs = [self.op.empty(*args) for args in self.args]
        for out in (o for outs in self.outs for o in outs):
            out.zero_()                  # their pages are there before the first timed call
        held: dict[int, int] = {}
        for name, args in self.op.cases(self.shape, self.seed):
            self._want.append(run_once(self.op.reference, self.op, args))
            held |= {a.untyped_storage().data_ptr(): a.untyped_storage().nbytes()
                     for a in args if isinstance(a, Tensor)}
            if sum(held.values()) > HELD_BYTES:
                self._held = None
            if self._held is not None:
                self._held.append((name, args))
        if self._held is not None:
            moved = self._on_device([args for _, args in self._held])
            self._held = [(name, args) for (name, _), args in zip(self._held, moved, strict=True)]

    def _cases(self) -> Iterator[tuple[str, Args]]:
        """The adversarial calls, on the device."""
        if self._held is not None:
            yield from self._held
            return
        for name, args in self.op.cases(self.shape, self.seed):
            yield name, self._on_device([args])[0]

    def _on_device(self, calls: list[Args]) -> list[Args]:
        """Calls with their tensors where the target runs; a tensor in several is moved once.

        A tensor that shares its storage with others moves with all of it: strides and the poison
        around a slice stay what they were.
        """
        if self.target.torch_device == "cpu":
            return calls
        moved: dict[int, Tensor] = {}

        def move(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            storage = x.untyped_storage()
            if storage.data_ptr() not in moved:
                raw = torch.empty(0, dtype=torch.uint8).set_(storage)
                moved[storage.data_ptr()] = raw.to(self.target.torch_device)
            there = torch.empty(0, dtype=x.dtype, device=self.target.torch_device)
            return there.set_(moved[storage.data_ptr()].untyped_storage(), x.storage_offset(),
                              x.size(), x.stride())

        return [tuple(move(x) for x in args) for args in calls]

    def kernel(self, config: Config) -> Kernel:
        """A config's kernel, built or loaded once."""
        text = config_text(config)
        if text not in self._kernels:
            self._kernels[text] = self.target.build_kernel(self.op, self.shape, config)
        return self._kernels[text]

    @cached_property
    def anchor(self) -> Anchor | None:
        """What is timed beside every candidate."""
        return anchor_of(self.target)

    def keep(self, *configs: Config | None) -> None:
        """Forget all other kernels: some hold a packed copy of the weights."""
        texts = {config_text(c) for c in configs if c is not None}
        self._kernels = {k: v for k, v in self._kernels.items() if k in texts}

    def why_wrong(self, config: Config) -> str | None:
        """The first case whose outputs are not the reference's, or None."""
        kernel = self.kernel(config)
        if not self._want:
            return None
        for (name, args), want in zip(self._cases(), self._want, strict=True):
            if why := why_wrong(self.op, kernel, name, args, want):
                return why
        return None

    def caller(self, config: Config, place: int) -> Callable[[], object]:
        """Calls the config's kernel on one argument set after the other; warm when returned.

        Of a kernel that takes long one call is enough; eight would take most of a budget. Those
        that are measured in turn stand at different places, hence at different sets: on the same
        one, each would find in the cache what the one before it had fetched.
        """
        kernel = self.kernel(config)

        def bound(args: Args, out: Outputs) -> Callable[[], object]:
            return lambda: kernel(*args, out=out)

        calls = [bound(args, out) for args, out in zip(self.args, self.outs, strict=True)]
        started = time.monotonic()
        for call in calls:
            call()
            if self.target.torch_device == "cpu" and time.monotonic() - started > WARM_S:
                break
        first = SETS_APART * place % len(calls)
        following = cycle(calls[first:] + calls[:first]).__next__
        return lambda: following()()
