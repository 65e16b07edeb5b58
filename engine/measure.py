"""A node's capability, measured by running its own span: what its offer claims and routing believes."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import combinations
from statistics import median

from paceline.engine.shard import Activations, SampleRequest, Shard, Work
from paceline.wire.errors import Overloaded
from paceline.wire.offers import FEW_SESSIONS, Measured
from paceline.wire.sampling import SamplingParams

Clock = Callable[[], float]

_CHUNK = 64
_MANY = 16
_BUDGET_S, _MANY_BUDGET_S = 0.3, 0.2
"""For each of the measurements of one figure; the first run of each warms up and does not count."""
_FILL_S, _COMPARE_S = 0.5, 0.2
"""For the two parts of the curve over context: filling a session, and decoding behind it."""
_FARTHEST = 2048
"""Positions of past up to which the curve is measured, where time and room allow: the rest is a straight line."""
_NEAR, _LEAST = 8, 192
"""Positions of past that count as none, and how far the fill must have come for a line to be drawn."""


def measure(shard: Shard, clock: Clock = time.perf_counter) -> Measured:
    """Decode of one, of four and of sixteen sessions, prefill, and both over context, in about two seconds.

    `head_s`: what sampling adds at a tail. The decode figure of a tail is of the layers alone, so that a route which
    ends elsewhere is not charged for it. What a node has no room to measure is 0.
    """
    decode_s = _timed(shard, sessions=1, n=1, sample=False, clock=clock)
    few_s = _batch_s(shard, FEW_SESSIONS, _BUDGET_S, clock)
    many_s = _batch_s(shard, _MANY, _MANY_BUDGET_S, clock)
    chunk = max(1, min(_CHUNK, shard.kv_free, shard.shape.max_context))
    prefill_s = _timed(shard, sessions=1, n=chunk, sample=False, clock=clock)
    head_s = 0.0
    if shard.span.end == shard.shape.layers:
        head_s = max(0.0, _timed(shard, sessions=1, n=1, sample=True, clock=clock) - decode_s)
    decode_past_s, prefill_past_s = _over_context(shard, clock)
    return Measured(
        decode_s=decode_s,
        prefill_s_per_position=prefill_s / chunk,
        decode_extra_s=max(0.0, (few_s - decode_s) / (FEW_SESSIONS - 1)) if few_s else 0.0,
        head_s=head_s,
        decode_many_s=max(0.0, (many_s - few_s) / (_MANY - FEW_SESSIONS)) if many_s else 0.0,
        decode_past_s=decode_past_s,
        prefill_past_s=prefill_past_s,
    )


def _batch_s(shard: Shard, sessions: int, budget_s: float, clock: Clock) -> float:
    """A decode step of so many sessions; 0 where there is no room for them."""
    try:
        return _timed(shard, sessions=sessions, n=1, sample=False, clock=clock, budget_s=budget_s)
    except Overloaded:
        return 0.0


def _timed(shard: Shard, *, sessions: int, n: int, sample: bool, clock: Clock, budget_s: float = _BUDGET_S) -> float:
    """Median seconds of one step."""
    keys = [("measure", number) for number in range(sessions)]
    # A node may have little KV, and rounds what each session reserves up to its pages.
    most = max(n, min(shard.shape.max_context, 512, shard.kv_free // (sessions + 1)))
    times, opened = list[float](), list[tuple[str, int]]()
    try:
        for key in keys:
            shard.open(key, most)
            opened.append(key)
        began = clock()
        while len(times) < 3 or clock() - began < budget_s:
            start = shard.length(keys[0])
            if start + n > most:
                for key in keys:
                    shard.crop(key, 0)
                start = 0
            times.append(_step(shard, [_work(shard, key, start, n, sample) for key in keys], clock))
    finally:
        for key in opened:
            shard.close(key)
    return median(times[1:])


def _over_context(shard: Shard, clock: Clock) -> tuple[float, float]:
    """Seconds that each position of past adds to a decode step of one session, and to each prefilled position.

    (0, 0) where there is no room or no time for a past that shows it.
    """
    near, far = ("measure", "near"), ("measure", "far")
    most = min(shard.shape.max_context, _FARTHEST, shard.kv_free - _CHUNK)
    if most < _LEAST + 1:
        return 0.0, 0.0
    opened: list[tuple[str, str]] = []
    try:
        for key, positions in ((far, most), (near, 2 * _NEAR)):
            shard.open(key, positions)
            opened.append(key)
        filled = _fill(shard, far, most - 1, clock)
        if shard.length(far) < _LEAST:
            return 0.0, 0.0
        _step(shard, [_work(shard, near, 0, _NEAR, False)], clock)
        decode_s = _further(shard, near, far, clock)
        # A row of a chunk shares what it reads of the past with its neighbours, so it costs no more than one by itself.
        # Chunks were not measured in turns: on a busy machine that is what keeps their figure within reason.
        return decode_s, min(decode_s, max(0.0, _slope(filled)) / _CHUNK)
    except Overloaded:
        return 0.0, 0.0
    finally:
        for key in opened:
            shard.close(key)


def _fill(shard: Shard, key: object, most: int, clock: Clock) -> list[tuple[int, float]]:
    """Prefill chunks until `most` positions or the time is reached: past and seconds of each, the first left out."""
    told: list[tuple[int, float]] = []
    began = clock()
    while (start := shard.length(key)) + _CHUNK <= most and (clock() - began < _FILL_S or start < _LEAST):
        told.append((start, _step(shard, [_work(shard, key, start, _CHUNK, False)], clock)))
        if clock() - began > 2 * _FILL_S:
            break
    return told[1:]


def _slope(points: list[tuple[int, float]]) -> float:
    """The line through points, by the median of the slopes between any two (Theil and Sen): outliers do not bend it."""
    return median((b - a) / (y - x) for (x, a), (y, b) in combinations(points, 2)) if len(points) > 1 else 0.0


def _further(shard: Shard, near: object, far: object, clock: Clock) -> float:
    """Decode steps of either session in turns, each at its place again and again: what a position between costs."""
    places: dict[object, int] = {near: shard.length(near), far: shard.length(far)}
    gains: list[float] = []
    began = clock()
    while len(gains) < 4 or clock() - began < _COMPARE_S:
        taken = {}
        for key, place in places.items():
            taken[key] = _step(shard, [_work(shard, key, place, 1, False)], clock)
            shard.crop(key, place)
        gains.append(taken[far] - taken[near])
    return max(0.0, median(gains[1:])) / (places[far] - places[near])


def _step(shard: Shard, works: list[Work], clock: Clock) -> float:
    before = clock()
    shard.step(works)
    return clock() - before


def _work(shard: Shard, key: object, start: int, n: int, sample: bool) -> Work:
    request = SampleRequest(SamplingParams(), start + n) if sample else None
    if shard.span.start == 0:
        return Work(key, start, ids=[1] * n, sample=request)
    size = {"f32": 4, "f16": 2, "bf16": 2, "i8": 1, "i64": 8}[shard.dtype]
    zeros = Activations(n, shard.shape.hidden, shard.dtype, bytes(n * shard.shape.hidden * size))
    return Work(key, start, activations=zeros, sample=request)
