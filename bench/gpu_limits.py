"""What this GPU can do at most, measured: bytes read per second, and floating-point operations of a matrix product.

A decode step cannot be faster than its weights can be read, nor a prefill than its products; bars refer to these.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _read(x_ptr, y_ptr, each: tl.constexpr, WIDE: tl.constexpr):
    """Sums `each` elements and keeps one number: reading, and next to no writing."""
    start = tl.program_id(0).to(tl.int64) * each
    total = tl.zeros([WIDE], tl.float32)
    for at in range(0, each, WIDE):
        total += tl.load(x_ptr + start + at + tl.arange(0, WIDE)).to(tl.float32)
    tl.store(y_ptr + tl.program_id(0), tl.sum(total, axis=0))


def replayed(work: Callable[[], object], replays: int = 7) -> float:
    """Median seconds of `work` as a captured graph, after two that do not count."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return timed(graph.replay, replays)


def timed(work: Callable[[], object], repeats: int = 7) -> float:
    """Median seconds of `work` on the device, by its own events, after two that do not count."""
    times = []
    for _ in range(repeats + 2):
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        began.record()
        work()
        ended.record()
        ended.synchronize()
        times.append(began.elapsed_time(ended) / 1e3)
    return median(times[2:])


def read_rate(gigabytes: float = 4.0) -> tuple[float, str]:
    """Bytes per second of the fastest reader tried, and a line about all of them."""
    x = torch.empty(int(gigabytes * 2**30) // 2, dtype=torch.bfloat16, device="cuda").normal_()
    y = torch.empty(len(x) // 4096, dtype=torch.float32, device="cuda")
    found = {}
    for wide, each, warps in ((1024, 16384, 4), (2048, 16384, 4), (4096, 16384, 4), (8192, 32768, 8), (8192, 8192, 8)):

        def work(wide: int = wide, each: int = each, warps: int = warps) -> None:
            _read[(len(x) // each,)](x, y, each=each, WIDE=wide, num_warps=warps)

        found[f"sum {wide}/{each}/{warps}"] = x.nbytes / replayed(work)
    half = len(x) // 2
    copy = x.nbytes / replayed(lambda: x[half:].copy_(x[:half]))
    shown = ", ".join(f"{name} {rate / 1e12:.3f}" for name, rate in (*found.items(), ("copy (both ways)", copy)))
    return max(*found.values(), copy), f"TB/s: {shown}"


def matmul_rate(size: int = 8192) -> float:
    """bf16 operations per second of a square product of random matrices."""
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    out: Tensor = torch.empty_like(a)
    return 2 * size**3 / timed(lambda: torch.mm(a, b, out=out), 15)
