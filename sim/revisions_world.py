"""A swarm that changes its revisions, simulated: gossip, upgrades node by node, levels, sessions on real machines.

Nodes decide by `consistency.upgrading`, clients choose by `consistency.revisions`, sessions run on the real owner and
stage machines with toy shards. What happens to them: releases (also going back), canaries (that grow, are promoted or
taken back), partitions, nodes that follow nothing, one that takes every session for its own revision's. Knows no
signatures: who releases here is trusted.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import pairwise
from typing import Any

from paceline.consistency import revisions, upgrading
from paceline.consistency.effects import Send
from paceline.consistency.owner import Owner, Request
from paceline.consistency.revisions import Level
from paceline.consistency.upgrading import Holder, Move, Patience, Standing
from paceline.sim.chance import Chance
from paceline.sim.checks import Broken
from paceline.sim.host import Host, Step
from paceline.sim.reference import LAYERS
from paceline.sim.revisions_judge import judge_choice, judge_end, judge_refusal, judge_rings, judge_session, ring_of
from paceline.sim.revisions_members import Client, Confused, Known, Member, Node, reference_of, revision
from paceline.sim.rider import Chooser, Rider, Tile
from paceline.wire.errors import LevelUnmet
from paceline.wire.ids import PeerId, Revision, SessionId, Span
from paceline.wire.messages import PeerAddress
from paceline.wire.releases import Release, standing

OFFER_S, TICK_S, ORPHAN_S = 12.0, 1.0, 10.0
PATIENCE = Patience(turn_s=8.0, views_s=20.0, laggards_s=40.0)
SETTLED_S = 25.0
"""So long after the last partition everybody has heard everything: then nothing may be missing."""

MOST_EVENTS = 60_000
PUBLISHER = b"p" * 32


class Swarm:
    """One run. Everything that happens is an event of one heap; a seed names a run completely."""

    def __init__(self, chance: Chance, trace: Callable[[float, str], None] | None = None) -> None:
        self.chance, self.now, self.events = chance, 0.0, 0
        self.whole_since = 0.0
        self.cut: set[frozenset[PeerId]] = set()
        self.released: list[Release] = []
        self.released_at: dict[int, float] = {}
        self.guarded: bytes | None = None
        """What a canary stands beside, where its ring was whole and everybody knew of it when the canary came."""
        self.tried: dict[str, int] = {}
        """Sessions that began while a canary ran: on it, and on what it stands beside."""
        self.nodes: dict[PeerId, Node] = {}
        self.clients: dict[PeerId, Client] = {}
        self.answered: dict[str, int] = {}
        self.refused: dict[str, int] = {}
        self.busy: set[int] = set()
        self.heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.step_s = chance.pick((0.01, 0.01, 0.25))
        """Of an engine: at the slow one, a session lasts longer than any view."""
        self._serial = 0
        self._trace = trace
        self._build()

    def _build(self) -> None:
        chance = self.chance
        cuts = sorted({1 + chance.below(LAYERS - 1) for _ in range(chance.below(3))})
        spans = [Span(a, b) for a, b in pairwise([0, *cuts, LAYERS])]
        strange = chance.unit()
        total = len(spans) * chance.pick((1, 2, 2, 3))
        for number in range(total):
            me, span = PeerId(f"n{number}"), spans[number % len(spans)]
            odd = number >= len(spans) and number >= total - 2
            # A ring of such nodes alone has no frame that could tell: that would be a liar, not a stale node.
            host = Confused if odd and number == total - 1 and strange < 0.25 and cuts else Host
            node = Node(
                me,
                span,
                Member(me),
                {revision(0): host(me, revision(0), 1 << 20, self.send)},
                follows=not (odd and strange < 0.6),
                confused=host is Confused,
            )
            self.nodes[me] = node
            self.later(chance.between(0, TICK_S), self._node_tick, node)
        for number in range(1 + chance.below(3)):
            client = Client(PeerId(f"c{number}"))
            self.clients[client.me] = client
            self.later(3 + chance.between(0, 2), self._ask, client)
        self.release(0)
        for _ in range(1 + chance.below(4)):
            self.later(chance.between(5, 120), self._release_next)
        for _ in range(chance.below(4)):
            self.later(chance.between(2, 120), self._partition)

    # --- time and messages

    def later(self, delay: float, call: Callable[..., None], *args: Any) -> None:
        """An event `delay` seconds from now."""
        self.at(self.now + delay, call, *args)

    def at(self, when: float, call: Callable[..., None], *args: Any) -> None:
        """An event at exactly `when`, or now where that is past."""
        self._serial += 1
        heappush(self.heap, (max(self.now, when), self._serial, call, args))

    def run(self, until: float = 200.0) -> None:
        """To the end, or Broken."""
        while self.heap and self.heap[0][0] <= until:
            self.now, _, call, args = heappop(self.heap)
            self.events += 1
            if self.events > MOST_EVENTS:
                raise Broken(6, f"{self.events} events by {self.now:.1f} s: something spins")
            call(*args)
        judge_end(self)

    def reachable(self, a: PeerId, b: PeerId) -> bool:
        return frozenset((a, b)) not in self.cut

    def send(self, src: PeerId, effect: Send) -> None:
        """Perform a Send effect; a message over a cut is lost."""
        dst = PeerId(effect.to.peer) if isinstance(effect.to, PeerAddress) else effect.to
        if self.reachable(src, dst):
            self.later(0.005 if src != dst else 0.0, self._arrive, dst, src, effect.message, effect.payload)

    def _arrive(self, dst: PeerId, src: PeerId, message: Any, payload: Any) -> None:
        if not self.reachable(src, dst):
            return
        client = self.clients.get(dst)
        if client is None:
            node = self.nodes[dst]
            host = node.host_of(message)
            host.handle(src, message, payload)
            self._work(node, host)
        elif client.rider is not None and message.session == client.rider.owner.request.session:
            self._act(client, client.rider.handle(src, message, self.now))

    def _work(self, node: Node, host: Host) -> None:
        if id(host) in self.busy:
            return
        step = host.begin()
        if step is not None:
            self.busy.add(id(host))
            self.later(self.step_s, self._done, node, host, step)

    def _done(self, node: Node, host: Host, step: Step) -> None:
        self.busy.discard(id(host))
        host.complete(step)
        self._work(node, host)

    # --- releases and gossip

    def release(self, number: int, share: float = 1.0) -> None:
        """A release appears at one node: where its publisher's machine is."""
        before, _ = standing(self.released)
        made = Release("toy", revision(number), len(self.released) + 1, PUBLISHER, share=share)
        self.released.append(made)
        self.released_at[made.sequence] = self.now
        self.say(f"release {made.sequence}: revision {number} for {share:.0%}")
        self._guard(made, before)
        at = self.nodes[self.chance.pick(sorted(self.nodes))] if made.sequence > 1 else None
        for node in [at] if at else self.nodes.values():
            node.member.learn(made)

    def _guard(self, made: Release, before: Release | None) -> None:
        known = all(standing(node.member.heard)[0] == before for node in self.nodes.values())
        if made.full or before is None:
            self.guarded = None
        elif self.guarded is None and known and ring_of(self, before.revision):
            self.guarded = before.revision

    def _release_next(self) -> None:
        chance, (full, canary) = self.chance, standing(self.released)
        assert full is not None
        used = sorted({it.revision for it in self.released})
        if canary is not None:
            if chance.yes(0.4):
                self.release(used.index(full.revision))
            else:
                self.release(used.index(canary.revision), chance.pick((1.0, 1.0, min(1.0, 3 * canary.share))))
        elif chance.yes(0.5):
            self.release(len(used), chance.pick((0.1, 0.3, 0.7)))
        else:
            old = [n for n, name in enumerate(used) if name != full.revision]
            self.release(chance.pick(old) if old and chance.yes(0.3) else len(used))

    @property
    def full_releases(self) -> list[Release]:
        """Those for everybody."""
        return [it for it in self.released if it.full]

    def _node_tick(self, node: Node) -> None:
        member = node.member
        node.sequence += 1
        newest = frozenset(sorted(member.heard, key=lambda it: it.rank)[-4:])
        naming = frozenset(it for it in member.heard if it.revision in node.hosts)
        member.view[node.me] = Known(node.sequence, self.now + OFFER_S, node.rows(), newest | naming)
        others: list[Member] = [it.member for it in self.nodes.values() if it is not node] + list(self.clients.values())
        for other in others:
            if self.reachable(node.me, other.me) and self.chance.yes(0.6):
                other.hear(dict(member.view))
        if node.follows:
            for held in list(node.hosts):
                self._look(node, held)
        self.later(TICK_S, self._node_tick, node)

    def _look(self, node: Node, old: bytes) -> None:
        """The upgrade shell (node/upgrade.py) in small."""
        new = upgrading.aim(old, *standing(node.member.heard))
        if new is None or not new.full:
            node.quiet.pop(old, None)
        if new is None:
            return
        known = node.known_at.setdefault(new, self.now)
        quiet = node.quiet.get(old)
        at = Standing(
            node.me,
            LAYERS,
            node.span,
            old,
            new.revision,
            has_new=new.revision in node.hosts,
            sessions=len(node.hosts[old].machines),
            known_s=self.now - known,
            quiet_s=None if quiet is None else self.now - quiet,
            share=new.share,
        )
        move = upgrading.decide(at, node.member.holders(self.now), PATIENCE)
        if move is Move.TAKE and node.taking is None:
            node.taking = new.revision
            self.later(self.chance.between(0.5, 6.0), self._taken, node, new.revision)
        elif move is Move.QUIET:
            self.say(f"{node.me} is quiet about {old[:13]!r}")
            node.quiet[old] = self.now
            judge_rings(self)
        elif move is Move.DROP:
            self.say(f"{node.me} drops {old[:13]!r}")
            node.quiet.pop(old)
            del node.hosts[old]

    def _taken(self, node: Node, new: bytes) -> None:
        self.say(f"{node.me} holds {new[:13]!r}")
        node.taking = None
        node.hosts.setdefault(new, Host(node.me, Revision(new), 1 << 20, self.send))

    # --- partitions

    def _partition(self) -> None:
        everybody = sorted((*self.nodes, *self.clients))
        side = {peer for peer in everybody if self.chance.yes(0.4)}
        cut = {frozenset((a, b)) for a in side for b in everybody if b not in side} - self.cut
        if not cut:
            return
        self.say(f"--- {sorted(side)} cut off")
        self.cut |= cut
        self.whole_since = float("inf")
        for pair in sorted(cut, key=sorted):
            a, b = sorted(pair)
            self.later(self.chance.between(0.1, 1.5), self._link, "link_lost", a, b)
        self.later(self.chance.between(2, 40), self._mend, cut)

    def _mend(self, cut: set[frozenset[PeerId]]) -> None:
        self.cut -= cut
        self.whole_since = float("inf") if self.cut else self.now
        self.say("--- mended")
        for pair in sorted(cut, key=sorted):
            self.later(self.chance.between(0.0, 1.0), self._link, "link_up", *sorted(pair))

    def _link(self, what: str, a: PeerId, b: PeerId) -> None:
        if self.reachable(a, b) == (what == "link_lost"):
            return
        for me, other in ((a, b), (b, a)):
            client = self.clients.get(me)
            if client is not None:
                if what == "link_lost" and client.rider is not None and client.rider.ended is None:
                    self._act(client, client.rider.link_lost(other, self.now))
                continue
            for host in list(self.nodes[me].hosts.values()):
                getattr(host, what)(other)
                for key, machine in list(host.machines.items()):
                    if machine.orphan:
                        self.later(ORPHAN_S, host.abandon, key, machine)
                self._work(self.nodes[me], host)

    # --- clients

    def _ask(self, client: Client) -> None:
        chance = self.chance
        pinned = chance.pick(sorted({it.revision for it in client.heard})) if client.heard else bytes(32)
        client.level = chance.pick(
            (
                Level(),
                Level(),
                Level("strong"),
                Level("bounded", k=1 + chance.below(2)),
                Level("pinned", revision=pinned),
            )
        )
        holders = client.holders(self.now)
        names = sorted({row.revision for row in holders})
        whole = [name for name in names if upgrading.complete(name, LAYERS, holders)]
        session = SessionId(f"{client.me}-{self._serial:010}".encode().ljust(16, b".")[:16])
        try:
            chosen = revisions.choose(client.level, client.frontier, whole, session)
        except LevelUnmet:
            judge_refusal(self, client, whole)
            self.refused[client.level.kind] = self.refused.get(client.level.kind, 0) + 1
            self.later(chance.between(0.5, 2.0), self._ask, client)
            return
        judge_choice(self, client, chosen, whole, session)
        if (canary := client.frontier.canary) is not None and client.level.kind in ("available", "bounded"):
            side = "on it" if chosen == canary else "beside it"
            self.tried[side] = self.tried.get(side, 0) + 1
        self._begin(client, session, Revision(chosen), holders)

    def _begin(self, client: Client, session: SessionId, chosen: Revision, holders: list[Holder]) -> None:
        made = reference_of(chosen, self.chance.below(40))
        edges = sorted({(row.span.start, row.span.end) for row in holders if row.revision == chosen})
        tiles = tuple(
            Tile(a, b, tuple(sorted({PeerId(r.peer) for r in holders if r.revision == chosen and r.span.start == a})))
            for a, b in edges
        )
        request = Request(session, chosen, "toy", made.prompt, made.most, made.params, 512)
        chooser = Chooser([tiles], self.chance, lambda peer: self.reachable(client.me, peer))
        client.rider = Rider(client.me, Owner(request, self._serial, self.now), chooser, made, self.now)
        client.began = self.now
        self.say(f"{client.me} asks {client.level}: {chosen[:13]!r}")
        self._act(client, client.rider.begin(self.now))

    def _act(self, client: Client, sends: list[Send]) -> None:
        rider = client.rider
        assert rider is not None
        for effect in sends:
            self.send(client.me, effect)
        if rider.wants_route is not None:
            lost, rider.wants_route = rider.wants_route, None
            self.later(0.02, self._routed, client, rider, lost)
        if rider.ended is not None:
            judge_session(self, client, rider)
            client.rider = None
            self.later(self.chance.between(0.1, 3.0), self._ask, client)
        elif rider.owner.next_deadline() != float("inf"):
            self.at(rider.owner.next_deadline(), self._tick, client, rider)

    def _routed(self, client: Client, rider: Rider, lost: frozenset[PeerId]) -> None:
        if client.rider is rider:
            self._act(client, rider.routed(self.now, lost))

    def _tick(self, client: Client, rider: Rider) -> None:
        if client.rider is rider and self.now >= rider.owner.next_deadline():
            self._act(client, rider.tick(self.now))

    @property
    def settled(self) -> bool:
        """Whether nobody has been cut off for long."""
        return self.now - self.whole_since >= SETTLED_S

    def old(self, release: Release) -> bool:
        """Whether everybody has had the time to hear of it."""
        return self.now - self.released_at[release.sequence] >= SETTLED_S

    def say(self, text: str) -> None:
        """For a replay that is watched."""
        if self._trace:
            self._trace(self.now, text)
