"""How much does a hop cost? The data channel and the stream fallback against plain trio TCP, between two processes.

``python -m bench.hop [--rounds N]``. Every figure of one table is taken in one run, the contestants interleaved in
short rounds, medians compared, since the machine is shared. Exits 1 where a bar is missed:

- round trip of an 8 KB frame on the data channel ≤ 2.5 × a plain TCP echo of 8 KB
- bulk, one way, in 1 MB messages ≥ 150 MB/s, or ≥ 0.6 × plain TCP
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from paceline.net.host import Libp2pTransport, NetConfig
from paceline.net.identity import Identity
from paceline.net.links import Links
from paceline.net.transport import Channel
from paceline.wire.ids import PeerId
from paceline.wire.messages import BlockPiece, Message, PeerAddress, StatusRequest

FRAME_BYTES = 8 * 1024
BULK_BYTES = 1024 * 1024
BULK_PER_ROUND = 64
TRIPS_PER_ROUND = 200
RTT_BAR = 2.5
BULK_BAR_MB_S = 150.0
BULK_BAR_RATIO = 0.6

Trip = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True)
class Contestant:
    """`trip` sends a frame and waits for it to come back; `push` sends bulk and waits for one byte of receipt."""

    name: str
    trip: Trip
    push: Callable[[bytes, int], Awaitable[None]]


@dataclass(frozen=True)
class Served:
    """What the serving process tells the measuring one."""

    channels: tuple[str, str, str]
    links: tuple[str, str, str]
    plain_port: int

    def line(self) -> str:
        return " ".join((*self.channels, *self.links, str(self.plain_port)))

    @classmethod
    def parse(cls, line: str) -> Served:
        a, b, c, d, e, f, port = line.split()
        return cls((a, b, c), (d, e, f), int(port))


def _text(at: PeerAddress) -> tuple[str, str, str]:
    return at.peer, at.control[0], at.data[0]


# --- the serving process ----------------------------------------------------------------------------------------
# A message of FRAME_BYTES is echoed; BULK_PER_ROUND messages of BULK_BYTES are receipted with one byte.


async def serve_channel(channel: Channel) -> None:
    """Echo frames; count bulk."""
    bulk = 0
    while True:
        for message in await channel.receive():
            if len(message) == FRAME_BYTES:
                await channel.send([bytes(message)])
            else:
                bulk += 1
                if bulk % BULK_PER_ROUND == 0:
                    await channel.send([b"!"])


async def serve_plain(stream: trio.SocketStream) -> None:
    """The same over bare TCP: a first byte says what follows."""
    while kind := await stream.receive_some(1):
        if kind == b"f":
            await stream.send_all(await read_exactly(stream, FRAME_BYTES))
        else:
            left = BULK_BYTES * BULK_PER_ROUND
            while left:
                left -= len(await stream.receive_some(min(left, 256 * 1024)))
            await stream.send_all(b"!")


async def read_exactly(stream: trio.SocketStream, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        data += await stream.receive_some(size - len(data))
    return bytes(data)


def serve_links() -> Links:
    """A link pool that does the same with messages."""
    bulk = 0

    def on_message(peer: PeerId, message: Message, payload: memoryview) -> None:
        nonlocal bulk
        if len(payload) == FRAME_BYTES:
            links.reply(peer, message, payload)
        else:
            bulk += 1
            if bulk % BULK_PER_ROUND == 0:
                links.reply(peer, StatusRequest(0))

    links = Links(Libp2pTransport(Identity.ephemeral()), on_message)
    return links


async def serve() -> None:
    """Print the addresses on one line, then serve until stdin closes."""
    transport, links = Libp2pTransport(Identity.ephemeral()), serve_links()
    async with transport.run(serve_channel), links.run(), trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve_plain, [listener])
        plain_port = listener.socket.getsockname()[1]
        print(Served(_text(transport.address), _text(links.address), plain_port).line(), flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)
        nursery.cancel_scope.cancel()


# --- the measuring process --------------------------------------------------------------------------------------


def over_channel(name: str, channel: Channel) -> Contestant:
    async def trip(frame: bytes) -> None:
        await channel.send([frame])
        assert len((await channel.receive())[0]) == len(frame)

    async def push(bulk: bytes, count: int) -> None:
        for _ in range(count):
            await channel.send([bulk])
        await channel.receive()

    return Contestant(name, trip, push)


def over_plain(stream: trio.SocketStream) -> Contestant:
    async def trip(frame: bytes) -> None:
        await stream.send_all(b"f" + frame)
        await read_exactly(stream, len(frame))

    async def push(bulk: bytes, count: int) -> None:
        await stream.send_all(b"b")
        for _ in range(count):
            await stream.send_all(bulk)
        await stream.receive_some(1)

    return Contestant("plain trio TCP", trip, push)


async def measure(contestants: list[Contestant], rounds: int) -> dict[str, tuple[float, float]]:
    """Name → (median round trip in seconds, median bulk in MB/s)."""
    frame, bulk = bytes(FRAME_BYTES), bytes(BULK_BYTES)
    trips: dict[str, list[float]] = {it.name: [] for it in contestants}
    rates: dict[str, list[float]] = {it.name: [] for it in contestants}
    for number in range(rounds + 1):
        for it in contestants:
            times = []
            for _ in range(TRIPS_PER_ROUND):
                start = time.perf_counter()
                await it.trip(frame)
                times.append(time.perf_counter() - start)
            start = time.perf_counter()
            await it.push(bulk, BULK_PER_ROUND)
            rate = BULK_BYTES * BULK_PER_ROUND / (time.perf_counter() - start) / 1e6
            if number:  # the first round warms up
                trips[it.name] += times
                rates[it.name].append(rate)
    return {it.name: (statistics.median(trips[it.name]), statistics.median(rates[it.name])) for it in contestants}


def over_links(links: Links, to: PeerAddress, arrived: trio.MemoryReceiveChannel[int]) -> Contestant:
    """What a stage really pays: encoding, the outbox, its writer task, the reader and decoding."""

    async def trip(frame: bytes) -> None:
        links.send(to, BlockPiece(1, 1), frame)
        assert await arrived.receive() == len(frame)

    async def push(bulk: bytes, count: int) -> None:
        for _ in range(count):
            links.send(to, BlockPiece(1, 1), bulk)
        await arrived.receive()

    return Contestant("links", trip, push)


async def compare(rounds: int, served: Served) -> dict[str, tuple[float, float]]:
    transport = Libp2pTransport(Identity.ephemeral(), NetConfig(listens=False))
    arriving, arrived = trio.open_memory_channel[int](1000)

    def on_message(peer: PeerId, message: Message, payload: memoryview) -> None:
        arriving.send_nowait(len(payload))

    links = Links(Libp2pTransport(Identity.ephemeral(), NetConfig(listens=False)), on_message)
    async with transport.run(serve_channel), links.run():
        peer, control, data = served.channels
        direct = await transport.dial(PeerAddress(peer, data=(data,)), timeout_s=10)
        stream = await transport.dial(PeerAddress(peer, control=(control,)), timeout_s=10)
        plain = await trio.open_tcp_stream("127.0.0.1", served.plain_port)
        peer, control, data = served.links
        contestants = [
            over_plain(plain),
            over_channel("data channel", direct),
            over_links(links, PeerAddress(peer, (control,), (data,)), arrived),
            over_channel("stream fallback", stream),
        ]
        return await measure(contestants, rounds)


def report(figures: dict[str, tuple[float, float]]) -> bool:
    """Print the table; True where both bars hold."""
    plain_s, plain_rate = figures["plain trio TCP"]
    print(f"{'':18}{'8 KB round trip':>17}{'× plain':>9}{'bulk':>13}{'× plain':>9}")
    for name, (trip_s, rate) in figures.items():
        print(f"{name:18}{trip_s * 1e6:>14.0f} µs{trip_s / plain_s:>9.2f}{rate:>8.0f} MB/s{rate / plain_rate:>9.2f}")
    trip_s, rate = figures["data channel"]
    trip_ok = trip_s <= RTT_BAR * plain_s
    bulk_ok = rate >= BULK_BAR_MB_S or rate >= BULK_BAR_RATIO * plain_rate
    verdict = {True: "pass", False: "FAIL"}
    print(f"{verdict[trip_ok]}  round trip of the data channel ≤ {RTT_BAR} × plain TCP")
    print(f"{verdict[bulk_ok]}  bulk of the data channel ≥ {BULK_BAR_MB_S:.0f} MB/s or ≥ {BULK_BAR_RATIO} × plain TCP")
    return trip_ok and bulk_ok


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds, after one to warm up")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        trio.run(serve)
        return 0
    command = [sys.executable, "-m", "bench.hop", "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            figures = trio.run(compare, options.rounds, Served.parse(server.stdout.readline()))
        finally:
            assert server.stdin is not None
            server.stdin.close()
    return 0 if report(figures) else 1


if __name__ == "__main__":
    sys.exit(main())
