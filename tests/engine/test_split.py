"""Cuts cover every layer once, and the suggested ones are the best there are."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.engine.split import even_split, suggest_split
from paceline.store.manifest import Block, Manifest
from paceline.wire.ids import Span


def model(sizes: list[int], head: int, embed: int, tied: bool) -> Manifest:
    blocks = [Block(f"{at:064x}", size) for at, size in enumerate([*sizes, head, embed])]
    return Manifest(
        name="m",
        family="llama",
        architecture="A",
        config={},
        dtype="f32",
        hidden=1,
        vocab=1,
        max_context=1,
        layers=tuple(blocks[:-2]),
        embed=blocks[-1],
        head=blocks[-2],
        tied=tied,
    )


def greatest(manifest: Manifest, spans: list[Span]) -> int:
    costs = [block.size for block in manifest.layers]
    costs[-1] += manifest.head.size + (manifest.embed.size if manifest.tied else 0)
    return max(sum(costs[span.start : span.end]) for span in spans)


SIZES = st.lists(st.integers(1, 50), min_size=1, max_size=8)


@given(SIZES, st.integers(0, 100), st.integers(0, 100), st.booleans(), st.data())
def test_no_other_cut_is_better(sizes: list[int], head: int, embed: int, tied: bool, data: st.DataObject) -> None:
    parts = data.draw(st.integers(1, len(sizes)))
    manifest = model(sizes, head, embed, tied)
    spans = suggest_split(manifest, parts)
    assert [layer for span in spans for layer in range(span.start, span.end)] == list(range(len(sizes)))
    assert len(spans) == parts
    for cuts in itertools.combinations(range(1, len(sizes)), parts - 1):
        other = [Span(start, end) for start, end in itertools.pairwise([0, *cuts, len(sizes)])]
        assert greatest(manifest, spans) <= greatest(manifest, other)


@given(st.integers(1, 60), st.data())
def test_even_spans(layers: int, data: st.DataObject) -> None:
    spans = even_split(layers, data.draw(st.integers(1, layers)))
    assert [layer for span in spans for layer in range(span.start, span.end)] == list(range(layers))
    assert max(map(len, spans)) - min(map(len, spans)) <= 1


def test_more_parts_than_layers() -> None:
    for parts in (0, 3):
        with pytest.raises(ValueError, match="cannot be cut"):
            even_split(2, parts)
        with pytest.raises(ValueError, match="cannot be cut"):
            suggest_split(model([1, 1], 1, 1, False), parts)
