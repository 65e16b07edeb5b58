"""Finds tool calls in a model's text as it streams. Pure.

Two spellings are known: ``<tool_call>{"name": …, "arguments": {…}}</tool_call>`` (Hermes, Qwen, SmolLM3), and an answer
that is nothing but one JSON object with ``name`` and ``parameters`` or ``arguments`` (Llama 3). What only looks like a
call and does not parse stays text: nothing of the answer is lost.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from paceline.client.text import StopMatcher

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_STRING_OR_CLOSE = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\\?\Z)|</tool_call>', re.DOTALL)
"""A string that has not ended yet reaches to the end of the text."""


@dataclass(frozen=True, slots=True)
class Call:
    """`arguments`: JSON, as text."""

    name: str
    arguments: str


@dataclass(slots=True)
class ToolCallParser:
    """`feed` every piece, `flush` at the end; both return what is certain: text and calls, in order. White space beside
    a call is layout, not text.
    """

    _inside: str | None = None
    """Text since `OPEN`; None outside a call."""
    _bare: str | None = ""
    """The whole answer, while it may still be one bare JSON object; None once it cannot be."""
    _outside: StopMatcher = field(default_factory=lambda: StopMatcher((OPEN,)))
    _space: str = ""
    """White space that text or a call may follow."""
    _called: bool = False

    def feed(self, text: str) -> list[str | Call]:
        """The next piece of the answer."""
        if self._bare is not None:
            text = self._bare + text
            self._bare = text if text.lstrip()[:1] in ("", "{") else None
            if self._bare is not None:
                return []
        found: list[str | Call] = []
        while text:
            feed = self._feed_outside if self._inside is None else self._feed_inside
            text = feed(text, found)
        return found

    def flush(self) -> list[str | Call]:
        """What was held back."""
        if self._bare:
            return [_bare_call(self._bare) or self._bare]
        found: list[str | Call] = []
        self._text(self._outside.flush() if self._inside is None else OPEN + self._inside, found)
        if self._space and not self._called:
            found.append(self._space)
        return found

    def _feed_outside(self, text: str, found: list[str | Call]) -> str:
        whole = self._outside.flush() + text
        before, opened, after = whole.partition(OPEN)
        if opened:
            self._inside = ""
        else:
            before, _ = self._outside.feed(whole)
        self._text(before, found)
        return after

    def _feed_inside(self, text: str, found: list[str | Call]) -> str:
        self._inside = (self._inside or "") + text
        end = _end(self._inside)
        if end < 0:
            return ""
        inner, after, self._inside = self._inside[:end], self._inside[end + len(CLOSE) :], None
        call = _call(inner, ("arguments", "parameters"))
        if call is None:
            self._text(OPEN + inner + CLOSE, found)
        else:
            self._called, self._space = True, ""
            found.append(call)
        return after

    def _text(self, text: str, found: list[str | Call]) -> None:
        whole = self._space + text
        certain = whole.rstrip()
        self._space = whole[len(certain) :]
        self._called = self._called and not certain
        if certain:
            found.append(certain)


def _end(text: str) -> int:
    """Where `CLOSE` stands outside of a JSON string; -1 where it does not yet."""
    return next((match.start() for match in _STRING_OR_CLOSE.finditer(text) if match[0] == CLOSE), -1)


def _bare_call(text: str) -> Call | None:
    return _call(text, ("parameters", "arguments"))


def _call(text: str, keys: tuple[str, ...]) -> Call | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    arguments: object = next((value[key] for key in keys if key in value), {})
    if not isinstance(arguments, dict):
        return None
    return Call(value["name"], json.dumps(arguments, ensure_ascii=False))
