"""The link profile in force as one process sees it, and the gate that makes libp2p's streams wait under it.

Knows who waits for what, and for how long. Refuses to know channels (`net.conditioner`) and libp2p (`net.streams`).
"""

from __future__ import annotations

import random
from typing import Protocol, runtime_checkable

import trio

from paceline.net.profiles import LinkProfile, LinkWeather, Schedule, Wire
from paceline.wire.ids import PeerId

HANDSHAKE_TRIPS = 2
"""Round trips before a dialled channel can carry a message: TCP's, and Noise XX's."""


class StreamGate(Protocol):
    """Where somebody may make streams wait: `net.conditioner`'s sky."""

    async def dialled(self, peer: PeerId) -> None:
        """Before a stream is opened."""
        ...

    async def sent(self, peer: PeerId, size: int) -> None:
        """Before bytes are written."""
        ...

    async def passable(self, peer: PeerId) -> None:
        """Before bytes that were read are handed on."""
        ...


@runtime_checkable
class Gated(Protocol):
    """A transport that opens streams beside its channels, and lets a gate make them wait."""

    gate: StreamGate | None


class Sky:
    """The profile in force as one process sees it. Everybody who waits for it waits in `changed`."""

    def __init__(self, own: PeerId, profile: LinkProfile, *, slack_s: float) -> None:
        self.profile = profile
        self.changed = trio.lowlevel.ParkingLot()
        self.slack_s = slack_s
        self._own = own
        self._uplink = Wire()
        self._chance = random.Random(None if profile.seed is None else f"{profile.seed}/{own}")

    def set(self, profile: LinkProfile) -> None:
        """For what is sent from now on; a partition takes hold, or ends, now."""
        self.profile = profile
        self.changed.unpark_all()

    def towards(self, peer: PeerId) -> LinkWeather:
        """What our bytes to `peer` meet."""
        return self.profile.towards(self._own, peer)

    def back_from(self, peer: PeerId) -> LinkWeather:
        """What the bytes of `peer` to us meet, if it has the same profile."""
        return self.profile.towards(peer, self._own)

    def schedule(self, peer: PeerId) -> Schedule:
        """For a new channel to a peer."""
        seed = self.profile.seed
        chance = random.Random(None if seed is None else f"{seed}/{self._own}/{peer}")
        return Schedule(chance, self._uplink)

    # --- net.streams.StreamGate, for libp2p's streams -------------------------------------------------------------

    async def dialled(self, peer: PeerId) -> None:
        """Wait for as long as a handshake takes; through a partition, until it ends."""
        trips = self.towards(peer).latency_s + self.back_from(peer).latency_s
        await trio.sleep(HANDSHAKE_TRIPS * trips)
        await self.passable(peer)

    async def sent(self, peer: PeerId, size: int) -> None:
        """Wait until `size` bytes that are written now have arrived."""
        weather = self.towards(peer)
        schedule = Schedule(self._chance, self._uplink)
        (due,) = schedule.due(trio.current_time(), [size], weather, self.profile.uplink_bytes_s)
        await trio.sleep_until(due - self.slack_s)
        await self.passable(peer)

    async def passable(self, peer: PeerId) -> None:
        """Wait until no partition is in between."""
        while self.towards(peer).partition:
            await self.changed.park()
