"""The model on a device that is not there: fake CUDA tensors show what would leave it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from expertile.__main__ import main
from expertile.model import LLM, SamplingParams
from expertile.model.batch import MlaChoice, make_batch
from expertile.model.cache import CachedSequence, LatentCache
from expertile.model.config import ModelConfig
from expertile.model.graphs import DecodeGraphs, Step
from expertile.model.placement import place, tokens_that_fit
from expertile.model.sampler import draw, logprobs
from expertile.model.transformer import Transformer, load_transformer
from expertile.model.weights import Checkpoint

from .conftest import Checkpoints
from .oracle import BLOCK, VARIANTS, quantized, random_tensors, write

Stored = Callable[[str, bool], Path]

META, CUDA = torch.device("meta"), torch.device("cuda", 0)
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")


class LeftTheDevice(AssertionError):
    """A tensor stood elsewhere."""


class Only(TorchDispatchMode):
    """Runs operators as long as all their tensors are on the given devices; lists what they made.

    Tensors come in only as arguments of operators, so that a host tensor that is made, read or
    copied is seen; `.item()` and shapes that depend on data are FakeTensorMode's own errors.
    """

    def __init__(self, *types: str):
        super().__init__()
        self.types = types
        self.names: list[str] = []
        self.made: list[tuple[str, str, int]] = []   # operator, device type, bytes of each output

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves((args, kwargs, out)):
            if isinstance(t, Tensor) and t.device.type not in self.types:
                raise LeftTheDevice(f"{func} on {t.device}")
        self.names.append(str(func))
        self.made += [(str(func), t.device.type, t.nbytes) for t in tree_leaves(out)
                      if isinstance(t, Tensor)]
        return out


class NoDeviceGuard(TorchFunctionMode):
    """A CPU build of torch has no guard for CUDA devices, which some bindings themselves ask for;
    the operators behind them need none."""

    behind = {Tensor.contiguous: torch.ops.aten.contiguous, Tensor.copy_: torch.ops.aten.copy_}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.behind.get(func, func)(*args, **(kwargs or {}))


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A tree of frozen dataclasses with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(mapped(v, change) for v in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: mapped(getattr(value, f.name), change)
                                 for f in fields(value)})
    return value


def loaded(path: Path, w8a8: bool = False) -> tuple[Transformer, Only]:
    """A checkpoint loaded to the meta device in bfloat16, and the operators that did it."""
    config = ModelConfig.from_dir(path)
    with Only("cpu", "meta") as seen:            # a mode: our operators take their traced form
        files = Checkpoint(path, config, torch.bfloat16, META)
        return load_transformer(config, files, META, w8a8, torch.bfloat16), seen


def fake(model: Transformer) -> Transformer:
    """The same on a fake CUDA device; to be called in FakeTensorMode."""
    made: Transformer = mapped(model, lambda t: torch.empty_strided(
        t.shape, t.stride(), dtype=t.dtype, device=CUDA))
    return made


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Path]:
    """stored(variant, fp8) -> a random checkpoint without the cost of its reference logits."""
    def make(variant: str, fp8: bool) -> Path:
        path, config = tmp_path_factory.mktemp("model"), dict(VARIANTS[variant])
        tensors = random_tensors(config, 0)
        if fp8:
            tensors, _ = quantized(tensors, "float")
            config["quantization_config"] = {"quant_method": "fp8",
                                             "weight_block_size": [BLOCK, BLOCK]}
        write(path, config, tensors)
        return path

    return cache(make)


@pytest.fixture
def fakes() -> Iterator[None]:
    with FakeTensorMode(), torch.inference_mode(), NoDeviceGuard():
        yield


@pytest.mark.parametrize("fp8", [False, True])
def test_weights_are_loaded_straight_to_the_device(stored: Stored, fp8: bool) -> None:
    model, seen = loaded(stored("v3", fp8))
    tensors: list[Tensor] = []
    mapped(model, lambda t: tensors.append(t) or t)              # type: ignore[func-returns-value]
    assert len(tensors) > 30 and all(t.device == META for t in tensors)
    assert model.embedding.dtype == torch.bfloat16
    # Views of the mapped files apart, the host holds nothing: what is made is made on the device.
    makers = ("aten.empty", "aten.zeros", "aten.clone", "aten._to_copy", "aten.contiguous")
    host = {(op, n) for op, device, n in seen.made if device == "cpu" and op.startswith(makers)}
    assert not any(n for _, n in host), host


@pytest.mark.parametrize("bad", [
    lambda x: x.sum().item(), lambda x: x.tolist(), lambda x: bool(x.any()), lambda x: x.cpu(),
    lambda x: x + torch.tensor([1.0], device=CUDA), lambda x: x.mul(torch.ones(4)),
    lambda x: x.copy_(torch.ones(4)), lambda x: x * torch.tensor(2.0)])
def test_the_guard_sees_what_leaves_the_device(fakes: None, bad: Callable[[Tensor], Any]) -> None:
    x = torch.zeros(4, device=CUDA)
    with pytest.raises((LeftTheDevice, DataDependentOutputException)), Only("cuda"):
        bad(x)


@pytest.mark.parametrize(("variant", "fp8", "w8a8"), [
    *((variant, False, False) for variant in VARIANTS), ("v3", True, False), ("v3", True, True)])
def test_steps_stay_on_the_device(stored: Stored, fakes: None, variant: str, fp8: bool,
                                  w8a8: bool) -> None:
    with unset_fake_temporarily():
        meta, _ = loaded(stored(variant, fp8), w8a8)
    model, guard = fake(meta), Only("cuda")
    c = model.config

    def capture(step: Step) -> Step:
        def guarded() -> None:
            with guard:
                step()
        return guarded

    pages = LatentCache(c.num_layers, c.latent_dim, 16, 320, torch.bfloat16, CUDA, fixed=True)
    graphs = DecodeGraphs(model, pages, 8, lambda: [], lambda: capture)
    seqs = [CachedSequence() for _ in range(3)]
    choices: tuple[MlaChoice, ...] = ("expanded", "absorbed")
    for mla in choices:              # prefill is not captured, but must not wait for the host
        chunk = make_batch(c, pages, seqs, [[5] * 40, [6] * 7, [7] * 21], mla).to(CUDA)
        with Only("cuda"):
            hidden = model.hidden(chunk, pages)
        assert hidden.shape == (68, c.hidden_size) and hidden.dtype == torch.bfloat16
    out = graphs.logits(make_batch(c, pages, seqs, [[5], [6], [7]]))
    assert out is not None and out.shape == (3, c.vocab_size) and out.device == CUDA
    for op, layers in (("mla_decode", c.num_layers), ("mla_kv_append", c.num_layers),
                       ("fused_moe", c.num_layers - c.first_moe_layer)):
        assert sum(name.startswith(f"expertile.{op}.") for name in guard.names) == layers


def test_sampling_stays_on_the_device(fakes: None) -> None:
    logits = torch.zeros(3, 50, device=CUDA)
    params = [SamplingParams(temperature=0), SamplingParams(top_k=5, top_p=0.9), SamplingParams()]
    with Only("cuda"):
        tokens = draw(logits, params, [None] * 3)
        likely = logprobs(logits, tokens)
        greedy = draw(logits, params[:1] * 3, [None] * 3)
    assert tokens.shape == likely.shape == greedy.shape == (3,)


@pytest.mark.parametrize(("variant", "fp8"), [("moonlight", None), ("v3", "float")])
def test_bfloat16_activations_are_near(checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch,
                                       variant: str, fp8: str | None) -> None:
    monkeypatch.setenv("EXPERTILE_DISABLE", "1")     # torch: no kernels to compile for bfloat16
    made = checkpoint(variant, fp8)
    llm = LLM(made.path, act_dtype="bfloat16", page_size=16)
    assert llm.model.embedding.dtype == llm.cache.storage.dtype == torch.bfloat16
    got, want = llm.logits(made.reference.ids[:, :24], prefill=20), made.reference.logits[:, :24]
    error = float((got - want).pow(2).mean().sqrt() / want.std())
    assert got.dtype == torch.float32 and 1e-3 < error < 0.4     # routing of random weights flips


def test_places() -> None:
    cpu = place("cpu", None, None, None)
    assert (cpu.act_dtype, cpu.weight_dtype, cpu.graphs) == (torch.float32, None, False)
    half = place("cpu", None, "bfloat16", False)
    assert (half.act_dtype, half.weight_dtype) == (torch.bfloat16, torch.bfloat16)
    assert place("cpu", "float32", "bfloat16", None).weight_dtype == torch.float32
    with pytest.raises(ValueError, match="graphs need a CUDA device, got device='cpu'"):
        place("cpu", None, None, True)
    with pytest.raises(ValueError, match="act_dtype must be .*got 'int8'"):
        place("cpu", None, "int8", None)


def test_a_fixed_cache_takes_what_is_needed_or_what_fits() -> None:
    assert tokens_that_fit(10**9, 1000, wanted=1000, page_size=64) == 1024
    assert tokens_that_fit(10**6, 1000, wanted=10**6, page_size=64) == 768   # 12 pages in 0.8 MB
    pages = LatentCache(2, 8, 16, max_tokens=50, fixed=True)
    storage = pages.storage
    pages.extend(CachedSequence(), 48)
    assert pages.storage is storage and storage.shape == (2, 3, 16, 1, 8) and not pages.free
    with pytest.raises(ValueError, match="a fixed cache needs max_tokens"):
        LatentCache(2, 8, 16, fixed=True)


@no_gpu
def test_run_without_a_gpu_is_one_line(monkeypatch: pytest.MonkeyPatch,
                                       capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["expertile", "run", "--device", "cuda"])
    with pytest.raises(SystemExit) as left:
        main()
    said = capsys.readouterr()
    assert left.value.code == 2 and said.out == ""
    assert said.err.startswith("error: device 'cuda' cannot be used") and said.err.count("\n") == 1
