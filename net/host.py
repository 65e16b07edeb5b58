"""The real network: one libp2p host and one direct data port per process, behind the `Transport` seam.

Knows how both are composed, dialled and taken down. Refuses to know messages. Importing this module imports libp2p
(about a second, 90 MB), and hardens it.

Security: Noise and yamux only. The library's default host also accepts plaintext and secio.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio
from libp2p import new_host
from libp2p.custom_types import TProtocol
from libp2p.network.config import ConnectionConfig
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr

from paceline.net import hardening
from paceline.net.dialing import AddressBook, Attempt, first_of, format_tcp, parse_tcp
from paceline.net.direct import DirectChannel, DirectListener, Handshake
from paceline.net.doors import HostDoors
from paceline.net.identity import Identity
from paceline.net.lane import Lanes
from paceline.net.relaying import CIRCUIT, HOP, STOP, Relay, Relayed, through
from paceline.net.sky import StreamGate
from paceline.net.streams import LINK_PROTOCOL, HostStream, StreamChannel
from paceline.net.transport import Channel, ChannelHandler
from paceline.net.unwrapping import single_errors
from paceline.wire import limits
from paceline.wire.dialback import DialMe
from paceline.wire.errors import DeadlineExceeded, InvalidRequest, PacelineError, PeerUnavailable
from paceline.wire.ids import PeerId
from paceline.wire.messages import PeerAddress

ATTEMPT_S = 5.0
"""One address, from the first packet to the peer's proof of identity."""

DATA_ALONE_S = 1.0
"""What a data address gets before the next way is tried: a stream over a connection that is up must not overtake a
data channel on a slow path, which is the better one for its whole life."""

_ADDRESS_TTL_S = 3600

StreamHandler = Callable[[HostStream], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class NetConfig:
    """`listens` False: a pure client, which opens no port. Port 0: any free one. `data` False: no data channel.

    `announce`: hosts or IP addresses to tell others in place of the interfaces' own, for machines behind a forwarding
    router; the ports stay. `relay`: carry circuits for others. `relays`: nobody can dial this process; it keeps
    reservations with these (``<address>/p2p/<peer id>``), announces circuits through them, and opens no port.
    """

    listen_host: str = "127.0.0.1"
    control_port: int = 0
    data_port: int = 0
    announce: tuple[str, ...] = ()
    listens: bool = True
    data: bool = True
    handshake_deadline_s: float = 5.0
    max_handshakes: int = 64
    max_channels: int = 1024
    relay: bool = False
    relays: tuple[str, ...] = ()


class Libp2pTransport:
    """Implements `net.transport.Transport`. `host` is the libp2p IHost, for the directory."""

    def __init__(self, identity: Identity, config: NetConfig = NetConfig()) -> None:
        hardening.harden()
        self.peer = identity.peer
        self._config = config
        self._handshake = Handshake(identity)
        self.host: Any = _new_host(self._handshake)
        self._counts: Counter[str] = Counter()
        hardening.guard(self.host, self._report)
        self._doors = HostDoors(self, self._handshake)
        self._book = AddressBook(trio.current_time)
        self._nursery: trio.Nursery | None = None
        self._channels: dict[DirectChannel | StreamChannel, None] = {}
        self.lanes: Lanes | None = Lanes()
        self._relay = Relay(self)
        self._relayed = Relayed(self)
        self.gate: StreamGate | None = None
        """Makes streams wait, but those that are channels: the link conditioner has its own way with channels."""

    @property
    def doors(self) -> HostDoors | None:
        """None for a process that opens no port."""
        return self._doors if self._config.listens and not self._config.relays else None

    @property
    def address(self) -> PeerAddress:
        return self._doors.address

    def statistics(self) -> dict[str, int]:
        """Refused things by kind (``refused_…``), and open channels by kind."""
        kinds = Counter(f"channels_{channel.kind}" for channel in self._channels)
        refused = {f"refused_{kind}": count for kind, count in sorted(self._counts.items())}
        relay = self._relay.statistics() if self._config.relay else {}
        return refused | dict(kinds) | relay | dict(self._doors.desk.counts)

    # --- life ---------------------------------------------------------------------------------------------------

    def run(self, handler: ChannelHandler) -> AbstractAsyncContextManager[None]:
        return self._run(handler)

    @asynccontextmanager
    async def _run(self, handler: ChannelHandler) -> AsyncIterator[None]:
        """Raises InvalidRequest where a port cannot be opened."""
        config = self._config
        opens = config.listens and not config.relays
        listen = [Multiaddr(format_tcp(config.listen_host, config.control_port))] if opens else []
        data_listeners = await self._open_ports()
        try:
            with single_errors():
                async with self._own_host(listen), trio.open_nursery() as nursery:
                    self._nursery = nursery
                    self._learn_addresses(nursery, data_listeners)
                    self.serve_stream(LINK_PROTOCOL, partial(self._serve_link, handler))
                    if data_listeners:
                        serve = self._data_service(handler).serve
                        nursery.start_soon(trio.serve_listeners, serve, data_listeners)
                    await self._begin_relaying(nursery)
                    try:
                        yield
                    finally:
                        self._nursery = None
                        self._doors.closed()
                        await self._close_channels()
                    nursery.cancel_scope.cancel()
        finally:
            for listener in data_listeners:
                listener.socket.close()

    async def _begin_relaying(self, nursery: trio.Nursery) -> None:
        """Serve as a relay, or have a reservation with each of ours. Raises PeerUnavailable where one gives none."""
        if self._config.relay:
            self.serve_stream(HOP, self._relay.serve)
        relays = [through(address) for address in self._config.relays]
        if not relays:
            return
        self.serve_stream(STOP, self._relayed.answer)
        for relay in relays:
            stream = await self._relayed.reserve(relay)
            nursery.start_soon(self._relayed.keep_reserved, relay, stream)

    async def _open_ports(self) -> list[trio.SocketListener]:
        """The data port's listeners; the control port is only tried, libp2p opens it."""
        config = self._config
        if not config.listens or config.relays:
            return []
        kind = "control"
        try:
            if config.control_port:
                # libp2p listens with SO_REUSEPORT: two nodes on one port would share it and not notice.
                for listener in await trio.open_tcp_listeners(config.control_port, host=config.listen_host):
                    await listener.aclose()
            kind = "data"
            if not config.data:
                return []
            return list(await trio.open_tcp_listeners(config.data_port, host=config.listen_host))
        except OSError as error:
            port = config.control_port if kind == "control" else config.data_port
            raise InvalidRequest(
                f"cannot listen on {format_tcp(config.listen_host, port)}: {error}", cure=f"choose another {kind} port"
            ) from error

    @asynccontextmanager
    async def _own_host(self, listen: list[Multiaddr]) -> AsyncIterator[None]:
        async with self.host.run(listen_addrs=listen):
            try:
                yield
            finally:
                await hardening.close(self.host)

    def _learn_addresses(self, nursery: trio.Nursery, data_listeners: list[trio.SocketListener]) -> None:
        config = self._config
        if not config.listens:
            return
        if config.relays:
            circuits = tuple(f"{address}{CIRCUIT}" for address in config.relays)[: limits.MAX_ADDRESSES]
            self._doors.address, self._doors.relayed = PeerAddress(self.peer, circuits), True
            return
        ports = {int(address.value_for_protocol("tcp")) for address in self.host.get_transport_addrs()}
        if not ports:
            where = format_tcp(config.listen_host, config.control_port)
            raise InvalidRequest(f"cannot listen on {where}", cure="choose another control port")
        data = data_listeners[0].socket.getsockname()[1] if data_listeners else 0
        self._doors.opened(nursery, config.listen_host, config.announce, DialMe(ports.pop(), data))

    def _data_service(self, handler: ChannelHandler) -> DirectListener:
        assert self.lanes is not None
        return DirectListener(
            self._handshake,
            partial(self._serve, handler),
            self._report,
            self.lanes,
            deadline_s=self._config.handshake_deadline_s,
            max_handshakes=self._config.max_handshakes,
            max_channels=self._config.max_channels,
        )

    async def _close_channels(self) -> None:
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for channel in list(self._channels):
                    nursery.start_soon(channel.aclose)

    def _report(self, kind: str) -> None:
        self._counts[kind] += 1

    # --- inbound ------------------------------------------------------------------------------------------------

    def serve_stream(self, protocol: str, handler: StreamHandler) -> None:
        """Call `handler(stream)` for each inbound stream of a protocol; the stream is reset when it returns.

        The handler runs in our own nursery, so that a bug in it is seen and not taken for a peer's fault.
        """

        async def on_stream(stream: Any) -> None:
            if self._nursery is None:
                await stream.reset()
                return
            over = trio.Event()
            gate = self._gate_for(protocol)
            self._nursery.start_soon(self._run_stream, handler, HostStream(stream, gate), over)
            await over.wait()

        self.host.set_stream_handler(TProtocol(protocol), on_stream)

    async def _run_stream(self, handler: StreamHandler, stream: HostStream, over: trio.Event) -> None:
        try:
            await handler(stream)
        except PacelineError as error:
            self._report(f"stream_{error.code}")
        finally:
            over.set()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0):
                try:
                    await stream.reset()
                except PacelineError:
                    # Gone already.
                    pass

    async def _serve_link(self, handler: ChannelHandler, stream: HostStream) -> None:
        if len(self._channels) >= self._config.max_channels:
            self._report("stream_channels_over_limit")
            return
        await self._serve(handler, StreamChannel(stream, dialer=False))

    async def _serve(self, handler: ChannelHandler, channel: DirectChannel | StreamChannel) -> None:
        self._channels[channel] = None
        try:
            await handler(channel)
        except PacelineError as error:
            self._report(f"channel_{error.code}")
        finally:
            self._channels.pop(channel, None)
            await channel.aclose()

    # --- outbound -----------------------------------------------------------------------------------------------

    async def dial(self, to: PeerAddress, *, timeout_s: float) -> Channel:
        """Data addresses first, then a libp2p stream."""
        attempts: list[Attempt[DirectChannel | StreamChannel]] = [
            Attempt(address, partial(self._dial_data, PeerId(to.peer), address), DATA_ALONE_S)
            for address in self._book.order(to.data)
        ]
        if to.control:
            attempts.append(Attempt(f"stream to {to.peer}", partial(self._dial_stream, to)))
        with _deadline(timeout_s, to.peer):
            channel = await first_of(attempts, self._book, _close, peer=to.peer)
        self._channels = {known: None for known in (*self._channels, channel) if not known.closed}
        return channel

    async def _dial_data(self, peer: PeerId, address: str) -> DirectChannel:
        host, port = parse_tcp(address)
        with _deadline(ATTEMPT_S, peer):
            try:
                stream = await trio.open_tcp_stream(host, port)
            except OSError as error:
                raise PeerUnavailable(f"cannot connect: {error}", peer=peer) from error
            return await self._handshake.outbound(stream, peer, ATTEMPT_S)

    async def _dial_stream(self, to: PeerAddress) -> StreamChannel:
        return StreamChannel(await self.open_stream(to, LINK_PROTOCOL, timeout_s=math.inf), dialer=True)

    async def open_stream(self, to: PeerAddress, protocol: str, *, timeout_s: float) -> HostStream:
        """A new libp2p stream, over a connection that is dialled where there is none. Raises PeerUnavailable."""
        gate = self._gate_for(protocol)
        with _deadline(timeout_s, to.peer):
            if gate is not None:
                await gate.dialled(PeerId(to.peer))
            await self.connect_host(to, timeout_s=timeout_s)
            try:
                return HostStream(await self.host.new_stream(ID.from_string(to.peer), [TProtocol(protocol)]), gate)
            except Exception as error:
                raise hardening.translated(error, to.peer) from error

    def _gate_for(self, protocol: str) -> StreamGate | None:
        return None if protocol in (LINK_PROTOCOL, HOP, STOP) else self.gate

    async def connect_host(self, to: PeerAddress, *, timeout_s: float) -> None:
        """Make sure that the libp2p hosts are connected; every control address is tried. Raises PeerUnavailable."""
        network, peer = self.host.get_network(), ID.from_string(to.peer)
        if any(not connection.is_closed for connection in network.get_connections(peer)):
            return
        addresses = self._book.order(to.control)
        attempts = [Attempt(address, partial(self._dial_host, peer, address)) for address in addresses]
        with _deadline(timeout_s, to.peer):
            await first_of(attempts, self._book, _close_connection, peer=to.peer)

    async def _dial_host(self, peer: Any, address: str) -> Any:
        if address.endswith(CIRCUIT):
            return await self._relayed.dial(str(peer), address)
        network = self.host.get_network()
        # Without this the library refuses for 60 s whoever failed once, other addresses included.
        network.unblock_peer(peer)
        with _deadline(ATTEMPT_S, str(peer)):
            try:
                target = Multiaddr(address)
                self.host.get_peerstore().add_addrs(peer, [target], _ADDRESS_TTL_S)
                # One attempt: trying again is first_of's and the caller's business.
                return await network._dial_addr_single_attempt(target, peer)
            except Exception as error:
                raise hardening.translated(error, str(peer)) from error


def _new_host(handshake: Handshake) -> Any:
    return new_host(
        key_pair=handshake.key_pair,
        sec_opt={NOISE: Noise(handshake.key_pair, noise_privkey=handshake.noise_key)},
        muxer_opt={TProtocol(YAMUX): Yamux},
        disable_identify_address_discovery=True,
        connection_config=ConnectionConfig(
            enable_health_monitoring=True,
            health_initial_delay=1.0,
            health_check_interval=5.0,
            ping_timeout=3.0,
            abort_connection_on_ping_failure=True,
            unhealthy_grace_period=1,
            inbound_upgrade_timeout=5.0,
        ),
    )


@contextmanager
def _deadline(timeout_s: float, peer: str) -> Iterator[None]:
    """DeadlineExceeded where the block takes longer."""
    with trio.move_on_after(timeout_s) as scope:
        yield
    if scope.cancelled_caught:
        raise DeadlineExceeded(f"no answer within {timeout_s:g} s", peer=peer)


async def _close(channel: Channel) -> None:
    await channel.aclose()


async def _close_connection(connection: Any) -> None:
    await hardening.close_connection(connection)
