"""What runs in a child process that compiles, with any of the tritons that we test with."""

from __future__ import annotations

from typing import Any

from expertile import ops, targets
from expertile.targets._triton import static


def then_interpret() -> None:
    """Asks for the interpreter too late."""
    import triton  # noqa: F401

    from expertile.targets._triton import interpreter

    interpreter.enable()


def facts(device: str, op_name: str, shape: dict[str, Any], config: dict[str, Any] | None = None
          ) -> list[dict[str, Any]]:
    """What the binaries of a config (by default the default) say, compiled by this triton."""
    target = targets.load(device, mode="compile")
    op = ops.load(op_name)
    space = target.space(op, shape)
    why = None if config is None else space.why_not(config)
    assert why is None, why
    seen = static.examine_here(target, op, shape, config or space.default())
    assert seen.legal, seen.reason
    return [dict(kernel) for kernel in seen.kernels]


def pick(device: str, op_name: str, shape: dict[str, Any], wanted: dict[str, Any]
         ) -> dict[str, Any]:
    """The first config of a space with the wanted choices."""
    space = targets.load(device, mode="compile").space(ops.load(op_name), shape)
    return next(c for c in space if all(c[name] == value for name, value in wanted.items()))
