"""Releases: what may be believed, in what order; whatever else is refused with a typed error."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.net.identity import Identity
from paceline.store import tensorfile, trust
from paceline.store.editing import edited
from paceline.store.manifest import Block, Manifest
from paceline.store.releases import Releases, adopt_local, decode, encode, sign, verify
from paceline.store.store import Store
from paceline.store.trust import Rule, Trust
from paceline.wire.codec import decode_header, encode_header
from paceline.wire.errors import (
    ForgedManifest,
    InvalidRequest,
    Malformed,
    PacelineError,
    ReplayedRelease,
    UnauthorisedPublisher,
)
from paceline.wire.releases import MAX_RELEASE_BYTES, Release, SignedRelease

ANN, BOB = Identity.ephemeral(), Identity.ephemeral()


def release(
    sequence: int = 1, *, by: Identity = ANN, name: str = "toy", fill: int = 1, share: float = 1.0
) -> SignedRelease:
    return sign(by, Release(name, bytes([fill]) * 32, sequence, by.public, share=share))


def shelf(folder: Path, *rules: Rule) -> Releases:
    return Releases(Store(folder), Trust(rules or (Rule(ANN.public),)))


def tensors(store: Store, fill: float) -> Block:
    data = msgspec.msgpack.encode(fill) * 8
    with store.writer() as writer:
        writer.write(tensorfile.header([("weight", "F32", (len(data) // 4,), len(data))]))
        writer.write(data)
    return writer.block


def model(store: Store, name: str = "toy", layers: int = 3) -> Manifest:
    return Manifest(
        name=name,
        family="llama",
        architecture="LlamaForCausalLM",
        config={},
        dtype="f32",
        hidden=8,
        vocab=16,
        max_context=32,
        layers=tuple(tensors(store, float(layer)) for layer in range(layers)),
        embed=tensors(store, 100.0),
        head=tensors(store, 101.0),
    )


def test_a_release_comes_back_as_it_was_signed(tmp_path: Path) -> None:
    signed = release(7)
    assert decode(encode(signed)) == signed
    assert verify(signed).sequence == 7
    assert shelf(tmp_path).take(signed)
    again = shelf(tmp_path)
    assert again.newest("toy") == signed
    assert again.names() == ["toy"]
    assert not again.take(signed)


def test_the_longest_release_fits() -> None:
    full = Release("é" * 128, bytes(32), (1 << 48) - 1, bytes(32), bytes(32), 1e11, 0.1)
    assert len(encode_header(full)) <= MAX_RELEASE_BYTES


@given(at=st.integers(min_value=0, max_value=10_000), to=st.integers(min_value=1, max_value=255))
def test_a_changed_bit_is_a_forgery(at: int, to: int) -> None:
    signed = release(3)
    whole = bytearray(signed.body + signed.signature)
    whole[at % len(whole)] ^= to
    forged = SignedRelease(bytes(whole[: len(signed.body)]), bytes(whole[len(signed.body) :]))
    with pytest.raises((ForgedManifest, Malformed)):
        verify(forged)


def test_a_signature_for_another_purpose_or_of_another_key_is_no_release() -> None:
    body = encode_header(Release("toy", bytes(32), 1, ANN.public))
    with pytest.raises(ForgedManifest):
        verify(SignedRelease(body, ANN.sign(body)))
    with pytest.raises(ForgedManifest):
        verify(SignedRelease(body, BOB.sign(b"paceline/release/1\x00" + body)))
    with pytest.raises(ForgedManifest):
        sign(BOB, Release("toy", bytes(32), 1, ANN.public))


def test_an_older_sequence_is_refused_also_by_another_process(tmp_path: Path) -> None:
    releases = shelf(tmp_path)
    releases.take(release(5, fill=5))
    for replayed in (release(4, fill=4), release(1)):
        with pytest.raises(ReplayedRelease, match="older than release 5"):
            shelf(tmp_path).take(replayed)
    assert verify(releases.newest("toy") or release()).sequence == 5
    assert releases.resolve("toy") == bytes([5]) * 32


def test_a_publisher_is_believed_only_about_its_names(tmp_path: Path) -> None:
    releases = shelf(tmp_path, Rule(ANN.public, ("team-a/*",)), Rule(BOB.public, ("team-b/*", "shared")))
    assert releases.take(release(name="team-a/chat"))
    assert releases.take(release(name="shared", by=BOB))
    with pytest.raises(UnauthorisedPublisher, match="may not publish to 'shared'"):
        releases.take(release(2, name="shared"))
    with pytest.raises(UnauthorisedPublisher, match="not trusted") as caught:
        releases.take(release(by=Identity.ephemeral(), name="shared"))
    assert "paceline trust" in caught.value.cure


def test_what_is_no_longer_trusted_is_no_longer_resolved(tmp_path: Path) -> None:
    shelf(tmp_path).take(release())
    assert shelf(tmp_path).resolve("toy") is not None
    later = shelf(tmp_path, Rule(BOB.public))
    assert later.resolve("toy") is None
    assert later.resolve((bytes([1]) * 32).hex()) is None
    assert later.names() == []


def test_a_tampered_file_counts_as_absent(tmp_path: Path) -> None:
    releases = shelf(tmp_path)
    releases.take(release(1, fill=1))
    releases.take(release(2, fill=2))
    newest = max((tmp_path / "releases" / "toy").iterdir())
    newest.write_bytes(encode(SignedRelease(release(2, fill=9).body, bytes(64))))
    assert releases.resolve("toy") == bytes([1]) * 32


def test_publishing_counts_on_and_going_back_is_a_newer_release(tmp_path: Path) -> None:
    store = Store(tmp_path)
    releases = Releases(store, Trust((Rule(ANN.public),)))
    first = model(store)
    second = edited(store, first, {})
    assert second == first
    store.put_manifest(first)
    one = verify(releases.publish(ANN, first, 10.5))
    assert (one.sequence, one.parent, one.published_at) == (1, None, 10.0)
    assert verify(releases.publish(ANN, first, 11.0)) == one
    changed = msgspec.structs.replace(first, max_context=16)
    two = verify(releases.publish(ANN, changed, 12.0))
    assert (two.sequence, two.parent) == (2, first.revision)
    three = verify(releases.publish(ANN, first, 13.0))
    assert (three.sequence, three.revision) == (3, first.revision)
    assert releases.resolve("toy") == first.revision
    assert [verify(it).sequence for it in releases.history("toy")] == [1, 2, 3]
    assert releases.naming(first.revision) == releases.newest("toy")


def test_nobody_publishes_to_a_name_that_is_not_theirs(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(UnauthorisedPublisher):
        Releases(store, Trust((Rule(ANN.public, ("other",)),))).publish(ANN, model(store), 0.0)
    assert not (tmp_path / "releases").exists()


def test_what_was_made_here_before_releases_is_adopted_and_nothing_else(tmp_path: Path) -> None:
    store = Store(tmp_path)
    releases = Releases(store, Trust((Rule(ANN.public),)))
    mine, fetched = model(store, "mine"), model(store, "fetched", 4)
    store.put_manifest(mine)
    store.put_manifest(fetched, name=False)
    for which in ("mine", fetched.revision.hex(), "absent"):
        adopt_local(releases, store, which, ANN, 0.0)
    assert releases.names() == ["mine"]
    assert releases.resolve(mine.revision.hex()) == mine.revision
    assert releases.resolve(fetched.revision.hex()) is None


def test_a_built_in_revision_needs_no_publisher(tmp_path: Path) -> None:
    releases = Releases(Store(tmp_path), Trust((), frozenset((bytes(32),))))
    assert releases.resolve(bytes(32).hex()) == bytes(32)
    assert releases.resolve(bytes([1] * 32).hex()) is None


# --- canaries


def test_a_canary_runs_beside_the_release_for_everybody_in_whatever_order_they_are_heard(tmp_path: Path) -> None:
    for name, order in (("a", (0, 1)), ("b", (1, 0))):
        releases = shelf(tmp_path / name)
        both = (release(4, fill=1), release(5, fill=2, share=0.1))
        for at in order:
            assert releases.take(both[at])
        full, canary = releases.standing("toy")
        assert (full, canary) == (verify(both[0]), verify(both[1]))
        assert releases.resolve("toy") == bytes([1]) * 32
        assert releases.newest("toy") == both[1]
        with pytest.raises(ReplayedRelease):
            releases.take(release(3, fill=3))
        with pytest.raises(ReplayedRelease):
            releases.take(release(4, fill=3, share=0.5))


@pytest.mark.parametrize(("fill", "now"), [(2, 2), (1, 1), (3, 3)])
def test_any_newer_release_for_everybody_ends_a_canary(tmp_path: Path, fill: int, now: int) -> None:
    """Promoted, taken back, or passed over."""
    releases = shelf(tmp_path)
    for signed in (release(1, fill=1), release(2, fill=2, share=0.1), release(3, fill=fill)):
        releases.take(signed)
    full, canary = releases.standing("toy")
    assert full is not None
    assert full.revision == bytes([now]) * 32
    assert canary is None
    with pytest.raises(ReplayedRelease):
        releases.take(release(2, fill=2, share=0.1))


def test_who_knows_no_canaries_finds_a_forgery_and_no_release_for_everybody() -> None:
    canary = release(2, share=0.25)
    assert verify(canary).share == 0.25
    plain = sign(ANN, Release("toy", bytes([1]) * 32, 2, ANN.public))
    for body, signature in ((canary.body, plain.signature), (plain.body, canary.signature)):
        with pytest.raises(ForgedManifest):
            verify(SignedRelease(body, signature))
    older = msgspec.msgpack.encode(msgspec.msgpack.decode(plain.body)[:6])
    assert decode_header(older, Release).full


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5, float("nan"), float("inf")])
def test_a_share_is_above_nothing_and_at_most_everybody(share: float) -> None:
    with pytest.raises(Malformed):
        verify(release(2, share=share))


def test_publishing_a_canary_and_what_becomes_of_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    releases = Releases(store, Trust((Rule(ANN.public),)))
    old = model(store)
    new = msgspec.structs.replace(old, max_context=16)
    with pytest.raises(InvalidRequest, match="beside"):
        releases.publish(ANN, new, 0.0, 0.1)
    releases.publish(ANN, old, 0.0)
    with pytest.raises(InvalidRequest, match="for everybody already"):
        releases.publish(ANN, old, 0.0, 0.1)
    steps = [
        releases.publish(ANN, made, 0.0, share) for made, share in ((new, 0.1), (new, 0.1), (new, 0.5), (new, 1.0))
    ]
    assert [(verify(it).sequence, verify(it).share) for it in steps] == [(2, 0.1), (2, 0.1), (3, 0.5), (4, 1.0)]
    assert releases.resolve("toy") == new.revision


# --- edited revisions


def test_an_edited_revision_stores_only_the_changed_layer(tmp_path: Path) -> None:
    store, other = Store(tmp_path / "a"), Store(tmp_path / "b")
    first = model(store)
    before = {path.name for path in (store.root / "blocks").iterdir()}
    file = other.path(tensors(other, 55.0).digest)
    second = edited(store, first, {1: file})
    new = {path.name for path in (store.root / "blocks").iterdir()} - before
    assert new == {second.layers[1].hash}
    assert [a == b for a, b in zip(first.layers, second.layers, strict=True)] == [True, False, True]
    assert (first.embed, first.head) == (second.embed, second.head)
    assert first.revision != second.revision


def test_a_layer_of_another_form_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = model(store)
    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(tensorfile.header([("weight", "F32", (1,), 4)]) + bytes(4))
    for layers, words in (({0: wrong}, "does not fit"), ({9: wrong}, "layer 9"), ({0: tmp_path}, "not a file")):
        with pytest.raises(InvalidRequest, match=words):
            edited(store, first, layers)


# --- the list of publishers


def test_rules_come_back_from_the_file(tmp_path: Path) -> None:
    rules = [Rule(ANN.public, ("a/*", "b")), Rule(BOB.public)]
    trust.write(tmp_path, rules)
    assert trust.read(tmp_path) == rules
    loaded = trust.load(tmp_path, own=bytes(32), more=[f"{ANN.public.hex()}=c"])
    assert loaded.rules == (*rules, Rule(bytes(32)), Rule(ANN.public, ("c",)))


@pytest.mark.parametrize("text", ["", "xyz", "00" * 31, "00" * 33 + "=a"])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        Rule.parse(text)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"publishers": [{}]}', '{"publishers": [{"key": "x"}]}'])
def test_a_broken_list_is_refused_rather_than_guessed_at(tmp_path: Path, text: str) -> None:
    (tmp_path / trust.FILE).write_text(text)
    with pytest.raises(PacelineError):
        trust.load(tmp_path)
