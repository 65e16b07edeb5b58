"""A store that several processes share and that is tidied up under them: nothing that somebody needs is ever lost."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from paceline.store import collecting
from paceline.store.errors import DiskFull, InUse, QuotaReached
from paceline.store.manifest import Block, Manifest
from paceline.store.partial import Partial
from paceline.store.store import Store
from paceline.wire.errors import ModelNotFound
from paceline.wire.ids import Revision
from tests.store.test_store import block, manifest

SIZES = (100, 200, 300, 400, 500, 600)
DATA = [bytes([number]) * size for number, size in enumerate(SIZES)]
QUOTA = 1500
PICKS = st.lists(st.sampled_from(range(len(DATA))), min_size=1, max_size=3, unique=True)
PROCESS = st.integers(0, 2)


class Killed(BaseException):
    """The process ends here."""


@contextmanager
def killed_after(steps: int) -> Iterator[None]:
    """The files that may still be unlinked, before the process dies."""
    left, honest = steps, Path.unlink

    def unlink(path: Path, *args: Any, **kwargs: Any) -> None:
        nonlocal left
        if path.parent.name in ("blocks", "manifests", "names", "verified", "partial", "pins", "used"):
            if not left:
                raise Killed
            left -= 1
        honest(path, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        with suppress(Killed):
            yield


def crash(store: Store) -> None:
    """The process of a store is killed: the kernel takes its lock back, its lease's file stays."""
    if store.lease._handle is not None:
        store.lease._end.detach()  # type: ignore[attr-defined, union-attr]
        os.close(store.lease._handle)
        store.lease._handle = None


def made_of(blocks: list[Block], name: str) -> Manifest:
    return manifest(name, layers=tuple(blocks), embed=blocks[0], head=blocks[0])


class SharedStore(RuleBasedStateMachine):
    """Three processes, a quota, and collections, some of which are killed midway."""

    folder: Callable[[], Path]

    @initialize()
    def begin(self) -> None:
        self.root = type(self).folder()
        self.stores = [self.fresh() for _ in range(3)]
        self.drafts: list[set[str]] = [set() for _ in range(3)]
        self.held: list[set[str]] = [set() for _ in range(3)]
        self.had: dict[str, set[str]] = {}
        self.pinned: set[str] = set()

    def fresh(self) -> Store:
        return Store(self.root, QUOTA)

    def teardown(self) -> None:
        for store in getattr(self, "stores", ()):
            store.lease.close()

    # --- what is there

    def present(self) -> set[str]:
        return set(os.listdir(self.root / "blocks"))

    def here(self) -> set[str]:
        return set(os.listdir(self.root / "manifests"))

    def kept(self) -> set[str]:
        named = {path.read_text() for path in (self.root / "names").iterdir()}
        return (self.pinned | named | set().union(*self.held)) & self.here()

    def blocks_of(self, revision: str) -> dict[str, int]:
        made = self.stores[0].manifest(Revision(bytes.fromhex(revision)))
        return {it.hash: it.size for it in (*made.blocks(), *made.texts())}

    def floor(self, need: dict[str, int]) -> int:
        """Bytes that have to stay, whatever is collected."""
        whole = {name: size for revision in self.kept() for name, size in self.blocks_of(revision).items()}
        begun = set(os.listdir(self.root / "partial")) if (self.root / "partial").exists() else set()
        here = {name: size for name, size in whole.items() if name in self.present() | begun}
        drafts = {name: (self.root / "blocks" / name).stat().st_size for name in set().union(*self.drafts)}
        return sum((here | drafts | need).values())

    # --- what processes do

    @rule(process=PROCESS, pick=st.sampled_from(range(len(DATA))))
    def write(self, process: int, pick: int) -> None:
        digest = Block(hash_of(pick), SIZES[pick])
        try:
            self.stores[process].put(DATA[pick])
        except QuotaReached:
            assert self.floor({digest.hash: digest.size}) > QUOTA
            return
        self.drafts[process].add(digest.hash)

    @rule(process=PROCESS, name=st.sampled_from("ab"), named=st.booleans())
    def name_what_was_written(self, process: int, name: str, named: bool) -> None:
        if not self.drafts[process]:
            return
        blocks = [Block(it, (self.root / "blocks" / it).stat().st_size) for it in sorted(self.drafts[process])]
        self.stores[process].put_manifest(made_of(blocks, name), name=named)
        self.drafts[process] = set()

    @rule(process=PROCESS, picks=PICKS, stops=st.booleans())
    def fetch(self, process: int, picks: list[int], stops: bool) -> None:
        store = self.stores[process]
        blocks = [Block(hash_of(pick), SIZES[pick]) for pick in picks]
        made = made_of(blocks, "fetched")
        store.lease.hold(made.revision)
        self.held[process].add(made.revision.hex())
        store.put_manifest(made, name=False)
        self.drafts[process] -= {it.hash for it in blocks}
        need = {it.hash: it.size for it in blocks}
        try:
            claim = store.reserve(blocks)
        except QuotaReached:
            assert self.floor(need) > QUOTA
            return
        for pick, it in zip(picks, blocks, strict=True):
            if store.has(it.digest):
                continue
            collecting.collect(self.root, 0)
            opened = Partial.open(store, it, 64)
            assert opened is not None
            for piece in range(opened.pieces):
                opened.write(piece, memoryview(DATA[pick])[piece * 64 : piece * 64 + 64])
            if not stops:
                collecting.collect(self.root, 0)
                opened.verify()
                opened.complete()
            opened.close()
        store.lease.drop(claim)

    @rule(process=PROCESS, picks=PICKS)
    def hold(self, process: int, picks: list[int]) -> None:
        here = sorted(self.here())
        wanted = {here[pick] for pick in picks if pick < len(here)}
        self.stores[process].lease.hold_exactly(Revision(bytes.fromhex(it)) for it in wanted)
        self.held[process] = wanted

    @rule(pick=st.integers(0, 5), wanted=st.booleans())
    def pin(self, pick: int, wanted: bool) -> None:
        if (here := sorted(self.here()))[pick:]:
            self.stores[0].pin(Revision(bytes.fromhex(here[pick])), wanted)
            (self.pinned.add if wanted else self.pinned.discard)(here[pick])

    @rule(process=PROCESS)
    def die(self, process: int) -> None:
        crash(self.stores[process])
        self.stores[process], self.drafts[process], self.held[process] = self.fresh(), set(), set()

    # --- taking away

    @rule(pick=st.integers(0, 5), steps=st.none() | st.integers(0, 6))
    def remove(self, pick: int, steps: int | None) -> None:
        if not (here := sorted(self.here()))[pick:]:
            return
        which, needed = here[pick], self.pinned | set().union(*self.held)
        with killed_after(99 if steps is None else steps):
            try:
                collecting.remove(self.root, which)
            except InUse:
                assert which in needed
                return
            assert which not in needed
        self.pinned &= self.here()

    @rule(quota=st.none() | st.integers(0, 2000), steps=st.none() | st.integers(0, 6))
    def collect(self, quota: int | None, steps: int | None) -> None:
        with killed_after(99 if steps is None else steps):
            collecting.collect(self.root, quota)
            drafts = set().union(*self.drafts)
            assert self.present() <= drafts.union(*(self.blocks_of(it) for it in self.here()))
            if quota is not None and self.floor({}) <= quota:
                assert collecting.survey(self.root).contents.used() <= quota

    @invariant()
    def nothing_that_is_needed_is_lost(self) -> None:
        if not hasattr(self, "stores"):
            return
        present, here = self.present(), self.here()
        assert (self.pinned | set().union(*self.held)) & self.had.keys() <= here
        assert set().union(*self.drafts) <= present
        for revision in here & self.had.keys():
            assert self.had[revision] <= present, "what is kept lacks nothing that it had"
        self.had = {revision: self.blocks_of(revision).keys() & present for revision in here}
        for listing in self.stores[0].list():
            assert listing.manifest.revision.hex() in here
        for name in here | self.pinned:
            self.stores[0].manifest(name)


def hash_of(pick: int) -> str:
    return sha256(DATA[pick]).hexdigest()


def test_nothing_that_is_needed_is_lost(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    SharedStore.folder = staticmethod(lambda: tmp_path_factory.mktemp("store"))
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        SharedStore, settings=settings(max_examples=30, stateful_step_count=25, deadline=None)
    )


# --- single cases


def published(store: Store, data: bytes, name: str, *, named: bool = False) -> Revision:
    made = made_of([store.put(data)], name)
    return store.put_manifest(made, name=named)


def test_a_killed_process_leaves_no_lease_behind(tmp_path: Path) -> None:
    revision = published(Store(tmp_path), b"weights", "toy")
    program = f"""
import sys
from pathlib import Path
from paceline.store.store import Store
store = Store(Path({str(tmp_path)!r}))
store.lease.hold(bytes.fromhex({revision.hex()!r}))
print("holding", flush=True)
sys.stdin.read()
"""
    holder = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == b"holding\n"
    with pytest.raises(InUse, match=str(holder.pid)):
        collecting.remove(tmp_path, revision.hex())
    assert collecting.collect(tmp_path, 0).revisions == ()
    holder.kill()
    holder.wait()
    holder.stdin.close()
    holder.stdout.close()
    assert collecting.collect(tmp_path, 0).revisions == (revision.hex(),)
    assert not list((tmp_path / "leases").iterdir())
    assert not list((tmp_path / "blocks").iterdir())


def test_the_quota_makes_room_or_says_how(tmp_path: Path) -> None:
    store = Store(tmp_path, quota_bytes=100)
    old = published(store, b"o" * 60, "peer")
    new = published(store, b"n" * 60, "peer")
    with pytest.raises(ModelNotFound):
        store.manifest(old)
    store.pin(new)
    with pytest.raises(QuotaReached) as refused:
        store.put(b"x" * 60)
    assert "--store-gb" in (refused.value.cure or "")
    assert store.missing(store.manifest(new)) == []
    store.pin(new, wanted=False)
    store.put(b"x" * 60)


def test_a_disk_without_room_is_named_before_anything_is_fetched(tmp_path: Path) -> None:
    store = Store(tmp_path)
    published(store, b"o" * 60, "peer")
    with pytest.raises(DiskFull) as refused:
        collecting.make_room(tmp_path, store.lease, {block("x").hash: 100}, 0, free=lambda: 99)
    assert "paceline models" in (refused.value.cure or "")
    loose = tmp_path / "blocks" / ("0" * 64)
    loose.write_bytes(b"l" * 60)
    collecting.make_room(tmp_path, store.lease, {block("x").hash: 100}, 0, free=lambda: 40)
    assert not loose.exists()


def test_blocks_that_are_promised_count(tmp_path: Path) -> None:
    first, second = Store(tmp_path, 100), Store(tmp_path, 100)
    claim = first.reserve([Block(block("a").hash, 60)])
    with pytest.raises(QuotaReached):
        second.reserve([Block(block("b").hash, 60)])
    second.reserve([Block(block("a").hash, 60)])
    first.lease.drop(claim)
    with pytest.raises(QuotaReached):
        first.reserve([Block(block("b").hash, 60)])


def test_an_unreadable_claim_of_a_living_process_stops_everything(tmp_path: Path) -> None:
    store = Store(tmp_path)
    published(store, b"weights", "toy")
    (tmp_path / "blocks" / ("0" * 64)).write_bytes(b"loose")
    other = Store(tmp_path)
    other.lease.hold(Revision(bytes(32)))
    other.lease._path.write_bytes(b"{torn")
    decision = collecting.collect(tmp_path, 0)
    assert (decision.revisions, decision.blocks) == ((), frozenset())


def test_what_is_dropped_is_forgotten_with_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    revision = published(store, b"weights", "toy", named=True)
    store.pin(revision)
    with pytest.raises(InUse, match="pinned"):
        collecting.remove(tmp_path, revision.hex())
    store.pin(revision, wanted=False)
    assert collecting.collect(tmp_path, 0).revisions == (), "made here, and the newest of its name"
    collecting.remove(tmp_path, revision.hex())
    left = {path.parent.name for path in tmp_path.rglob("*") if path.is_file()} - {tmp_path.name, "leases"}
    assert left == set()
    with pytest.raises(ModelNotFound):
        collecting.remove(tmp_path, revision.hex())
