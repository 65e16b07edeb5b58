"""The direct data channel: libp2p's Noise handshake on a plain TCP connection, and no multiplexer.

Knows sockets, the handshake and records. Refuses to know what messages mean. Same key and peer id as the libp2p host;
measured against a stream of that host it has about a fifth of the latency.

On the wire, after the XX handshake: Noise transport messages, ``u16 length | ciphertext``, at most 65,519 plaintext
bytes each, whose plaintexts joined are `net.framing`'s stream. Records are sealed here with the session's two keys and
ChaCha20-Poly1305 directly (Noise specification, 5.1 and 12: nonce = 4 zero bytes and the 64-bit little-endian counter,
no associated data), which skips a layer of Python per record.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import Transport as Noise

from paceline.net.framing import Received, Unpacker, pack_in_chunks
from paceline.net.hardening import translated
from paceline.net.identity import Identity
from paceline.net.lane import MARK, Lanes, OutLane
from paceline.net.transport import ChannelKind
from paceline.wire.errors import DeadlineExceeded, PacelineError, PeerUnavailable, ProtocolViolation
from paceline.wire.ids import PeerId

MAX_RECORD_PLAINTEXT = 65_519
"""A Noise message is at most 65,535 bytes, 16 of them the tag."""

READ_BYTES = 256 * 1024
WRITE_BYTES = 4 * MAX_RECORD_PLAINTEXT
"""Plaintext that one write seals: what is copied, sealed and sent stays in the processor's cache."""

HANDSHAKE_DEADLINE_S = 5.0
MAX_HANDSHAKES = 64
"""Inbound connections that have not proved a peer id yet; more are closed at once."""

MAX_CHANNELS = 1024

_TAG_BYTES = 16
_RECORD = struct.Struct(">H")
_NONCE = struct.Struct("<4xQ")


class Seal:
    """One direction's cipher: a key and a counter that never repeats."""

    def __init__(self, key: bytes, counter: int = 0) -> None:
        self._cipher = ChaCha20Poly1305(key)
        self._counter = counter

    def seal(self, plain: memoryview) -> bytes:
        """Records of `plain`, each with its length in front."""
        parts: list[bytes] = []
        for start in range(0, len(plain), MAX_RECORD_PLAINTEXT):
            record = self._cipher.encrypt(self._nonce(), plain[start : start + MAX_RECORD_PLAINTEXT], None)
            parts.append(_RECORD.pack(len(record)))
            parts.append(record)
        return b"".join(parts)

    def open(self, record: memoryview) -> bytes:
        """The plaintext of one record. Raises ProtocolViolation."""
        try:
            return self._cipher.decrypt(self._nonce(), record, None)
        except InvalidTag:
            raise ProtocolViolation(f"a record of {len(record)} bytes does not authenticate") from None

    def _nonce(self) -> bytes:
        nonce = _NONCE.pack(self._counter)
        self._counter += 1
        return nonce


class Records:
    """Complete records out of a byte stream; the rest is kept."""

    def __init__(self, rest: bytes = b"") -> None:
        self._rest = rest

    def feed(self, data: bytes) -> list[memoryview]:
        data = self._rest + data if self._rest else data
        view, at, done = memoryview(data), 0, []
        while len(view) - at >= 2:
            (size,) = _RECORD.unpack_from(view, at)
            if size < _TAG_BYTES:
                raise ProtocolViolation(f"a record of {size} bytes is too short")
            if len(view) - at < 2 + size:
                break
            done.append(view[at + 2 : at + 2 + size])
            at += 2 + size
        self._rest = data[at:]
        return done


class DirectChannel:
    """One authenticated connection; implements `net.transport.Channel`."""

    kind: ChannelKind = "direct"

    def __init__(
        self, stream: trio.SocketStream, peer: PeerId, *, dialer: bool, out: Seal, into: Seal, ahead: bytes
    ) -> None:
        """`ahead`: bytes that arrived behind the handshake."""
        self.peer = peer
        self.dialer = dialer
        self.bytes_heard = 0
        self._stream = stream
        self._out = out
        self._into = into
        self._records = Records()
        self._ahead = ahead
        self._unpacker = Unpacker()

    @property
    def closed(self) -> bool:
        return self._stream.socket.fileno() == -1

    async def send(self, messages: Sequence[bytes]) -> None:
        chunks = pack_in_chunks(messages, WRITE_BYTES)
        done = False
        try:
            for chunk in chunks:
                await self._stream.send_all(self._out.seal(memoryview(chunk)))
            done = True
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise PeerUnavailable(f"the channel is closed: {error.__cause__ or error}", peer=self.peer) from error
        finally:
            # Cancelled half-way the records no longer fit together: the channel is dead.
            if not done:
                self._kill()

    async def receive(self) -> list[Received]:
        while True:
            data, self._ahead = self._ahead, b""
            if not data:
                data = await self._read()
            self.bytes_heard += len(data)
            messages: list[Received] = []
            try:
                for record in self._records.feed(data):
                    messages += self._unpacker.feed(self._into.open(record))
            except ProtocolViolation as violation:
                self._kill()
                violation.peer = self.peer
                raise
            if messages:
                return messages

    async def _read(self) -> bytes:
        try:
            data = await self._stream.receive_some(READ_BYTES)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._kill()
            raise PeerUnavailable(f"the channel is closed: {error.__cause__ or error}", peer=self.peer) from error
        if not data:
            self._kill()
            raise PeerUnavailable("the peer closed the channel", peer=self.peer)
        return bytes(data)

    async def aclose(self) -> None:
        self._kill()
        await trio.lowlevel.checkpoint()

    def _kill(self) -> None:
        self._stream.socket.close()


class _Wire:
    """A socket as libp2p's handshake reads it, keeping what was read ahead."""

    def __init__(self, stream: trio.SocketStream, ahead: bytes = b"") -> None:
        self.stream = stream
        self.ahead = ahead

    async def write(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def read(self, n: int | None = None) -> bytes:
        if not self.ahead:
            self.ahead = bytes(await self.stream.receive_some(READ_BYTES))
        size = len(self.ahead) if n is None else n
        data, self.ahead = self.ahead[:size], self.ahead[size:]
        if not data:
            raise trio.BrokenResourceError("the peer closed the connection")
        return data

    async def close(self) -> None:
        self.stream.socket.close()

    def get_remote_address(self) -> None:
        return None


def raw_connection(stream: trio.SocketStream) -> RawConnection:
    """A socket that this side has connected, as libp2p's upgrades take it."""
    return RawConnection(_Wire(stream), True)


class Handshake:
    """Turns a connected socket into a channel, or closes it."""

    def __init__(self, identity: Identity) -> None:
        self.key_pair = create_new_key_pair(seed=identity.seed())
        self.noise_key = create_noise_key_pair().private_key
        self._noise = Noise(self.key_pair, noise_privkey=self.noise_key)

    async def outbound(self, stream: trio.SocketStream, peer: PeerId, timeout_s: float) -> DirectChannel:
        """Prove ourselves to `peer`, and it to us. Raises PeerUnavailable, ProtocolViolation (another peer)."""
        raw = raw_connection(stream)
        return await self._channel(stream, raw, self._noise.secure_outbound(raw, ID.from_string(peer)), timeout_s, peer)

    async def inbound(self, stream: trio.SocketStream, timeout_s: float, first: bytes = b"") -> DirectChannel:
        """Learn who dials, whose `first` bytes were read already. Raises PeerUnavailable, ProtocolViolation."""
        raw = RawConnection(_Wire(stream, first), False)
        return await self._channel(stream, raw, self._noise.secure_inbound(raw), timeout_s, "")

    async def _channel(
        self, stream: trio.SocketStream, raw: Any, handshake: Awaitable[Any], timeout_s: float, peer: str
    ) -> DirectChannel:
        done = False
        try:
            with trio.fail_after(timeout_s):
                session = await handshake
            protocol = session.conn.noise_state.noise_protocol
            ours, theirs = protocol.cipher_state_encrypt, protocol.cipher_state_decrypt
            channel = DirectChannel(
                stream,
                PeerId(str(session.remote_peer)),
                dialer=raw.is_initiator,
                out=Seal(ours.k, ours.n),
                into=Seal(theirs.k, theirs.n),
                ahead=raw.stream.ahead,
            )
            done = True
        except trio.TooSlowError as error:
            raise DeadlineExceeded(f"no handshake within {timeout_s:g} s", peer=peer) from error
        except Exception as error:
            raise translated(error, peer) from error
        finally:
            if not done:
                stream.socket.close()
        return channel


class DirectListener:
    """The inbound side: a cap before the handshake, a deadline on it, a cap after it. Lanes come in here as well."""

    def __init__(
        self,
        handshake: Handshake,
        handler: Callable[[DirectChannel], Awaitable[None]],
        report: Callable[[str], None],
        lanes: Lanes,
        *,
        deadline_s: float = HANDSHAKE_DEADLINE_S,
        max_handshakes: int = MAX_HANDSHAKES,
        max_channels: int = MAX_CHANNELS,
    ) -> None:
        self._handshake = handshake
        self._handler = handler
        self._report = report
        self._lanes = lanes
        self._deadline_s = deadline_s
        self._room_before = max_handshakes
        self._room_after = max_channels

    async def serve(self, stream: trio.SocketStream) -> None:
        """One inbound connection, from its first byte to its end."""
        if not self._room_before or not self._room_after:
            self._report("data_connections_over_limit")
            stream.socket.close()
            return
        admitted = await self._admit(stream)
        if admitted is None:
            return
        self._room_after -= 1
        try:
            if isinstance(admitted, OutLane):
                await self._lanes.feed(admitted)
            else:
                await self._handler(admitted)
        finally:
            self._room_after += 1
            await admitted.aclose()

    async def _admit(self, stream: trio.SocketStream) -> DirectChannel | OutLane | None:
        self._room_before -= 1
        kind = "handshake"
        admitted: DirectChannel | OutLane | None = None
        try:
            with trio.fail_after(self._deadline_s):
                first = bytes(await stream.receive_some(READ_BYTES))
                if first.startswith(MARK):
                    kind = "lane"
                    admitted = await self._lanes.admit(stream, first)
                else:
                    admitted = await self._handshake.inbound(stream, self._deadline_s, first)
        except (trio.TooSlowError, DeadlineExceeded):
            self._report(f"data_{kind}_late")
        except (PacelineError, trio.BrokenResourceError):
            self._report(f"data_{kind}")
        finally:
            self._room_before += 1
            if admitted is None:
                stream.socket.close()
        return admitted
