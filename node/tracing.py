"""How long each stage of a traced session has a token: on the way there, waiting, computing.

Knows arrivals, and the clock that it is given. The protocol's machines know no clock, so the shell writes the times
onto what they send. A frame that is traced names when it left, so a node needs to know nothing else of tracing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from paceline.consistency.effects import Send, StageEffect
from paceline.wire.messages import Frame, NextToken, SessionMessage, StageTime, TokenEvent

MOST = 4096
"""Arrivals remembered; the oldest go first."""

_LONGEST_US = (1 << 31) - 1

Key = tuple[bytes, int, int]
"""Session, first layer of the stage, and the position behind the input's last."""


@dataclass(frozen=True, slots=True)
class _Came:
    at_us: int
    hop_us: int
    earlier: tuple[StageTime, ...]


class Tracing:
    """One node's. `unix_time` in seconds."""

    def __init__(self, unix_time: Callable[[], float]) -> None:
        self._unix_time = unix_time
        self._came: dict[Key, _Came] = {}

    def now_us(self) -> int:
        """Unix time in µs."""
        return int(self._unix_time() * 1e6)

    def arrived(self, message: SessionMessage) -> None:
        """A message is here: note when, if it is traced."""
        if not isinstance(message, Frame | NextToken) or not message.sent_us:
            return
        now = self.now_us()
        hop = max(-_LONGEST_US, min(now - message.sent_us, _LONGEST_US))
        if isinstance(message, Frame):
            self._note((message.session, message.layer, message.start + message.n), _Came(now, hop, message.timings))
        else:
            self._note((message.session, 0, message.index + 1), _Came(now, hop, ()))

    def _note(self, key: Key, came: _Came) -> None:
        self._came[key] = came
        if len(self._came) > MOST:
            del self._came[next(iter(self._came))]

    def stamped(self, key: Key, began_us: int, effects: Sequence[StageEffect]) -> list[StageEffect]:
        """`effects` of the input that ends at `key`, with times on what they send; its step began at `began_us`.

        Frames sent again from a journal stay without: they tell of no trip.
        """
        now = self.now_us()
        came = self._came.pop(key, None) or _Came(began_us, 0, ())
        mine = (came.hop_us, _us(began_us - came.at_us), _us(now - began_us))
        return [_with_times(effect, key[2], (*came.earlier, mine), now) for effect in effects]


def _us(microseconds: int) -> int:
    return max(0, min(microseconds, _LONGEST_US))


def _with_times(effect: StageEffect, end: int, timings: tuple[StageTime, ...], now: int) -> StageEffect:
    if not isinstance(effect, Send):
        return effect
    message = effect.message
    if isinstance(message, Frame) and message.start + message.n == end:
        return Send(effect.to, msgspec.structs.replace(message, timings=timings, sent_us=now), effect.payload)
    if isinstance(message, TokenEvent) and message.index == end:
        return Send(effect.to, msgspec.structs.replace(message, timings=timings))
    if isinstance(message, NextToken) and message.index == end:
        return Send(effect.to, msgspec.structs.replace(message, sent_us=now))
    return effect
