"""The directory among 31 nodes in separate processes: how fast, how complete, and after killing 30 %.

    python -m bench.dht [--nodes 31] [--each 5]
    python -m bench.dht --answers

Prints, in one run: a fresh client's whole view (connection included), warm look-ups, Kademlia look-ups of contacts and
of a model's providers, what a node costs at rest; then kills whole processes without a word (at least 30 % of the
nodes) and prints how soon the last view was clean, and the same look-ups again. Exit status 1 where a look-up failed.
`--answers`, without a network: what one question about a stretch of layers brings, by the size of the swarm.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import trio

from paceline.dht import exchange, offers, stretches
from paceline.dht.kademlia import DirectoryConfig, KademliaDirectory
from paceline.dht.membership import MembershipConfig
from paceline.dht.stretches import Want
from paceline.dht.view import OfferBook
from paceline.net.host import Libp2pTransport, NetConfig
from paceline.net.identity import Identity
from paceline.net.transport import Channel
from paceline.wire.messages import PeerAddress
from paceline.wire.offers import Measured, Offer, Service

MODEL = "bench"
ROUNDS = 30
NOW = 1_800_000_000.0
VANISH_S = 15.0
PATIENT = MembershipConfig(join_timeout_s=60.0)
"""31 nodes share this machine's cores: they may take long to start, which is not measured here."""


# --- one worker process: a few nodes --------------------------------------------------------------------------------


async def work(count: int, bootstrap: tuple[str, ...]) -> None:
    """Run `count` nodes; answer each line on stdin with one line of JSON on stdout, until stdin ends."""
    nodes: list[tuple[Libp2pTransport, KademliaDirectory]] = []
    async with trio.open_nursery() as nursery:
        for n in range(count):
            started = trio.Event()
            nursery.start_soon(live, nodes, started, bootstrap if n == 0 else (way_in(nodes[-1][0]),))
            await started.wait()
        say([way_in(transport) for transport, _ in nodes])
        async for _ in trio.lowlevel.FdStream(os.dup(0)):
            views = {transport.peer: [it.peer for it in await directory.offers()] for transport, directory in nodes}
            published = sum(directory.statistics().get("kad_published", 0) > 0 for _, directory in nodes)
            used = resource.getrusage(resource.RUSAGE_SELF)
            rss_mb = used.ru_maxrss / 1024
            say({"views": views, "published": published, "cpu_s": used.ru_utime + used.ru_stime, "rss_mb": rss_mb})
        nursery.cancel_scope.cancel()


async def live(nodes: list[Any], started: trio.Event, bootstrap: tuple[str, ...]) -> None:
    """One node that announces as `paceline node` does."""
    async with member(bootstrap, listens=True) as (transport, directory):
        nodes.append((transport, directory))
        config = DirectoryConfig()
        last = 0
        while True:
            fresh = offers.stamp(an_offer(transport), time.time(), config.lifetime_s, after=last)
            await directory.announce(fresh)
            last = fresh.sequence
            started.set()
            await trio.sleep(config.announce_s)


@asynccontextmanager
async def member(
    bootstrap: tuple[str, ...], *, listens: bool
) -> AsyncIterator[tuple[Libp2pTransport, KademliaDirectory]]:
    identity = Identity.ephemeral()
    transport = Libp2pTransport(identity, NetConfig(listens=listens, data=False))
    async with transport.run(no_channels):
        directory = KademliaDirectory(transport, identity, DirectoryConfig(bootstrap, membership=PATIENT))
        async with directory.run():
            yield transport, directory


async def no_channels(channel: Channel) -> None:
    await channel.aclose()


def an_offer(transport: Libp2pTransport) -> Offer:
    return Offer(transport.address, 0, 0.0, 0.0, (a_service(),))


def a_service() -> Service:
    measured = Measured(decode_s=0.01, prefill_s_per_position=0.001)
    return Service(MODEL, bytes(32), 0, 10, 30, 576, "cpu-f32", measured, kv_free=4096, max_context=2048)


def way_in(transport: Libp2pTransport) -> str:
    return f"{transport.address.control[0]}/p2p/{transport.peer}"


def say(value: object) -> None:
    print(json.dumps(value), flush=True)


# --- the parent -------------------------------------------------------------------------------------------------


@dataclass
class Worker:
    process: trio.Process
    nodes: list[str]
    lines: AsyncIterator[bytes]

    @property
    def peers(self) -> set[str]:
        return {it.rpartition("/")[2] for it in self.nodes}

    async def status(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        await self.process.stdin.send_all(b"status\n")
        answer: dict[str, Any] = json.loads(await anext(self.lines))
        return answer


async def start(count: int, bootstrap: str) -> Worker:
    command = [sys.executable, "-m", "bench.dht", "--worker", str(count), "--bootstrap", bootstrap]
    process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    lines = in_lines(process.stdout)
    with trio.fail_after(60):
        return Worker(process, json.loads(await anext(lines)), lines)


async def in_lines(stream: trio.abc.ReceiveStream) -> AsyncIterator[bytes]:
    rest = b""
    async for piece in stream:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line


async def main(nodes: int, each: int) -> bool:
    workers: list[Worker] = []
    began = time.perf_counter()
    try:
        while (missing := nodes - sum(len(it.nodes) for it in workers)) > 0:
            workers.append(await start(min(each, missing), workers[-1].nodes[-1] if workers else ""))
        everybody = {peer for it in workers for peer in it.peers}
        full_s = await until_all_see(workers, everybody)
        print(f"{nodes} nodes in {len(workers)} processes, up in {time.perf_counter() - began:.1f} s")
        print(f"every view complete {full_s:.1f} s after the last node joined")
        with trio.fail_after(180):
            while sum([(await it.status())["published"] for it in workers]) < nodes:
                await trio.sleep(0.5)
        print(f"everybody's records in Kademlia after {time.perf_counter() - began:.1f} s")
        await at_rest(workers)
        good = await look_ups(workers, everybody)
        victims = list(workers)
        random.Random(0).shuffle(victims)
        while sum(len(it.nodes) for it in victims[:-1]) >= 0.3 * nodes:
            victims.pop()
        left = [it for it in workers if it not in victims]
        return await after_killing(victims, left) and good
    finally:
        for it in workers:
            it.process.kill()


async def after_killing(victims: list[Worker], left: list[Worker]) -> bool:
    dead = {peer for it in victims for peer in it.peers}
    alive = {peer for it in left for peer in it.peers}
    for it in victims:
        it.process.kill()
    print(f"\nkilled {len(dead)} of {len(dead) + len(alive)} nodes ({len(dead) / (len(dead) + len(alive)):.0%})")
    clean_s = 0.0

    async def watch() -> None:
        nonlocal clean_s
        clean_s = await until_all_see(left, alive)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        at_once = await look_ups(left, alive, dead)
    print(f"last ghost gone from every view, and none lost: {clean_s:.1f} s after the kill (bar: {VANISH_S:.0f} s)")
    later = await look_ups(left, alive)
    return at_once and later and clean_s <= VANISH_S


async def until_all_see(workers: list[Worker], wanted: set[str]) -> float:
    """Seconds until every node's view is exactly `wanted`."""
    began = time.perf_counter()
    with trio.fail_after(180):
        while True:
            views = [view for it in workers for view in (await it.status())["views"].values()]
            if all(set(view) == wanted for view in views):
                return time.perf_counter() - began
            await trio.sleep(0.2)


async def at_rest(workers: list[Worker], seconds: float = 10.0) -> None:
    before = [(await it.status())["cpu_s"] for it in workers]
    await trio.sleep(seconds)
    after = [await it.status() for it in workers]
    cpu = sum(it["cpu_s"] - then for it, then in zip(after, before, strict=True)) / seconds
    nodes = sum(len(it.nodes) for it in workers)
    rss = statistics.mean(it["rss_mb"] for it in after)
    print(f"at rest: {cpu / nodes:.2%} of one core per node, {rss:.0f} MB per process of {len(workers[0].nodes)} nodes")


async def look_ups(workers: list[Worker], alive: set[str], dead: frozenset[str] | set[str] = frozenset()) -> bool:
    """Fresh clients through random members, then warm and Kademlia look-ups by one client. `dead`: not yet expired."""
    rng = random.Random(1)
    ways = [way for it in workers for way in it.nodes]
    joins, complete = [], 0
    for _ in range(ROUNDS // 3):
        began = time.perf_counter()
        async with member((rng.choice(ways),), listens=False) as (_, directory):
            joins.append(time.perf_counter() - began)
            complete += {it.peer for it in await directory.offers(MODEL)} - dead == alive
    show("fresh client, whole view", joins, complete)
    async with member((rng.choice(ways),), listens=False) as (_, client):
        kad = client._kad
        assert kad is not None
        wanted = rng.sample(sorted(alive), min(len(alive), ROUNDS))

        async def warm(peer: str) -> bool:
            return any(it.peer == peer for it in await client.offers(MODEL))

        async def contact(peer: str) -> bool:
            found = await kad.find(peer)
            return found is not None and found.peer == peer

        async def providers(peer: str) -> bool:
            return any(it.peer in alive for it in await kad.find_providers(MODEL))

        good = complete == len(joins)
        good &= await timed("warm look-up of a model", warm, wanted)
        good &= await timed("Kademlia, one contact", contact, wanted)
        good &= await timed("Kademlia, a model's providers", providers, wanted[: ROUNDS // 3])
    return good


async def timed(name: str, act: Callable[[str], Awaitable[bool]], wanted: list[str]) -> bool:
    times, good = [], 0
    for peer in wanted:
        began = time.perf_counter()
        good += await act(peer)
        times.append(time.perf_counter() - began)
    show(name, times, good)
    return good == len(times)


def show(name: str, times: list[float], good: int) -> None:
    times = sorted(times)
    p50, p95 = statistics.median(times), times[min(len(times) - 1, round(0.95 * len(times)))]
    print(f"  {name:<32} p50 {p50 * 1000:8.2f} ms   p95 {p95 * 1000:8.2f} ms   {good}/{len(times)} found")


def answers(layers: int = 80, held: int = 10) -> bool:
    """Nodes with spans of `held` layers, anywhere. False where an answer, or a key's share, grows with the swarm."""
    print(f"{'nodes':>6} {'under the name':>15} {'under a stretch':>16} {'answer':>18} {'everything':>12}")
    sizes, shares = [], []
    for nodes in (100, 400, 1600, 4000):
        book, filed = OfferBook(), Counter[str]()
        for n in range(nodes):
            start = n * 7 % (layers - held + 1)
            service = msgspec.structs.replace(a_service(), start=start, end=start + held, layers=layers)
            filed.update(stretches.filed_under((service,), crowd=True))
            who = Identity.ephemeral()
            at = PeerAddress(who.peer, ("/ip4/203.0.113.5/tcp/4001",), ("/ip4/203.0.113.5/tcp/4002",))
            book.accept(offers.sign(who, Offer(at, 1, NOW, NOW + 12.0, (service,))), NOW)
        want = Want(bytes(32), 40, 48)
        told, _ = exchange.answer(exchange.Ask(digest=b"", want=want), book, NOW)
        sizes.append(len(exchange.encode(told)))
        whole = sum(len(offers.encode(it)) for it in book.lacking(b"", NOW, 1 << 30)[0])
        fullest = max(count for key, count in filed.items() if "/" in key)
        shares.append(fullest / nodes)
        print(f"{nodes:>6} {filed[MODEL]:>15} {fullest:>16} {sizes[-1] / 1e3:>7.1f} KB, {len(told.offers)} of "
              f"{fullest:<4} {whole / 1e3:>8.1f} KB")  # fmt: skip
    return max(sizes) < 16_384 and max(shares) < 0.3


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--nodes", type=int, default=31)
    parser.add_argument("--each", type=int, default=5, help="nodes per process")
    parser.add_argument("--worker", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--bootstrap", default="", help=argparse.SUPPRESS)
    parser.add_argument("--answers", action="store_true", help="sizes of answers only")
    options = parser.parse_args()
    if options.answers:
        sys.exit(not answers())
    if options.worker:
        trio.run(work, options.worker, (options.bootstrap,) if options.bootstrap else ())
    else:
        sys.exit(not trio.run(main, options.nodes, options.each))
