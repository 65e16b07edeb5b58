"""Everything that py-libp2p 0.8.1 must be protected from, each fix a small function; `harden()` applies them all.

Knows libp2p's internals, and no other module of Paceline but `net.patched_yamux` does. Refuses to know what streams
carry. `harden()` comes before the first host is built, `guard(host)` right after, `close(host)` inside ``host.run()``.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import libp2p.kad_dht.common as kad_common
import libp2p.kad_dht.kad_dht as kad_main
import libp2p.kad_dht.peer_routing as kad_routing
import libp2p.kad_dht.provider_store as kad_providers
import libp2p.kad_dht.value_store as kad_values
import trio
from libp2p.custom_types import TProtocol
from libp2p.io import trio as libp2p_tcp
from libp2p.io import utils as libp2p_reading
from libp2p.io.exceptions import ConnectionClosedError, IncompleteReadError
from libp2p.network import auto_connector, swarm
from libp2p.pubsub.pubsub import Pubsub

from paceline.net import patched_yamux
from paceline.wire.errors import PacelineError, PeerUnavailable, ProtocolViolation

DHT_PROTOCOL = "/paceline/kad/1.0.0"
DHT_QUERY_TIMEOUT_S = 3.0
HAPPY_EYEBALLS_S = 0.02
TCP_READ_BYTES = 256 * 1024
CLOSE_CONNECTION_S = 1.0
CLOSE_HOST_S = 3.0

Report = Callable[[str], None]
"""Told the kind of each refused thing."""


def harden() -> None:
    """Apply every fix, once per process. Safe to call again."""
    if getattr(swarm, "_paceline_hardened", False):
        return
    for fix in (
        *patched_yamux.FIXES,
        dial_quickly,
        read_long_messages,
        read_tcp_in_bulk,
        own_dht,
        dial_only_when_asked,
        be_quiet,
    ):
        fix()
    swarm._paceline_hardened = True


# --- process-wide fixes -----------------------------------------------------------------------------------------


def dial_quickly() -> None:
    """The library waits 250 ms after every dial, successful or not."""
    swarm._HAPPY_EYEBALLS_DELAY = HAPPY_EYEBALLS_S


def read_long_messages() -> None:
    """`read_exactly` gives up after 100 partial reads, which ends messages over about 6.8 MB.

    Its code object is replaced, since other modules have bound the function by name.
    """

    async def read_exactly(reader: Any, n: int, retry_count: int = 0) -> bytes:
        buffer = bytearray()
        while len(buffer) < n:
            piece = await reader.read(n - len(buffer))
            if not piece:
                raise IncompleteReadError(
                    f"Connection closed during read operation: expected {n} bytes but received {len(buffer)} bytes",
                    expected_bytes=n,
                    received_bytes=len(buffer),
                )
            buffer += piece
        return bytes(buffer)

    libp2p_reading.read_exactly.__code__ = read_exactly.__code__
    libp2p_reading.read_exactly.__defaults__ = read_exactly.__defaults__


def read_tcp_in_bulk() -> None:
    """One system call per 256 KB instead of two per Noise message, and no lock per call (yamux has its own)."""

    async def write(self: Any, data: bytes) -> None:
        try:
            await self.stream.send_all(data)
        except trio.BrokenResourceError as error:
            raise ConnectionClosedError(str(error), transport="tcp") from error
        except trio.ClosedResourceError:
            return

    async def read(self: Any, n: int | None = None) -> bytes:
        if n == 0:
            return b""
        buffer: bytearray = self.__dict__.setdefault("_ahead", bytearray())
        if not buffer:
            try:
                buffer += await self.stream.receive_some(TCP_READ_BYTES)
            except trio.BrokenResourceError as error:
                raise ConnectionClosedError(str(error), transport="tcp") from error
            except trio.ClosedResourceError:
                return b""
        piece = bytes(buffer if n is None else memoryview(buffer)[:n])
        del buffer[: len(piece)]
        return piece

    libp2p_tcp.TrioTCPStream.write = write
    libp2p_tcp.TrioTCPStream.read = read


def own_dht() -> None:
    """KadDHT ignores its `protocol_prefix`, and each silent peer costs a query 10 s."""
    for module in (kad_common, kad_main, kad_routing, kad_providers, kad_values):
        module.PROTOCOL_ID = TProtocol(DHT_PROTOCOL)
    for module in (kad_common, kad_main, kad_routing, kad_providers):
        module.QUERY_TIMEOUT = DHT_QUERY_TIMEOUT_S


def dial_only_when_asked() -> None:
    """The library dials whoever it has ever heard of until it has 200 connections."""

    async def maybe_connect(self: Any) -> None:
        await trio.lowlevel.checkpoint()

    auto_connector.AutoConnector.maybe_connect = maybe_connect


def be_quiet() -> None:
    """The library logs warnings about every clean end of a stream; ours are counted instead."""
    logger = logging.getLogger("libp2p")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False


# --- per host ---------------------------------------------------------------------------------------------------


def guard(host: Any, report: Report) -> None:
    """Nothing that a peer sends, and no handler's error, ends the host.

    Unguarded, a protocol name that is not UTF-8 raises through the host's nursery: one packet kills the node.
    """
    network = host.get_network()
    network.set_stream_handler(_guarded_streams(network.common_stream_handler, report))
    network.upgrader.upgrade_security = _reported(network.upgrader.upgrade_security, report)


def _guarded_streams(inner: Callable[[Any], Awaitable[None]], report: Report) -> Callable[[Any], Awaitable[None]]:
    async def handle(stream: Any) -> None:
        try:
            await inner(stream)
        except Exception as error:  # noqa: BLE001 - the named boundary: what a peer can raise in the library is open-ended
            report(f"stream_{_kind(error)}")
            with trio.move_on_after(CLOSE_CONNECTION_S):
                try:
                    await stream.reset()
                except Exception:  # noqa: BLE001 - same boundary: the stream is given up either way
                    pass

    return handle


def _reported(upgrade: Callable[..., Awaitable[Any]], report: Report) -> Callable[..., Awaitable[Any]]:
    """Count inbound connections that fail their handshake; the library drops them, so the error goes on."""

    async def upgrade_security(connection: Any, is_initiator: bool, *args: Any, **kwargs: Any) -> Any:
        try:
            return await upgrade(connection, is_initiator, *args, **kwargs)
        except Exception:
            if not is_initiator:
                report("control_handshake")
            raise

    return upgrade_security


def _kind(error: BaseException) -> str:
    name = type(error).__name__
    return "".join("_" + char.lower() if char.isupper() else char for char in name).lstrip("_")


class SafePubsub(Pubsub):  # type: ignore[misc]
    """A gossip message with a junk key raises in the library's own task and ends the host; here it is dropped."""

    def __init__(self, *args: Any, report: Report = lambda kind: None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._report = report

    async def push_msg(self, msg_forwarder: Any, msg: Any) -> None:
        try:
            await super().push_msg(msg_forwarder, msg)
        except Exception as error:  # noqa: BLE001 - the named boundary: decode errors of protobuf and of key types
            self._report(f"gossip_{_kind(error)}")


async def close(host: Any) -> None:
    """Close a host's connections at once and then its listeners; call it inside ``host.run()``.

    The library leaves its listening socket open after ``run()``, and closes connections one after the other.
    """
    with trio.CancelScope(shield=True):
        async with trio.open_nursery() as nursery:
            for connection in list(host.get_network().get_connections()):
                nursery.start_soon(close_connection, connection)
        with trio.move_on_after(CLOSE_HOST_S):
            await host.close()


async def close_connection(connection: Any) -> None:
    with trio.move_on_after(CLOSE_CONNECTION_S):
        try:
            await connection.close()
        except Exception:  # noqa: BLE001 - the named boundary: a connection that fails to close is closed
            pass


# --- errors -----------------------------------------------------------------------------------------------------


def translated(error: Exception, peer: str) -> PacelineError:
    """The one place where a library's exception becomes ours."""
    if isinstance(error, PacelineError):
        return error
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return (ProtocolViolation if _kind(error) in _PEERS_FAULT else PeerUnavailable)(text, peer=peer)


_PEERS_FAULT = frozenset(
    ("invalid_signature", "peer_i_d_mismatches_pubkey", "noise_state_error", "invalid_tag", "decode_error")
)
