"""Text ↔ token ids, and chat templates, without torch or transformers.

tokenizer.json is read by the `tokenizers` package. Chat templates are Jinja, written by strangers: they run in the
immutable sandbox, with the same helpers that transformers gives them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import jinja2
import jinja2.sandbox
import tokenizers
from tokenizers.decoders import DecodeStream

from paceline.wire.errors import CorruptBlock, InvalidRequest


class Tokenizer:
    """One revision's tokenizer. `tokenizer_json`, `config_json`: contents of the manifest's two text blocks."""

    def __init__(self, tokenizer_json: bytes, config_json: bytes = b"{}") -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(tokenizer_json)
            self._config: dict[str, Any] = json.loads(config_json)
        except ValueError as error:
            raise CorruptBlock(f"unreadable tokenizer: {error}") from error
        self._template: jinja2.Template | None = None

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of `text`. `special`: add what the model expects around a plain prompt (such as BOS)."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens left out."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def stream(self) -> TokenStream:
        """For text that arrives token by token."""
        return TokenStream(self._tokenizer)

    def token_text(self, token: int) -> str:
        """One token alone, for people to look at: an incomplete character shows as U+FFFD."""
        text: str = self._tokenizer.decode([token], skip_special_tokens=False)
        return text

    @property
    def has_chat_template(self) -> bool:
        return bool(self._config.get("chat_template"))

    def chat(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> list[int]:
        """Token ids of a conversation, ready for the assistant's answer. Raises InvalidRequest."""
        template = self._template or self._compiled()
        self._template = template
        names = ("bos_token", "eos_token", "unk_token", "pad_token")
        special = {name: _text(self._config.get(name)) for name in names if self._config.get(name)}
        try:
            text = template.render(messages=list(messages), add_generation_prompt=True, **special, **variables)
        except (jinja2.TemplateError, TypeError, KeyError, AttributeError) as error:
            raise InvalidRequest(f"the chat template refused these messages: {error}") from error
        return self.encode(text, special=False)

    def _compiled(self) -> jinja2.Template:
        source = self._config.get("chat_template")
        if not isinstance(source, str) or not source:
            raise InvalidRequest("this model has no chat template", cure="send a plain prompt")
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now(tz=UTC).strftime(form)
        environment.filters["tojson"] = _to_json
        try:
            return environment.from_string(source)
        except jinja2.TemplateError as error:
            raise CorruptBlock(f"unusable chat template: {error}") from error


class TokenStream:
    """Incremental decoding: text appears once its characters are whole."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._tail: list[int] = []

    def feed(self, token: int) -> str:
        """The text that `token` completes; empty while a character is unfinished."""
        self._tail.append(token)
        text: str | None = self._stream.step(self._tokenizer, token)
        if text:
            self._tail.clear()
        return text or ""

    def flush(self) -> str:
        """What an unfinished character leaves behind (U+FFFD), for the end of a cut-off answer."""
        if not self._tail:
            return ""
        text: str = self._tokenizer.decode(self._tail, skip_special_tokens=True)
        self._tail.clear()
        return text


def _text(token: Any) -> str:
    return token["content"] if isinstance(token, dict) else str(token)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
