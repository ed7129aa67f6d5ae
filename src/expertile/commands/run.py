"""`expertile run`: generate text with the bundled model, streaming, then say what answered."""

from __future__ import annotations

import json
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from .options import Db, Json, console

TINY = Path(__file__).resolve().parents[1] / "model" / "checkpoint" / "tiny-v3"


class Weights(StrEnum):
    """Choices of --weights."""

    AS_IS = "as-is"
    INT8 = "int8"
    BF16 = "bf16"


def report_table(rows: list[dict[str, Any]]) -> Table:
    """What answered each operator, one line for each way; --json has every record."""
    table = Table("operator", "answered by", "tier", "kernels", "shapes", "calls",
                  title="what answered each operator")
    ways = {(str(r["op"]), str(r["answered_by"]), str(r["tier"])): 0 for r in rows}
    for way in ways:
        mine = [r for r in rows if (r["op"], r["answered_by"], r["tier"]) == way]
        table.add_row(*way, str(len(mine)), str(sum(r["shapes"] for r in mine)),
                      str(sum(r["calls"] for r in mine)))
    return table


def run(
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="Text to continue.")] = None,
    model: Annotated[Path | None, typer.Option(
        "--model", help="A DeepSeek-family model directory; by default the bundled one.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1)] = 96,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0)] = 0.0,
    top_k: Annotated[int, typer.Option("--top-k", min=0)] = 0,
    top_p: Annotated[float, typer.Option("--top-p", min=0.0, max=1.0)] = 1.0,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    chat: Annotated[bool, typer.Option("--chat", help="Wrap in the chat template.")] = False,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    graphs: Annotated[bool | None, typer.Option(
        "--graphs/--no-graphs", help="Capture decode steps in CUDA graphs; the default on cuda.")
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1)] = None,
    weights: Annotated[Weights, typer.Option(
        "--weights", help="What FP8 weights become at load, for devices without FP8.")
    ] = Weights.AS_IS,
    db: Db = None,
    report: Annotated[bool, typer.Option("--report", help="Print which records answered.")] = False,
    as_json: Json = False,
) -> None:
    """Generate text with the bundled model on the tuned operators."""
    from ..model import LLM, SamplingParams

    llm = LLM(model or TINY, device, db=db, threads=threads, graphs=graphs,
              weights=weights.value)
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed,
                            max_tokens=max_tokens)
    outputs = []
    for text in prompt or ["Return the"]:
        start = time.perf_counter()
        pieces = []
        if not as_json:
            print(text, end="", flush=True)
        for piece in llm.stream(
                llm.chat_ids([{"role": "user", "content": text}]) if chat else text, params):
            pieces.append(piece)
            if not as_json:
                print(piece, end="", flush=True)
        if not as_json:
            print(flush=True)
        outputs.append({"prompt": text, "text": "".join(pieces),
                        "seconds": time.perf_counter() - start})
    if as_json:
        print(json.dumps({"outputs": outputs, "op_report": llm.op_report()}, indent=2))
    elif report:
        console().print(report_table(llm.op_report()))
