"""What levels, canaries and upgrades promise, judged by what the simulated world knows. Raises Broken.

Judges with its own reading of the releases (`wire.releases`), not with the frontier that is under test.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paceline.consistency.revisions import lot
from paceline.consistency.upgrading import complete
from paceline.sim.checks import Broken
from paceline.sim.reference import LAYERS
from paceline.sim.revisions_members import Client
from paceline.sim.rider import Rider
from paceline.wire.releases import Release, standing

if TYPE_CHECKING:
    from paceline.sim.revisions_world import Swarm


def judge_choice(swarm: Swarm, client: Client, chosen: bytes, whole: list[bytes], key: bytes) -> None:
    """A session begins."""
    level, (full, canary) = client.level, standing(client.heard)
    if chosen not in whole:
        raise Broken(1, f"{client.me}: no complete ring of what {level} chose")
    if level.kind == "pinned":
        if chosen != level.revision:
            raise Broken(1, f"{client.me}: {level} runs on another revision")
        return
    drawn = canary is not None and level.kind != "strong" and lot(canary.revision, key) < canary.share
    if canary is not None and drawn and canary.revision in whole:
        if chosen != canary.revision:
            raise Broken(1, f"{client.me}: {level} was drawn for release {canary.sequence} and does not try it")
        return
    taken = {it.revision for it in client.heard if not _latest(client, it.revision).full}
    if chosen in taken:
        raise Broken(1, f"{client.me}: {level} tries a canary that it was not drawn for, or that was taken back")
    _judge_age(client, chosen, whole, full)
    last = swarm.full_releases[-1]
    if level.kind == "strong" and swarm.settled and swarm.old(last) and chosen != last.revision:
        raise Broken(1, f"{client.me}: strong missed release {last.sequence}, though nobody was cut off")


def _judge_age(client: Client, chosen: bytes, whole: list[bytes], full: Release | None) -> None:
    level = client.level
    sequence = max((it.sequence for it in client.heard if it.revision == chosen), default=0)
    newest = full.sequence if full is not None else 0
    if level.kind == "strong" and (sequence != newest or not sequence):
        raise Broken(1, f"{client.me}: strong runs on release {sequence}, {newest} is known to it")
    if level.kind == "bounded" and (newest - sequence > level.k or not sequence):
        raise Broken(1, f"{client.me}: {level} runs on release {sequence}, {newest} is known to it")
    better = [it.sequence for it in client.heard if it.revision in whole and _latest(client, it.revision).full]
    if max(better, default=0) > sequence:
        raise Broken(1, f"{client.me}: {level} runs on release {sequence}, {max(better)} is complete")


def _latest(client: Client, revision: bytes) -> Release:
    return max((it for it in client.heard if it.revision == revision), key=lambda it: it.rank)


def judge_refusal(swarm: Swarm, client: Client, whole: list[bytes]) -> None:
    """No session begins."""
    level = client.level
    fit = [it for it in whole if it not in {r.revision for r in client.heard} or _latest(client, it).full]
    if level.kind == "available" and (fit or swarm.settled):
        raise Broken(6, f"{client.me}: available was refused with {len(fit)} complete rings in view")
    if level.kind == "pinned" and level.revision in whole:
        raise Broken(6, f"{client.me}: {level} was refused though a ring serves it")


def judge_session(swarm: Swarm, client: Client, rider: Rider) -> None:
    """A session has ended."""
    assert rider.ended is not None
    kind, error = client.level.kind, rider.ended.error
    if error is None:
        swarm.answered[kind] = swarm.answered.get(kind, 0) + 1
    elif client.began >= swarm.whole_since and not any(node.confused for node in swarm.nodes.values()):
        raise Broken(6, f"{client.me}: a session of {kind} that nothing disturbed ends with {error.code}: {error}")


def judge_rings(swarm: Swarm) -> None:
    """A node offers less than before: while a canary runs, the ring that it stands beside stays whole."""
    if swarm.guarded is not None and not ring_of(swarm, swarm.guarded):
        raise Broken(1, f"the ring beside the canary is lost: {swarm.guarded[:13]!r}")


def ring_of(swarm: Swarm, revision: bytes) -> bool:
    """Whether nodes offer all layers of a revision, whoever can reach them."""
    return complete(revision, LAYERS, [row for node in swarm.nodes.values() for row in node.rows()])


def judge_end(swarm: Swarm) -> None:
    """All is whole for long: everybody knows the same, all that follow hold the newest for everybody, and what a canary
    asks for is held by some.
    """
    heard = set().union(*(node.member.heard for node in swarm.nodes.values()))
    if swarm.now - swarm.whole_since < 100 or swarm.released[-1] not in heard:
        return
    frontiers = {tuple(sorted(it.member.frontier.ranks.items())) for it in swarm.nodes.values()}
    if len(frontiers) > 1 and swarm.settled:
        raise Broken(6, "frontiers have not converged")
    full, canary = standing(swarm.released)
    assert full is not None
    for node in swarm.nodes.values():
        if node.follows and full.revision not in node.hosts:
            raise Broken(6, f"{node.me} has not taken up the last release")
    able = {layer for it in swarm.nodes.values() if it.follows for layer in range(it.span.start, it.span.end)}
    if canary is not None and len(able) == LAYERS and not ring_of(swarm, canary.revision):
        raise Broken(6, f"nobody serves the canary of release {canary.sequence}")
