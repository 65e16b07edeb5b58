"""Pieces → a response of the Responses API: one message of one text, as a whole or as its sequence of events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from paceline.client.results import Piece, Result
from paceline.gateway.replies import (
    ErrorBody,
    Incomplete,
    OutputMessage,
    OutputText,
    ResponsesError,
    ResponsesReply,
    ResponsesUsage,
    RideAccount,
)
from paceline.gateway.writers import Event, finish_of
from paceline.wire.messages import Timings

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class ResponseEvent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """response.created, response.in_progress, and the end: response.completed, .incomplete or .failed."""

    type: str
    sequence_number: int
    response: ResponsesReply


class ItemEvent(Struct, frozen=True, kw_only=True):
    """response.output_item.added and .done."""

    type: str
    sequence_number: int
    output_index: int = 0
    item: OutputMessage


class PartEvent(Struct, frozen=True, kw_only=True):
    """response.content_part.added and .done."""

    type: str
    sequence_number: int
    item_id: str
    output_index: int = 0
    content_index: int = 0
    part: OutputText


class DeltaEvent(Struct, frozen=True, kw_only=True):
    """response.output_text.delta."""

    type: Literal["response.output_text.delta"] = "response.output_text.delta"
    sequence_number: int
    item_id: str
    output_index: int = 0
    content_index: int = 0
    delta: str
    logprobs: list[Any] = []
    paceline: RideAccount | UnsetType = UNSET


class TextDoneEvent(Struct, frozen=True, kw_only=True):
    """response.output_text.done."""

    type: Literal["response.output_text.done"] = "response.output_text.done"
    sequence_number: int
    item_id: str
    output_index: int = 0
    content_index: int = 0
    text: str
    logprobs: list[Any] = []


RESPONSE_EVENTS = (ResponseEvent, ItemEvent, PartEvent, DeltaEvent, TextDoneEvent)


class ResponsesWriter:
    """`blank`: the reply as it stands before the first token."""

    closing = b""

    def __init__(self, blank: ResponsesReply) -> None:
        self._blank = blank
        self._item = blank.id.replace("resp_", "msg_", 1)
        self._text: list[str] = []
        self._sequence = 0

    def begin(self) -> list[Event]:
        """Created, in progress, and an empty message to add text to."""
        item = self._message("in_progress")
        return [
            self._state("response.created", self._blank),
            self._state("response.in_progress", self._blank),
            self._named(ItemEvent(type="response.output_item.added", sequence_number=self._next(), item=item)),
            self._part("response.content_part.added", OutputText("")),
        ]

    def piece(self, choice: int, piece: Piece, ride: RideAccount | None, timings: Timings = ()) -> list[Event]:
        """A delta where there is text."""
        self._text.append(piece.text)
        if not piece.text and ride is None:
            return []
        told = UNSET if ride is None else ride
        return [
            self._named(DeltaEvent(sequence_number=self._next(), item_id=self._item, delta=piece.text, paceline=told))
        ]

    def end(self, choice: int, result: Result) -> list[Event]:
        """Text, part and message are done."""
        text = "".join(self._text)
        done = TextDoneEvent(sequence_number=self._next(), item_id=self._item, text=text)
        part = self._part("response.content_part.done", OutputText(text))
        item = self._message(self._status(result), text)
        last = ItemEvent(type="response.output_item.done", sequence_number=self._next(), item=item)
        return [self._named(done), part, self._named(last)]

    def close(self, results: Sequence[Result]) -> list[Event]:
        """The whole response once more."""
        reply = self.whole(results, None)
        return [self._state(f"response.{reply.status}", reply)]

    def failed(self, error: ErrorBody) -> list[Event]:
        """The text so far, and why there is no more."""
        told = ResponsesError(error.error.code, error.error.message)
        item = self._message("incomplete", "".join(self._text))
        return [self._state("response.failed", replace(self._blank, status="failed", error=told, output=[item]))]

    def whole(self, results: Sequence[Result], ride: RideAccount | None) -> ResponsesReply:
        """The response."""
        (result,) = results
        status = self._status(result)
        asked, answered = result.prompt_tokens, len(result.tokens)
        return replace(
            self._blank,
            status=status,
            output=[self._message(status, "".join(self._text))],
            usage=ResponsesUsage(input_tokens=asked, output_tokens=answered, total_tokens=asked + answered),
            incomplete_details=Incomplete("max_output_tokens") if status == "incomplete" else None,
            paceline=ride or UNSET,
        )

    @staticmethod
    def _status(result: Result) -> Literal["completed", "incomplete"]:
        return "completed" if finish_of(result) == "stop" else "incomplete"

    def _message(self, status: Literal["in_progress", "completed", "incomplete"], text: str = "") -> OutputMessage:
        return OutputMessage(id=self._item, status=status, content=[OutputText(text)] if text else [])

    def _part(self, kind: str, part: OutputText) -> Event:
        return self._named(PartEvent(type=kind, sequence_number=self._next(), item_id=self._item, part=part))

    def _state(self, kind: str, reply: ResponsesReply) -> Event:
        return self._named(ResponseEvent(type=kind, sequence_number=self._next(), response=reply))

    def _named(self, body: ResponseEvent | ItemEvent | PartEvent | DeltaEvent | TextDoneEvent) -> Event:
        return Event(body, body.type)

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence - 1
