"""The plan of a fetch: everything once, the rare first, liars named, honest peers never blamed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha256
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.node.weights_plan import FetchPlan, Piece
from paceline.node.weights_rate import Rate
from paceline.store.manifest import Block
from paceline.wire.ids import PeerId

PIECE = 10
A, B, C = PeerId("a"), PeerId("b"), PeerId("c")


def block(name: str, size: int = 35) -> Block:
    return Block(sha256(name.encode()).hexdigest(), size)


BLOCKS = [block(f"b{k}", size) for k, size in enumerate((35, 10, 1, 80, 0, 20))]


def everything(plan: FetchPlan, peer: PeerId) -> list[Piece]:
    found = []
    while (piece := plan.next(peer)) is not None:
        found.append(piece)
    return found


def test_pieces_cover_a_block_without_overlap() -> None:
    plan = FetchPlan(BLOCKS, PIECE, {})
    plan.holds(A, [it.hash for it in BLOCKS])
    pieces = everything(plan, A)
    for it in BLOCKS:
        mine = sorted((p.offset, p.length) for p in pieces if p.block == it)
        assert sum(length for _, length in mine) == it.size
        assert [offset for offset, _ in mine] == [PIECE * k for k in range(len(mine))]
    assert all(plan.arrived(A, piece) for piece in pieces)
    assert {it.hash for it in plan.ready()} == {it.hash for it in BLOCKS}


def test_the_rarest_block_comes_first() -> None:
    common, rare = block("common"), block("rare")
    plan = FetchPlan([common, rare], PIECE, {})
    plan.holds(B, [common.hash])
    plan.holds(A, [common.hash, rare.hash])
    first = plan.next(A)
    assert first is not None
    assert first.block == rare


def test_peers_begin_different_blocks_and_then_help_each_other() -> None:
    one, two = block("one", 40), block("two", 40)
    plan = FetchPlan([one, two], PIECE, {})
    for peer in (A, B):
        plan.holds(peer, [one.hash, two.hash])
    begun = [plan.next(A), plan.next(B)]
    assert {it.block for it in begun if it} == {one, two}
    rest = everything(plan, A)
    assert {it.block for it in rest} == {one, two}
    assert everything(plan, B) == []


def test_what_a_lost_peer_was_asked_is_asked_of_another() -> None:
    plan = FetchPlan([block("x", 40)], PIECE, {})
    for peer in (A, B):
        plan.holds(peer, [block("x", 40).hash])
    asked = [plan.next(A) for _ in range(3)]
    assert asked[0] is not None
    plan.arrived(A, asked[0])
    plan.gone(A)
    assert sorted(piece.index for piece in everything(plan, B)) == [1, 2, 3]
    assert not plan.arrived(A, asked[1] or asked[0])


def test_what_has_landed_before_is_not_fetched_again() -> None:
    it = block("x", 40)
    plan = FetchPlan([it], PIECE, {it.hash: {0, 2}})
    plan.holds(A, [it.hash])
    assert sorted(piece.index for piece in everything(plan, A)) == [1, 3]
    assert FetchPlan([it], PIECE, {it.hash: {0, 1, 2, 3}}).ready() == [it]


def test_the_only_sender_of_a_bad_block_is_banned() -> None:
    it = block("x", 20)
    plan = FetchPlan([it], PIECE, {})
    plan.holds(A, [it.hash])
    plan.holds(B, [it.hash])
    for piece in everything(plan, A):
        plan.arrived(A, piece)
    assert plan.judge(it)
    assert plan.bad(it, {}) == {A}
    assert plan.next(A) is None
    plan.holds(A, [it.hash])
    assert plan.next(A) is None
    assert len(everything(plan, B)) == 2


def test_of_several_senders_the_liar_is_found_by_the_good_block() -> None:
    it = block("x", 30)
    plan = FetchPlan([it], PIECE, {})
    for peer in (A, B, C):
        plan.holds(peer, [it.hash])
    for peer in (A, B, C):
        piece = plan.next(peer)
        assert piece is not None
        plan.arrived(peer, piece)
    assert plan.judge(it)
    assert plan.bad(it, {0: b"good0", 1: b"BAD", 2: b"good2"}) == set()
    alone = plan.next(C)
    assert alone is not None
    assert plan.next(A) is None
    plan.arrived(C, alone)
    assert plan.next(B) is None
    for piece in everything(plan, C):
        plan.arrived(C, piece)
    assert plan.ready() == [it]
    assert plan.judge(it)
    assert plan.blame(it, {0: b"good0", 1: b"good1", 2: b"good2"}) == {B}
    plan.good(it)
    assert plan.blocks == []


def test_a_sole_sender_that_leaves_is_replaced_from_the_beginning() -> None:
    it = block("x", 30)
    plan = FetchPlan([it], PIECE, {it.hash: {0}})
    plan.holds(A, [it.hash])
    plan.holds(B, [it.hash])
    for piece in everything(plan, A):
        plan.arrived(A, piece)
    assert plan.judge(it)
    assert plan.bad(it, {}) == set()
    first = plan.next(A)
    assert first is not None
    plan.arrived(A, first)
    plan.gone(A)
    assert len(everything(plan, B)) == 3


def test_a_block_that_waited_while_its_sender_was_banned_is_not_judged() -> None:
    """A liar's two blocks wait for verification. What the second says of the honest peer that repairs it: nothing."""
    one, two = block("one", 10), block("two", 10)
    plan = FetchPlan([one, two], PIECE, {})
    plan.holds(A, [one.hash, two.hash])
    for piece in everything(plan, A):
        plan.arrived(A, piece)
    plan.holds(B, [one.hash, two.hash])
    assert plan.judge(one)
    assert plan.bad(one, {}) == {A}
    assert not plan.judge(two)
    for piece in everything(plan, B):
        assert plan.arrived(B, piece)
    assert plan.banned == {A}
    assert plan.judge(two)


def test_a_block_stands_still_while_it_is_judged() -> None:
    it = block("x", 20)
    plan = FetchPlan([it], PIECE, {it.hash: {0}})
    for peer in (A, B):
        plan.holds(peer, [it.hash])
    for _ in range(2):  # the second time it comes whole from A, who leaves and is banned while its hash is computed
        for piece in everything(plan, A):
            plan.arrived(A, piece)
        assert plan.judge(it)
        assert not plan.judge(it)
        assert plan.ready() == []
        if plan.suspects(it):
            plan.gone(A)
            plan.ban({A})
            assert plan.next(B) is None
        assert plan.bad(it, {0: b"0", 1: b"1"}) == ({A} if A in plan.banned else set())
    assert len(everything(plan, B)) == 2


@dataclass
class Disk:
    """What lies in the partial files, and a verifier that reads them piece by piece while the fetch goes on."""

    plan: FetchPlan
    pieces: dict[tuple[str, int], bytes]
    queue: list[Block] = field(default_factory=list)
    reading: Block | None = None
    seen: dict[int, bytes] = field(default_factory=dict)

    def lies(self, it: Block) -> dict[int, bytes]:
        return {at: data for (key, at), data in self.pieces.items() if key == it.hash}

    def write(self, peer: PeerId, piece: Piece, data: bytes) -> None:
        if self.plan.arrived(peer, piece):
            self.pieces[piece.block.hash, piece.index] = data
            self.queue += [it for it in self.plan.ready() if it == piece.block]

    def step(self) -> set[PeerId]:
        """Begin with a block, read one more piece of it, or pass a verdict: who is banned for it."""
        if self.reading is None:
            waiting = self.queue.pop(0) if self.queue else None
            self.reading = waiting if waiting is not None and self.plan.judge(waiting) else None
            self.seen = {}
            return set()
        it = self.reading
        if len(self.seen) < max(1, -(-it.size // PIECE)):
            self.seen[len(self.seen)] = self.pieces[it.hash, len(self.seen)]
            return set()
        self.reading = None
        assert self.seen == self.lies(it)
        if set(self.seen.values()) != {b"good"}:
            return self.plan.bad(it, self.lies(it))
        banned = self.plan.blame(it, self.lies(it))
        self.plan.good(it)
        return banned


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10**6), peers=st.integers(1, 4), liars=st.integers(0, 3))
def test_with_liars_and_losses_every_block_ends_good_and_no_honest_peer_is_banned(
    seed: int, peers: int, liars: int
) -> None:
    dice = Random(seed)
    names = [PeerId(f"p{k}") for k in range(peers + liars)]
    lying = set(names[peers:])
    resumed = {BLOCKS[3].hash: {1, 4}, BLOCKS[1].hash: {0}}
    plan = FetchPlan(BLOCKS, PIECE, resumed)
    before = {(key, at): dice.choice([b"good", b"bad"]) for key, pieces in resumed.items() for at in pieces}
    disk = Disk(plan, before, plan.ready())
    asked: list[tuple[PeerId, Piece]] = []
    steps = 0
    while plan.blocks:
        steps += 1
        assert steps < 20_000
        for peer in names:
            if dice.random() < 0.5:
                plan.holds(peer, [it.hash for it in BLOCKS])
            while plan.in_flight(peer) < 2 and (piece := plan.next(peer)) is not None:
                asked.append((peer, piece))
        if dice.random() < 0.05:
            plan.gone(dice.choice(names))
        if asked:
            peer, piece = asked.pop(dice.randrange(len(asked)))
            lie = peer in lying and dice.random() < 0.8
            disk.write(peer, piece, b"bad" + peer.encode() if lie else b"good")
        if dice.random() < 0.5:
            assert disk.step() <= lying
    assert plan.banned <= lying


def test_nothing_is_asked_twice_while_all_goes_well() -> None:
    plan = FetchPlan(BLOCKS, PIECE, {})
    count: Counter[tuple[str, int]] = Counter()
    for peer in (A, B, C):
        plan.holds(peer, [it.hash for it in BLOCKS])
    going = True
    while going:
        asked = [piece for peer in (A, B, C) if (piece := plan.next(peer)) is not None]
        count.update((piece.block.hash, piece.index) for piece in asked)
        going = bool(asked)
    assert set(count.values()) == {1}


@given(rate=st.floats(1.0, 1e9), pieces=st.lists(st.integers(1, 10**6), max_size=30))
def test_a_rate_is_kept(rate: float, pieces: list[int]) -> None:
    bucket, now = Rate(rate), 0.0
    for size in pieces:
        now += bucket.wait_s(now)
        bucket.spend(size, now)
    assert sum(pieces[:-1]) <= rate * (now + 0.1) * (1 + 1e-6) + 1e-6
    assert Rate(0.0).wait_s(now) == 0.0
