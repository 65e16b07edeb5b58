"""Which tokens a session's grammar allows next: at the tail, where tokens are drawn. Knows llguidance, and no sessions.

The state of a grammar is a function of the answer's tokens so far, so a tail that takes a session over rebuilds it from
the token log, and the answer is the one that would have come (invariant 5).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline.wire.errors import InvalidRequest, UnsupportedModel

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

COMPACT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One way to write a JSON text: a model that may choose its white space can choose nothing else for ever."""


class Grammars:
    """Of one model. `tokenizer`: gives its tokenizer.json's path, when a grammar first needs it. `eos_ids`: what ends
    an answer that is complete.
    """

    def __init__(self, tokenizer: Callable[[], Path], vocab: int, eos_ids: Sequence[int]) -> None:
        self._path = tokenizer
        self._vocab = vocab
        self._eos_ids = list(eos_ids)
        self._tokenizer: LLTokenizer | None = None

    def begin(self, grammar: str) -> GrammarState:
        """A session's state. Raises InvalidRequest for what is no grammar, UnsupportedModel where none is served."""
        state = GrammarState(self._matcher(grammar))
        if state.error:
            raise InvalidRequest(f"grammar: {state.error}")
        return state

    def _matcher(self, grammar: str) -> LLMatcher:
        try:
            from llguidance import LLMatcher
        except ImportError as error:
            raise UnsupportedModel("this node has no llguidance, so it serves no grammars") from error
        return LLMatcher(self._loaded(), compiled(grammar), log_level=0)

    def _loaded(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        if self._tokenizer is None:
            try:
                self._tokenizer = LLTokenizer(str(self._path()), n_vocab=self._vocab, eos_token=self._eos_ids)
            except ValueError as error:
                raise UnsupportedModel(f"no grammars for this model's kind of tokenizer: {error}") from error
        return self._tokenizer


class GrammarState:
    """One session's. `error`: why nothing more can come, where a bound of the grammar was reached."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self._taken: tuple[int, ...] = ()
        self.error = matcher.get_error() if matcher.is_error() else ""

    def allowed(self, answer: tuple[int, ...]) -> bytes:
        """A bit for each token that may follow `answer`; empty where none may. For any answer: it may be a shorter one
        than the last, after a rollback, or the first that this process sees of a session.
        """
        if answer[: len(self._taken)] != self._taken:
            self._matcher.reset()
            self._taken = ()
        for token in answer[len(self._taken) :]:
            self._matcher.consume_token(token)
        self._taken = answer
        if self._matcher.is_error():
            self.error = self._matcher.get_error()
            return b""
        return self._matcher.compute_bitmask()


def compiled(grammar: str) -> str:
    """`SamplingParams.grammar` → what llguidance reads. Raises InvalidRequest."""
    from llguidance import LLMatcher

    kind, _, text = grammar.partition(":")
    if kind == "lark":
        return LLMatcher.grammar_from_lark(text)
    if kind != "json":
        raise InvalidRequest(f"grammar of kind {kind[:16]!r}", cure="use json: or lark:")
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"grammar: not JSON: {error}") from error
    if not isinstance(schema, dict):
        raise InvalidRequest("grammar: a JSON schema is an object")
    return LLMatcher.grammar_from_json_schema(schema, overrides=COMPACT)
