"""The link conditioner: any transport, with the latency, bandwidth, stalls and partitions of a profile.

Knows one process's own sending: each side delays what it sends. A partition also stops what it receives and dials, so
that one side's profile is enough to cut a link. Refuses to know messages, and what a profile file looks like
(`net.profiles`). Real time and MockClock alike, over any `net.transport.Transport`.

What it cannot do. Bytes that the inner transport has already taken are beyond reach: one write may still pass a
partition that begins while it is under way. A process that dies breaks its links at once, without the latency.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from paceline.net import profiles
from paceline.net.dialback import Doors
from paceline.net.lane import Lanes
from paceline.net.profiles import LinkProfile, LinkWeather
from paceline.net.sky import Gated, Sky
from paceline.net.transport import Channel, ChannelHandler, ChannelKind, Transport
from paceline.net.unwrapping import single_errors
from paceline.wire import limits
from paceline.wire.errors import DeadlineExceeded, InvalidRequest, PacelineError, PeerUnavailable
from paceline.wire.ids import PeerId
from paceline.wire.messages import PeerAddress

POLL_S = 0.05
"""How often a profile's file is looked at."""

BUFFER_BYTES = 4 * 1024 * 1024
"""What may be under way on one channel before its sender waits, like a socket's buffers."""

BACKLOG_S = 0.05
"""What may wait for bandwidth before the sender waits: a heartbeat must not queue behind seconds of traffic."""

WRITE_BYTES = 1024 * 1024
LINGER_S = 1.0
"""What a closed channel has left is given this long, past its time of arrival, to leave."""

TIMER_SLACK_S = 0.0005
"""epoll waits in whole milliseconds, rounded up. Half of one early, the error is centred on zero."""


class ConditionedChannel:
    """A channel whose outgoing messages arrive when the profile says so; implements `net.transport.Channel`.

    =========  ==========================================================  ===================
    state      means                                                       may become
    =========  ==========================================================  ===================
    open       `_why` is empty                                             closing, over
    closing    closed here; what was sent is still on its way, then the    over
               inner channel closes. A partition holds that too
    over       the inner channel is closed: `over` is set                  (nothing)
    =========  ==========================================================  ===================
    """

    def __init__(self, inner: Channel, sky: Sky) -> None:
        self.peer = inner.peer
        self.dialer = inner.dialer
        self.over = trio.Event()
        self._inner = inner
        self._sky = sky
        self._schedule = sky.schedule(inner.peer)
        self._seen: LinkProfile | None = None
        self._weather = profiles.CALM
        self._under_way: deque[tuple[float, bytes]] = deque()
        self._size = 0
        self._why = ""
        self._end_due = math.inf
        self._news = trio.lowlevel.ParkingLot()
        """Where sender, receiver and courier wait; each looks again at everything when it wakes."""
        self._courier = trio.CancelScope(shield=True)
        self._receiving: trio.CancelScope | None = None

    @property
    def kind(self) -> ChannelKind:
        return self._inner.kind

    @property
    def bytes_heard(self) -> int:
        return self._inner.bytes_heard

    async def send(self, messages: Sequence[bytes]) -> None:
        for message in messages:
            if len(message) > limits.MAX_MESSAGE_BYTES:
                raise ValueError(f"message of {len(message)} bytes is over the limit")
        await self._room()
        sizes = [len(message) for message in messages]
        arrivals = self._due(sizes)
        self._under_way.extend(zip(arrivals, map(bytes, messages), strict=True))
        self._size += sum(sizes)
        self._news.unpark_all()

    async def receive(self) -> list[bytes | bytearray | memoryview]:
        while not self._why:
            if self._look().partition:
                await self._news.park()
                continue
            with trio.CancelScope() as self._receiving:
                try:
                    return await self._inner.receive()
                except PacelineError as error:
                    self._abandon(error.message)
                    raise
                finally:
                    self._receiving = None
        raise PeerUnavailable(self._why, peer=self.peer)

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    # --- for the transport ----------------------------------------------------------------------------------------

    def close(self) -> None:
        """Closed for its owner now; for the peer once everything sent has arrived."""
        if not self._why:
            (self._end_due,) = self._due([0])
            self._why = "the channel is closed"
            self._wake()

    def abort(self) -> None:
        """Lose what is under way, and close the inner channel at once."""
        self._abandon("the channel is closed")

    def changed(self) -> None:
        """There is another profile."""
        self._wake()

    async def carry(self) -> None:
        """The courier: hands messages to the inner channel when they are due. Returns when the channel is over."""
        try:
            with self._courier:
                await self._carry()
        except PacelineError as error:
            self._abandon(error.message)
        finally:
            self.abort()
            with trio.CancelScope(shield=True):
                await self._inner.aclose()
            self.over.set()

    # --- inside ---------------------------------------------------------------------------------------------------

    def _look(self) -> LinkWeather:
        """The present weather, worked out once for each profile."""
        if self._seen is not self._sky.profile:
            self._seen = self._sky.profile
            self._weather = self._sky.towards(self.peer)
        return self._weather

    def _due(self, sizes: Sequence[int]) -> list[float]:
        """When the inner channel is to have each message."""
        now, uplink, early = trio.current_time(), self._sky.profile.uplink_bytes_s, self._sky.slack_s
        return [at - early for at in self._schedule.due(now, sizes, self._look(), uplink)]

    async def _room(self) -> None:
        """Wait until a message may be queued. Raises PeerUnavailable."""
        await trio.lowlevel.checkpoint()
        while not self._why:
            free_at = self._schedule.free_at() - BACKLOG_S
            if self._size < BUFFER_BYTES and free_at <= trio.current_time():
                return
            with trio.move_on_at(free_at if self._size < BUFFER_BYTES else math.inf):
                await self._news.park()
        raise PeerUnavailable(self._why, peer=self.peer)

    async def _carry(self) -> None:
        while True:
            now = trio.current_time()
            wake_at = math.inf
            if not self._look().partition:
                batch = self._take(now)
                if batch:
                    await self._inner.send(batch)
                    continue
                wake_at = self._under_way[0][0] if self._under_way else self._end_due
                if wake_at <= now:
                    return
            with trio.move_on_at(wake_at):
                await self._news.park()

    def _take(self, now: float) -> list[bytes]:
        """Messages that have arrived by now, as many as fit into one write, at least one."""
        batch: list[bytes] = []
        size = 0
        while self._under_way and self._under_way[0][0] <= now:
            if batch and size + len(self._under_way[0][1]) > WRITE_BYTES:
                break
            _, message = self._under_way.popleft()
            batch.append(message)
            size += len(message)
        if batch:
            self._size -= size
            self._news.unpark_all()
        return batch

    def _abandon(self, why: str) -> None:
        self._why = self._why or why
        self._under_way.clear()
        self._size = 0
        self._courier.cancel()
        self._wake()

    def _wake(self) -> None:
        """Something is different: who waits looks again, and a courier that is to leave gets its bound."""
        partition = self._look().partition
        if self._receiving is not None and (self._why or partition):
            self._receiving.cancel()
        if self._why:
            bound = max(trio.current_time(), self._end_due) + LINGER_S
            self._courier.deadline = math.inf if partition else bound
        self._news.unpark_all()


class ConditionedTransport:
    """A transport under a profile; implements `net.transport.Transport`.

    `file`: where the profile came from, read again whenever it changes. A file that no longer parses, or is gone,
    changes nothing, and is counted in `statistics` (``refused_link_profiles``). Streams that the inner transport opens
    beside its channels (the directory's) pass the same sky, where it has a gate for them (`net.streams.Gated`). There
    are no lanes: what bypasses the channels would bypass the profile.
    """

    def __init__(
        self, inner: Transport, profile: LinkProfile, *, file: Path | None = None, slack_s: float = TIMER_SLACK_S
    ) -> None:
        self.lanes: Lanes | None = None
        self._inner = inner
        self._file = file
        self._stamp = _stamp(file)
        self._sky = Sky(PeerId(inner.address.peer), profile, slack_s=slack_s)
        self._channels: dict[ConditionedChannel, None] = {}
        self._nursery: trio.Nursery | None = None
        self._refused = 0
        if isinstance(inner, Gated):
            inner.gate = self._sky

    @property
    def address(self) -> PeerAddress:
        return self._inner.address

    @property
    def doors(self) -> Doors | None:
        return self._inner.doors

    @property
    def profile(self) -> LinkProfile:
        """The one in force."""
        return self._sky.profile

    def statistics(self) -> dict[str, int]:
        refused = {"refused_link_profiles": self._refused} if self._refused else {}
        return self._inner.statistics() | refused

    def set(self, profile: LinkProfile) -> None:
        """Another profile from now on."""
        self._sky.set(profile)
        for channel in list(self._channels):
            channel.changed()

    async def dial(self, to: PeerAddress, *, timeout_s: float) -> Channel:
        """Through a partition it takes until that ends, or raises DeadlineExceeded."""
        deadline = trio.current_time() + timeout_s
        with trio.move_on_at(deadline):
            await self._sky.dialled(PeerId(to.peer))
        left = deadline - trio.current_time()
        if left <= 0:
            raise DeadlineExceeded(f"no answer within {timeout_s:g} s", peer=to.peer)
        inner = await self._inner.dial(to, timeout_s=left)
        if self._nursery is None:
            await inner.aclose()
            raise PeerUnavailable("the transport is not running", peer=to.peer)
        return self._own(inner, self._nursery)

    def run(self, handler: ChannelHandler) -> AbstractAsyncContextManager[None]:
        return self._run(handler)

    @asynccontextmanager
    async def _run(self, handler: ChannelHandler) -> AsyncIterator[None]:
        with single_errors():
            async with trio.open_nursery() as nursery:
                if self._file is not None:
                    nursery.start_soon(self._watch, self._file)
                self._nursery = nursery
                try:
                    async with self._inner.run(partial(self._serve, handler)):
                        try:
                            yield
                        finally:
                            self._nursery = None
                            await self._close_channels()
                finally:
                    self._nursery = None
                nursery.cancel_scope.cancel()

    def _own(self, inner: Channel, nursery: trio.Nursery) -> ConditionedChannel:
        channel = ConditionedChannel(inner, self._sky)
        self._channels[channel] = None
        nursery.start_soon(self._carry, channel)
        return channel

    async def _carry(self, channel: ConditionedChannel) -> None:
        try:
            await channel.carry()
        finally:
            del self._channels[channel]

    async def _serve(self, handler: ChannelHandler, inner: Channel) -> None:
        if self._nursery is None:
            return
        channel = self._own(inner, self._nursery)
        try:
            await handler(channel)
        finally:
            channel.close()
            # The inner transport closes its channel when we return: not before the last words are out.
            with trio.CancelScope(shield=True):
                await channel.over.wait()

    async def _close_channels(self) -> None:
        with trio.CancelScope(shield=True):
            channels = list(self._channels)
            for channel in channels:
                channel.close()
            with trio.move_on_after(LINGER_S):
                for channel in channels:
                    await channel.over.wait()
            for channel in channels:
                channel.abort()
            for channel in channels:
                await channel.over.wait()

    async def _watch(self, file: Path) -> None:
        while True:
            await trio.sleep(POLL_S)
            stamp = _stamp(file)
            if stamp == self._stamp:
                continue
            self._stamp = stamp
            try:
                self.set(profiles.read_file(file))
            except InvalidRequest:
                self._refused += 1


def conditioned(inner: Transport, profile: str | None) -> Transport:
    """`inner` under a profile, by a built-in's name or a file's path; `inner` itself where none is named.

    Raises InvalidRequest.
    """
    if not profile:
        return inner
    read, file = profiles.read(profile)
    return ConditionedTransport(inner, read, file=file)


def _stamp(file: Path | None) -> tuple[int, int, int] | None:
    """What changes whenever a file is written or replaced. None: it is not there."""
    if file is None:
        return None
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
