"""A three-stage ring to script: routes, openings, frames, and what a machine's effects say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paceline.consistency.effects import Send
from paceline.consistency.owner import Owner, OwnerLimits, Request
from paceline.consistency.stage import Drawn, StageMachine
from paceline.wire.ids import PeerId, Revision, SessionId
from paceline.wire.messages import Frame, Nack, NextToken, OpenStage, PeerAddress, Prompt, Stage
from paceline.wire.sampling import SamplingParams

SESSION = SessionId(b"s" * 16)
REVISION = Revision(b"r" * 32)
TAG = REVISION[:4]
OWNER = PeerId("owner")
ROW = 8
E1, E2, E3 = 1 << 32, 2 << 32, 3 << 32


def peer(name: str) -> PeerAddress:
    return PeerAddress(name)


def route(*names: str, shadows: dict[str, str] | None = None) -> tuple[Stage, ...]:
    """Stages of two layers each."""
    found = shadows or {}
    return tuple(
        Stage(peer(name), 2 * k, 2 * k + 2, (peer(found[name]),) if name in found else ())
        for k, name in enumerate(names)
    )


ABC = route("a", "b", "c")


def opening(
    index: int,
    epoch: int = E1,
    on: tuple[Stage, ...] = ABC,
    lengths: Sequence[int] = (),
    known: int = 4,
    sampling: SamplingParams | None = None,
    chunk: int = 4,
    shadow: bool = False,
    most: int = 16,
) -> OpenStage:
    return OpenStage(
        SESSION,
        REVISION,
        epoch,
        0,
        index,
        on,
        tuple(lengths) or (0,) * len(on),
        known,
        4,
        most,
        sampling or SamplingParams(),
        chunk,
        shadow,
    )


def rows(start: int, n: int, branch: int = 0) -> bytes:
    """Rows that name their position and branch."""
    return b"".join(f"{branch:02d}:{position:05d}".encode() for position in range(start, start + n))


def frame(start: int, n: int = 1, epoch: int = E1, branch: int = 0, tag: bytes = TAG, layer: int = 2) -> Frame:
    return Frame(SESSION, layer, tag, epoch, branch, start, n, "f16", 4, (0,) * (layer // 2))


def prompt(start: int, *ids: int, epoch: int = E1, layer: int = 0) -> Prompt:
    return Prompt(SESSION, layer, epoch, 0, start, ids)


def next_token(index: int, token: int = 7, epoch: int = E1) -> NextToken:
    return NextToken(SESSION, epoch, 0, index, token)


def nack(have: int, epoch: int = E1, branch: int = 0, layer: int = 2) -> Nack:
    return Nack(SESSION, layer, epoch, branch, have)


class Bench:
    """One machine on the bench: `give` a message, `run` the engine, read what was sent."""

    def __init__(self, opening: OpenStage, journal: int = 1 << 20, owner: PeerId = OWNER) -> None:
        self.me = PeerId(opening.route[opening.index].at.peer)
        self.machine = StageMachine(self.me, opening, 4, journal)
        self.kv = 0
        """What the shard would hold."""
        self.effects: list[Any] = []
        self.give(owner, opening)

    def give(self, sender: str, message: Any, payload: bytes = b"") -> Any:
        """Effects, or None for a hold."""
        if isinstance(message, Frame) and not payload:
            payload = rows(message.start, message.n, message.branch)
        return self.perform(self.machine.handle(PeerId(sender), message, payload))

    def perform(self, effects: Any) -> Any:
        for effect in effects or ():
            if type(effect).__name__ == "CropKv":
                self.kv = min(self.kv, effect.length)
        self.effects += effects or ()
        return effects

    def run(self, token: int = 7) -> list[Any]:
        """Everything that can be run; the engine's results at once."""
        done: list[Any] = []
        while (given := self.machine.take()) is not None:
            assert given.start == self.kv, "the work does not continue the KV"
            self.kv = given.end
            drawn = Drawn(token) if given.sample else None
            done += self.perform(self.machine.done(given, rows(given.start, given.n, given.branch), "f16", drawn))
        return done

    def feed(self, *messages: Any, sender: str = "a") -> list[Any]:
        """Messages and the engine, in turn."""
        found: list[Any] = []
        for message in messages:
            found += self.give(sender, message) or []
            found += self.run()
        return found


def sent(effects: Any, kind: type | None = None) -> list[Any]:
    """The messages of Send effects, of one kind."""
    found = [effect.message for effect in effects or () if isinstance(effect, Send)]
    return [message for message in found if kind is None or isinstance(message, kind)]


def told(effects: Any) -> list[str]:
    """Who is sent something, in order."""
    return [getattr(effect.to, "peer", effect.to) for effect in effects if isinstance(effect, Send)]


def spans(effects: Any) -> list[tuple[int, int]]:
    """``(start, n)`` of each frame sent."""
    return [(message.start, message.n) for message in sent(effects, Frame)]


def owner_of(prompt_ids: Sequence[int] = (1, 2, 3, 4), most: int = 10, **sampling: Any) -> Owner:
    request = Request(SESSION, REVISION, "toy", tuple(prompt_ids), most, SamplingParams(**sampling))
    return Owner(request, 5, 0.0, OwnerLimits())
