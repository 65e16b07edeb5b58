"""One link: the outbox to a peer, and the tasks that read, write and watch its channel.

Knows one peer at a time. Refuses to know how a channel comes about or who else is linked (`net.links`).

==========  ============================================  =========================
state       means                                         may become
==========  ============================================  =========================
DIALING     no channel yet; messages wait in the outbox   UP, ENDED
UP          a channel is served                           ENDED
ENDED       the error says why; the outbox is dropped     (nothing)
==========  ============================================  =========================
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial

import trio

from paceline.net.liveness import Liveness, LivenessConfig
from paceline.net.transport import Channel
from paceline.net.uplink import BURST_BYTES, MARK_EVERY_S, Bursts, Uplink
from paceline.wire import limits
from paceline.wire.codec import Buffer, decode, encode
from paceline.wire.errors import InternalError, Overloaded, PacelineError, PeerUnavailable, ProtocolViolation
from paceline.wire.ids import PeerId
from paceline.wire.messages import Hello, Message, Ping, Pong

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class LinksConfig:
    """Every number of the link pool. `serves`: this process is a node, and says so in its Hello.

    `outbox_bytes`: what may wait for one peer. `batch_bytes`: what one write joins (a single message may be larger),
    so that a heartbeat never waits behind more than that. `seed` draws the jitter of the cool-down.
    """

    agent: str = "paceline"
    serves: bool = False
    liveness: LivenessConfig = field(default_factory=LivenessConfig)
    dial_timeout_s: float = 5.0
    hello_timeout_s: float = 5.0
    outbox_bytes: int = 128 * MIB
    batch_bytes: int = MIB
    idle_close_s: float = 600.0
    retry_first_s: float = 0.25
    retry_max_s: float = 10.0
    seed: int | None = None


class LinkState(Enum):
    DIALING = "dialing"
    UP = "up"
    ENDED = "ended"


@dataclass(slots=True)
class Traffic:
    """Counters that a pool shares among its links."""

    messages_in: int = 0
    messages_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


@dataclass(frozen=True, slots=True)
class LinksStatistics:
    """Counters since the start. `errors`: ended links and refused greetings by the error's code."""

    up: int
    messages_in: int
    messages_out: int
    bytes_in: int
    bytes_out: int
    dials: int
    dials_failed: int
    lost: int
    errors: dict[str, int]

    @property
    def malformed(self) -> int:
        """Links that ended because the peer broke the protocol."""
        return self.errors.get("malformed", 0) + self.errors.get("protocol_violation", 0)


Deliver = Callable[[PeerId, Message, memoryview], None]


class Link:
    """One peer's outbox, channel and liveness. `on_end(link)` is called once, when the state becomes ENDED;
    `uplink` is told how fast our bytes arrive.
    """

    def __init__(
        self,
        peer: PeerId,
        config: LinksConfig,
        now: Callable[[], float],
        traffic: Traffic,
        deliver: Deliver,
        on_end: Callable[[Link], None],
        uplink: Uplink,
    ) -> None:
        self.peer = peer
        self.state = LinkState.DIALING
        self.error: PacelineError | None = None
        self._up_since: float | None = None
        self.settled = trio.Event()
        """Set when the link is no longer DIALING."""
        self.dialled = trio.Event()
        """Set when this side's own attempt to dial is over, either way."""
        self.dial_scope = trio.CancelScope()
        self.knocks = 0
        """Inbound channels of this peer that may still become the link."""
        self.knocked = trio.lowlevel.ParkingLot()
        self.liveness = Liveness(config.liveness, now())
        self._config = config
        self._now = now
        self._traffic = traffic
        self._deliver = deliver
        self._on_end = on_end
        self._uplink = uplink
        self._bursts = Bursts()
        self._marked = -MARK_EVERY_S
        self._scope = trio.CancelScope()
        self._urgent: deque[bytes] = deque()
        self._outbox: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._bell = trio.Event()
        self._drained = trio.lowlevel.ParkingLot()
        self._used = now()

    @property
    def was_up(self) -> bool:
        return self._up_since is not None

    @property
    def lived_s(self) -> float:
        """Time since the link came up, 0 where it never did."""
        return 0.0 if self._up_since is None else self._now() - self._up_since

    @property
    def waiting_bytes(self) -> int:
        """Bytes put and not yet written to the channel."""
        return self._waiting_bytes

    def put(self, message: Message, payload: Buffer) -> None:
        """Queue one message; the payload is copied now. Raises Overloaded, or InternalError for one over the limit."""
        data = encode(message, payload)
        if len(data) > limits.MAX_MESSAGE_BYTES:
            raise InternalError(f"a {type(message).__name__} of {len(data)} bytes is over the limit", peer=self.peer)
        if self._waiting_bytes and self._waiting_bytes + len(data) > self._config.outbox_bytes:
            raise Overloaded(f"{self._waiting_bytes} bytes already wait for this peer", peer=self.peer)
        self._waiting_bytes += len(data)
        self._outbox.append(data)
        self._used = self._now()
        self._bell.set()

    def end(self, error: PacelineError) -> None:
        """Close the link for good, and say why. Only the first call counts."""
        if self.state is LinkState.ENDED:
            return
        self.state = LinkState.ENDED
        self.error = error
        self._outbox.clear()
        self._urgent.clear()
        self._waiting_bytes = 0
        self._drained.unpark_all()
        self.dial_scope.cancel()
        self._scope.cancel()
        self.dialled.set()
        self.settled.set()
        self._on_end(self)

    async def drained(self) -> None:
        """Wait until nothing waits in the outbox."""
        while self._waiting_bytes:
            await self._drained.park()

    async def serve(self, channel: Channel, early: Sequence[Buffer]) -> None:
        """Own `channel` until the link ends. `early`: messages that came right behind the greeting."""
        if self.state is LinkState.ENDED:
            await channel.aclose()
            return
        self.state = LinkState.UP
        self._up_since = self._now()
        self.settled.set()
        self.liveness.heard(self._now())
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    # The first ping doubles as the dialer's confirmation, so it leaves before anything else.
                    self._ping(self._now())
                    nursery.start_soon(self._guarded, self._write, channel)
                    nursery.start_soon(self._guarded, self._watch, channel)
                    await self._guarded(partial(self._read, early), channel)
        finally:
            await channel.aclose()

    async def _guarded(self, job: Callable[[Channel], Awaitable[None]], channel: Channel) -> None:
        try:
            await job(channel)
        except PacelineError as error:
            self.end(error)

    async def _read(self, early: Sequence[Buffer], channel: Channel) -> None:
        self._receive(early, channel)
        while True:
            self._receive(await channel.receive(), channel)

    def _receive(self, batch: Sequence[Buffer], channel: Channel) -> None:
        """Hand on everything that came in one piece, without a checkpoint in between."""
        now = self._now()
        self.liveness.heard(now)
        for data in batch:
            message, payload = decode(data)
            self._traffic.messages_in += 1
            self._traffic.bytes_in += len(data)
            self._bursts.message(len(data), now, channel.bytes_heard)
            if isinstance(message, Ping) and message.burst:
                self._bursts.mark(message.burst, now, channel.bytes_heard)
            elif isinstance(message, Ping):
                self._put_urgent(Pong(message.nonce, self._bursts.bytes_per_s))
            elif isinstance(message, Pong):
                self.liveness.pong(message.nonce, now)
                self._uplink.tell(self.peer, message.bytes_per_s, now)
            elif isinstance(message, Hello):
                raise ProtocolViolation("a second Hello on one link", peer=self.peer)
            else:
                self._used = now
                self._deliver(self.peer, message, payload)
            if self.state is LinkState.ENDED:
                return

    async def _write(self, channel: Channel) -> None:
        while True:
            batch, size = self._take_batch()
            if not batch:
                self._bell = trio.Event()
                await self._bell.wait()
                continue
            await channel.send(batch)
            self._traffic.messages_out += len(batch)
            self._traffic.bytes_out += sum(map(len, batch))
            self._waiting_bytes -= size
            if not self._waiting_bytes:
                self._drained.unpark_all()

    def _take_batch(self) -> tuple[list[bytes], int]:
        """Heartbeats first, then messages in order, up to the batch's size but at least one; and the latters' bytes.
        Many of them come behind a mark, at which the peer starts its watch.
        """
        batch = list(self._urgent)
        urgent = len(batch)
        self._urgent.clear()
        size = 0
        while self._outbox and (not size or size + len(self._outbox[0]) <= self._config.batch_bytes):
            size += len(self._outbox[0])
            batch.append(self._outbox.popleft())
        if size >= BURST_BYTES and self._now() - self._marked >= MARK_EVERY_S:
            self._marked = self._now()
            batch.insert(urgent, encode(Ping(0, size)))
        return batch, size

    async def _watch(self, channel: Channel) -> None:
        heard = channel.bytes_heard
        while True:
            await trio.sleep(self._config.liveness.tick_s)
            now = self._now()
            if channel.bytes_heard != heard:
                heard = channel.bytes_heard
                self.liveness.heard(now)
            if self.liveness.tick(now):
                raise PeerUnavailable(f"silent for {self.liveness.quiet_s:.1f} s", peer=self.peer)
            if now - self._used >= self._config.idle_close_s and not self._waiting_bytes:
                raise PeerUnavailable("closed an idle link", peer=self.peer)
            if self.liveness.ping_due(now):
                self._ping(now)

    def _ping(self, now: float) -> None:
        self._put_urgent(Ping(self.liveness.ping(now)))

    def _put_urgent(self, message: Message) -> None:
        if len(self._urgent) < _MAX_URGENT:
            self._urgent.append(encode(message))
            self._bell.set()


_MAX_URGENT = 64
"""Heartbeats that may wait: a peer that only ever pings cannot grow the outbox."""
