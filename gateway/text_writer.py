"""Pieces → text completions, whole or in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from msgspec import UNSET
from msgspec.structs import replace

from paceline.client.results import Piece, Result, TokenLogprob
from paceline.gateway.replies import ErrorBody, FinishReason, RideAccount, TextChoice, TextCompletion, TextLogprobs
from paceline.gateway.writers import Event, Head, Plain, finish_of, usage
from paceline.wire.messages import Timings


@dataclass(slots=True)
class _Choice:
    echo: str
    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    length: int = 0
    finish: FinishReason | None = None


class TextWriter:
    """`echoes`: for each choice what stands before its answer. `prompts`: how many there were; `logprobs`: how many
    alternatives to tell, None for nothing.
    """

    closing = b"data: [DONE]\n\n"

    def __init__(
        self, head: Head, echoes: Sequence[str], *, prompts: int, logprobs: int | None, with_usage: bool
    ) -> None:
        self._head = head
        self._prompts = prompts
        self._logprobs = logprobs
        self._with_usage = with_usage
        self._choices = [_Choice(echo) for echo in echoes]
        self._plain = [Plain(partial(self._text, index)) for index in range(len(echoes))]

    def begin(self) -> list[Event]:
        """Echoes, where asked for."""
        return [
            Event(self._bare([TextChoice(index, state.echo)]))
            for index, state in enumerate(self._choices)
            if state.echo
        ]

    def piece(self, choice: int, piece: Piece, ride: RideAccount | None, timings: Timings = ()) -> list[Event]:
        """A chunk where there is anything to tell."""
        state = self._choices[choice]
        offset = len(state.echo) + state.length
        state.text.append(piece.text)
        state.length += len(piece.text)
        logprobs = None
        if self._logprobs is not None and piece.logprob is not None:
            state.logprobs.append(piece.logprob)
            state.offsets.append(offset)
            logprobs = self._told([piece.logprob], [offset])
        if logprobs is None and ride is None and not timings:
            return [self._plain[choice](piece.text)] if piece.text else []
        chunk = self._bare([TextChoice(choice, piece.text, logprobs)], ride)
        return [Event(replace(chunk, timings=list(timings)) if timings else chunk)]

    def _text(self, choice: int, text: str) -> TextCompletion:
        return self._bare([TextChoice(choice, text)])

    def end(self, choice: int, result: Result) -> list[Event]:
        """The chunk with the finish reason."""
        state = self._choices[choice]
        state.finish = finish_of(result)
        return [Event(self._bare([TextChoice(choice, "", None, state.finish)]))]

    def close(self, results: Sequence[Result]) -> list[Event]:
        """Usage, where it was asked for."""
        if not self._with_usage:
            return []
        return [Event(replace(self._bare([]), usage=usage(results, self._prompts)))]

    def failed(self, error: ErrorBody) -> list[Event]:
        """An error object in place of a chunk: OpenAI's clients raise it."""
        return [Event(error)]

    def whole(self, results: Sequence[Result], ride: RideAccount | None) -> TextCompletion:
        """The completion."""
        choices = [self._whole_choice(index, state) for index, state in enumerate(self._choices)]
        return replace(self._bare(choices, ride), usage=usage(results, self._prompts))

    def _whole_choice(self, index: int, state: _Choice) -> TextChoice:
        logprobs = None if self._logprobs is None else self._told(state.logprobs, state.offsets)
        return TextChoice(index, state.echo + "".join(state.text), logprobs, state.finish)

    def _told(self, logprobs: Sequence[TokenLogprob], offsets: Sequence[int]) -> TextLogprobs:
        top = [{text: value for _, text, value in each.top} for each in logprobs] if self._logprobs else None
        tokens, values = [each.text for each in logprobs], [each.logprob for each in logprobs]
        return TextLogprobs(tokens, values, top, list(offsets))

    def _bare(self, choices: list[TextChoice], ride: RideAccount | None = None) -> TextCompletion:
        head = self._head
        return TextCompletion(
            id=head.id,
            created=head.created,
            model=head.model,
            system_fingerprint=head.fingerprint,
            choices=choices,
            usage=None if self._with_usage else UNSET,
            paceline=ride or UNSET,
        )
