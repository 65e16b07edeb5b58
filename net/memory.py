"""A network inside one process: channels with latency, and faults on demand, under trio's clock.

Knows time only through trio, so that tests run it under MockClock. Refuses to know what messages mean. Passes the same
contract tests as the real transports (tests/net/test_transport_contract.py).

What a fault does to bytes: a partition or a frozen peer *holds* them (TCP would resend them after the fault), a killed
peer's are lost and its channels break at once, as a reset does.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import trio

from paceline.net.lane import Lanes
from paceline.net.memory_doors import MemoryDoors
from paceline.net.transport import ChannelHandler, ChannelKind
from paceline.net.unwrapping import single_errors
from paceline.wire import limits
from paceline.wire.errors import DeadlineExceeded, PacelineError, PeerUnavailable
from paceline.wire.ids import PeerId
from paceline.wire.messages import PeerAddress

DEFAULT_LATENCY_S = 0.0005
DEFAULT_BUFFER_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Spike:
    until_s: float
    extra_s: float


class MemoryNetwork:
    """All peers, channels and faults of one test. Seeded: same seed, same calls, same timings."""

    def __init__(
        self,
        seed: int = 0,
        *,
        latency_s: float = DEFAULT_LATENCY_S,
        jitter_s: float = 0.0,
        buffer_bytes: int = DEFAULT_BUFFER_BYTES,
    ) -> None:
        """`latency_s`: one way, where no pair says otherwise; plus uniform ``[0, jitter_s)`` drawn per packet.
        `buffer_bytes`: what a direction takes before its sender waits.
        """
        self.buffer_bytes = buffer_bytes
        self._random = random.Random(seed)
        self._latency_s = latency_s
        self._jitter_s = jitter_s
        self._pairs: dict[tuple[PeerId, PeerId], float] = {}
        self._spikes: dict[tuple[PeerId, PeerId], _Spike] = {}
        self._partitions: list[tuple[frozenset[PeerId], frozenset[PeerId]]] = []
        self._frozen: set[PeerId] = set()
        self._transports: dict[PeerId, MemoryTransport] = {}
        self._pipes: dict[_Pipe, None] = {}
        self._changed = trio.lowlevel.ParkingLot()

    def transport(self, peer: PeerId | str, *, listens: bool = True) -> MemoryTransport:
        """A place on this network. Called again for a killed peer: its next incarnation."""
        made = MemoryTransport(self, PeerId(peer), listens=listens)
        self._transports[made.peer] = made
        return made

    # --- weather ------------------------------------------------------------------------------------------------

    def set_latency(self, a: PeerId, b: PeerId, one_way_s: float, *, back_s: float | None = None) -> None:
        """One-way latency a → b; b → a the same, unless `back_s` says otherwise. For packets sent from now on."""
        self._pairs[a, b] = one_way_s
        self._pairs[b, a] = one_way_s if back_s is None else back_s

    def spike(self, a: PeerId, b: PeerId, *, extra_s: float, for_s: float) -> None:
        """Packets between a and b, both ways, take `extra_s` longer where they are sent within `for_s`."""
        spike = _Spike(trio.current_time() + for_s, extra_s)
        self._spikes[a, b] = self._spikes[b, a] = spike

    def partition(self, some: Iterable[PeerId], others: Iterable[PeerId]) -> None:
        """Hold all bytes between the two groups until `heal`. Nobody is told."""
        self._partitions.append((frozenset(some), frozenset(others)))

    def heal(self) -> None:
        """End all partitions; held bytes arrive now."""
        self._partitions.clear()
        self._notify()

    def freeze(self, peer: PeerId) -> None:
        """Hold all bytes to and from a peer, as a stopped process does. Nobody is told."""
        self._frozen.add(peer)

    def thaw(self, peer: PeerId) -> None:
        self._frozen.discard(peer)
        self._notify()

    def kill(self, peer: PeerId) -> None:
        """The process is gone: undelivered bytes are lost, its channels break at once, dials to it are refused."""
        self._frozen.discard(peer)
        transport = self._transports.pop(peer, None)
        if transport is not None:
            transport.alive = False
        self._break(lambda pipe: peer in (pipe.source, pipe.target))

    def cut(self, a: PeerId, b: PeerId) -> None:
        """Reset the channels between two peers, once."""
        self._break(lambda pipe: {pipe.source, pipe.target} == {a, b})

    def blocked(self, a: PeerId, b: PeerId) -> bool:
        """Whether bytes between two peers are held."""
        if a in self._frozen or b in self._frozen:
            return True
        return any((a in x and b in y) or (a in y and b in x) for x, y in self._partitions)

    def latency_s(self, source: PeerId, target: PeerId) -> float:
        """One-way latency of a packet sent now."""
        base = self._pairs.get((source, target), self._latency_s)
        jitter = self._random.random() * self._jitter_s if self._jitter_s else 0.0
        spike = self._spikes.get((source, target))
        return base + jitter + (spike.extra_s if spike and trio.current_time() < spike.until_s else 0.0)

    # --- for the transports -------------------------------------------------------------------------------------

    async def reach(self, source: MemoryTransport, target: PeerId) -> MemoryTransport:
        """Wait for as long as a handshake takes; the target's transport. Raises PeerUnavailable."""
        await trio.sleep(self.latency_s(source.peer, target) + self.latency_s(target, source.peer))
        while self.blocked(source.peer, target):
            await self._changed.park()
        found = self._transports.get(target)
        if not source.alive or found is None or not found.accepts:
            raise PeerUnavailable("nobody listens there", peer=target)
        return found

    def pipe(self, source: PeerId, target: PeerId) -> _Pipe:
        made = _Pipe(self, source, target)
        self._pipes[made] = None
        return made

    def forget(self, pipe: _Pipe) -> None:
        self._pipes.pop(pipe, None)

    def _break(self, concerns: Callable[[_Pipe], bool]) -> None:
        for pipe in [pipe for pipe in self._pipes if concerns(pipe)]:
            pipe.reset()

    def _notify(self) -> None:
        self._changed.unpark_all()
        for pipe in list(self._pipes):
            pipe.wake()


class _Pipe:
    """One direction of a channel: packets in order, each with the time it is due."""

    def __init__(self, network: MemoryNetwork, source: PeerId, target: PeerId) -> None:
        self.source, self.target = source, target
        self._network = network
        self._packets: deque[tuple[float, list[bytes]]] = deque()
        self._size = 0
        self.bytes_taken = 0
        self._ends_at: float = math.inf
        self._writable = True
        self._readable = True
        self._readers = trio.lowlevel.ParkingLot()
        self._writers = trio.lowlevel.ParkingLot()

    def wake(self) -> None:
        self._readers.unpark_all()
        self._writers.unpark_all()

    async def put(self, messages: list[bytes]) -> None:
        """Queue one packet, once there is room. Cancelled: nothing was queued."""
        await trio.lowlevel.checkpoint()
        while self._writable and self._size >= self._network.buffer_bytes:
            await self._writers.park()
        if not self._writable:
            raise PeerUnavailable("the channel is closed", peer=self.target)
        due = trio.current_time() + self._network.latency_s(self.source, self.target)
        if self._packets:
            due = max(due, self._packets[-1][0])
        self._packets.append((due, messages))
        self._size += sum(map(len, messages))
        self._readers.unpark_all()

    async def take(self) -> list[bytes]:
        """Everything that is due, at least one message. Raises PeerUnavailable at the end."""
        await trio.lowlevel.checkpoint()
        while self._readable:
            now = trio.current_time()
            if self._network.blocked(self.source, self.target):
                wake_at = math.inf
            elif self._packets and self._packets[0][0] <= now:
                return self._take_due(now)
            elif not self._packets and self._ends_at <= now:
                break
            else:
                wake_at = self._packets[0][0] if self._packets else self._ends_at
            with trio.move_on_at(wake_at):
                await self._readers.park()
        raise PeerUnavailable("the channel has ended", peer=self.source)

    def _take_due(self, now: float) -> list[bytes]:
        taken: list[bytes] = []
        while self._packets and self._packets[0][0] <= now:
            taken += self._packets.popleft()[1]
        size = sum(map(len, taken))
        self._size -= size
        self.bytes_taken += size
        self._writers.unpark_all()
        return taken

    def finish(self) -> None:
        """The writing side closes: what was sent still arrives, then the end."""
        if self._writable:
            self._writable = False
            last = self._packets[-1][0] if self._packets else 0.0
            self._ends_at = max(last, trio.current_time() + self._network.latency_s(self.source, self.target))
            self.wake()

    def abandon(self) -> None:
        """The reading side closes: its reader wakes at once, the writer learns a latency later by its own pipe."""
        self._readable = False
        self._network.forget(self)
        self.wake()

    def reset(self) -> None:
        """Lose what is under way; the reader gets the end now."""
        self._packets.clear()
        self._size = 0
        self._writable = False
        self._ends_at = trio.current_time()
        self.wake()


class _MemoryChannel:
    """One end of a pair of pipes."""

    kind: ChannelKind = "memory"

    def __init__(self, peer: PeerId, outgoing: _Pipe, incoming: _Pipe, *, dialer: bool) -> None:
        self.peer = peer
        self.dialer = dialer
        self.on_close: Callable[[_MemoryChannel, None], None] = lambda channel, default: None
        self._outgoing = outgoing
        self._incoming = incoming

    @property
    def bytes_heard(self) -> int:
        return self._incoming.bytes_taken

    async def send(self, messages: Sequence[bytes]) -> None:
        for message in messages:
            if len(message) > limits.MAX_MESSAGE_BYTES:
                raise ValueError(f"message of {len(message)} bytes is over the limit")
        await self._outgoing.put(list(messages))

    async def receive(self) -> list[bytes | bytearray | memoryview]:
        try:
            return [*await self._incoming.take()]
        except PeerUnavailable:
            # The other side can no longer be written to either: as a socket says after a reset.
            self._outgoing.finish()
            raise

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        self._outgoing.finish()
        self._incoming.abandon()
        self.on_close(self, None)


class MemoryTransport:
    """One peer's place on a MemoryNetwork; implements `net.transport.Transport`."""

    def __init__(self, network: MemoryNetwork, peer: PeerId, *, listens: bool) -> None:
        self.peer = peer
        self.alive = True
        self.lanes: Lanes | None = None
        self.doors: MemoryDoors | None = None
        """Where the test gives this peer an IP address (`net.memory_doors`)."""
        self._network = network
        self._listens = listens
        self._handler: ChannelHandler | None = None
        self._nursery: trio.Nursery | None = None
        self._channels: dict[_MemoryChannel, None] = {}

    @property
    def address(self) -> PeerAddress:
        if self.doors is not None:
            return self.doors.address
        return PeerAddress(self.peer, control=(f"/memory/{self.peer}",) if self._listens else ())

    @property
    def accepts(self) -> bool:
        """Whether a dial to this peer succeeds now."""
        return self.alive and self._listens and self._nursery is not None

    def statistics(self) -> dict[str, int]:
        return {"channels_memory": len(self._channels)}

    async def dial(self, to: PeerAddress, *, timeout_s: float) -> _MemoryChannel:
        if not to.control and not to.data:
            raise PeerUnavailable("no address to dial", peer=to.peer)
        with trio.move_on_after(timeout_s):
            target = await self._network.reach(self, PeerId(to.peer))
            forth = self._network.pipe(self.peer, target.peer)
            back = self._network.pipe(target.peer, self.peer)
            target.accept(_MemoryChannel(self.peer, back, forth, dialer=False))
            return self._own(_MemoryChannel(target.peer, forth, back, dialer=True))
        raise DeadlineExceeded(f"no answer within {timeout_s:g} s", peer=to.peer)

    def accept(self, channel: _MemoryChannel) -> None:
        """An inbound channel: handled in its own task."""
        assert self._nursery is not None
        self._nursery.start_soon(self._serve, self._own(channel))

    def run(self, handler: ChannelHandler) -> AbstractAsyncContextManager[None]:
        return self._run(handler)

    @asynccontextmanager
    async def _run(self, handler: ChannelHandler) -> AsyncIterator[None]:
        try:
            with single_errors():
                async with trio.open_nursery() as nursery:
                    self._handler, self._nursery = handler, nursery
                    yield
                    nursery.cancel_scope.cancel()
        finally:
            self._handler = self._nursery = None
            for channel in list(self._channels):
                channel.close()

    async def _serve(self, channel: _MemoryChannel) -> None:
        assert self._handler is not None
        try:
            await self._handler(channel)
        except PacelineError:
            # The handler's own business; the channel closes either way.
            pass
        finally:
            channel.close()

    def _own(self, channel: _MemoryChannel) -> _MemoryChannel:
        self._channels[channel] = None
        channel.on_close = self._channels.pop
        return channel
