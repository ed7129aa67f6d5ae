"""Text that ships with Python (docstrings and pydoc topics), and its tokens."""

import ast
import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor

BOS, EOS = "<bos>", "<eos>"
BOS_ID, EOS_ID = 0, 1  # the trainer numbers special tokens first, in their order
SHORTEST = 60  # characters; shorter docstrings are mostly one repeated sentence
HELD_OUT_ONE_IN = 40  # documents; gives about 20k tokens
_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "__pycache__"}
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def source_files() -> Iterator[Path]:
    """Yield the standard library's own Python files, without its tests."""
    for folder, children, files in os.walk(sysconfig.get_path("stdlib")):
        # Pruned in place: os.walk reads the list back, and sorting fixes the order.
        children[:] = sorted(set(children) - _SKIPPED)
        yield from (Path(folder, name) for name in sorted(files) if name.endswith(".py"))


def docstrings(source: str) -> Iterator[str]:
    """Yield the docstrings of one module, cleaned of their indentation."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a few files are data in an older grammar
        return
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED):
            text = ast.get_docstring(node)
            if text and len(text) > SHORTEST:
                yield text


def _digest(document: str) -> bytes:
    return hashlib.sha256(document.encode()).digest()


def documents() -> list[str]:
    """Return every distinct document, in an order that depends on its text alone."""
    found = set(topics.values())
    for path in source_files():
        found.update(docstrings(path.read_text(encoding="utf-8", errors="replace")))
    # The digest is a shuffle that no random generator or file order can change.
    return sorted(found, key=_digest)


def split(texts: list[str]) -> tuple[list[str], list[str]]:
    """Return (training, held-out) documents; a document's side is fixed by its text."""
    held = [_digest(text)[-1] % HELD_OUT_ONE_IN == 0 for text in texts]
    train = [text for text, is_held in zip(texts, held, strict=True) if not is_held]
    return train, [text for text, is_held in zip(texts, held, strict=True) if is_held]


def train_tokenizer(texts: list[str], size: int) -> Tokenizer:
    """Train a byte-level BPE, so that every string has tokens and comes back unchanged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # In tokenizer.json itself, because not every reader heeds tokenizer_config's add_bos_token.
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, BOS_ID)]
    )
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """Concatenate documents, each between <bos> and <eos>."""
    ids: list[int] = []
    for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
        ids += [BOS_ID, *encoding.ids, EOS_ID]
    return torch.tensor(ids)
