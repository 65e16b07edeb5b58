"""The store keeps what it was given, notices damage, and survives a crash."""

from __future__ import annotations

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.store.errors import DiskFull, StoreError
from paceline.store.manifest import Block, Manifest, decode
from paceline.store.store import Store, default_root
from paceline.store.tensorfile import header, read_layout
from paceline.wire.errors import CorruptBlock, Malformed, ModelNotFound
from paceline.wire.ids import Revision, Span


def block(text: str) -> Block:
    return Block(sha256(text.encode()).hexdigest(), len(text))


def manifest(name: str = "toy", **changes: object) -> Manifest:
    fields: dict[str, object] = {
        "name": name,
        "family": "llama",
        "architecture": "LlamaForCausalLM",
        "config": {"b": 1, "a": [1, {"d": 2.5, "c": None}]},
        "dtype": "f32",
        "hidden": 8,
        "vocab": 16,
        "max_context": 32,
        "layers": (block("l0"), block("l1"), block("l1")),
        "embed": block("embed"),
        "head": block("head"),
        **changes,
    }
    return Manifest(**fields)  # type: ignore[arg-type]


@settings(max_examples=25)
@given(data=st.binary(max_size=2000))
def test_put_then_read(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    put = store.put(data)
    assert put == Block(sha256(data).hexdigest(), len(data))
    assert Store(store.root).read(put.digest) == data
    assert not list((store.root / "temp").iterdir())


@pytest.mark.parametrize("damage", [b"", b"hello worle", b"hello world!"])
def test_damage_is_noticed_on_first_use(tmp_path: Path, damage: bytes) -> None:
    put = Store(tmp_path).put(b"hello world")
    (tmp_path / "blocks" / put.hash).write_bytes(damage)
    store = Store(tmp_path)
    with pytest.raises(CorruptBlock, match="pull the model again"):
        store.path(put.digest)
    store.remove_corrupt(put.digest)
    with pytest.raises(ModelNotFound):
        store.read(put.digest)


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    pieces: list[Any] = [b"half a block", None]
    with pytest.raises(TypeError), store.writer() as writer:
        [writer.write(piece) for piece in pieces]
    with pytest.raises(CorruptBlock), store.writer(expect=block("right")) as writer:
        writer.write(b"wrong")
    assert [list((tmp_path / folder).iterdir()) for folder in ("temp", "blocks")] == [[], []]


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = Store(tmp_path)
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(DiskFull, match="PACELINE_HOME"):
        store.put(b"x")
    monkeypatch.undo()
    assert not list((tmp_path / "temp").iterdir())


def test_an_impossible_root_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="PACELINE_HOME"):
        Store(tmp_path / "file")


def test_what_a_crash_left_is_cleared_after_a_day(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old, fresh = store.root / "temp" / "old", store.root / "temp" / "fresh"
    old.write_bytes(b"x")
    fresh.write_bytes(b"x")
    os.utime(old, (1, 1))
    Store(tmp_path)
    assert [old.exists(), fresh.exists()] == [False, True]


def test_manifests_by_name_and_revision(tmp_path: Path) -> None:
    store, first = Store(tmp_path), manifest()
    revision = store.put_manifest(first)
    second = manifest(eos_ids=(2,))
    assert store.put_manifest(second, name=False) != revision
    for which in ("toy", revision.hex(), revision):
        assert store.manifest(which) == first
    assert store.manifest(second.revision) == second
    store.put_manifest(second)
    assert store.manifest("toy") == second


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", ".", "..", "org/model:1", "ä ö", "x" * 60])
def test_names_cannot_leave_their_folder(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path / "s")
    store.put_manifest(manifest(name))
    assert [listing.name for listing in store.list()] == [name]
    assert store.manifest(name).name == name
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("which", ["absent", "", "f" * 64, Revision(b"\1" * 32)])
def test_an_unknown_model_comes_with_a_cure(tmp_path: Path, which: str | Revision) -> None:
    with pytest.raises(ModelNotFound, match="paceline pull"):
        Store(tmp_path).manifest(which)


def test_a_damaged_manifest_is_noticed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    revision = store.put_manifest(manifest())
    path = tmp_path / "manifests" / revision.hex()
    path.write_bytes(path.read_bytes().replace(b'"toy"', b'"tou"'))
    with pytest.raises(CorruptBlock):
        store.manifest("toy")


def test_listing_counts_shared_blocks_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    kept = store.put(b"l1")
    store.put_manifest(manifest())
    (listing,) = store.list()
    assert (listing.present, listing.total) == (kept.size, 2 + 2 + 5 + 4)
    assert {b.hash for b in store.missing(listing.manifest)} == {block(t).hash for t in ("l0", "embed", "head")}
    assert [b.hash for b in store.missing(listing.manifest, Span(0, 2))] == [block("l0").hash, block("embed").hash]


def test_canonical_bytes() -> None:
    made = manifest(config={"b": 1, "a": 2})
    assert made.revision == manifest(config={"a": 2, "b": 1}).revision
    assert decode(made.encode()) == made
    for bad in (b"", b"[]", b"{}", made.encode() + b" ", made.encode().replace(b":8,", b": 8,"), b"[" * 100_000):
        with pytest.raises(Malformed):
            decode(bad)


def test_a_tied_tail_needs_the_embedding() -> None:
    tied, free = manifest(tied=True), manifest()
    assert tied.embed in list(tied.blocks(Span(2, 3)))
    assert tied.embed not in list(tied.blocks(Span(1, 2)))
    assert free.embed not in list(free.blocks(Span(2, 3)))


def test_default_root_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACELINE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "store"


def test_tensor_files(tmp_path: Path) -> None:
    head = header([("a", "F32", (2, 3), 24), ("b", "BF16", (4,), 8)])
    assert len(head) % 64 == 0
    path = tmp_path / "t"
    path.write_bytes(head + bytes(32))
    found = read_layout(path)
    assert (found["a"].shape, found["a"].offset, found["b"].offset) == ((2, 3), len(head), len(head) + 24)
    path.write_bytes(head + bytes(31))
    with pytest.raises(CorruptBlock):
        read_layout(path)


@settings(max_examples=200)
@given(data=st.binary(max_size=200), size=st.integers(0, 300))
def test_any_bytes_are_a_tensor_file_or_corrupt(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, size: int
) -> None:
    path = tmp_path_factory.mktemp("t") / "t"
    path.write_bytes(size.to_bytes(8, "little") + data)
    try:
        read_layout(path)
    except CorruptBlock:
        return


def test_many_may_open_a_store_at_once(tmp_path: Path) -> None:
    def open_often() -> None:
        for _ in range(40):
            Store(tmp_path)

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(open_often) for _ in range(8)]:
            done.result()
    assert not list((tmp_path / "temp").iterdir())


def test_a_block_is_hashed_once_by_all_processes_of_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = Store(tmp_path).put(b"block").digest
    later = time.time() + 10
    monkeypatch.setattr("paceline.store.store.time.time", lambda: later)
    hashed: list[bytes] = []
    honest = Store._verify

    def verify(self: Store, path: Path, digest: bytes, progress: object) -> None:
        hashed.append(digest)
        honest(self, path, digest, None)

    monkeypatch.setattr(Store, "_verify", verify)
    assert Store(tmp_path).path(digest) == Store(tmp_path).path(digest)
    assert len(hashed) == 1
    later += 8 * 24 * 3600
    Store(tmp_path).path(digest)
    assert len(hashed) == 2
    Store(tmp_path).path(digest).write_bytes(b"other")
    with pytest.raises(CorruptBlock):
        Store(tmp_path).path(digest)


def test_a_file_that_has_just_changed_is_not_taken_for_verified(tmp_path: Path) -> None:
    digest = Store(tmp_path).put(b"block").digest
    Store(tmp_path).path(digest).write_bytes(b"other")
    with pytest.raises(CorruptBlock):
        Store(tmp_path).path(digest)
