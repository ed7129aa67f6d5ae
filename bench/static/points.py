"""The named configs of a device, defaults and shipped records, and what each compiles to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ... import ops, targets
from ...ops.models import preset as model_of
from ...ops.source import source_hash
from ...ops.space import Config
from ...ops.spec import Operator, Shape
from ...opt.check import kernels_of
from ...targets.base import BuildError, Target
from ...targets.cpu.levels import LEVELS
from ...tuning_db.record import Record
from ...tuning_db.shipped import read_lines, shipped_files
from ..suite import case_name
from .disasm import facts as instructions_of

CPU_ARCHS = tuple(LEVELS)
CPU_THREADS = "2"                    # part of the generated code, so not this machine's number
NPU_ARCHS = ("ascend910b3", "ascend950pr_9599")
GPU_ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx90a", "gfx942", "gfx950")
ASYNC = ("LDGSTS", "UTMALDG", "load_to_lds")     # copies that run beside the arithmetic


@dataclass(frozen=True)
class Kernel:
    """What one launch's binary says; a CPU's has classes and no registers, an NPU's no binary."""

    name: str
    instructions: int = 0
    opcode_hash: str = ""            # of an NPU's kernel: of the text that hivmc would read
    mma: Mapping[str, int] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    registers: int = 0
    spill_bytes: int = 0
    shared_bytes: int = 0
    warps: int = 0
    blocks_per_sm: int = 0           # the occupancy step that registers and memory reach
    operands: str = "none"
    async_copies: int = 0
    text_bytes: int = 0
    task_type: str = ""              # of an NPU's kernel: "vector", "cube" or "mix"
    memory: Mapping[str, int] = field(default_factory=dict)      # bytes of a core: ub, l1, l0c
    workspace_bytes: int = 0         # in global memory, for each block
    calls: Mapping[str, str] = field(default_factory=dict)       # library function -> its core
    fallbacks: tuple[str, ...] = ()  # what the compiler switched off, in its own words


@dataclass(frozen=True)
class Point:
    """One named config on one device."""

    config: Mapping[str, Any]
    source: str                      # hash of the operator's definition and lowering
    legal: bool
    reason: str = ""
    kernels: tuple[Kernel, ...] = ()
    flops: int = 0
    bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain data; empty fields are left out, so that a diff in git is short."""
        data = {k: v for k, v in asdict(self).items() if v or k in ("legal", "config")}
        data["kernels"] = [{k: v for k, v in k.items() if v} for k in data.get("kernels", ())]
        return data


def point_from_json(data: Mapping[str, Any]) -> Point:
    """The reverse of to_json."""
    kernels = tuple(Kernel(**{**k, "fallbacks": tuple(k.get("fallbacks", ()))})
                    for k in data.get("kernels", ()))
    return Point(**{**data, "kernels": kernels})


def kernel_of(raw: Mapping[str, Any]) -> Kernel:
    """From what `Target.examine` says of a launch."""
    counts = dict(raw.get("counts", {}))
    return Kernel(
        str(raw["name"]), int(raw["instructions"]), str(raw["opcode_hash"]), dict(raw["mma"]),
        {k: v for k, v in counts.items() if v}, int(raw["registers"]), int(raw["stack_bytes"]),
        int(raw["shared_bytes"]), int(raw["warps"]),
        int(raw.get("fill", {}).get("blocks_per_sm", 0)), str(raw.get("operands", "none")),
        sum(counts.get(name, 0) for name in ASYNC))


def npu_kernel_of(raw: Mapping[str, Any]) -> Kernel:
    """From what an Ascend target's `examine` says of a launch: a memory plan and no binary."""
    return Kernel(
        str(raw["name"]), opcode_hash=str(raw["sha256"])[:16], task_type=str(raw["task_type"]),
        memory={space: int(raw[f"{space}_bytes"]) for space in ("ub", "l1", "l0c")},
        workspace_bytes=int(raw["workspace_bytes"]), calls=dict(sorted(raw["calls"].items())),
        fallbacks=tuple(raw["fallbacks"]))


def load_target(device: str, cache_dir: Path | None) -> Target:
    """A device to compile for: an arch of a CPU, or anything that `--device` takes."""
    given = {} if cache_dir is None else {"cache_dir": cache_dir}
    if device in CPU_ARCHS:
        return targets.load("cpu", unit=CPU_THREADS, arch=device, **given)
    return targets.load(device, **given)


def toolchain_of(target: Target) -> dict[str, str]:
    """The compiler's versions, and what else here moves its output."""
    return {**target.toolchain(), **target.surroundings()}


class _Watched:
    """A CPU target that remembers which artifacts a lowering asks for."""

    def __init__(self, target: Any):
        self._target = target
        self.asked: list[tuple[str, Shape, Config]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def compile(self, op_name: str, static: Shape, config: Config) -> Any:
        """As the target's own."""
        self.asked.append((op_name, static, config))
        return self._target.compile(op_name, static, config)


def _cpu_kernels(target: Any, op: Operator, shape: Shape, config: Config) -> tuple[Kernel, ...]:
    from ...targets.cpu.artifacts import artifact_path

    watched = _Watched(target)
    ops.lowering(op.name, target.lang).build(watched, shape, config)
    found = {}
    for op_name, static, asked in watched.asked:
        path = artifact_path(target, op_name, static, asked)
        found[path] = Kernel(op_name, **instructions_of(path))
    return tuple(found.values())


def examine(target: Target, op: Operator, shape: Shape, config: Config) -> Point:
    """Compile one config and read it; a compiler's refusal is a fact like any other."""
    work, source = op.work(shape), source_hash(op.name, target.lang)
    empty = Point(dict(config), source, False, "", (), work.flops, work.bytes)
    verdict = target.legal(op, shape, config)
    if not verdict.legal:
        return replace(empty, reason=verdict.reason)
    try:
        if target.name == "cpu":
            return replace(empty, legal=True, kernels=_cpu_kernels(target, op, shape, config))
        seen = target.examine(op, shape, config)
    except BuildError as e:
        return replace(empty, reason=f"{e.status}: {str(e).strip()[-300:]}")
    return replace(empty, legal=seen.legal, reason=seen.reason,
                   kernels=tuple(npu_kernel_of(k) if "task_type" in k else kernel_of(k)
                                 for k in seen.kernels))


Task = tuple[str, Operator, Shape, Config]


def tasks_of(target: Target, presets: Sequence[str], wanted: Sequence[str], every: bool,
             records: Sequence[Record]) -> list[Task]:
    """Names and configs: "default" of every kernel of the presets, "record" of what ships."""
    found: dict[str, Task] = {}
    for name in presets:
        shapes = kernels_of(model_of(name), wanted, None, every)
        for op, shape in shapes if every or target.name != "ascend" else _largest(shapes):
            if ops.has_lowering(op.name, target.lang):
                key = f"{case_name(op.name, shape)} default"
                found[key] = (key, op, shape, target.space(op, shape).default())
    for record in records:
        if record.key.op in (wanted or ops.names()):
            op, shape = ops.load(record.key.op), record.key.shape
            key = f"{case_name(op.name, shape)} record"
            found[key] = (key, op, shape, record.config)
    return list(found.values())


def _largest(shapes: Sequence[tuple[Operator, Shape]]) -> list[tuple[Operator, Shape]]:
    """One shape for each operator and its dtypes: an NPU's compiler takes 1 to 10 s for one."""
    kinds = {(op.name, *(v for axis, v in shape.items() if "dtype" in axis)): (op, shape)
             for op, shape in shapes}
    return list(kinds.values())


def records_of(target: Target) -> list[Record]:
    """The shipped winners of a device's arch."""
    return [r for path in shipped_files() if path.stem == target.arch
            for r in read_lines(path)[0] if r.role == "winner"]


def coverage(target: Target, tasks: Sequence[Task], records: Sequence[Record]) -> dict[str, int]:
    """How many of the named shapes a shipped record answers."""
    from ...tuning_db.lookup import Snapshot

    snapshot = Snapshot({"shipped": records})
    default = [(op, shape) for key, op, shape, _ in tasks if key.endswith(" default")]
    return {"shapes": len(default),
            "tuned": sum(snapshot.answer(op, target, shape).config is not None
                         for op, shape in default)}


def examine_all(target: Target, tasks: Sequence[Task], workers: int,
                done: Callable[[str], None] = lambda key: None) -> dict[str, Point]:
    """All points, several compilers at once; TVM loads in this process, so a CPU's come in turn."""
    def one(task: Task) -> Point:
        point = examine(target, *task[1:])
        done(task[0])
        return point

    with ThreadPoolExecutor(1 if target.name == "cpu" else workers) as threads:
        return dict(zip((t[0] for t in tasks), threads.map(one, tasks), strict=True))
