"""The model as users hold it: load a directory, generate, stream, score, report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import Runtime, use_runtime
from .batch import MlaChoice
from .config import ModelConfig
from .engine import Engine, Request, make_request
from .graphs import DecodeGraphs
from .layers import RouteObserver
from .outputs import Output, Piece, output_of
from .placement import new_cache, place
from .sampler import SamplingParams
from .scoring import checked_rows, logits, row_lengths, step_sizes, surprise
from .tokenizer import Message, Tokenizer
from .transformer import load_transformer
from .weights import Checkpoint, Fp8As

Prompt = str | Sequence[int] | Tensor


class LLM:
    """A DeepSeek-V2/V3-family model whose operators the tuning database answers.

    Args:
        path: directory with config.json, safetensors and, for text, tokenizer.json.
        device: "cpu" or "cuda" (as the front door's Runtime knows them).
        dtype: storage of plain weights, "float32" or "bfloat16"; None = as in the checkpoint, with
            bfloat16 activations bfloat16. FP8 weights follow `weights` instead.
        db: a tuning database laid over the default ones.
        threads: CPU threads of the operators.
        w8a8: cast activations like quantised weights; by default FP8 and int8 are storage only.
        page_size, max_cache_tokens: of the latent cache, which grows on demand without a limit; on
            CUDA it is allocated at once, without a limit what max_batch long requests need or 0.8
            of the free memory holds.
        max_batch, max_step_tokens: requests in flight, and prompt tokens per step.
        act_dtype: of activations and cache, "float32" or "bfloat16"; None = float32 on CPUs,
            bfloat16 elsewhere.
        graphs: capture decode steps in CUDA graphs; None = on CUDA devices.
        weights: what FP8 weights become when they are loaded, for devices without FP8: "as-is",
            "int8" with one scale for each row and scale block's columns, or "bf16" (see
            `expertile.convert_fp8_weight` for the error bounds, docs/model.md for what they cost).

    Raises:
        ValueError: the directory, a key of its config.json or one of its tensors does not fit.
    """

    def __init__(self, path: str | Path, device: str = "cpu",
                 dtype: str | torch.dtype | None = None, db: str | Path | None = None, *,
                 threads: int | None = None, w8a8: bool = False, page_size: int = 64,
                 max_cache_tokens: int | None = None, max_batch: int = 64,
                 max_step_tokens: int = 2048, act_dtype: str | torch.dtype | None = None,
                 graphs: bool | None = None, weights: Fp8As = "as-is"):
        if not (folder := Path(path)).is_dir():
            raise ValueError(f"a model must be a directory with config.json, got {str(folder)!r}")
        self.runtime = Runtime(device, db=db, threads=threads)
        at = place(device, dtype, act_dtype, graphs)
        self.config = ModelConfig.from_dir(folder)
        self.tokenizer = Tokenizer(folder) if (folder / "tokenizer.json").exists() else None
        with torch.inference_mode(), use_runtime(self.runtime):
            files = Checkpoint(folder, self.config, at.weight_dtype, at.device, weights)
            self.model = load_transformer(self.config, files, at.device, w8a8, at.act_dtype)
        self.cache = new_cache(at, self.config, page_size, max_cache_tokens, max_batch)
        self._limits = (max_batch, max_step_tokens)
        self.graphs = DecodeGraphs(self.model, self.cache, max_batch, self.runtime.report) \
            if at.graphs else None
        self._engine()                                           # refuses wrong limits now

    def generate(self, prompts: Prompt | Sequence[Prompt],
                 params: SamplingParams | Sequence[SamplingParams] | None = None) -> list[Output]:
        """Continue prompts (texts or token ids) together; the outputs are in their order."""
        listed = self._listed(prompts)
        each = [params or SamplingParams()] * len(listed) \
            if params is None or isinstance(params, SamplingParams) else list(params)
        if len(each) != len(listed):
            raise ValueError(f"params must be one or one per prompt, got {len(each)} for "
                             f"{len(listed)} prompts")
        engine = self._engine()
        requests = [self._request(p, q) for p, q in zip(listed, each, strict=True)]
        for r in requests:
            engine.add(r)
        with self._active():
            for _ in engine.run():
                pass
        return [output_of(r) for r in requests]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Piece]:
        """Continue one prompt, yielding text as soon as it is certain."""
        engine = self._engine()
        r = self._request(prompt, params or SamplingParams())
        engine.add(r)
        return self._pieces(engine, r)

    def chat(self, messages: Sequence[Message], params: SamplingParams | None = None) -> Output:
        """Answer a conversation in the checkpoint's chat template."""
        return self.generate([self.chat_ids(messages)], params)[0]

    def chat_ids(self, messages: Sequence[Message], **variables: Any) -> list[int]:
        """Token ids of a conversation, ready for `generate` and `stream`."""
        tokenizer = self._needed_tokenizer()
        return tokenizer.encode(tokenizer.apply_chat_template(messages, **variables),
                                add_special_tokens=False)

    def logits(self, ids: Tensor | Sequence[Sequence[int]], prefill: int | None = None,
               chunk: int | Sequence[int] | None = None, mla: MlaChoice = "auto", *,
               lengths: Sequence[int] | None = None,
               on_route: RouteObserver | None = None) -> Tensor:
        """Next-token logits of every position, through the cache.

        Args:
            ids: [B, T].
            prefill: so many tokens in one step, then one by one; None = all in one step.
            chunk: tokens per step (an int, or the sizes of successive steps) of the prefill.
            mla: force the "absorbed" or the "expanded" form of attention.
            lengths: the first lengths[b] tokens of row b count; what is past them comes back 0.
            on_route: sees (layer, topk_weights, topk_ids) of each MoE layer and step.

        Returns:
            [B, T, V] float32.
        """
        rows = checked_rows(self.config, torch.as_tensor(ids))
        ends, steps = row_lengths(rows, lengths), step_sizes(rows.shape[1], prefill, chunk)
        with self._active():
            return logits(self.model, self.cache, rows, ends, steps, mla, on_route)

    def perplexity(self, ids: str | Sequence[int] | Tensor, chunk: int = 512) -> float:
        """exp of the mean negative log-likelihood of each token given those before it.

        Args:
            ids: a text, tokens [T], or [B, T] independent rows of tokens.
            chunk: tokens per step.
        """
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {chunk}")
        rows = torch.as_tensor(self._ids(ids) if isinstance(ids, str) else ids)
        if rows.ndim not in (1, 2) or rows.shape[-1] < 2 or not rows.numel():
            raise ValueError(f"perplexity needs at least two tokens, [T] or [B, T], got "
                             f"{list(rows.shape)}")
        rows = checked_rows(self.config, rows.reshape(-1, rows.shape[-1]))
        with self._active():
            total = sum(surprise(self.model, self.cache, row, chunk) for row in rows)
        return math.exp(total / rows[:, 1:].numel())

    def op_report(self) -> list[dict[str, Any]]:
        """One row per operator that ran: which record answered it, and in which tier."""
        return self.runtime.report()

    def _engine(self) -> Engine:
        return Engine(self.model, self.cache, *self._limits, self.graphs)

    def _request(self, prompt: Prompt, params: SamplingParams) -> Request:
        return make_request(self._ids(prompt), params, self.tokenizer,
                            device=self.cache.storage.device)

    def _pieces(self, engine: Engine, r: Request) -> Iterator[Piece]:
        shown = told = 0
        steps = engine.run()
        try:
            while r.finish_reason is None:
                with self._active():
                    next(steps)
                text = r.settled_text()
                if len(text) > shown or r.finish_reason is not None or self.tokenizer is None:
                    yield Piece(text[shown:], r.token_ids[told:], r.finish_reason)
                    shown, told = len(text), len(r.token_ids)
        finally:
            steps.close()            # type: ignore[attr-defined]

    @contextmanager
    def _active(self) -> Iterator[None]:
        """Our operators have their own threads; torch's would compete with them for the cores."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.inference_mode(), use_runtime(self.runtime):
                yield
        finally:
            torch.set_num_threads(threads)

    def _ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self._needed_tokenizer().encode(prompt)
        return [int(i) for i in prompt]

    def _needed_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError("the checkpoint has no tokenizer.json; give prompts as token ids")
        return self.tokenizer

    @staticmethod
    def _listed(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
        if isinstance(prompts, Tensor):
            return [prompts] if prompts.ndim == 1 else list(prompts)
        if isinstance(prompts, str) or (len(prompts) and isinstance(prompts[0], Integral)):
            return [prompts]         # type: ignore[list-item]
        return list(prompts)         # type: ignore[arg-type]
