"""A node's capability, measured by running its own span: what its offer claims and routing believes."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

from paceline.engine.shard import Activations, SampleRequest, Shard, Work
from paceline.wire.offers import Measured
from paceline.wire.sampling import SamplingParams

_CHUNK = 64
_BATCH = 4
_BUDGET_S = 0.3
"""For each of the three measurements; the first run of each warms up and does not count."""


def measure(shard: Shard, clock: Callable[[], float] = time.perf_counter) -> Measured:
    """Decode of one session and of four, and prefill, in about a second. `head_s`: what sampling adds at a tail.

    The decode figure of a tail is of the layers alone, so that a route which ends elsewhere is not charged for it.
    """
    decode_s = _timed(shard, sessions=1, n=1, sample=False, clock=clock)
    batch_s = _timed(shard, sessions=_BATCH, n=1, sample=False, clock=clock)
    prefill_s = _timed(shard, sessions=1, n=_CHUNK, sample=False, clock=clock)
    head_s = 0.0
    if shard.span.end == shard.shape.layers:
        head_s = max(0.0, _timed(shard, sessions=1, n=1, sample=True, clock=clock) - decode_s)
    return Measured(
        decode_s=decode_s,
        prefill_s_per_position=prefill_s / _CHUNK,
        decode_extra_s=max(0.0, (batch_s - decode_s) / (_BATCH - 1)),
        head_s=head_s,
    )


def _timed(shard: Shard, *, sessions: int, n: int, sample: bool, clock: Callable[[], float]) -> float:
    """Median seconds of one step."""
    keys = [("measure", number) for number in range(sessions)]
    most = max(n, min(shard.shape.max_context, 512, shard.kv_free // sessions))  # a node may have little KV
    for key in keys:
        shard.open(key, most)
    times: list[float] = []
    try:
        began = clock()
        while len(times) < 3 or clock() - began < _BUDGET_S:
            start = shard.length(keys[0])
            if start + n > most:
                for key in keys:
                    shard.crop(key, 0)
                start = 0
            works = [_work(shard, key, start, n, sample) for key in keys]
            before = clock()
            shard.step(works)
            times.append(clock() - before)
    finally:
        for key in keys:
            shard.close(key)
    return median(times[1:])


def _work(shard: Shard, key: object, start: int, n: int, sample: bool) -> Work:
    request = SampleRequest(SamplingParams(), start + n) if sample else None
    if shard.span.start == 0:
        return Work(key, start, ids=[1] * n, sample=request)
    size = {"f32": 4, "f16": 2, "bf16": 2, "i8": 1, "i64": 8}[shard.dtype]
    zeros = Activations(n, shard.shape.hidden, shard.dtype, bytes(n * shard.shape.hidden * size))
    return Work(key, start, activations=zeros, sample=request)
