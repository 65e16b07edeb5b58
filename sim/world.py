"""One simulated run: hosts and riders on a network of one heap of events, in virtual seconds.

Everything that happens is an event; a run is a function of its seed. Knows links and processes: what is lost, copied,
delayed, cut off, killed and paused. What may never happen is in checks.py, which runs after every event.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from paceline.consistency.effects import Send
from paceline.consistency.owner import Owner, Request
from paceline.sim.chance import Chance
from paceline.sim.checks import Broken, Watch
from paceline.sim.host import Host, Step
from paceline.sim.mishaps import MISHAPS
from paceline.sim.reference import REVISION, reference
from paceline.sim.rider import Chooser, Rider
from paceline.sim.scenario import CALM, Scenario
from paceline.sim.telling import show
from paceline.wire.codec import Buffer
from paceline.wire.ids import PeerId, Revision, SessionId
from paceline.wire.messages import PeerAddress, SessionMessage
from paceline.wire.session import SessionState

SESSION = SessionId(b"simulated session"[:16])
ORPHAN_S = 10.0
MOST_EVENTS = 10_000
"""A run that needs more spins: the longest undisturbed one of the pool needs about 500."""

Trace = Callable[[float, str], None]


class World:
    """See the module's docstring. `owner_type`, `host_type`: the mutations put broken ones here."""

    def __init__(
        self,
        scenario: Scenario,
        chance: Chance,
        trace: Trace | None = None,
        host_type: type[Host] = Host,
        owner_type: type[Owner] = Owner,
    ) -> None:
        self.scenario = scenario
        self.chance = chance
        self.now = 0.0
        self.events = 0
        self.healed_at: float | None = None
        self.weather = scenario.weather
        self.reference = reference(scenario.reference)
        self.watch = Watch(self.reference, scenario.journal, scenario.honest)
        self.hosts: dict[PeerId, Host] = {}
        self.riders: dict[PeerId, Rider] = {}
        self.dead: set[PeerId] = set()
        self.paused: set[PeerId] = set()
        self.cut: set[frozenset[PeerId]] = set()
        """Pairs that cannot reach each other."""
        self.down: set[tuple[PeerId, PeerId]] = set()
        """(who, whom): who was told that the link to whom fell."""
        self.busy: dict[PeerId, Step] = {}
        self.inbox: dict[PeerId, list[tuple[Any, ...]]] = {}
        self.exported: SessionState | None = None
        self.heap: list[tuple[float, int, str, tuple[Any, ...]]] = []
        self._serial = 0
        self._last: dict[tuple[PeerId, PeerId], float] = {}
        self._lives: dict[PeerId, int] = {}
        self._falls: dict[tuple[PeerId, PeerId], int] = {}
        self._ups: dict[frozenset[PeerId], int] = {}
        self._trace = trace
        self._host_type, self._owner_type = host_type, owner_type
        for peer, revision in scenario.nodes:
            self.start_host(peer, revision)

    # --- processes ------------------------------------------------------------------------------------------

    def start_host(self, peer: PeerId, revision: bytes) -> None:
        """A node with empty memory."""
        self.hosts[peer] = self._host_type(peer, Revision(revision), self.scenario.journal, self.send)
        self._lives[peer] = self._lives.get(peer, 0) + 1
        self.dead.discard(peer)
        self.busy.pop(peer, None)
        self.inbox.pop(peer, None)

    def start_rider(self, peer: PeerId, tag: int, state: SessionState | None) -> None:
        """A client with a new session, or one that resumes `state`."""
        made, s = self.reference, self.scenario
        if state is None:
            request = Request(SESSION, REVISION, "toy", made.prompt, made.most, made.params, s.chunk)
            owner = self._owner_type(request, tag, self.now)
        else:
            owner = self._owner_type.resume(state, tag, self.now)
        chooser = Chooser(s.tilings, self.chance, lambda other: self.reachable(peer, other))
        chooser.shadows, chooser.retile = s.shadows, s.retile
        rider = self.riders[peer] = Rider(peer, owner, chooser, made, self.now)
        self.act(rider, rider.begin(self.now))

    def reachable(self, a: PeerId, b: PeerId) -> bool:
        """True where a message could arrive now."""
        return a not in self.dead and b not in self.dead and frozenset((a, b)) not in self.cut

    # --- the network ----------------------------------------------------------------------------------------

    def later(self, delay: float, kind: str, *what: Any) -> None:
        """An event `delay` seconds from now."""
        self.at(self.now + delay, kind, *what)

    def at(self, when: float, kind: str, *what: Any) -> None:
        """An event at exactly `when`, or now where that is past: a deadline that is met an ulp early is not met."""
        self._serial += 1
        heappush(self.heap, (max(self.now, when), self._serial, kind, what))

    def send(self, src: PeerId, effect: Send) -> None:
        """Perform a Send effect of `src`."""
        dialled = isinstance(effect.to, PeerAddress)
        dst = PeerId(effect.to.peer) if isinstance(effect.to, PeerAddress) else effect.to
        if self._trace:
            self.say(f"{src} → {dst}: {show(effect.message)}")
        if src == dst:
            self.later(1e-6, "message", dst, src, effect.message, effect.payload, self._link(dst, src))
            return
        pair = (src, dst)
        if dst not in self.hosts and dst not in self.riders:
            return  # a stranger, who is gone
        if not self.reachable(src, dst):
            if dialled and pair not in self.down:
                self.later(self.chance.between(0.05, 1.0), "link lost", src, dst)
            return
        if pair in self.down or (dst, src) in self.down:
            if not dialled:
                return
            self._on_link_up(src, dst)
        if self.chance.yes(self.weather.loss):
            return
        self._fly(pair, effect.message, effect.payload)
        if self.chance.yes(self.weather.copy):
            self._fly(pair, effect.message, effect.payload)

    def _link(self, dst: PeerId, src: PeerId) -> tuple[int, int]:
        """Which of the links that two processes have had, one after the other, this is."""
        return self._lives.get(dst, 0), self._falls.get((dst, src), 0)

    def _fly(self, pair: tuple[PeerId, PeerId], message: SessionMessage, payload: Buffer) -> None:
        delay = self.weather.delay_s * (0.5 + self.chance.unit())
        if self.chance.yes(self.weather.spike):
            delay += self.chance.between(0.1, 5.0)
        at = self.now + delay
        if self.weather.fifo:
            at = self._last[pair] = max(at, self._last.get(pair, 0.0) + 1e-6)
        self.later(at - self.now, "message", pair[1], pair[0], message, payload, self._link(pair[1], pair[0]))

    # --- the run --------------------------------------------------------------------------------------------

    def run(self) -> None:
        """To the end of all riders, or Broken."""
        mishaps = list(reversed(self.scenario.mishaps))
        self.start_rider(PeerId("ann"), 1, None)
        while any(rider.ended is None for rider in self.living()):
            if self.healed_at is None and (self.events >= self.scenario.heal_after or self.now > 25.0):
                self.heal()
            while mishaps and self.healed_at is None and self.events >= mishaps[-1].at:
                MISHAPS[mishaps.pop().kind](self)
            self._one()
        if self.healed_at is None:
            self.heal()
        self._settle()

    def living(self) -> list[Rider]:
        """Riders whose process is alive."""
        return [rider for peer, rider in self.riders.items() if peer not in self.dead]

    def _one(self) -> None:
        if not self.heap:
            raise Broken(6, "nothing will ever happen again, and a session has not ended")
        self.events += 1
        if self.events > MOST_EVENTS:
            raise Broken(6, f"{MOST_EVENTS} events: something spins")
        self.now, _, kind, what = heappop(self.heap)
        touched = getattr(self, "_on_" + kind.replace(" ", "_"))(*what)
        if touched is not None:
            step = self.busy.get(touched)
            self.watch.host(self.hosts[touched], step.key if step else None)

    def _settle(self) -> None:
        """After the end: what is in flight lands, and, where nothing was lost, nothing stays behind."""
        horizon = self.now + 60.0
        while self.heap and self.heap[0][0] < horizon:
            self._one()
        if self.scenario.lossless and not self.dead:
            left = [(host.me, key[1]) for host in self.hosts.values() for key in host.machines]
            if left:
                raise Broken(7, f"left behind after the end: {left}")

    # --- events ---------------------------------------------------------------------------------------------

    def _on_message(
        self, dst: PeerId, src: PeerId, message: SessionMessage, payload: Buffer, link: tuple[int, int]
    ) -> PeerId | None:
        if self.scenario.weather.fifo and link != self._link(dst, src):
            return None  # what was in flight on a real link ends with it
        return self._reach(dst, "message", src, message, payload)

    def _on_link_lost(self, dst: PeerId, src: PeerId, answer_to: int | None = None) -> PeerId | None:
        """`answer_to`: the other end noticed first; how often the link had come up by then."""
        ups = self._ups.get(frozenset((dst, src)), 0)
        if (dst, src) in self.down or dst in self.dead or answer_to not in (None, ups):
            return None
        self.down.add((dst, src))
        self._falls[dst, src] = self._falls.get((dst, src), 0) + 1
        if answer_to is None and self.reachable(dst, src):
            self.later(self.chance.between(0.0, 1.0), "link lost", src, dst, ups)
        return self._reach(dst, "link_lost", src)

    def _on_link_up(self, a: PeerId, b: PeerId) -> None:
        """A link comes up at both ends at once."""
        told = [pair for pair in ((a, b), (b, a)) if pair in self.down]
        if not told or not self.reachable(a, b):
            return
        self.down.difference_update(told)
        self._ups[frozenset((a, b))] = self._ups.get(frozenset((a, b)), 0) + 1
        for who, whom in told:
            self.later(0.0, "told up", who, whom)

    def _on_told_up(self, who: PeerId, whom: PeerId) -> PeerId | None:
        return self._reach(who, "link_up", whom)

    def _reach(self, dst: PeerId, what: str, *rest: Any) -> PeerId | None:
        """Something arrives at a process: now, or when it is able to look."""
        if dst in self.dead:
            return None
        if dst in self.paused or (self.scenario.strict and dst in self.busy):
            self.inbox.setdefault(dst, []).append((what, *rest))
            return None
        return self._look(dst, what, *rest)

    def _look(self, dst: PeerId, what: str, *rest: Any) -> PeerId | None:
        if self._trace:
            self.say(f"  {dst} sees {what} {rest[0]} {show(rest[1]) if len(rest) > 1 else ''}")
        rider = self.riders.get(dst)
        if rider is not None:
            if what == "message":
                self.act(rider, rider.handle(rest[0], rest[1], self.now))
            elif what == "link_lost":
                self.act(rider, rider.link_lost(rest[0], self.now))
            return None
        host = self.hosts[dst]
        if what == "message":
            host.handle(*rest)
        elif what == "link_lost":
            host.link_lost(*rest)
            for key, machine in host.machines.items():
                if machine.orphan:
                    self.later(ORPHAN_S, "abandon", dst, key, machine)
        else:
            host.link_up(*rest)
        self._work(dst)
        return dst

    def _on_abandon(self, dst: PeerId, key: Any, machine: Any) -> PeerId | None:
        if dst in self.dead or dst in self.paused:
            return None
        self.hosts[dst].abandon(key, machine)
        return dst

    def _work(self, peer: PeerId) -> None:
        """Begin an engine step where there is one to begin."""
        if peer in self.busy or peer in self.paused:
            return
        host = self.hosts[peer]
        step = host.begin()
        if step is None:
            return
        self.watch.step(host, step)
        self.busy[peer] = step
        seconds = self.scenario.step_s * (0.5 + self.chance.unit()) * (30 if peer == self.scenario.slow else 1)
        self.later(seconds, "done", peer, step)

    def _on_done(self, peer: PeerId, step: Step) -> PeerId | None:
        if self.busy.get(peer) is not step:
            return None  # of a process that has died
        if peer in self.paused:
            self.inbox.setdefault(peer, []).insert(0, ("done", step))
            return None
        del self.busy[peer]
        self.hosts[peer].complete(step)
        self._catch_up(peer)
        self._work(peer)
        return peer

    def _catch_up(self, peer: PeerId) -> None:
        """Look at what came while the process could not."""
        waiting = self.inbox.pop(peer, [])
        for number, (what, *rest) in enumerate(waiting):
            if what == "done":
                self._on_done(peer, *rest)
            elif self.scenario.strict and peer in self.busy:
                self.inbox.setdefault(peer, []).extend(waiting[number:])
                return
            else:
                self._look(peer, what, *rest)

    def act(self, rider: Rider, sends: list[Send]) -> None:
        """After a rider was touched: its sends, its route, its next deadline."""
        for effect in sends:
            self.send(rider.me, effect)
        if rider.wants_route is not None:
            self.later(self.chance.between(0.0, 0.05), "route", rider.me, rider.wants_route)
            rider.wants_route = None
        deadline = rider.owner.next_deadline()
        if rider.ended is None and deadline != float("inf"):
            self.at(deadline, "tick", rider.me)

    def _on_route(self, me: PeerId, lost: frozenset[PeerId]) -> None:
        rider = self.riders[me]
        if me not in self.dead and rider.ended is None:
            self.act(rider, rider.routed(self.now, lost))

    def _on_tick(self, me: PeerId) -> None:
        rider = self.riders[me]
        if me in self.dead or rider.ended is not None:
            return
        bound = rider.owner.limits.give_up_s + rider.owner.limits.per_position_s * len(rider.owner.log)
        if self.now > rider.since + bound + 1.0:
            raise Broken(6, f"{me} still waits, {self.now - rider.since:.1f} s after its last token")
        if self.now >= rider.owner.next_deadline():
            self.act(rider, rider.tick(self.now))

    # --- what mends ------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """From now on all is well: everybody runs, everybody is reachable, nothing is lost."""
        self.say("--- healed")
        self.healed_at, self.weather = self.now, CALM
        self.cut.clear()
        for peer, revision in self.scenario.nodes:
            if peer in self.dead:
                self.start_host(peer, revision)
            if peer in self.paused:
                self._on_resume(peer)
        for who, whom in sorted(self.down):
            self.later(self.chance.between(0.0, 0.5), "link up", who, whom)

    def _on_restart(self, peer: PeerId) -> None:
        if peer not in self.dead:
            return
        self.say(f"--- {peer} is back, and remembers nothing")
        self.start_host(peer, dict(self.scenario.nodes)[peer])
        for who, whom in sorted(self.down):
            if whom == peer and self.chance.yes(0.7):
                self.later(self.chance.between(0.0, 1.0), "link up", who, whom)

    def _on_join(self, a: PeerId, b: PeerId) -> None:
        self.cut.discard(frozenset((a, b)))
        for pair in ((a, b), (b, a)):
            if self.chance.yes(0.7):
                self.later(self.chance.between(0.0, 0.5), "link up", *pair)

    def _on_resume(self, peer: PeerId) -> None:
        if peer not in self.paused:
            return
        self.paused.discard(peer)
        self._catch_up(peer)
        self._work(peer)
        for who, whom in sorted(self.down):
            if whom == peer:
                self.later(self.chance.between(0.0, 0.5), "link up", who, whom)

    def say(self, text: str) -> None:
        """For a replay that is watched."""
        if self._trace:
            self._trace(self.now, text)
