"""All of a small scope: every interleaving of deliveries, results, losses, copies, crashes, restarts, deadlines and a
second owner, over the real machines.

States that look alike are visited once. After every action the invariants are checked; from every state in which
nothing is in flight, a run without further faults must end with all tokens. Deliveries alone lead to such a state from
any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from paceline.consistency.effects import Send
from paceline.consistency.owner import Owner, Request
from paceline.consistency.stage import StageMachine
from paceline.sim.checks import Broken, Watch
from paceline.sim.clone import clone
from paceline.sim.host import Host, Step
from paceline.sim.reference import LAYERS, REVISION, Reference, build
from paceline.sim.rider import Rider
from paceline.wire.codec import Buffer
from paceline.wire.ids import PeerId, SessionId
from paceline.wire.messages import PeerAddress, SessionMessage, Stage, StageOpened
from paceline.wire.sampling import SamplingParams

SESSION = SessionId(b"explored session")
ANN, BOB = PeerId("ann"), PeerId("bob")
JOURNAL = 1 << 16


@dataclass(frozen=True)
class Scope:
    """How large a scope is: sizes, and how often each fault may happen in one history."""

    stages: int = 2
    prompt: int = 2
    tokens: int = 2
    chunk: int = 2
    journal: int = JOURNAL
    losses: int = 1
    copies: int = 0
    crashes: int = 0
    deadlines: int = 1
    owners: int = 0
    penalties: bool = False


SCOPES = {
    "small": (
        Scope(prompt=3, chunk=1, losses=1, deadlines=0),
        Scope(losses=0, copies=1, deadlines=0),
        Scope(losses=0, deadlines=1),
        Scope(stages=3, losses=1, deadlines=0),
    ),
    "large": (
        Scope(losses=0, crashes=1, deadlines=0),
        Scope(losses=0, owners=1, deadlines=0),
        Scope(losses=1, crashes=1, deadlines=0),
        Scope(losses=1, copies=1, deadlines=1),
        Scope(tokens=4, losses=2, copies=1, deadlines=0),
        Scope(losses=0, crashes=1, deadlines=0, journal=32),
        Scope(losses=1, copies=1, deadlines=0, chunk=1, penalties=True),
        Scope(stages=3, tokens=3, losses=1, copies=1, deadlines=0),
        Scope(stages=3, tokens=2, losses=0, crashes=1, deadlines=0),
    ),
}

Flight = tuple[PeerId, PeerId, SessionMessage, Buffer]


class Always:
    """A chooser that knows one ring: whoever was lost comes back."""

    def __init__(self, route: tuple[Stage, ...]) -> None:
        self.route = route

    def choose(self, now: Any, lost: Any) -> tuple[Stage, ...]:
        """The ring."""
        return self.route


class State:
    """One state of the world: hosts, riders, what is in flight, and how many faults are left."""

    def __init__(self, scope: Scope, reference: Reference) -> None:
        self.left = scope
        self.now = 0.0
        self.flying: list[Flight] = []
        self.busy: dict[PeerId, Step] = {}
        self.reference = reference
        cuts = [LAYERS * k // scope.stages for k in range(scope.stages + 1)]
        peers = [PeerId(f"n{k}") for k in range(scope.stages)]
        self.route = tuple(Stage(PeerAddress(p), cuts[k], cuts[k + 1]) for k, p in enumerate(peers))
        self.hosts = {peer: self.new_host(peer) for peer in peers}
        request = Request(SESSION, REVISION, "toy", reference.prompt, reference.most, reference.params, scope.chunk)
        self.riders: dict[PeerId, Rider] = {}
        self.add_rider(ANN, Owner(request, 1, 0.0))

    def new_host(self, peer: PeerId) -> Host:
        """A node with empty memory."""
        return Host(peer, REVISION, self.left.journal, self.send)

    def add_rider(self, me: PeerId, owner: Owner) -> None:
        """An owner that begins now."""
        rider = self.riders[me] = Rider(me, owner, Always(self.route), self.reference, self.now)  # type: ignore[arg-type]
        self.act(rider, rider.begin(self.now))

    def send(self, src: PeerId, effect: Send) -> None:
        """Put a message into the air. That a stage has opened is heard at once: it changes no decision here."""
        to = PeerId(effect.to.peer) if isinstance(effect.to, PeerAddress) else effect.to
        if isinstance(effect.message, StageOpened) and to in self.riders:
            self.riders[to].handle(src, effect.message, self.now)
        else:
            self.flying.append((to, src, effect.message, effect.payload))

    def act(self, rider: Rider, sends: list[Send]) -> None:
        """What a rider sends, and the route that it asks for."""
        for effect in sends:
            self.send(rider.me, effect)
        if rider.wants_route is not None:
            self.act(rider, rider.routed(self.now, rider.wants_route))

    # --- actions --------------------------------------------------------------------------------------------

    def deliver(self, number: int) -> None:
        """Flight `number` lands, whichever was sent before it."""
        to, src, message, payload = self.flying.pop(number)
        if to in self.riders:
            self.act(self.riders[to], self.riders[to].handle(src, message, self.now))
        elif to in self.hosts:
            self.hosts[to].handle(src, message, payload)
            self.begin(to)

    def begin(self, peer: PeerId) -> None:
        """An idle engine takes what there is."""
        if peer not in self.busy and (step := self.hosts[peer].begin()) is not None:
            Watch(self.reference, self.left.journal).step(self.hosts[peer], step)
            self.busy[peer] = step

    def complete(self, peer: PeerId) -> None:
        """The engine's result comes."""
        self.hosts[peer].complete(self.busy.pop(peer))
        self.begin(peer)

    def crash(self, peer: PeerId, told: bool) -> None:
        """A process dies and is back at once, empty. `told`: those with a link to it notice."""
        self.hosts[peer] = self.new_host(peer)
        self.busy.pop(peer, None)
        if told:
            for other, host in self.hosts.items():
                if other != peer:
                    host.link_lost(peer)
            for rider in self.riders.values():
                self.act(rider, rider.link_lost(peer, self.now))

    def tick(self, me: PeerId) -> None:
        """A rider's deadline comes."""
        rider = self.riders[me]
        self.now = max(self.now, rider.owner.next_deadline())
        self.act(rider, rider.tick(self.now))

    def resume(self) -> None:
        """A second process takes the session over."""
        self.add_rider(BOB, Owner.resume(self.riders[ANN].owner.export(), 2, self.now))

    # --- where it stands ------------------------------------------------------------------------------------

    def successors(self) -> Iterator[tuple[str, tuple[Any, ...], Scope]]:
        """``(action, arguments, faults left)``: all that can happen next."""
        left = self.left
        different = {flight[:3]: number for number, flight in enumerate(self.flying)}
        for flight, number in different.items():
            yield "deliver", (number,), left
            if left.losses:
                yield "lose", (number,), replace(left, losses=left.losses - 1)
            if left.copies and self.flying.count(self.flying[number]) == 1 and flight[0] in self.hosts:
                yield "copy", (number,), replace(left, copies=left.copies - 1)
        for peer in self.busy:
            yield "complete", (peer,), left
        if left.crashes:
            for peer, host in self.hosts.items():
                if host.machines:
                    yield "crash", (peer, True), replace(left, crashes=left.crashes - 1)
                    yield "crash", (peer, False), replace(left, crashes=left.crashes - 1)
        if left.deadlines:
            for me, rider in self.riders.items():
                if rider.ended is None:
                    yield "tick", (me,), replace(left, deadlines=left.deadlines - 1)
        if left.owners and self.riders[ANN].ended is None:
            yield "resume", (), replace(left, owners=left.owners - 1)

    def lose(self, number: int) -> None:
        """A message is lost."""
        self.flying.pop(number)

    def copy(self, number: int) -> None:
        """A message will arrive twice."""
        self.flying.append(self.flying[number])

    def key(self) -> int:
        """Equal for states that cannot be told apart. Rows are named by position: the checks see to their content."""
        flying = frozenset((flight[:3], self.flying.count(flight)) for flight in self.flying)
        hosts = tuple(_host_key(host, self.busy.get(peer)) for peer, host in self.hosts.items())
        riders = tuple(_owner_key(rider) for rider in self.riders.values())
        return hash((flying, hosts, riders, self.left))

    def check(self) -> None:
        """Every host against the undisturbed run."""
        watch = Watch(self.reference, self.left.journal)
        for peer, host in self.hosts.items():
            step = self.busy.get(peer)
            watch.host(host, step.key if step else None)


def _host_key(host: Host, step: Step | None) -> Any:
    held = tuple((peer, message) for peer, message, _ in host.held)
    machines = tuple((key[1], _machine_key(machine)) for key, machine in host.machines.items())
    own = step is not None and host.machines.get(step.key) is step.machine
    return machines, held, tuple(host.fences._epochs.items()), step and (step.given.start, step.given.epoch, own)


def _machine_key(m: StageMachine) -> Any:
    inbox, asked = m._inbox, m._asked
    queue = tuple((given.start, given.n, given.branch) for given in inbox._queue)
    running = inbox._running and (inbox._running.start, inbox._running is inbox._busy)
    talk = (asked.missing_from, asked.history, asked.repair, frozenset(asked.unsure), m.orphan, m.owner)
    tail = (tuple(m.history), tuple(event.index for event in m._tail._events), m._tail._withheld)
    sent = (tuple(m._outbox._cursors.items()), m.journal.first, m.journal.end)
    return m.clock, m.config.known, inbox.length, queue, running, inbox._busy is None, talk, tail, sent


def _owner_key(rider: Rider) -> Any:
    o = rider.owner
    asked = (o._asked_events_at, o._from_tokens, o._lost, o._broken is None, min(o._breaks, 4), rider.wants_route)
    return rider.me, o.epoch, tuple(o.log), o.phase, frozenset(o._opened), asked, rider.ended is None


# --- the search -------------------------------------------------------------------------------------------------


@dataclass
class Found:
    """Counts of one scope."""

    states: int = 0
    edges: int = 0
    quiet: int = 0


def explore(scope: Scope) -> Found:
    """Visit every state of a scope. Raises Broken with the history that leads there."""
    params = SamplingParams(repetition_penalty=1.2) if scope.penalties else SamplingParams()
    reference = build(tuple(range(11, 11 + scope.prompt)), scope.tokens, params)
    first = State(scope, reference)
    found = Found()
    seen = {first.key()}
    stack: list[tuple[State, tuple[Any, ...]]] = [(first, ())]
    while stack:
        state, history = stack.pop()
        found.states += 1
        if not state.flying and not state.busy:
            found.quiet += 1
            _told(history, _must_end, state)
        for action, arguments, left in list(state.successors()):
            found.edges += 1
            after = clone(state)
            step = (history, f"{action}{arguments} {_about(state, action, arguments)}")
            _told(step, _go, state, after, action, arguments)
            after.left = left
            key = after.key()
            if key not in seen:
                seen.add(key)
                stack.append((after, step))
    return found


def _go(before: State, after: State, action: str, arguments: tuple[Any, ...]) -> None:
    getattr(after, action)(*arguments)
    after.check()
    for peer, host in before.hosts.items():
        for key, machine in host.machines.items():
            now = after.hosts[peer].machines.get(key)
            if action != "crash" and now is not None and now.epoch < machine.epoch:
                raise Broken(4, f"{peer} went from epoch {machine.epoch:x} to {now.epoch:x}")


def _must_end(state: State) -> None:
    """Progress: with no more faults, deadlines and deliveries in order lead to the end."""
    world = clone(state)
    for _ in range(16):
        riding = [rider for rider in world.riders.values() if rider.ended is None]
        if not riding:
            break
        world.tick(min(riding, key=lambda rider: rider.owner.next_deadline()).me)
        while world.flying or world.busy:
            for peer in list(world.busy):
                world.complete(peer)
            if world.flying:
                world.deliver(0)
            world.check()
    ends = [rider.ended for rider in world.riders.values()]
    if any(end is None for end in ends):
        raise Broken(6, "a session does not end, though nothing fails any more")
    good = [end for end in ends if end is not None and end.finish]
    typed = [end for end in ends if end is not None and end.error is not None and end.error.code == "fenced"]
    if not good or len(good) + len(typed) < len(ends):
        raise Broken(6, f"sessions end with {[(end.finish, end.error) for end in ends if end]}")


def _about(state: State, action: str, arguments: tuple[Any, ...]) -> str:
    if action not in ("deliver", "lose", "copy"):
        return ""
    to, src, message, _ = state.flying[arguments[0]]
    return f"{type(message).__name__} {src} → {to}"


def _told(history: tuple[Any, ...], call: Any, *arguments: Any) -> None:
    """Call, and where it breaks, say how it came to that."""
    try:
        call(*arguments)
    except AssertionError as error:
        steps: list[str] = []
        while history:
            history, text = history
            steps.append(text)
        raise Broken(getattr(error, "number", 2), f"{error}\n  " + "\n  ".join(reversed(steps))) from error


def explore_command(name: str) -> int:
    """Explore the scopes of one size, and print how many states they have."""
    total = 0
    for scope in SCOPES[name]:
        found = explore(scope)
        total += found.states
        print(f"{found.states:8} states {found.edges:9} actions {found.quiet:6} quiet  {scope}", flush=True)
    print(f"{total} states, no violation")
    return 0
