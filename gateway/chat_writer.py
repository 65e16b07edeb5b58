"""Pieces → chat completions, whole or in chunks, with tool calls and log probabilities."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from msgspec import UNSET
from msgspec.structs import replace

from paceline.client.results import Piece, Result, TokenLogprob
from paceline.gateway.replies import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprobs,
    ChunkChoice,
    ContentLogprob,
    Delta,
    ErrorBody,
    FinishReason,
    FunctionCall,
    RideAccount,
    ToolCall,
    TopLogprob,
)
from paceline.gateway.toolcalls import Call, ToolCallParser
from paceline.gateway.writers import Event, Head, Plain, finish_of, usage, utf8
from paceline.wire.messages import Timings


@dataclass(slots=True)
class _Choice:
    text: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[ContentLogprob] = field(default_factory=list)
    began: bool = False
    finish: FinishReason | None = None


class ChatWriter:
    """`tools`: look for tool calls. `with_usage`: send usage behind the last chunk."""

    closing = b"data: [DONE]\n\n"

    def __init__(self, head: Head, choices: int, *, logprobs: bool, tools: bool, with_usage: bool) -> None:
        self._head = head
        self._logprobs = logprobs
        self._with_usage = with_usage
        self._choices = [_Choice() for _ in range(choices)]
        self._plain = [Plain(partial(self._text, choice)) for choice in range(choices)]
        self._parsers = [ToolCallParser() if tools else None for _ in range(choices)]

    def begin(self) -> list[Event]:
        """Nothing: the role travels with each choice's first chunk."""
        return []

    def piece(self, choice: int, piece: Piece, ride: RideAccount | None, timings: Timings = ()) -> list[Event]:
        """A chunk where there is anything to tell."""
        state, parser = self._choices[choice], self._parsers[choice]
        logprob = content_logprob(piece.logprob) if self._logprobs and piece.logprob else None
        if parser is None and logprob is None and ride is None and not timings and state.began:
            state.text.append(piece.text)
            return [self._plain[choice](piece.text)] if piece.text else []
        found = parser.feed(piece.text) if parser else [piece.text] if piece.text else []
        if logprob is not None:
            state.logprobs.append(logprob)
        if not found and logprob is None and ride is None and not timings and state.began:
            return []
        chunk = self._chunk(choice, self._delta(state, found), [logprob] if logprob else [], ride=ride)
        return [Event(replace(chunk, timings=list(timings)) if timings else chunk)]

    def _text(self, choice: int, text: str) -> ChatChunk:
        return self._chunk(choice, Delta(content=text), [])

    def _delta(self, state: _Choice, found: Sequence[str | Call]) -> Delta:
        text = "".join(part for part in found if isinstance(part, str))
        calls = []
        for part in found:
            if isinstance(part, Call):
                made = ToolCall(id=f"call_{secrets.token_hex(12)}", function=FunctionCall(part.name, part.arguments))
                calls.append(replace(made, index=len(state.calls)))
                state.calls.append(made)
        state.text.append(text)
        first, state.began = not state.began, True
        return Delta("assistant" if first else UNSET, text if text or not calls else UNSET, calls or UNSET)

    def end(self, choice: int, result: Result) -> list[Event]:
        """The chunk with the finish reason, and what was held back as a possible tool call."""
        state, parser = self._choices[choice], self._parsers[choice]
        found = parser.flush() if parser else []
        delta = self._delta(state, found) if found else Delta()
        finish = finish_of(result)
        state.finish = "tool_calls" if state.calls and finish == "stop" else finish
        return [Event(self._chunk(choice, delta, [], state.finish))]

    def close(self, results: Sequence[Result]) -> list[Event]:
        """Usage, where it was asked for."""
        if not self._with_usage:
            return []
        return [Event(replace(self._bare([]), usage=usage(results, 1)))]

    def failed(self, error: ErrorBody) -> list[Event]:
        """An error object in place of a chunk: OpenAI's clients raise it."""
        return [Event(error)]

    def whole(self, results: Sequence[Result], ride: RideAccount | None) -> ChatCompletion:
        """The completion."""
        head = self._head
        return ChatCompletion(
            id=head.id,
            created=head.created,
            model=head.model,
            system_fingerprint=head.fingerprint,
            choices=[self._whole_choice(index, state) for index, state in enumerate(self._choices)],
            usage=usage(results, 1),
            paceline=ride or UNSET,
        )

    def _whole_choice(self, index: int, state: _Choice) -> ChatChoice:
        text = "".join(state.text)
        message = AssistantMessage(None if state.calls and not text else text, tool_calls=state.calls or UNSET)
        assert state.finish is not None
        return ChatChoice(index, message, ChatLogprobs(state.logprobs) if self._logprobs else None, state.finish)

    def _chunk(
        self,
        choice: int,
        delta: Delta,
        logprobs: list[ContentLogprob],
        finish: FinishReason | None = None,
        ride: RideAccount | None = None,
    ) -> ChatChunk:
        made = ChunkChoice(choice, delta, ChatLogprobs(logprobs) if logprobs else None, finish)
        return self._bare([made], ride)

    def _bare(self, choices: list[ChunkChoice], ride: RideAccount | None = None) -> ChatChunk:
        head = self._head
        return ChatChunk(
            id=head.id,
            created=head.created,
            model=head.model,
            system_fingerprint=head.fingerprint,
            choices=choices,
            usage=None if self._with_usage else UNSET,
            paceline=ride or UNSET,
        )


def content_logprob(logprob: TokenLogprob) -> ContentLogprob:
    """OpenAI's spelling of one token's log probability."""
    top = [TopLogprob(text, value, utf8(text)) for _, text, value in logprob.top]
    return ContentLogprob(logprob.text, logprob.logprob, utf8(logprob.text), top)
