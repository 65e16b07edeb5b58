"""Blocks over links in virtual time: from several peers, resumed, verified, within rates, liars banned."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

from paceline.net.direct import DirectChannel, DirectListener, Handshake
from paceline.net.identity import Identity
from paceline.net.lane import Lanes, OutLane
from paceline.net.links import Links
from paceline.net.memory import MemoryNetwork
from paceline.node.blocks import BlockDesk, BlockSource, InThread, StoreBlocks
from paceline.node.weights_fetch import FetchConfig, Fetcher, FetchReport
from paceline.store.errors import DiskFull, QuotaReached
from paceline.store.manifest import Block
from paceline.store.partial import Partial
from paceline.store.store import Store
from paceline.wire.errors import CorruptBlock, PeerUnavailable
from paceline.wire.messages import (
    BlockPiece,
    BlockRequest,
    Holdings,
    HoldingsRequest,
    Message,
    PeerAddress,
)

CONFIG = FetchConfig(piece_bytes=1000, patience_s=2.0, give_up_s=8.0)
BLOCKS = [os.urandom(size) for size in (5500, 3000, 1, 12_000, 800)]


async def inline(call: Callable[..., Any], *args: Any) -> Any:
    await trio.lowlevel.checkpoint()
    return call(*args)


class Liar(StoreBlocks):
    """Flips the last byte of what it serves."""

    def piece(self, digest: bytes, offset: int, length: int) -> tuple[int, bytes]:
        total, data = super().piece(digest, offset, length)
        return total, data[:-1] + bytes([data[-1] ^ 1]) if data else data

    def quick(self, digest: bytes, offset: int, room: memoryview) -> None:
        return None


async def late(call: Callable[..., Any], *args: Any) -> Any:
    """A slow disk: what it found is a second old when it says so."""
    try:
        return call(*args)
    finally:
        await trio.sleep(1.0)


@dataclass
class Lab:
    """Serving peers by name, and one that fetches."""

    folder: Path
    nursery: trio.Nursery
    network: MemoryNetwork = field(default_factory=lambda: MemoryNetwork(seed=3))
    peers: dict[str, PeerAddress] = field(default_factory=dict)
    desks: dict[str, BlockDesk] = field(default_factory=dict)
    links: dict[str, Links] = field(default_factory=dict)
    lanes: dict[str, Lanes] = field(default_factory=dict)

    async def serve(
        self,
        name: str,
        blocks: Sequence[bytes] = BLOCKS,
        kind: Callable[[Store], BlockSource] = StoreBlocks,
        rate: float = 0.0,
        *,
        lanes: bool = False,
    ) -> None:
        """`lanes`: beside links in memory, over real sockets, so without a virtual clock."""
        store = Store(self.folder / name)
        for data in blocks:
            store.put(data)

        def on_message(peer: Any, message: Message, payload: memoryview) -> None:
            if isinstance(message, BlockRequest | HoldingsRequest):
                self.desks[name].handle(peer, message)

        identity = Identity.ephemeral()
        links = self.links[name] = Links(self.network.transport(identity.peer), on_message)
        self.lanes[name] = Lanes()
        self.desks[name] = BlockDesk(links, kind(store), rate, inline, self.lanes[name])
        up = trio.Event()

        async def run() -> None:
            async with links.run():
                up.set()
                await self.desks[name].run()

        self.nursery.start_soon(run)
        await up.wait()
        self.peers[name] = links.address
        if lanes:
            port = await self.data_port(identity, self.lanes[name])
            self.peers[name] = PeerAddress(identity.peer, links.address.control, (port,))

    async def data_port(self, identity: Identity, lanes: Lanes) -> str:
        async def no_links(channel: DirectChannel) -> None:
            raise AssertionError("links are in memory here")

        serve = DirectListener(Handshake(identity), no_links, lambda kind: None, lanes).serve
        listeners = await self.nursery.start(trio.serve_tcp, serve, 0)
        return f"/ip4/127.0.0.1/tcp/{listeners[0].socket.getsockname()[1]}"

    @asynccontextmanager
    async def fetcher(
        self, config: FetchConfig = CONFIG, name: str = "empty", in_thread: InThread = inline
    ) -> AsyncIterator[Fetcher]:
        def on_message(peer: Any, message: Message, payload: memoryview) -> None:
            if isinstance(message, BlockPiece | Holdings):
                fetcher.on_message(peer, message, payload)

        links = Links(
            self.network.transport(Identity.ephemeral().peer, listens=False),
            on_message,
            lambda peer, error: fetcher.on_lost(peer),
        )
        fetcher = Fetcher(links, Store(self.folder / name), config, in_thread, Lanes())
        async with links.run():
            yield fetcher

    async def sources(self) -> list[PeerAddress]:
        return list(self.peers.values())

    def wanted(self, blocks: Sequence[bytes] = BLOCKS) -> list[Block]:
        scratch = Store(self.folder / "scratch")
        return [scratch.put(data) for data in blocks]


@pytest.fixture
async def lab(tmp_path: Path, nursery: trio.Nursery) -> Lab:
    return Lab(tmp_path, nursery)


def check(store: Store, report: FetchReport) -> None:
    for data in BLOCKS:
        assert store.read(store.put(data).digest) == data
    assert not list((store.root / "partial").iterdir())
    assert report.blocks == len(BLOCKS)


async def test_three_peers_share_the_work(autojump_clock: object, lab: Lab) -> None:
    for name in ("a", "b", "c"):
        await lab.serve(name)
    told: list[tuple[int, int]] = []
    async with lab.fetcher() as fetcher:
        report = await fetcher.fetch(lab.wanted(), lab.sources, lambda done, total: told.append((done, total)))
    check(Store(lab.folder / "empty"), report)
    total = sum(map(len, BLOCKS))
    assert report.bytes == total == sum(desk.statistics.bytes for desk in lab.desks.values())
    assert len(report.sent) == 3
    assert (report.again, report.banned, report.resumed) == (0, [], 0)
    assert told[-1] == (total, total)
    assert told == sorted(told)


async def test_only_what_is_wanted_and_lacks_is_fetched(autojump_clock: object, lab: Lab) -> None:
    await lab.serve("a")
    Store(lab.folder / "empty").put(BLOCKS[0])
    async with lab.fetcher() as fetcher:
        report = await fetcher.fetch(lab.wanted(BLOCKS[:2]), lab.sources)
        assert report.bytes == len(BLOCKS[1])
        assert (await fetcher.fetch(lab.wanted(BLOCKS[:2]), lab.sources)).bytes == 0


async def test_each_has_a_part_and_together_they_have_all(autojump_clock: object, lab: Lab) -> None:
    await lab.serve("a", BLOCKS[:2])
    await lab.serve("b", BLOCKS[2:])
    await lab.serve("c", ())
    async with lab.fetcher() as fetcher:
        check(Store(lab.folder / "empty"), await fetcher.fetch(lab.wanted(), lab.sources))


async def test_a_liar_is_banned_and_its_blocks_come_from_others(autojump_clock: object, lab: Lab) -> None:
    await lab.serve("liar", kind=Liar)
    await lab.serve("a")
    await lab.serve("b")
    async with lab.fetcher() as fetcher:
        report = await fetcher.fetch(lab.wanted(), lab.sources)
        assert report.banned == [lab.peers["liar"].peer]
        assert fetcher.banned == {lab.peers["liar"].peer}
    check(Store(lab.folder / "empty"), report)


async def test_who_repairs_a_liars_blocks_is_not_banned_for_them(autojump_clock: object, lab: Lab) -> None:
    """All that a liar sent waits for a slow verification; when the first verdict bans it, an honest peer sends anew."""
    await lab.serve("liar", kind=Liar)
    await lab.serve("a")
    async with lab.fetcher(in_thread=late) as fetcher:

        async def sources() -> list[PeerAddress]:
            complete = fetcher.reports[-1].bytes >= sum(map(len, BLOCKS))
            return list(lab.peers.values()) if complete else [lab.peers["liar"]]

        report = await fetcher.fetch(lab.wanted(), sources)
        assert fetcher.banned == {lab.peers["liar"].peer}
    check(Store(lab.folder / "empty"), report)


async def test_nobody_but_a_liar_is_no_source(autojump_clock: object, lab: Lab) -> None:
    await lab.serve("liar", kind=Liar)
    async with lab.fetcher() as fetcher:
        with pytest.raises(CorruptBlock, match="nobody but peers that sent"):
            await fetcher.fetch(lab.wanted(), lab.sources)
    assert not list((lab.folder / "empty" / "blocks").iterdir())


async def test_a_source_that_dies_midway_costs_nothing_twice(autojump_clock: object, lab: Lab) -> None:
    await lab.serve("a", rate=4000)
    await lab.serve("b", rate=4000)
    async with lab.fetcher() as fetcher:

        def progress(done: int, total: int) -> None:
            if done > total / 2:
                lab.network.kill(lab.peers["a"].peer)  # type: ignore[arg-type]

        report = await fetcher.fetch(lab.wanted(), lab.sources, progress)
    check(Store(lab.folder / "empty"), report)
    assert report.again == 0
    assert report.bytes == sum(map(len, BLOCKS))


async def test_a_frozen_source_is_left_alone(autojump_clock: object, lab: Lab) -> None:
    await lab.serve("a")
    await lab.serve("b", rate=4000)
    lab.network.freeze(lab.peers["a"].peer)  # type: ignore[arg-type]
    async with lab.fetcher() as fetcher:
        check(Store(lab.folder / "empty"), await fetcher.fetch(lab.wanted(), lab.sources))


async def test_a_fetch_that_was_cut_short_goes_on_where_it_was(autojump_clock: object, lab: Lab) -> None:
    await lab.serve("a", rate=3000)
    maps = lab.folder / "empty" / "partial"
    async with lab.fetcher() as fetcher, trio.open_nursery() as nursery:
        nursery.start_soon(fetcher.fetch, lab.wanted(), lab.sources)
        # In the middle of a block: some of its pieces have landed, and it is not whole.
        while lab.desks["a"].statistics.bytes <= 5000 or not any(any(it.read_bytes()) for it in maps.glob("*.1000")):
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    before = lab.desks["a"].statistics.bytes
    assert 5000 < before < sum(map(len, BLOCKS))
    async with lab.fetcher() as fetcher:
        report = await fetcher.fetch(lab.wanted(), lab.sources)
    total = sum(map(len, BLOCKS))
    assert report.resumed > 0
    assert report.bytes + before <= total + (CONFIG.window + 1) * CONFIG.piece_bytes
    assert [Store(lab.folder / "empty").read(it.digest) for it in lab.wanted()] == BLOCKS


async def test_rates_hold_on_both_sides(autojump_clock: object, lab: Lab) -> None:
    await lab.serve("a", rate=2000)
    began = trio.current_time()
    async with lab.fetcher() as fetcher:
        await fetcher.fetch(lab.wanted(BLOCKS[:1]), lab.sources)
    assert trio.current_time() - began > 4500 / 2000
    await lab.serve("b")
    del lab.peers["a"]
    began = trio.current_time()
    slow = FetchConfig(piece_bytes=1000, bytes_per_s=1000)
    async with lab.fetcher(slow, "slow") as fetcher:
        await fetcher.fetch(lab.wanted(BLOCKS[:1]), lab.sources)
    assert trio.current_time() - began > 4000 / 1000


async def test_nobody_there_is_said_within_the_bound(autojump_clock: object, lab: Lab) -> None:
    async with lab.fetcher() as fetcher:
        with pytest.raises(PeerUnavailable, match="pull the model"):
            await fetcher.fetch(lab.wanted(), lab.sources)


# --- lanes


async def test_pieces_come_on_lanes_and_links_only_ask(lab: Lab) -> None:
    for name in ("a", "b", "c"):
        await lab.serve(name, lanes=True)
    async with lab.fetcher() as fetcher:
        report = await fetcher.fetch(lab.wanted(), lab.sources)
    check(Store(lab.folder / "empty"), report)
    assert report.bytes == sum(map(len, BLOCKS)) == sum(desk.statistics.bytes for desk in lab.desks.values())
    assert (report.again, report.banned, len(report.sent)) == (0, [], 3)
    assert sum(links.statistics().bytes_out for links in lab.links.values()) < report.bytes / 4


async def test_a_liar_on_a_lane_is_banned_as_well(lab: Lab) -> None:
    await lab.serve("liar", kind=Liar, lanes=True)
    await lab.serve("a", lanes=True)
    await lab.serve("b")
    async with lab.fetcher() as fetcher:
        report = await fetcher.fetch(lab.wanted(), lab.sources)
        assert fetcher.banned == {lab.peers["liar"].peer}
    check(Store(lab.folder / "empty"), report)


async def test_where_no_lane_can_be_reached_pieces_come_on_the_link(lab: Lab) -> None:
    await lab.serve("a")
    at = lab.peers["a"]
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    lab.peers["a"] = PeerAddress(at.peer, at.control, (f"/ip4/127.0.0.1/tcp/{port}",))
    async with lab.fetcher() as fetcher:
        check(Store(lab.folder / "empty"), await fetcher.fetch(lab.wanted(), lab.sources))
    assert lab.links["a"].statistics().bytes_out > sum(map(len, BLOCKS))


async def test_a_lane_that_breaks_midway_costs_no_piece_twice_and_nobody_a_ban(lab: Lab) -> None:
    await lab.serve("a", lanes=True)
    broken: list[OutLane] = []
    async with lab.fetcher(FetchConfig(piece_bytes=1000, window=2)) as fetcher:

        def progress(done: int, total: int) -> None:
            lane = lab.lanes["a"].to(fetcher._links.peer)
            if done > total / 2 and lane is not None and not broken:
                broken.append(lane)
                lane._stream.socket.close()

        report = await fetcher.fetch(lab.wanted(), lab.sources, progress)
    assert broken
    check(Store(lab.folder / "empty"), report)
    assert (report.again, report.banned) == (0, [])
    assert report.bytes == sum(map(len, BLOCKS))


async def test_a_source_that_dies_with_its_lane_costs_nothing_twice(lab: Lab) -> None:
    await lab.serve("a", lanes=True)
    await lab.serve("b", lanes=True)
    async with lab.fetcher(FetchConfig(piece_bytes=1000, window=2)) as fetcher:

        def progress(done: int, total: int) -> None:
            if done > total / 2:
                lab.network.kill(lab.peers["a"].peer)  # type: ignore[arg-type]

        report = await fetcher.fetch(lab.wanted(), lab.sources, progress)
    check(Store(lab.folder / "empty"), report)
    assert (report.again, report.bytes) == (0, sum(map(len, BLOCKS)))


async def test_a_lane_keeps_to_the_rate(autojump_clock: object, lab: Lab) -> None:
    """A lane that nobody empties: what the desk has put on it, and when."""
    await lab.serve("a", rate=2000)
    ours, theirs = trio.socket.socketpair()
    asker = Identity.ephemeral().peer
    lane = OutLane(trio.SocketStream(ours), asker, bytes(32))
    lab.lanes["a"]._fed[asker] = lane
    block, began = lab.wanted()[0], trio.current_time()
    for offset in range(0, block.size, 1000):
        lab.desks["a"].handle(asker, BlockRequest(1, block.digest, offset, 1000))
    while lane.waiting_bytes < block.size:
        await trio.sleep(0.01)
    assert trio.current_time() - began > 4500 / 2000
    ours.close()
    theirs.close()


async def test_a_small_block_comes_whole_or_not_at_all(autojump_clock: object, lab: Lab) -> None:
    await lab.serve("a")
    await lab.serve("liar", kind=Liar)
    block = lab.wanted()[3]
    async with lab.fetcher() as fetcher:
        assert await fetcher.small(lab.peers["a"], block.digest, 20_000) == BLOCKS[3]
        for name, digest, most, error in (
            ("liar", block.digest, 20_000, CorruptBlock),
            ("a", block.digest, 1000, CorruptBlock),
            ("a", bytes(32), 1000, PeerUnavailable),
        ):
            with pytest.raises(error):
                await fetcher.small(lab.peers[name], digest, most)


async def test_a_damaged_block_is_not_served(autojump_clock: object, lab: Lab) -> None:
    await lab.serve("a")
    block = lab.wanted()[1]
    (lab.folder / "a" / "blocks" / block.hash).write_bytes(bytes(block.size))
    lab.desks["a"]._source = StoreBlocks(Store(lab.folder / "a"))
    async with lab.fetcher() as fetcher:
        with pytest.raises(PeerUnavailable):
            await fetcher.small(lab.peers["a"], block.digest, 20_000)


def test_a_block_is_fetched_by_one_process_at_a_time(tmp_path: Path) -> None:
    store, data = Store(tmp_path), os.urandom(2500)
    block = Store(tmp_path / "scratch").put(data)
    first = Partial.open(store, block, 1000)
    assert first is not None
    assert Partial.open(store, block, 1000) is None
    for at in range(3):
        first.write(at, memoryview(data)[1000 * at : 1000 * (at + 1)])
    first.close()
    again = Partial.open(store, block, 1000)
    assert again is not None
    assert again.landed() == {0, 1, 2}
    again.verify()
    again.complete()
    again.close()
    assert store.read(block.digest) == data


def test_a_block_that_another_process_completes_meanwhile_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, data = Store(tmp_path), os.urandom(900)
    block = Store(tmp_path / "scratch").put(data)
    first = Partial.open(store, block, 1000)
    assert first is not None
    first.write(0, memoryview(data))
    first.verify()
    flock = fcntl.flock

    def lock_after(handle: int, how: int) -> None:
        first.complete()
        first.close()
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", lock_after)
    assert Partial.open(store, block, 1000) is None
    assert store.read(block.digest) == data


async def test_a_disk_that_runs_full_ends_the_fetch_and_nothing_else(
    autojump_clock: object, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lab.serve("a")
    honest, left = os.pwrite, 6

    def full(handle: int, data: Any, at: int) -> int:
        nonlocal left
        left -= "/partial/" in os.readlink(f"/proc/self/fd/{handle}")
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return honest(handle, data, at)

    async with lab.fetcher() as fetcher:
        monkeypatch.setattr("paceline.store.partial.os.pwrite", full)
        with pytest.raises(DiskFull) as refused:
            await fetcher.fetch(lab.wanted(), lab.sources)
        monkeypatch.undo()
        assert "paceline models" in (refused.value.cure or "")
        assert fetcher.banned == set()
        report = await fetcher.fetch(lab.wanted(), lab.sources)  # somebody made room; links and peers are as before
    check(Store(lab.folder / "empty"), report)
    assert report.resumed == 3
    assert report.bytes < sum(map(len, BLOCKS))


async def test_a_quota_is_reached_before_anything_is_asked(autojump_clock: object, lab: Lab) -> None:
    await lab.serve("a")
    async with lab.fetcher() as fetcher:
        fetcher._store.quota_bytes = 6000
        with pytest.raises(QuotaReached):
            await fetcher.fetch(lab.wanted(), lab.sources)
        assert lab.desks["a"].statistics.pieces == 0
        await fetcher.fetch(lab.wanted(BLOCKS[:1]), lab.sources)
    assert Store(lab.folder / "empty").has(lab.wanted(BLOCKS[:1])[0].digest)
