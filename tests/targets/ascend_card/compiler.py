"""Stands in for CANN's bishengir-compile: a "device binary" that this CPU executes.

The kernel is <kernel>.c beside this file's copy where there is one, else the module itself, lowered
to this CPU. Either way it gets its arguments as a C struct that the C compiler lays out, declared
as triton-ascend declares its own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def members(module: str) -> list[tuple[str, str]]:
    """(C type and alignment, name) of the kernel's own arguments."""
    head = re.search(r"func\.func @\w+\((.*?)\)\s*attributes", module, re.S)
    assert head is not None
    found = []
    for i, part in enumerate(head[1].split(", ")[2:-6]):
        kind = part.partition(": ")[2]
        found.append(("void *a{} __attribute__((aligned(8)))" if kind.startswith("memref") else
                      "int32_t a{} __attribute__((aligned(4)))", kind))
        found[i] = (found[i][0].format(i), kind)
    return found


def shim(module: str, name: str, settings: dict[str, int], lowered: bool) -> str:
    """C: the struct, and npu_entry, which runs one block."""
    own = members(module)
    fields = "\n".join(f"    {text};" for text, _ in own)
    flags = "void *flags __attribute__((aligned(8)));" if settings["flags"] else ""
    source = f"""
#include <stdint.h>
#include <string.h>
typedef struct __attribute__((packed)) {{
    {flags}
    void *lock __attribute__((aligned(8)));
    void *workspace __attribute__((aligned(8)));
{fields}
    int32_t gx __attribute__((aligned(4)));
    int32_t gy __attribute__((aligned(4)));
    int32_t gz __attribute__((aligned(4)));
}} arguments_t;
const char npu_name[] = "{name}";
int npu_block(const arguments_t *a, uint32_t block);
int npu_entry(const void *raw, uint32_t size, uint32_t block, uint32_t blocks) {{
    const arguments_t *a = raw;
    if (size != sizeof *a) return 1;
    if ((uint32_t)(a->gx * a->gy * a->gz) != blocks) return 2;
    int64_t own = {settings["workspace"]};
    if (own) memset((char *)a->workspace + own * block, 0x5A, own);
    else if (a->workspace) return 3;
    for (int i = 0; i < {settings["locks"]}; i++)
        if (((int64_t *)a->lock)[i] != {settings["lock_value"]}) return 4;
    return npu_block(a, block);
}}
"""
    if not lowered:
        return source + (HERE / f"{name}.c").read_text()
    refs, passed, types = [], [], []
    for i, (_, kind) in enumerate(own):
        if kind.startswith("memref"):
            refs.append(f"    memref_t m{i} = {{a->a{i}, a->a{i}, 0, INT64_MAX / 8, 1}};")
            passed.append(f"&m{i}")
            types.append("memref_t *")
        else:
            passed.append(f"a->a{i}")
            types.append("int32_t")
    split = "z = block % a->gz, y = block / a->gz % a->gy, x = block / (a->gz * a->gy)"
    grid = ", ".join(["int32_t"] * 6)
    return source + f"""
typedef struct {{ void *allocated, *aligned; int64_t offset, size, stride; }} memref_t;
void _mlir_ciface_{name}(memref_t *, memref_t *, {", ".join([*types, grid])});
int npu_block(const arguments_t *a, uint32_t block) {{
    memref_t none = {{0, 0, 0, 0, 1}};
{chr(10).join(refs)}
    int32_t {split};
    _mlir_ciface_{name}(&none, &none, {", ".join(passed)}, a->gx, a->gy, a->gz, x, y, z);
    return 0;
}}
"""


def lower(module: str, target: Path) -> None:
    """The module as an object file of this CPU."""
    import llvmlite.binding as llvm

    from expertile.targets.ascend.cpu_run import build

    made = build(module)
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(opt=1, reloc="pic")
    target.write_bytes(machine.emit_object(llvm.parse_assembly(made.llvm_ir)))


def main() -> None:
    """bishengir-compile kernel.mlir --flags -o kernel."""
    if "--help" in sys.argv:
        print((HERE / "help.txt").read_text())
        return
    source, out = Path(sys.argv[1]), Path(sys.argv[sys.argv.index("-o") + 1])
    module = source.read_text()
    with (HERE / "compiled.log").open("a") as log:
        log.write(json.dumps(sys.argv[2:]) + "\n")
    name = re.search(r"func\.func @(\w+)\(", module)[1]
    settings = {"workspace": 0, "locks": 0, "lock_value": 0, "flags": 1}
    if (HERE / f"{name}.json").is_file():
        settings |= json.loads((HERE / f"{name}.json").read_text())
    if "refuse" in settings:
        print("error: ub overflow, requires 1835008 bits while 1572864 bits available!")
        sys.exit(1)
    lowered = not (HERE / f"{name}.c").is_file()
    inputs = []
    if lowered:
        lower(module, out.with_suffix(".own.o"))
        inputs.append(str(out.with_suffix(".own.o")))
    for text, target in ((shim(module, name, settings, lowered), out.with_suffix(".o")),
                         (host(name, settings), out.parent / f"lib{out.name}.so")):
        code = target.with_suffix(".c")
        code.write_text(text)
        subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", str(target), str(code),
                        *(inputs if target.suffix == ".o" else []), "-lm"], check=True)


def host(name: str, settings: dict[str, int]) -> str:
    """libkernel.so: what the launcher asks."""
    stated = {"infer_workspace_shape_function": "workspace",
              "infer_sync_block_lock_num_function": "locks",
              "infer_sync_block_lock_init_function": "lock_value"}
    return "#include <stdint.h>\n" + "".join(
        f"int64_t {name}_{suffix}(void) {{ return {settings[key]}; }}\n"
        for suffix, key in stated.items() if not settings.get("mute"))


if __name__ == "__main__":
    main()
