"""Who takes part in a simulated change of revisions: nodes that hold several, clients, and what all of them hear."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from paceline.consistency.revisions import Frontier, Level
from paceline.consistency.upgrading import Holder
from paceline.engine.shard import Work
from paceline.engine.toy import generate
from paceline.sim.chance import Chance
from paceline.sim.host import Host
from paceline.sim.reference import CheckedShard, Reference, model_of
from paceline.sim.rider import Rider
from paceline.wire.ids import PeerId, Revision, Span
from paceline.wire.messages import OpenStage
from paceline.wire.releases import Release
from paceline.wire.sampling import SamplingParams


def revision(number: int) -> Revision:
    """One of the simulated revisions. Frames carry its first four bytes, so these differ, as those of hashes do."""
    return Revision(f"{number:04}-revision".encode().ljust(32, b"."))


@cache
def reference_of(which: Revision, number: int) -> Reference:
    """An undisturbed generation on one revision."""
    chance = Chance(number)
    model = replace(model_of(which))
    prompt = tuple(chance.below(model.vocab) for _ in range(1 + chance.below(4)))
    tokens = 60 if number % 5 == 0 else 3 + chance.below(12)
    params = SamplingParams(seed=number)
    log = (*prompt, *generate(model, prompt, tokens, params))
    shard = CheckedShard(which)
    shard.open("all", len(log))
    shard.step([Work("all", 0, ids=log)])
    states = tuple(zip(*(shard.tips("all", n) for n in range(len(log) + 1)), strict=True))
    return Reference(prompt, log, len(prompt) + tokens, params, states)


@dataclass(frozen=True)
class Known:
    """An offer as it travels: the newest of its peer counts, until it expires."""

    sequence: int
    expires: float
    rows: tuple[Holder, ...]
    releases: frozenset[Release]


class Member:
    """Whoever hears gossip."""

    def __init__(self, me: PeerId) -> None:
        self.me = me
        self.view: dict[PeerId, Known] = {}
        self.frontier = Frontier()
        self.heard: set[Release] = set()

    def hear(self, view: dict[PeerId, Known]) -> None:
        """Another's view: the newest offer of each peer, and the releases inside."""
        for peer, known in view.items():
            mine = self.view.get(peer)
            if mine is None or known.sequence > mine.sequence:
                self.view[peer] = known
            for release in sorted(known.releases - self.heard, key=lambda it: it.rank):
                self.learn(release)

    def learn(self, release: Release) -> None:
        """One release."""
        self.heard.add(release)
        self.frontier = self.frontier.merge(Frontier.of([release]))

    def holders(self, now: float) -> list[Holder]:
        """What live offers say."""
        return [row for known in self.view.values() if known.expires > now for row in known.rows]


class Confused(Host):
    """A stale node that takes every session for one of its own revision; its frames say so."""

    def _open(self, peer: PeerId, m: OpenStage) -> None:
        fields = {name: getattr(m, name) for name in m.__struct_fields__} | {"revision": bytes(self.revision)}
        super()._open(peer, OpenStage(**fields))


@dataclass(eq=False)
class Node:
    """One node: a host for each revision that it holds."""

    me: PeerId
    span: Span
    member: Member
    hosts: dict[bytes, Host]
    follows: bool
    confused: bool
    sequence: int = 0
    quiet: dict[bytes, float] = field(default_factory=dict)
    known_at: dict[Release, float] = field(default_factory=dict)
    taking: bytes | None = None

    def rows(self) -> tuple[Holder, ...]:
        """What is offered."""
        names = [held for held in self.hosts if held not in self.quiet]
        if self.confused and self.member.frontier.full is not None:
            names = [self.member.frontier.full]
        return tuple(Holder(self.me, held, self.span) for held in names)

    def host_of(self, message: Any) -> Host:
        """Where a message belongs."""
        if isinstance(message, OpenStage) and message.revision in self.hosts:
            return self.hosts[message.revision]
        for host in self.hosts.values():
            if any(session == message.session for session, _ in host.machines):
                return host
        return next(iter(self.hosts.values()))


class Client(Member):
    """Asks one thing after another, at random levels."""

    def __init__(self, me: PeerId) -> None:
        super().__init__(me)
        self.rider: Rider | None = None
        self.began = 0.0
        self.level = Level()
