"""Held-out loss, bits per byte and sampled text of a trained network."""

import math

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from .corpus import EOS_ID


@torch.no_grad()
def heldout_loss(network: nn.Module, tokens: Tensor, seq: int) -> float:
    """Return nats per token, each predicted inside its window of `seq`, windows end to end."""
    # tokens [n]; the first has nothing before it and is not predicted
    training = network.training
    network.eval()
    total = 0.0
    for start in range(0, len(tokens) - 1, seq):
        window = tokens[start : start + seq + 1]
        logits = network(window[None, :-1])[0]
        total += F.cross_entropy(logits, window[1:], reduction="sum").item()
    network.train(training)
    return total / (len(tokens) - 1)


def bits_per_byte(loss: float, tokens: int, size: int) -> float:
    """Turn nats per token into bits per byte of text; <bos> and <eos> cost but add no bytes."""
    return loss * (tokens - 1) / (size * math.log(2))


@torch.no_grad()
def sample(
    network: nn.Module,
    tokenizer: Tokenizer,
    prompt: str,
    seed: int,
    length: int = 120,
    temperature: float = 0.7,
    top_k: int = 40,
) -> str:
    """Return the prompt as a document's start, continued until <eos> or `length` tokens."""
    network.eval()
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = tokenizer.encode(prompt).ids  # begins with <bos>
    for _ in range(length):
        logits = network(torch.tensor([ids]))[0, -1]
        top = torch.topk(logits / temperature, top_k)
        choice = torch.multinomial(F.softmax(top.values, -1), 1, generator=generator)
        ids.append(int(top.indices[choice]))
        if ids[-1] == EOS_ID:
            break
    text: str = tokenizer.decode(ids)  # leaves <bos> and <eos> out
    return text
