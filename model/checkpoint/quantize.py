"""Turns a float32 checkpoint folder into the release's FP8 format and measures the loss."""

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from .evaluate import bits_per_byte, heldout_loss, sample
from .export import write_json, write_tensors
from .layers import Config
from .network import from_release

BLOCK = 128  # one scale per 128x128 weights (V3 report, 3.3.2)
E4M3_MAX = 448.0
SUFFIX = "_scale_inv"  # the release's name for what a stored value is multiplied by
PROMPTS = ("Return the", "Return the", "This module", "Raised when")
_QUANTIZATION = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [BLOCK, BLOCK],
}
_COPIED = (
    "generation_config.json",
    "heldout_tokens.npy",
    "tokenizer.json",
    "tokenizer_config.json",
)


def blocks(weight: Tensor) -> Tensor:
    """Pad with zeros to whole blocks and return them as a grid."""
    # weight [n, k] -> [n / 128, 128, k / 128, 128], both divisions rounded up
    n, k = weight.shape
    padded = F.pad(weight, (0, -k % BLOCK, 0, -n % BLOCK))
    return padded.view(padded.shape[0] // BLOCK, BLOCK, padded.shape[1] // BLOCK, BLOCK)


def to_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return e4m3 values and one float32 scale per block."""
    # weight [n, k] -> e4m3 [n, k], float32 [ceil(n / 128), ceil(k / 128)]
    grid = blocks(weight.float())
    # Divided, not multiplied by 1/448: that is not a float32 and moves the last bit.
    scale = grid.abs().amax((1, 3)).clamp_min(1e-12) / E4M3_MAX
    values = grid / scale[:, None, :, None]  # at most 448 and a rounding, which the cast undoes
    n, k = weight.shape
    return values.flatten(2).flatten(0, 1)[:n, :k].to(torch.float8_e4m3fn), scale


def from_fp8(values: Tensor, scale: Tensor) -> Tensor:
    """Return the float32 weight that the stored pair stands for."""
    n, k = values.shape
    grid = blocks(values.float()) * scale[:, None, :, None]
    return grid.flatten(2).flatten(0, 1)[:n, :k]


def quantize(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors as stored: projections in FP8, the router in float32, the rest bf16."""
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith("_proj.weight") or "kv_a_proj_with_mqa" in name:
            stored[name], stored[name + SUFFIX] = to_fp8(tensor)
        elif ".gate." in name:  # rounding it would change which experts are chosen
            stored[name] = tensor.float()
        else:
            stored[name] = tensor.bfloat16()
    return stored


def dequantize(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo quantize, up to its rounding, in float32."""
    return {
        name: from_fp8(tensor, stored[name + SUFFIX]) if name + SUFFIX in stored else tensor.float()
        for name, tensor in stored.items()
        if not name.endswith(SUFFIX)
    }


def measure(folder: Path, tensors: dict[str, Tensor], log: dict[str, object]) -> dict[str, object]:
    """Return the held-out loss, bits per byte and samples of a checkpoint's float32 tensors."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    sizes = {name: config[name] for name in Config.__dataclass_fields__}
    network = from_release(Config(**sizes), tensors)
    tokens = torch.from_numpy(np.load(folder / "heldout_tokens.npy").astype(np.int64))
    loss = heldout_loss(network, tokens, int(str(log["window"])))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = [sample(network, tokenizer, text, seed) for seed, text in enumerate(PROMPTS)]
    bits = bits_per_byte(loss, len(tokens), int(str(log["heldout_bytes"])))
    return {"heldout_loss": round(loss, 5), "bits_per_byte": round(bits, 4), "samples": texts}


def main(argv: list[str]) -> None:
    """Write the FP8 folder and add its measured loss to the training log."""
    parser = argparse.ArgumentParser(prog="quantize", description=__doc__)
    parser.add_argument("source", type=Path, help="float32 checkpoint folder")
    parser.add_argument("out", type=Path, help="FP8 checkpoint folder")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in _COPIED:
        shutil.copyfile(args.source / name, args.out / name)
    config = json.loads((args.source / "config.json").read_text(encoding="utf-8"))
    config |= {"quantization_config": _QUANTIZATION, "torch_dtype": "bfloat16"}
    write_json(args.out / "config.json", config)
    write_tensors(args.out, quantize(load_file(args.source / "model.safetensors")))
    log = json.loads((args.source / "train_log.json").read_text(encoding="utf-8"))
    # Read back from disk, so that the figure belongs to the bytes that ship.
    log["fp8"] = measure(args.out, dequantize(load_file(args.out / "model.safetensors")), log)
    write_json(args.out / "train_log.json", log)
    print(json.dumps(log["fp8"], indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
