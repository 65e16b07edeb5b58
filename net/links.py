"""The link pool: one link per peer, dialled when first needed, used in both directions. Node and client share it.

Knows greetings, who wins when both dial at once, redialling, and what to tell its owner. Refuses to know what messages
mean, beyond Hello, Ping and Pong, which never leave this folder.

How a link comes up. The dialer says Hello, the acceptor answers Hello, and the dialer's first message after that (a
Ping) confirms. Only a confirmed channel carries messages, so nothing is sent on one that loses. Where two peers dial
each other at once, the channel of the smaller peer id wins: its owner leaves the other's Hello unanswered until its own
attempt is decided, and answers it only if that failed (a peer behind NAT can be reached by no other way).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import trio

from paceline.net.link import Link, LinksConfig, LinksStatistics, LinkState, Traffic
from paceline.net.transport import Channel, Transport
from paceline.net.unwrapping import single_errors
from paceline.net.uplink import Uplink
from paceline.wire.codec import Buffer, decode, encode
from paceline.wire.errors import DeadlineExceeded, PacelineError, PeerUnavailable, ProtocolViolation, Refused
from paceline.wire.ids import PeerId
from paceline.wire.messages import PROTOCOL_VERSION, Hello, Message, PeerAddress

__all__ = ["Links", "LinksConfig", "LinksStatistics"]

OnMessage = Callable[[PeerId, Message, memoryview], None]
OnLost = Callable[[PeerId, PacelineError], None]

_MAX_COOLING = 4096
_STABLE_S = 1.0
"""A link that ends sooner counts as a failed dial: a peer that accepts and drops is not redialled in a loop."""


@dataclass(slots=True)
class _Cooling:
    """A peer that failed: not dialled again before `until`."""

    failures: int
    until: float
    error: PacelineError


class Links:
    """All links of one process.

    `on_message(peer, message, payload)` and `on_lost(peer, error)` are plain functions. Messages of one peer come in
    order; those that arrived together are delivered without a checkpoint between them. `on_message` may raise
    ProtocolViolation: the link ends. `on_lost` is called once whenever a link ends or a dial fails; what was queued is
    dropped then, and what was sent may not have arrived. `on_up` is called whenever a link comes up.
    """

    def __init__(
        self,
        transport: Transport,
        on_message: OnMessage,
        on_lost: OnLost = lambda peer, error: None,
        config: LinksConfig | None = None,
        now: Callable[[], float] = trio.current_time,
        on_up: Callable[[PeerId], None] = lambda peer: None,
    ) -> None:
        self._transport = transport
        self._on_up = on_up
        self._peer = PeerId(transport.address.peer)
        self._on_message = on_message
        self._on_lost = on_lost
        self._config = config or LinksConfig()
        self._now = now
        self._random = random.Random(self._config.seed)
        self._links: dict[PeerId, Link] = {}
        self._cooling: dict[PeerId, _Cooling] = {}
        self._fell: dict[PeerId, float] = {}
        """When the last link or dial ended, of peers without a link."""
        self._local: deque[Callable[[], None]] = deque()
        self._local_bell = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._traffic = Traffic()
        self._uplink = Uplink()
        self._dials = self._dials_failed = self._lost = 0
        self._errors: dict[str, int] = {}

    # --- for the owner ------------------------------------------------------------------------------------------

    @property
    def peer(self) -> PeerId:
        """Own peer id."""
        return self._peer

    @property
    def address(self) -> PeerAddress:
        """Where others reach this process; the transport's."""
        return self._transport.address

    def run(self) -> AbstractAsyncContextManager[None]:
        """Accept, dial and keep links during the block; afterwards all are closed, without `on_lost`."""
        return self._run()

    def send(self, to: PeerAddress, message: Message, payload: Buffer = b"") -> None:
        """Queue one message for a peer; never blocks. Dials in the background where there is no link.

        To oneself: delivered on the next tick, in order, never encoded. While a peer that failed cools down, `on_lost`
        tells at once (on the next tick). Raises Overloaded where the peer's outbox is full.
        """
        peer = PeerId(to.peer)
        link = self._links.get(peer)
        if link is None:
            if peer == self._peer:
                self._soon(partial(self._on_message, peer, message, memoryview(bytes(payload))))
                return
            cooling = self._cooling.get(peer)
            if cooling is not None and self._now() < cooling.until:
                self._soon(partial(self._on_lost, peer, cooling.error))
                return
            link = self._dial(to)
        link.put(message, payload)

    def want(self, to: PeerAddress, *, now: bool = False) -> None:
        """Dial in the background where there is no link, so that a later `send` finds one. Never blocks or raises.

        `now`: once, even while the peer cools down: somebody has reason to think that it is back.
        """
        peer = PeerId(to.peer)
        cooling = self._cooling.get(peer)
        idle = self._nursery is not None and peer != self.peer and peer not in self._links
        if idle and (now or cooling is None or self._now() >= cooling.until):
            self._dial(to)

    def fallen_s(self, peer: PeerId) -> float | None:
        """How long ago the last link or dial to a peer ended; None where there is a link, or it was long ago."""
        since = self._now() - self._fell.get(peer, float("-inf"))
        return since if since <= self._config.retry_max_s else None

    def waiting_bytes(self, peer: PeerId) -> int:
        """Bytes put for a peer and not yet written; 0 where there is no link."""
        link = self._links.get(peer)
        return link.waiting_bytes if link else 0

    def reply(self, peer: PeerId, message: Message, payload: Buffer = b"") -> bool:
        """Queue one message on an existing link. False where there is none. Raises Overloaded."""
        link = self._links.get(peer)
        if link is None:
            return False
        link.put(message, payload)
        return True

    async def connect(self, to: PeerAddress, timeout_s: float) -> None:
        """Make sure that a link is up, dialling once where there is none, cooling down or not.

        Raises PeerUnavailable, or Refused where the peer speaks another protocol version.
        """
        peer = PeerId(to.peer)
        if peer == self._peer:
            await trio.lowlevel.checkpoint()
            return
        link = self._links.get(peer) or self._dial(to)
        with trio.move_on_after(timeout_s):
            await link.settled.wait()
        if link.error is not None:
            raise link.error
        if link.state is LinkState.DIALING:
            raise DeadlineExceeded(f"no link within {timeout_s:g} s", peer=peer)

    async def flush(self, timeout_s: float) -> None:
        """Wait until everything queued is written, at most `timeout_s`: for the last words of a process."""
        with trio.move_on_after(timeout_s):
            for link in list(self._links.values()):
                await link.drained()

    def close(self, peer: PeerId) -> None:
        """End the link to a peer, if there is one; `on_lost` is called."""
        link = self._links.get(peer)
        if link is not None:
            link.end(PeerUnavailable("closed here", peer=peer))

    def rtt_s(self, peer: PeerId) -> float | None:
        """Smoothed round trip, None before the first measurement."""
        link = self._links.get(peer)
        return link.liveness.rtt_s if link else None

    def rtt_min_s(self, peer: PeerId) -> float | None:
        """Least round trip of the last minute on the present link."""
        link = self._links.get(peer)
        return link.liveness.rtt_min_s if link else None

    def uplink_bytes_per_s(self) -> float:
        """How fast what we send arrives when it is much, as most receivers say; 0: nobody has measured it."""
        return self._uplink.bytes_per_s(self._now())

    def peers(self) -> tuple[PeerId, ...]:
        """Peers with a link that is up."""
        return tuple(peer for peer, link in self._links.items() if link.state is LinkState.UP)

    def statistics(self) -> LinksStatistics:
        traffic = self._traffic
        return LinksStatistics(
            up=len(self.peers()),
            messages_in=traffic.messages_in,
            messages_out=traffic.messages_out,
            bytes_in=traffic.bytes_in,
            bytes_out=traffic.bytes_out,
            dials=self._dials,
            dials_failed=self._dials_failed,
            lost=self._lost,
            errors=dict(self._errors),
        )

    # --- life ---------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _run(self) -> AsyncIterator[None]:
        with single_errors():
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._deliver_local)
                try:
                    async with self._transport.run(self._accept):
                        try:
                            yield
                        finally:
                            self._nursery = None
                finally:
                    self._links.clear()
                nursery.cancel_scope.cancel()

    def _soon(self, call: Callable[[], None]) -> None:
        self._local.append(call)
        self._local_bell.set()

    async def _deliver_local(self) -> None:
        while True:
            await self._local_bell.wait()
            # Only what was there at the start of the tick: a chain of self-sends must not starve everybody else.
            for _ in range(len(self._local)):
                self._local.popleft()()
            if not self._local:
                self._local_bell = trio.Event()

    def _new_link(self, peer: PeerId) -> Link:
        link = Link(peer, self._config, self._now, self._traffic, self._on_message, self._ended, self._uplink)
        self._links[peer] = link
        return link

    def _ended(self, link: Link) -> None:
        """A link's end: forget it, remember to cool down, tell the owner."""
        if self._links.get(link.peer) is not link:
            return
        del self._links[link.peer]
        assert link.error is not None
        self._count(link.error)
        if link.was_up:
            self._lost += 1
        else:
            self._dials_failed += 1
        if link.lived_s < _STABLE_S or isinstance(link.error, ProtocolViolation):
            self._cool(link.peer, link.error)
        else:
            self._cooling.pop(link.peer, None)
        self._fell.pop(link.peer, None)
        self._fell[link.peer] = self._now()
        if len(self._fell) > _MAX_COOLING:
            del self._fell[next(iter(self._fell))]
        if self._nursery is not None:
            self._on_lost(link.peer, link.error)

    def _count(self, error: PacelineError) -> None:
        self._errors[error.code] = self._errors.get(error.code, 0) + 1

    def _cool(self, peer: PeerId, error: PacelineError) -> None:
        """Jittered exponential cool-down: half to all of ``first × 2^failures``, bounded."""
        before = self._cooling.pop(peer, None)
        failures = min(before.failures + 1, 32) if before else 0
        bound = min(self._config.retry_first_s * 2.0**failures, self._config.retry_max_s)
        self._cooling[peer] = _Cooling(failures, self._now() + bound * self._random.uniform(0.5, 1.0), error)
        if len(self._cooling) > _MAX_COOLING:
            del self._cooling[next(iter(self._cooling))]

    # --- how a link comes up ------------------------------------------------------------------------------------

    def _dial(self, to: PeerAddress) -> Link:
        if self._nursery is None:
            raise PeerUnavailable("the link pool is not running", peer=to.peer)
        link = self._new_link(PeerId(to.peer))
        self._dials += 1
        self._nursery.start_soon(self._dial_task, link, to)
        return link

    async def _dial_task(self, link: Link, to: PeerAddress) -> None:
        with link.dial_scope:
            try:
                channel = await self._transport.dial(to, timeout_s=self._config.dial_timeout_s)
                try:
                    early = await self._greet(channel)
                    # A knock of a smaller peer id that we have answered wins, unless it comes to nothing.
                    while link.knocks and link.peer < self._peer:
                        await link.knocked.park()
                except BaseException:
                    await channel.aclose()
                    raise
            except PacelineError as error:
                link.dialled.set()
                # An inbound channel of the same peer may just be coming up.
                while link.knocks:
                    await link.knocked.park()
                if link.state is LinkState.DIALING:
                    link.end(error)
                return
        if link.dial_scope.cancelled_caught:
            return
        if link.state is not LinkState.DIALING:
            await channel.aclose()
            return
        await self._serve(link, channel, early)

    async def _serve(self, link: Link, channel: Channel, early: Sequence[Buffer]) -> None:
        # `dialled` wakes a held knock, which must find the link UP: nothing may checkpoint before serve() says so.
        link.dialled.set()
        self._fell.pop(link.peer, None)
        self._on_up(link.peer)
        await link.serve(channel, early)

    async def _greet(self, channel: Channel) -> Sequence[Buffer]:
        """The dialer's part: Hello, the other's Hello; what came behind it. Raises PeerUnavailable, Refused."""
        with trio.move_on_after(self._config.hello_timeout_s):
            await channel.send([self._hello()])
            batch = await channel.receive()
            self._check_hello(channel.peer, batch[0])
            return batch[1:]
        raise DeadlineExceeded("no Hello in time", peer=channel.peer)

    async def _accept(self, channel: Channel) -> None:
        """An inbound channel, for as long as it lives. Errors before it is a link are counted and go no further."""
        try:
            early = await self._answer(channel)
        except PacelineError as error:
            # Who proved his key, said nothing and hung up only wanted to know whether anybody is there.
            looked_in = isinstance(error, PeerUnavailable) and not isinstance(error, DeadlineExceeded)
            if channel.bytes_heard or not looked_in:
                self._count(error)
            return
        if early is None:
            return
        link = self._links.get(channel.peer)
        if link is not None and link.state is LinkState.UP:
            link.end(PeerUnavailable("the peer opened a new link", peer=channel.peer))
            link = self._links.get(channel.peer)
        if link is None:
            link = self._new_link(channel.peer)
        link.dial_scope.cancel()
        await self._serve(link, channel, early)

    async def _answer(self, channel: Channel) -> Sequence[Buffer] | None:
        """The acceptor's part. None: the channel lost against our own dial. Raises PacelineError."""
        with trio.move_on_after(self._config.hello_timeout_s):
            batch = await channel.receive()
            try:
                self._check_hello(channel.peer, batch[0])
            except Refused:
                # The dialer shall learn why: it refuses our version in its turn.
                await channel.send([self._hello()])
                raise
            if len(batch) > 1:
                raise ProtocolViolation("messages before the greeting is over", peer=channel.peer)
            own = self._links.get(channel.peer)
            if own is None or own.state is not LinkState.DIALING:
                return await self._confirmed(channel)
            own.knocks += 1
            try:
                if self._peer < channel.peer:
                    await own.dialled.wait()
                    if own.was_up:
                        return None
                return await self._confirmed(channel)
            finally:
                own.knocks -= 1
                own.knocked.unpark_all()
        raise DeadlineExceeded("the greeting was not ended in time", peer=channel.peer)

    async def _confirmed(self, channel: Channel) -> Sequence[Buffer]:
        await channel.send([self._hello()])
        return await channel.receive()

    def _hello(self) -> bytes:
        return encode(Hello(PROTOCOL_VERSION, self._config.agent, self._config.serves))

    def _check_hello(self, peer: PeerId, data: Buffer) -> None:
        hello, _ = decode(data)
        if not isinstance(hello, Hello):
            raise ProtocolViolation(f"{type(hello).__name__} in place of a Hello", peer=peer)
        if hello.protocol != PROTOCOL_VERSION:
            raise Refused(
                f"speaks protocol {hello.protocol}, we speak {PROTOCOL_VERSION}", peer=peer, cure="update the older one"
            )
