"""Text to tokens and back, and the checkpoint's chat template in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import tokenizers
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .config_keys import read_json

Message = Mapping[str, Any]          # role, content, and what else the template knows
_CUT = "\N{REPLACEMENT CHARACTER}"   # what an unfinished UTF-8 sequence decodes to


class Tokenizer:
    """tokenizer.json with the settings of tokenizer_config.json.

    Args:
        folder: a model directory; ValueError when its files are absent or damaged.
    """

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.exists():
            raise ValueError(f"{path} does not exist; give prompts as token ids, or convert the "
                             f"release's tokenizer to tokenizer.json")
        try:
            self._inner = tokenizers.Tokenizer.from_file(str(path))
        except Exception as e:       # tokenizers raises bare Exception, and nothing else
            raise ValueError(f"{path} is not a tokenizer: {e}") from e
        settings = folder / "tokenizer_config.json"
        self._settings = read_json(settings) if settings.exists() else {}
        self.bos_token = _text(self._settings.get("bos_token"))
        self.eos_token = _text(self._settings.get("eos_token"))
        self._template = _template(folder, self._settings)

    @property
    def eos_token_id(self) -> int | None:
        """The end-of-text token's id."""
        return self._id(self.eos_token)

    @property
    def vocab_size(self) -> int:
        """Tokens, added ones included."""
        return int(self._inner.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids; the begin-of-text token goes first where the checkpoint says so."""
        bos, add_bos = self._id(self.bos_token), self._settings.get("add_bos_token")
        # Without the setting, tokenizer.json's own post-processor decides.
        own = add_special_tokens and add_bos is None
        ids: list[int] = self._inner.encode(text, add_special_tokens=own).ids
        if add_special_tokens and add_bos and bos is not None and ids[:1] != [bos]:
            ids.insert(0, bos)
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids."""
        return str(self._inner.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def apply_chat_template(self, messages: Sequence[Message], add_generation_prompt: bool = True,
                            **variables: Any) -> str:
        """Render messages; encode the result with add_special_tokens=False."""
        if self._template is None:
            raise ValueError("the checkpoint has no chat template (chat_template in "
                             "tokenizer_config.json, or chat_template.jinja); give a plain prompt")
        special = {k: _text(v) for k, v in self._settings.items() if k.endswith("_token")}
        try:
            return _environment().from_string(self._template).render(
                messages=list(messages), add_generation_prompt=add_generation_prompt,
                **(special | variables))
        except jinja2.TemplateError as e:
            raise ValueError(f"the chat template does not take these messages: {e}") from e

    def _id(self, token: str | None) -> int | None:
        found = None if token is None else self._inner.token_to_id(token)
        return None if found is None else int(found)


class Detokenizer:
    """Text of a growing token list, piece by piece; holds back cut-off characters.

    Each piece is decoded together with the tokens of the piece before, because a token's text can
    depend on its neighbour (as vLLM's incremental detokenizer does).
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0              # of the piece before
        self._done = 0               # tokens whose text was given out

    def push(self, token: int) -> str:
        """The text that a token completes, "" while a character is cut off."""
        self._ids.append(token)
        text = self._new_text()
        if not text or text.endswith(_CUT):
            return ""
        self._start, self._done = self._done, len(self._ids)
        return text

    def rest(self) -> str:
        """What was held back, at the end."""
        text = self._new_text()
        self._start = self._done = len(self._ids)
        return text

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._ids[self._start:self._done])
        return self._tokenizer.decode(self._ids[self._start:])[len(before):]


def _text(token: Any) -> str | None:
    """A special token is stored as its text or as a mapping that holds it."""
    return token.get("content") if isinstance(token, dict) else token


def _template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    own = folder / "chat_template.jinja"
    if own.exists():
        return own.read_text(encoding="utf-8")
    found = settings.get("chat_template")
    if isinstance(found, list):                      # several named ones
        named = {entry["name"]: entry["template"] for entry in found}
        found = named.get("default")
    return found


def _environment() -> ImmutableSandboxedEnvironment:
    """What templates of the Hub expect to find, and nothing that reaches outside."""
    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
        return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                        extensions=["jinja2.ext.loopcontrols"])
    env.filters["tojson"] = tojson   # jinja2's own escapes HTML
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return env
