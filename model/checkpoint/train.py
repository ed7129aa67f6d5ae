"""Trains the small checkpoint: tokenizer, model and log, from Python's own documentation."""

import argparse
import json
import math
import os
import platform
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .corpus import documents, encode, split, train_tokenizer
from .evaluate import bits_per_byte, heldout_loss
from .export import write_checkpoint, write_json
from .layers import Config
from .network import Network, release_tensors

WARM_UP_STEPS = 60
# With the V3 report's 0.001 routing stays collapsed in so short a run (max/mean load 3-4 of 4).
BIAS_STEP = 0.01


def learning_rate(peak: float, step: int, done: float) -> float:
    """Warm up by steps, hold, then fall along a cosine over the last two thirds of the time."""
    fall = max(0.0, (done - 1 / 3) * 1.5)
    return peak * min(1.0, (step + 1) / WARM_UP_STEPS) * (0.51 + 0.49 * math.cos(math.pi * fall))


def optimizer_for(network: Network, rate: float) -> torch.optim.AdamW:
    """Return AdamW that decays matrices and leaves norm weights alone."""
    weights = list(network.parameters())
    groups = [
        {"params": [w for w in weights if w.dim() > 1], "weight_decay": 0.1},
        {"params": [w for w in weights if w.dim() == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)


class Run:
    """One training run that can be stopped and taken up again from its state file."""

    def __init__(self, args: argparse.Namespace, train: Tensor, held: Tensor) -> None:
        self.args, self.train, self.held = args, train, held
        self.network = Network(Config(), args.dropout)
        self.optimizer = optimizer_for(self.network, args.lr)
        self.crops = torch.Generator().manual_seed(0)
        self.step, self.seconds = 0, 0.0
        self.curve: list[dict[str, float]] = []
        self.state = args.state / "state.pt"
        if self.state.exists():
            self._load()

    def save(self) -> None:
        """Write everything a later process needs, whole or not at all."""
        names = ("step", "seconds", "curve")
        parts = {name: getattr(self, name) for name in names}
        parts |= {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        parts |= {"crops": self.crops.get_state(), "dropout": torch.get_rng_state()}
        torch.save(parts, self.state.with_suffix(".new"))
        self.state.with_suffix(".new").replace(self.state)

    def _load(self) -> None:
        parts = torch.load(self.state)
        self.step, self.seconds, self.curve = (parts[k] for k in ("step", "seconds", "curve"))
        self.network.load_state_dict(parts["network"])
        self.optimizer.load_state_dict(parts["optimizer"])
        self.crops.set_state(parts["crops"])
        torch.set_rng_state(parts["dropout"])

    def train_step(self, done: float) -> float:
        """Take one step on random crops and return its loss."""
        batch, seq = self.args.batch, self.args.seq
        starts = torch.randint(len(self.train) - seq, (batch,), generator=self.crops)
        rows = torch.stack([self.train[i : i + seq + 1] for i in starts])
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.args.lr, self.step, done)
        logits = self.network(rows[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        bias_step = BIAS_STEP if done < 0.8 else BIAS_STEP / 10
        for layer in self.network.moe_layers():
            toward = torch.sign(layer.load.mean() - layer.load)
            layer.gate.e_score_correction_bias += bias_step * toward
        self.step += 1
        return loss.item()

    def report(self, losses: list[float]) -> None:
        """Add a point to the curve and print it."""
        load = max((x.load.max() / x.load.mean()).item() for x in self.network.moe_layers())
        point = {
            "step": self.step,
            "tokens": self.step * self.args.batch * self.args.seq,
            "minutes": round(self.seconds / 60, 2),
            "train_loss": round(sum(losses) / len(losses), 4),
            "heldout_loss": round(heldout_loss(self.network, self.held, self.args.seq), 4),
            "max_over_mean_load": round(load, 2),
        }
        self.curve.append(point)
        print(json.dumps(point), flush=True)

    def loop(self) -> None:
        """Train until the time is spent; evaluate and save on the way."""
        limit, every = self.args.minutes * 60, self.args.report_minutes * 60
        losses: list[float] = []
        reported = self.seconds
        if self.seconds >= limit:  # taken up only to write its files again
            return
        start = time.monotonic() - self.seconds
        while self.seconds < limit:
            losses.append(self.train_step(self.seconds / limit))
            self.seconds = time.monotonic() - start
            if self.seconds - reported >= every:
                reported = self.seconds
                self.report(losses)
                losses.clear()
                self.save()
        self.report(losses or [math.nan])
        self.save()


def log_of(run: Run, held_bytes: int) -> dict[str, object]:
    """Return train_log.json's content; paths stay out of the command it records."""
    options = ("minutes", "threads", "batch", "seq", "lr", "dropout")
    words = [f"--{name} {getattr(run.args, name):g}" for name in options]
    loss = heldout_loss(run.network, run.held, run.args.seq)
    bits = bits_per_byte(loss, len(run.held), held_bytes)
    cpu = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {
        "command": " ".join(["python -m expertile.model.checkpoint.train", *words]),
        "curve": run.curve,
        "date": datetime.now(UTC).date().isoformat(),
        "float32": {"heldout_loss": round(loss, 5), "bits_per_byte": round(bits, 4)},
        "heldout_bytes": held_bytes,
        "heldout_tokens": len(run.held),
        "machine": f"{os.cpu_count()}-core {cpu}",
        "minutes": round(run.seconds / 60, 1),
        "parameters": sum(w.numel() for w in run.network.parameters()),
        "python": platform.python_version(),
        "steps": run.step,
        "tokens": run.step * run.args.batch * run.args.seq,
        "torch": torch.__version__.partition("+")[0],
        "train_tokens": len(run.train),
        "window": run.args.seq,
    }


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="float32 checkpoint folder")
    parser.add_argument("--state", type=Path, required=True, help="folder to stop and resume in")
    parser.add_argument("--minutes", type=float, default=82, help="wall time of the training")
    parser.add_argument("--report-minutes", type=float, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seq", type=int, default=320)
    parser.add_argument("--lr", type=float, default=2.5e-3)
    parser.add_argument("--dropout", type=float, default=0.1)
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Train, then write the float32 checkpoint and its log."""
    args = parse(argv)
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    args.state.mkdir(parents=True, exist_ok=True)
    texts, held_texts = split(documents())
    tokenizer = train_tokenizer(texts, Config.vocab_size)
    run = Run(args, encode(tokenizer, texts), encode(tokenizer, held_texts))
    print(f"{len(run.train)} training and {len(run.held)} held-out tokens", flush=True)
    run.loop()
    log = log_of(run, sum(len(text.encode()) for text in held_texts))
    write_checkpoint(args.out, run.network.c, release_tensors(run.network), tokenizer, run.held)
    write_json(args.out / "train_log.json", log)
    print(json.dumps(log["float32"]))


if __name__ == "__main__":
    main(sys.argv[1:])
