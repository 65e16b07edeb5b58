"""Triton kernels over paged keys and values. Knows pages, tables and rotation; no models. Imported only beside a GPU.

Pages of one layer: keys and values ``[pages, PAGE, KV heads, D]`` each. A session's row of `table` holds its pages in
order. Halves of a head are loaded apart, because rotation mixes element i with element i + D/2.

Decode is one kernel: rotation, the write of the new key and value, and attention over the pages, split as in
flash-decoding (Dao et al., 2023). The last program of a head to finish combines the parts, in their order, so that
results do not depend on who was last.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _rotated(ptr, mask, cos, sin, gain_ptr, eps, kind: tl.constexpr, D: tl.constexpr, NORM: tl.constexpr):
    """Both halves of heads at `ptr` (pointers to their first halves), normed where the family does, and rotated."""
    half = tl.arange(0, D // 2)
    first = tl.load(ptr, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(ptr + D // 2, mask=mask, other=0.0).to(tl.float32)
    if NORM:
        scale = tl.rsqrt((tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)) / D + eps)
        first = first * scale[:, None] * tl.load(gain_ptr + half).to(tl.float32)[None, :]
        second = second * scale[:, None] * tl.load(gain_ptr + D // 2 + half).to(tl.float32)[None, :]
    return (first * cos - second * sin).to(kind), (second * cos + first * sin).to(kind)


@triton.jit
def rotate_and_write(
    qkv_ptr,
    k_ptr,
    v_ptr,
    table_ptr,
    slots_ptr,
    positions_ptr,
    cos_ptr,
    sin_ptr,
    q_gain_ptr,
    k_gain_ptr,
    eps,
    table_stride,
    HEADS: tl.constexpr,
    KV: tl.constexpr,
    WIDE: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    NORM: tl.constexpr,
):
    """One row: queries and keys rotated where they stand in `qkv` ``[rows, (HEADS + 2 KV) D]``; keys and values also go
    to their page."""
    row = tl.program_id(0).to(tl.int64)
    position = tl.load(positions_ptr + row)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    half, heads = tl.arange(0, D // 2), tl.arange(0, WIDE)
    cos = tl.load(cos_ptr + position.to(tl.int64) * (D // 2) + half)[None, :]
    sin = tl.load(sin_ptr + position.to(tl.int64) * (D // 2) + half)[None, :]
    qkv = qkv_ptr + row * (HEADS + 2 * KV) * D
    within = heads[:, None] * D + half[None, :]
    real = (heads < HEADS)[:, None]
    first, second = _rotated(qkv + within, real, cos, sin, q_gain_ptr, eps, qkv_ptr.dtype.element_ty, D, NORM)
    tl.store(qkv + within, first, mask=real)
    tl.store(qkv + within + D // 2, second, mask=real)
    real = (heads < KV)[:, None]
    page = tl.load(table_ptr + slot * table_stride + position // PAGE).to(tl.int64)
    to = (page * PAGE + position % PAGE) * KV * D + within
    keys = qkv + HEADS * D + within
    first, second = _rotated(keys, real, cos, sin, k_gain_ptr, eps, k_ptr.dtype.element_ty, D, NORM)
    tl.store(k_ptr + to, first, mask=real)
    tl.store(k_ptr + to + D // 2, second, mask=real)
    tl.store(keys, first, mask=real)
    tl.store(keys + D // 2, second, mask=real)
    values = qkv + (HEADS + KV) * D + within
    tl.store(v_ptr + to, tl.load(values, mask=real), mask=real)
    tl.store(v_ptr + to + D // 2, tl.load(values + D // 2, mask=real), mask=real)


@triton.jit
def _take_turn(PDL: tl.constexpr):
    """Wait for the kernel before, if this one was started early, and let the next one start early."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def _shares(position, window, TILE: tl.constexpr, SPLITS: tl.constexpr):
    """Where the past begins, how much of it a part takes, and how many parts that is.

    A part takes a tile at least: of a short past only the first parts have work, and the others are not waited for.
    """
    low = tl.maximum(0, tl.where(window > 0, position + 1 - window, 0))
    share = tl.maximum(tl.cdiv(tl.cdiv(position - low, SPLITS), TILE), 1) * TILE
    return low, share, tl.maximum(tl.cdiv(position - low, share), 1)


# fmt: off
@triton.jit
def _past(
    q1, q2, k_ptr, v_ptr, pages, head, start, end, scale, peak, norm, total,
    KV: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, TILE: tl.constexpr,
):
    # fmt: on
    """Positions ``[start, end)`` of one session's pages, added to what `peak`, `norm` and `total` have seen."""
    kind = k_ptr.dtype.element_ty
    half, whole = tl.arange(0, D // 2), tl.arange(0, D)
    for j in range(start, end, TILE):
        at = j + tl.arange(0, TILE)
        seen = at < end
        page = tl.load(pages + at // PAGE, mask=seen, other=0).to(tl.int64)
        base = (page * PAGE + at % PAGE) * KV * D + head * D
        k1 = tl.load(k_ptr + base[:, None] + half[None, :], mask=seen[:, None], other=0.0)
        k2 = tl.load(k_ptr + base[:, None] + D // 2 + half[None, :], mask=seen[:, None], other=0.0)
        v = tl.load(v_ptr + base[:, None] + whole[None, :], mask=seen[:, None], other=0.0)
        scores = (tl.dot(q1, tl.trans(k1)) + tl.dot(q2, tl.trans(k2))) * scale
        scores = tl.where(seen[None, :], scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, axis=1))
        weights = tl.exp(scores - higher[:, None])
        shrink = tl.exp(peak - higher)
        norm = norm * shrink + tl.sum(weights, axis=1)
        total = total * shrink[:, None] + tl.dot(weights.to(kind), v)
        peak = higher
    return peak, norm, total


# fmt: off
@triton.jit
def decode(
    qkv_ptr, k_ptr, v_ptr, table_ptr, slots_ptr, positions_ptr, cos_ptr, sin_ptr, q_gain_ptr, k_gain_ptr,
    part_ptr, peak_ptr, done_ptr, out_ptr, eps, scale, window, table_stride,
    HEADS: tl.constexpr, KV: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr,
    TILE: tl.constexpr, SPLITS: tl.constexpr, NORM: tl.constexpr, PDL: tl.constexpr,
):
    # fmt: on
    """One new position of one session, one key head with its query heads, one of `SPLITS` parts of the past.

    Rotates the group's queries and the new key, writes the new key and value to their page (part 0, which also counts
    them), attends. Grid ``(rows, KV, SPLITS)``. `slots` < 0: a row that only fills the batch; nothing is written.
    `window` 0: unlimited. Scratch: `part` ``[rows, KV, SPLITS, GROUP, D]`` and `peak` ``[…, GROUP, 2]`` float32, `done`
    ``[rows, KV]`` int32 zeros, left as zeros. GROUP: the group's size padded to what a matrix product takes.
    """
    row, head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    _take_turn(PDL)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    if slot < 0:
        return
    position = tl.load(positions_ptr + row)
    low, share, used = _shares(position, window, TILE, SPLITS)
    if split >= used:
        return
    half, whole, group, one = tl.arange(0, D // 2), tl.arange(0, D), tl.arange(0, GROUP), tl.arange(0, 1)
    pages = table_ptr + slot * table_stride
    real = (group < HEADS // KV)[:, None]
    cos = tl.load(cos_ptr + position.to(tl.int64) * (D // 2) + half)[None, :]
    sin = tl.load(sin_ptr + position.to(tl.int64) * (D // 2) + half)[None, :]
    kind = k_ptr.dtype.element_ty
    qkv = qkv_ptr + row * (HEADS + 2 * KV) * D
    queries = qkv + (head * (HEADS // KV) + group[:, None]) * D + half[None, :]
    q1, q2 = _rotated(queries, real, cos, sin, q_gain_ptr, eps, kind, D, NORM)
    key = qkv + (HEADS + head) * D + one[:, None] + half[None, :]
    new1, new2 = _rotated(key, one[:, None] < 1, cos, sin, k_gain_ptr, eps, kind, D, NORM)
    value = tl.load(qkv + (HEADS + KV + head) * D + whole)
    if split == 0:
        to = (tl.load(pages + position // PAGE).to(tl.int64) * PAGE + position % PAGE) * KV * D + head * D
        tl.store(k_ptr + to + one[:, None] + half[None, :], new1)
        tl.store(k_ptr + to + D // 2 + one[:, None] + half[None, :], new2)
        tl.store(v_ptr + to + whole, value.to(kind))
    score = q1.to(tl.float32) * new1.to(tl.float32) + q2.to(tl.float32) * new2.to(tl.float32)
    score = tl.sum(score, axis=1) * scale
    peak = tl.where(split == 0, score, float("-inf"))
    norm = tl.where(split == 0, 1.0, 0.0) + tl.zeros([GROUP], tl.float32)
    total = tl.where(split == 0, value.to(tl.float32)[None, :], 0.0) + tl.zeros([GROUP, D], tl.float32)
    peak, norm, total = _past(
        q1, q2, k_ptr, v_ptr, pages, head, low + split * share, tl.minimum(low + (split + 1) * share, position), scale,
        peak, norm, total, KV, D, PAGE, TILE,
    )  # fmt: skip
    out = out_ptr + row * HEADS * D + (head * (HEADS // KV) + group[:, None]) * D + whole[None, :]
    if used == 1:
        tl.store(out, (total / norm[:, None]).to(out_ptr.dtype.element_ty), mask=real)
    else:
        cell = (row * KV + head) * SPLITS
        _leave(part_ptr, peak_ptr, cell + split, total, peak, norm, group, real, whole, GROUP, D)
        tl.debug_barrier()
        if tl.atomic_add(done_ptr + row * KV + head, 1, sem="acq_rel") == used - 1:
            joined = _joined(part_ptr, peak_ptr, cell, used, group, real, whole, GROUP, D, SPLITS)
            tl.store(out, joined.to(out_ptr.dtype.element_ty), mask=real)
            tl.store(done_ptr + row * KV + head, 0)


# fmt: off
@triton.jit
def _leave(part_ptr, peak_ptr, cell, total, peak, norm, group, real, whole, GROUP: tl.constexpr, D: tl.constexpr):
    # fmt: on
    """One part's sums, for whoever combines."""
    tl.store(part_ptr + (cell * GROUP + group[:, None]) * D + whole[None, :], total, mask=real)
    tl.store(peak_ptr + (cell * GROUP + group) * 2, peak)
    tl.store(peak_ptr + (cell * GROUP + group) * 2 + 1, norm)


# fmt: off
@triton.jit
def _joined(
    part_ptr, peak_ptr, cell, used, group, real, whole, GROUP: tl.constexpr, D: tl.constexpr, SPLITS: tl.constexpr
):
    # fmt: on
    """The `used` parts of one head's group ``[GROUP, D]``, in order. Past the first-level cache: others wrote them."""
    splits = tl.arange(0, SPLITS)[:, None]
    at = ((cell + splits) * GROUP + group[None, :]) * 2
    peaks = tl.load(peak_ptr + at, mask=splits < used, other=float("-inf"), cache_modifier=".cg")
    norms = tl.load(peak_ptr + at + 1, mask=splits < used, other=0.0, cache_modifier=".cg")
    highest = tl.max(peaks, axis=0)
    norm = tl.sum(tl.exp(peaks - highest[None, :]) * norms, axis=0)
    total = tl.zeros([GROUP, D], tl.float32)
    for first in range(0, used, 4):
        for split in tl.static_range(4):  # four loads on their way at once
            there = first + split < used
            one = (cell + first + split) * GROUP + group
            peak = tl.load(peak_ptr + one * 2, mask=there, other=float("-inf"), cache_modifier=".cg")
            mask = real & there
            part = tl.load(part_ptr + one[:, None] * D + whole[None, :], mask=mask, other=0.0, cache_modifier=".cg")
            total += tl.exp(peak - highest)[:, None] * part
    return total / norm[:, None]


# fmt: off
@triton.jit
def ragged(
    qkv_ptr, k_ptr, v_ptr, table_ptr, tiles_ptr, out_ptr, scale, window, table_stride,
    HEADS: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
):
    # fmt: on
    """Up to `ROWS` consecutive positions of one session, one query head, over the session's pages, causally.

    `tiles` ``[tiles, 4]`` int32: first row, number of rows, first position, slot. Queries are rotated already and the
    keys and values of these positions written. Grid ``(tiles, HEADS)``; the longest past should come first.
    """
    tile, head = tl.program_id(0), tl.program_id(1)
    row = tl.load(tiles_ptr + tile * 4).to(tl.int64)
    n = tl.load(tiles_ptr + tile * 4 + 1)
    position = tl.load(tiles_ptr + tile * 4 + 2)
    pages = table_ptr + tl.load(tiles_ptr + tile * 4 + 3).to(tl.int64) * table_stride
    rows, whole = tl.arange(0, ROWS), tl.arange(0, D)
    real = (rows < n)[:, None]
    within = (row + rows[:, None]) * (HEADS + 2 * KV) * D + head * D + whole[None, :]
    q = tl.load(qkv_ptr + within, mask=real, other=0.0)
    kv_head = head // (HEADS // KV)
    mine = position + rows
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    norm = tl.zeros([ROWS], tl.float32)
    total = tl.zeros([ROWS, D], tl.float32)
    low = 0
    if window > 0:
        low = tl.maximum(0, position + 1 - window) // TILE * TILE
    end = position + n
    for j in range(low, end, TILE):
        at = j + tl.arange(0, TILE)
        seen = at < end
        page = tl.load(pages + at // PAGE, mask=seen, other=0).to(tl.int64)
        base = (page * PAGE + at % PAGE) * KV * D + kv_head * D
        k = tl.load(k_ptr + base[:, None] + whole[None, :], mask=seen[:, None], other=0.0)
        v = tl.load(v_ptr + base[:, None] + whole[None, :], mask=seen[:, None], other=0.0)
        scores = tl.dot(q, tl.trans(k)) * (scale * 1.4426950408889634)
        allowed = at[None, :] <= mine[:, None]
        if window > 0:
            allowed &= at[None, :] > mine[:, None] - window
        scores = tl.where(allowed, scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, axis=1))
        # a row may see nothing of this tile: its peak is still -inf, and -inf less -inf is no number
        base_line = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - base_line[:, None])
        shrink = tl.exp2(peak - base_line)
        norm = norm * shrink + tl.sum(weights, axis=1)
        total = total * shrink[:, None]
        total = tl.dot(weights.to(v.dtype), v, total)
        peak = higher
    out = out_ptr + (row + rows[:, None]) * HEADS * D + head * D + whole[None, :]
    tl.store(out, (total / norm[:, None]).to(out_ptr.dtype.element_ty), mask=real)
