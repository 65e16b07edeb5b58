"""Chains of digests: the same input gives the same names, however it is cut; anything else gives others."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from paceline.engine.chain import BLOCK, Chain, seed

ROW = 3
cuts = st.lists(st.integers(1, 2 * BLOCK), max_size=6)


def fed(data: bytes, pieces: list[int], kind: str = "ids", first: bytes = b"seed") -> Chain:
    chain, start, n = Chain(first), 0, len(data) // ROW
    for take in [*pieces, n]:
        take = min(take, n - start)
        chain.extend(start, take, data[start * ROW : (start + take) * ROW], kind)
        start += take
    return chain


@given(st.binary(max_size=5 * BLOCK * ROW), cuts, cuts)
def test_names_do_not_depend_on_how_the_input_came(data: bytes, one: list[int], other: list[int]) -> None:
    data = data[: len(data) // ROW * ROW]
    first, second = fed(data, one), fed(data, other)
    assert first.digests == second.digests
    assert first.length == second.length == len(data) // ROW
    assert len(first.digests) == first.length // BLOCK


@given(st.integers(0, 4 * BLOCK * ROW - 1), cuts)
def test_a_changed_byte_changes_every_name_from_there_on(at: int, pieces: list[int]) -> None:
    data = bytes(4 * BLOCK * ROW)
    changed = data[:at] + b"\x01" + data[at + 1 :]
    block = at // (BLOCK * ROW)
    one, other = fed(data, pieces).digests, fed(changed, pieces).digests
    assert one[:block] == other[:block]
    assert not set(one[block:]) & set(other[block:])


@given(st.integers(0, 3 * BLOCK), st.integers(0, 3 * BLOCK), cuts)
def test_a_cut_chain_goes_on_as_if_the_cut_part_had_never_been(length: int, more: int, pieces: list[int]) -> None:
    data = bytes(range(256)) * ROW
    data = data[: 3 * BLOCK * ROW]
    chain = fed(data, pieces)
    chain.crop(length)
    assert chain.length <= length
    reached = chain.length
    if reached < length:
        assert length % BLOCK
        assert reached == length // BLOCK * BLOCK
    other = bytes(255 - byte for byte in data)
    chain.extend(length, more, other[: more * ROW], "ids")
    whole = fed(data[: length * ROW] + other[: more * ROW], []).digests
    if reached == length:
        assert chain.digests == whole
    else:
        assert chain.digests == whole[: length // BLOCK]


def test_scopes_kinds_and_seeds_share_nothing() -> None:
    data = bytes(BLOCK * ROW)
    names = {
        fed(data, [], kind, seed(*parts)).digests[0]
        for kind in ("f16", "bf16")
        for parts in (("a", b""), ("a", b"me"), ("a", b"you"), ("b", b""))
    }
    assert len(names) == 8


def test_one_chain_has_one_kind() -> None:
    chain = fed(bytes(BLOCK * ROW), [], "f16")
    chain.extend(BLOCK, BLOCK, bytes(BLOCK * ROW), "bf16")
    assert len(chain.digests) == 1
