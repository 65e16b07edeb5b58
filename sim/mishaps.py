"""What may go wrong in a simulated run, one function each. They touch the world from outside, as mishaps do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from paceline.sim.checks import Broken
from paceline.wire.ids import PeerId
from paceline.wire.messages import CloseStage, Frame, NextToken, Prompt, SessionMessage
from paceline.wire.session import SessionState

if TYPE_CHECKING:
    from paceline.sim.world import World

ANN, BOB, MALLORY = PeerId("ann"), PeerId("bob"), PeerId("mallory")


def _everybody(world: World) -> list[PeerId]:
    return [*world.hosts, *world.riders]


def _some_rider_or_host(world: World) -> PeerId:
    """Most often somebody who rides now."""
    riding = [peer for peer, host in world.hosts.items() if host.machines]
    return world.chance.pick(riding) if riding and world.chance.yes(0.85) else world.chance.pick([*world.hosts])


def _fell(world: World, peer: PeerId, others: list[PeerId], told: float, after: tuple[float, float]) -> None:
    """Others may notice that the link to `peer` fell."""
    for other in others:
        if other != peer and world.chance.yes(told):
            world.later(world.chance.between(*after), "link lost", other, peer)


def _export(world: World) -> SessionState:
    """The newest state, or an old one that somebody kept."""
    if world.exported is None or world.chance.yes(0.6):
        world.exported = world.riders[ANN].owner.export()
    return world.exported


def crash(world: World) -> None:
    """A process dies; often it comes back, and remembers nothing."""
    peer = _some_rider_or_host(world)
    world.say(f"--- {peer} crashes")
    world.dead.add(peer)
    world.paused.discard(peer)
    world.busy.pop(peer, None)
    world.inbox.pop(peer, None)
    world.down = {pair for pair in world.down if pair[0] != peer}
    world.hosts[peer].machines.clear()
    _fell(world, peer, _everybody(world), 0.8, (0.0, 0.1) if world.chance.yes(0.6) else (0.0, 3.0))
    if world.chance.yes(0.6):
        world.later(world.chance.between(0.0, 5.0), "restart", peer)


def blink(world: World) -> None:
    """A link falls and comes back at once: what was in flight on it may be lost."""
    a, b = _some_rider_or_host(world), world.chance.pick(_everybody(world))
    if a != b:
        world.say(f"--- the link {a}–{b} blinks")
        for who, whom in ((a, b), (b, a)):
            world.later(0.0, "link lost", who, whom)
            world.later(world.chance.between(0.001, 0.5), "link up", who, whom)


def partition(world: World) -> None:
    """Two processes cannot reach each other for a while."""
    a, b = _some_rider_or_host(world), world.chance.pick(_everybody(world))
    if a == b:
        return
    world.say(f"--- {a} and {b} cannot reach each other")
    world.cut.add(frozenset((a, b)))
    _fell(world, a, [b], 0.8, (0.0, 3.0))
    _fell(world, b, [a], 0.8, (0.0, 3.0))
    world.later(world.chance.between(0.01, 10.0), "join", a, b)


def pause(world: World) -> None:
    """A process is stopped for a while, and does not know it."""
    peer = _some_rider_or_host(world)
    if peer in world.dead or peer in world.paused:
        return
    seconds = world.chance.between(0.01, 8.0)
    world.say(f"--- {peer} freezes for {seconds:.2f} s")
    world.paused.add(peer)
    if seconds > 1.0:
        _fell(world, peer, _everybody(world), 0.7, (1.0, 3.0))
    world.later(seconds, "resume", peer)


def migrate(world: World) -> None:
    """The owner moves to another ring while riding."""
    rider = world.chance.pick([*world.riders.values()])
    if rider.me not in world.dead:
        world.act(rider, rider.migrate(world.now))


def second_owner(world: World) -> None:
    """Another process resumes the session while its owner lives."""
    if BOB not in world.riders:
        world.say("--- bob resumes the session")
        world.start_rider(BOB, world.chance.pick((0, 2)), _export(world))


def owner_dies(world: World) -> None:
    """The owner's process dies, and another resumes from its state."""
    if ANN in world.dead or world.riders[ANN].ended is not None:
        return
    world.say("--- ann dies")
    state = _export(world)
    world.dead.add(ANN)
    _fell(world, ANN, [*world.hosts], 0.9, (0.0, 2.0))
    if BOB not in world.riders:
        world.start_rider(BOB, 2, state)


def impostor(world: World) -> None:
    """Somebody's process was upgraded under a session: a frame in flight is of another revision."""
    for number, (at, serial, kind, what) in enumerate(world.heap):
        if kind == "message" and isinstance(what[2], Frame):
            dst, src, message, payload, link = what
            fields = {name: getattr(message, name) for name in message.__struct_fields__} | {"revision_tag": b"else"}
            world.heap[number] = (at, serial, kind, (dst, src, Frame(**fields), bytes(reversed(payload)), link))
            return


def meddler(world: World) -> None:
    """Somebody who has no part in the session, but knows its name and epoch, sends what would ruin it.

    It could take the session over by a later epoch: whoever knows a session's name may. So it keeps to the present one.
    """
    peer = _some_rider_or_host(world)
    host = world.hosts[peer]
    newest = max((machine.epoch for machine in host.machines.values()), default=0)
    for key, machine in list(host.machines.items()):
        if machine.epoch < newest:
            continue
        at = (machine.session, machine.layer)
        here = (machine.epoch, machine.branch, machine.expected)
        forged: list[tuple[SessionMessage, bytes]] = [
            (Prompt(*at, *here, (1, 2)), b""),
            (NextToken(machine.session, *here, 3), b""),
            (Frame(*at, machine.revision[:4], *here, 1, "i64", 4), bytes(32)),
            *([(CloseStage(machine.session, newest), b"")] if len(host.machines) == 1 else []),
        ]
        for message, payload in forged:
            host.handle(MALLORY, message, payload)
        if (machine.epoch, machine.branch, machine.expected) != here or host.machines.get(key) is not machine:
            raise Broken(8, f"{peer} obeys a stranger")


def cancel(world: World) -> None:
    """Now and then a user leaves."""
    if world.chance.yes(0.3):
        rider = world.chance.pick([*world.riders.values()])
        if rider.me not in world.dead:
            world.act(rider, rider.cancel(world.now))


MISHAPS: dict[str, Callable[[World], None]] = {
    "crash": crash,
    "blink": blink,
    "partition": partition,
    "pause": pause,
    "migrate": migrate,
    "second owner": second_owner,
    "owner dies": owner_dies,
    "impostor": impostor,
    "meddler": meddler,
    "cancel": cancel,
}
