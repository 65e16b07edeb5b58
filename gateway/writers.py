"""An answer's pieces → the records that the API sends: one writer for each kind of endpoint, streamed or whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from msgspec import Struct

from paceline.client.results import Piece, Result
from paceline.gateway.replies import ErrorBody, FinishReason, RideAccount, Usage

REPLACEMENT = "�"


class Event(NamedTuple):
    """One server-sent event."""

    body: Struct
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What every record of an answer repeats. `created`: unix seconds. `fingerprint`: revision and numerics class."""

    id: str
    created: int
    model: str
    fingerprint: str


class Writer(Protocol):
    """Call `begin` once with the first piece at hand, `piece` for each, `end` as each choice ends, `close` at last."""

    closing: bytes
    """Sent behind the last event of a stream."""

    def begin(self) -> list[Event]:
        """What comes before the first piece."""
        ...

    def piece(self, choice: int, piece: Piece, ride: RideAccount | None) -> list[Event]:
        """`ride`: to be told with this piece."""
        ...

    def end(self, choice: int, result: Result) -> list[Event]:
        """A choice is complete; its finish reason is "stop" or "length"."""
        ...

    def close(self, results: Sequence[Result]) -> list[Event]:
        """All choices are complete."""
        ...

    def whole(self, results: Sequence[Result], ride: RideAccount | None) -> Struct:
        """The whole answer as one body, after the same calls."""
        ...

    def failed(self, error: ErrorBody) -> list[Event]:
        """The answer ended early."""
        ...


def usage(results: Sequence[Result], prompts: int) -> Usage:
    """Tokens of all choices; each of `prompts` prompts counts once, however many answers it got."""
    each = len(results) // prompts
    asked = sum(result.prompt_tokens for result in results[::each])
    answered = sum(len(result.tokens) for result in results)
    return Usage(asked, answered, asked + answered)


def finish_of(result: Result) -> FinishReason:
    """OpenAI's word for it. An answer that neither stopped nor reached its length has no such word, only an error."""
    assert result.finish_reason != "cancelled"
    return result.finish_reason


def utf8(text: str) -> list[int] | None:
    """Bytes of a token's text; None where it is a fragment of a character."""
    return None if REPLACEMENT in text else list(text.encode())
