"""An answer's pieces → the records that the API sends: one writer for each kind of endpoint, streamed or whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import msgspec
from msgspec import Raw, Struct

from paceline.client.results import Piece, Result
from paceline.gateway.replies import ErrorBody, FinishReason, RideAccount, Usage
from paceline.wire.messages import Timings

REPLACEMENT = "�"


class Event(NamedTuple):
    """One server-sent event."""

    body: Struct | Raw
    name: str = ""


class Plain:
    """Events of pieces that are text and nothing else, as nearly all are: the record is encoded once, with a hole.
    `record`: the record of such a piece, in which no text comes behind the piece's.
    """

    def __init__(self, record: Callable[[str], Struct]) -> None:
        self._before, _, self._behind = msgspec.json.encode(record("\0")).rpartition(msgspec.json.encode("\0"))

    def __call__(self, text: str) -> Event:
        """The event that ``Event(record(text))`` is."""
        return Event(Raw(self._before + msgspec.json.encode(text) + self._behind))


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

    def piece(self, choice: int, piece: Piece, ride: RideAccount | None, timings: Timings = ()) -> list[Event]:
        """`ride` and `timings`: to be told with this piece."""
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
