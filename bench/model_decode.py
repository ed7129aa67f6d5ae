"""Decode and prefill of one checkpoint: ours against transformers, each alone in its process.

    python -m expertile.bench.model_decode MODEL --ctx 1024 --engine ours|hf-float32|hf-bfloat16
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator

import torch

TOKENS = 24


def ours(path: str, ids: list[int], threads: int) -> Iterator[float]:
    """Seconds of the first token, then of each following one."""
    from ..model import LLM, SamplingParams

    llm = LLM(path, threads=threads)
    params = SamplingParams(max_tokens=TOKENS, ignore_eos=True)
    list(llm.stream(ids, params))            # compile everything
    start = time.perf_counter()
    for _ in llm.stream(ids, params):
        yield time.perf_counter() - start
        start = time.perf_counter()


def transformers(path: str, ids: list[int], threads: int, dtype: torch.dtype) -> Iterator[float]:
    """The same from transformers with its cache."""
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
    with torch.inference_mode():
        for counted in (False, True):
            tokens, cache = torch.tensor([ids]), None
            for _ in range(TOKENS):
                start = time.perf_counter()
                out = model(tokens, past_key_values=cache, use_cache=True)
                tokens, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
                if counted:
                    yield time.perf_counter() - start


def main() -> None:
    """Print one JSON line: seconds to the first token, and median, least and p80 of the others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--engine", choices=("ours", "hf-float32", "hf-bfloat16"), default="ours")
    parser.add_argument("--ctx", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 1000, (args.ctx,), generator=generator).tolist()
    if args.engine == "ours":
        times = list(ours(args.model, ids, args.threads))
    else:
        dtype = getattr(torch, args.engine.removeprefix("hf-"))
        times = list(transformers(args.model, ids, args.threads, dtype))
    steps = sorted(times[2:])                # the second still fills caches
    print(json.dumps({
        "engine": args.engine, "ctx": args.ctx, "threads": args.threads,
        "first_token_s": round(times[0], 3), "token_ms_median": round(
            statistics.median(steps) * 1e3, 2), "token_ms_least": round(steps[0] * 1e3, 2),
        "token_ms_p80": round(steps[int(0.8 * len(steps))] * 1e3, 2)}))


if __name__ == "__main__":
    main()
