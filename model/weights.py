"""Reads sharded safetensors: checks every tensor before loading any, keeps the stored dtype."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from torch import Tensor

from .. import convert_fp8_weight
from .config import ModelConfig
from .pages import zeros
from .shards import open_files, some
from .tensor_names import expected_tensors

Operand = Tensor | tuple[Tensor, Tensor]     # plain, or (e4m3 or int8 codes, float32 scales)
Fp8As = Literal["as-is", "int8", "bf16"]     # what FP8 weights become

SCALE = "_scale_inv"                         # the releases' suffix of an FP8 weight's scales
_FP8 = "F8_E4M3"
_PLAIN = ("F32", "BF16", "F16")
_SCALES = ("F32", "BF16", "F8_E8M0")
_ALIGNMENT = 64                              # bytes: what compiled kernels may assume of a tensor


class Checkpoint:
    """The tensors of a model directory, memory-mapped and checked against its config.

    Args:
        folder: holds model.safetensors.index.json with its shards, or model.safetensors.
        config: what the tensors must fit.
        dtype: storage of plain weights, None = as in the files (float16 becomes float32).
        device: where loaded tensors go.
        fp8_as: what FP8 weights become; int8 keeps their columns per scale, with a scale for each
            row.
    """

    def __init__(self, folder: str | Path, config: ModelConfig, dtype: torch.dtype | None = None,
                 device: torch.device | None = None, fp8_as: Fp8As = "as-is"):
        if fp8_as not in ("as-is", "int8", "bf16"):
            raise ValueError(f"weights must be 'as-is', 'int8' or 'bf16', got {fp8_as!r}")
        self.config = config
        self._dtype = dtype
        self._device = device
        self._fp8_as = fp8_as
        self._files, self._where = open_files(Path(folder))
        self._check()

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns per scale of the weights that have scales."""
        b = self.config.fp8_block or 128
        return (1, b) if self._fp8_as == "int8" else (b, b)

    def has(self, name: str) -> bool:
        """Whether the files hold a tensor."""
        return name in self._where

    def plain(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor that is never quantised, in `dtype` or as stored."""
        return self._settled(self._raw(name), dtype or self._plain_dtype(name))

    def operand(self, name: str) -> Operand:
        """A projection's weight: plain, or the pair of FP8 or int8 codes and scales."""
        if not self._is_fp8(name):
            return self.plain(name)
        made = self._converted(self._raw(name), self._scale(name))
        if isinstance(made, Tensor):
            return self._settled(made)
        return self._settled(made[0]), self._settled(made[1])

    def gate_up(self, prefix: str) -> Operand:
        """gate_proj over up_proj, [2I, K]; with scales padded to whole blocks (see `experts`)."""
        w1, s1, _, _ = self._stack([prefix], with_down=False)
        return _pair(w1[0], None if s1 is None else s1[0])

    def down(self, prefix: str) -> Operand:
        """down_proj [K, I], padded like `gate_up`."""
        _, _, w2, s2 = self._stack([prefix], with_gate_up=False)
        return _pair(w2[0], None if s2 is None else s2[0])

    def experts(self, prefix: str) -> tuple[Operand, Operand]:
        """w1 [E, 2I, K] and w2 [E, K, I] of all experts of a layer.

        Experts with scales whose I is no multiple of the scale block are padded with zeros up to
        it, so that the gate and the up half start on a scale of their own; silu(0) * 0 adds
        nothing.
        """
        names = [f"{prefix}.{e}" for e in range(self.config.num_experts)]
        w1, s1, w2, s2 = self._stack(names)
        return _pair(w1, s1), _pair(w2, s2)

    def _stack(self, prefixes: list[str], with_gate_up: bool = True,
               with_down: bool = True) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        first = f"{prefixes[0]}.gate_proj.weight"
        inter, hidden = self._shape(first)
        fp8, scaled, b = self._is_fp8(first), self._has_scales(first), self.block
        dtype = self._held(first)
        wide = -(-inter // b[1]) * b[1] if scaled else inter
        e, rows = len(prefixes), (-(-wide // b[0]), -(-hidden // b[0])) if scaled else (0, 0)
        columns = (-(-hidden // b[1]), wide // b[1]) if scaled else (0, 0)
        # On the device at once: the host never holds more than the file's own mapped pages.
        w1 = zeros(e * with_gate_up, 2, wide, hidden, dtype=dtype, device=self._device)
        w2 = zeros(e * with_down, hidden, wide, dtype=dtype, device=self._device)
        s1 = zeros(e * with_gate_up, 2, rows[0], columns[0], device=self._device)
        s2 = zeros(e * with_down, rows[1], columns[1], device=self._device)
        for i, prefix in enumerate(prefixes):
            for half, kind in enumerate(("gate_proj", "up_proj") * with_gate_up):
                self._fill(f"{prefix}.{kind}.weight", fp8, w1[i, half, :inter],
                           s1[i, half, :-(-inter // b[0])])
            if with_down:
                self._fill(f"{prefix}.down_proj.weight", fp8, w2[i, :, :inter], s2[i])
        w1, s1, w2, s2 = (self._settled(t) for t in (w1.flatten(1, 2), s1.flatten(1, 2), w2, s2))
        return (w1, s1, w2, s2) if scaled else (w1, None, w2, None)

    def _fill(self, name: str, fp8: bool, weight: Tensor, scale: Tensor) -> None:
        if self._is_fp8(name) != fp8:
            raise ValueError(f"{self._file(name)}: {name} must be stored like its neighbours "
                             f"({'FP8' if fp8 else 'plain'}), got {self._stored(name)}")
        if not fp8:
            weight.copy_(self._raw(name))
            return
        made = self._converted(self._raw(name), self._scale(name))
        if isinstance(made, Tensor):
            weight.copy_(made)
        else:
            weight.copy_(made[0])
            scale.copy_(made[1])

    def _converted(self, q: Tensor, scale: Tensor) -> Operand:
        """An FP8 weight of the file as it will be held."""
        if self._fp8_as == "as-is":
            return q, scale
        b = self.config.fp8_block
        made = convert_fp8_weight(q, scale, (b, b), self._fp8_as, self.block)
        return made.to(self._dtype or made.dtype) if isinstance(made, Tensor) else made

    def _has_scales(self, name: str) -> bool:
        return self._is_fp8(name) and self._fp8_as != "bf16"

    def _held(self, name: str) -> torch.dtype:
        """The dtype in which a projection's weight is held."""
        if not self._is_fp8(name):
            return self._plain_dtype(name)
        return {"as-is": torch.float8_e4m3fn, "int8": torch.int8,
                "bf16": self._dtype or torch.bfloat16}[self._fp8_as]

    def _scale(self, name: str) -> Tensor:
        return self._raw(name + SCALE).float()       # e8m0 is a power of two: exact in float32

    def _raw(self, name: str) -> Tensor:
        try:
            tensor = self._files[self._where[name]].get_tensor(name)
        except (SafetensorError, OSError, RuntimeError) as e:
            raise ValueError(f"{self._file(name)}: {name} cannot be read: {e}") from e
        assert isinstance(tensor, Tensor)
        return tensor

    def _settled(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        tensor = tensor.to(self._device) if self._device is not None else tensor
        tensor = tensor.to(dtype or tensor.dtype).contiguous()
        # A file's tensors start at any multiple of 8 bytes; only the unaligned ones are copied.
        return tensor if tensor.data_ptr() % _ALIGNMENT == 0 else tensor.clone()

    def _plain_dtype(self, name: str) -> torch.dtype:
        stored = torch.bfloat16 if self._stored(name) == "BF16" else torch.float32
        return self._dtype or stored

    def _is_fp8(self, name: str) -> bool:
        return self._stored(name) == _FP8

    def _stored(self, name: str) -> str:
        return str(self._files[self._where[name]].get_slice(name).get_dtype())

    def _shape(self, name: str) -> list[int]:
        return list(self._files[self._where[name]].get_slice(name).get_shape())

    def _file(self, name: str) -> Path:
        return self._where[name]

    def _check(self) -> None:
        expected = expected_tensors(self.config)
        if missing := [n for n in expected if n not in self._where]:
            raise ValueError(f"the checkpoint lacks {some(missing)}; its config.json asks for "
                             f"{len(expected)} tensors")
        scales = {n + SCALE for n in expected if self._is_fp8(n)}
        if extra := [n for n in self._where
                     if n not in expected and n not in scales and not self._ignored(n)]:
            raise ValueError(f"the checkpoint holds tensors that its config.json does not explain: "
                             f"{some(extra)}")
        for name, shape in expected.items():
            self._check_tensor(name, shape)

    def _check_tensor(self, name: str, shape: tuple[int, ...]) -> None:
        stored, got, b = self._stored(name), self._shape(name), self.config.fp8_block
        if got != list(shape):
            raise ValueError(f"{self._file(name)}: {name} must have shape {list(shape)}, got {got}")
        if stored in _PLAIN:
            return
        if stored != _FP8 or not b or len(shape) != 2:
            want = " or ".join((*_PLAIN, *(("F8_E4M3",) if b and len(shape) == 2 else ())))
            raise ValueError(f"{self._file(name)}: {name} must be stored as {want}, got {stored}"
                             + ("; config.json has no fp8 quantization_config"
                                if stored == _FP8 and not b else ""))
        scale = name + SCALE
        if scale not in self._where:
            raise ValueError(f"the checkpoint lacks {scale}, the scales of the FP8 tensor {name}")
        want_shape = [-(-n // b) for n in shape]
        if self._shape(scale) != want_shape or self._stored(scale) not in _SCALES:
            raise ValueError(f"{self._file(scale)}: {scale} must be {' or '.join(_SCALES)} of "
                             f"shape {want_shape}, got {self._stored(scale)} {self._shape(scale)}")

    def _ignored(self, name: str) -> bool:
        """Multi-token-prediction layers stand after the last layer; old files hold rope tables."""
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        return (layer is not None and int(layer[1]) >= self.config.num_layers) \
            or name.endswith("rotary_emb.inv_freq") \
            or (self.config.tie_word_embeddings and name == "lm_head.weight")


def _pair(weight: Tensor, scale: Tensor | None) -> Operand:
    return weight if scale is None else (weight, scale)
