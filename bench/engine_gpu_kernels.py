"""Which form of each product is fastest on this GPU? Times variants at the shapes of an 8B Llama, several copies each.

``python -m bench.engine_gpu_kernels [--few]``. Copies of the weights take turns, so that nothing is found in the cache.
Each line: microseconds, and the share of the measured read rate that the weights' bytes come to.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention
from triton.errors import TritonError

from bench.gpu_limits import matmul_rate, read_rate, replayed
from paceline.engine import cuda_attention, cuda_kernels

FAILURES = (RuntimeError, TritonError)
SHAPES = {
    "qkv": (6144, 4096),
    "o": (4096, 4096),
    "gate_up": (28672, 4096),
    "down": (4096, 14336),
    "head": (128256, 4096),
}
ONE_ROW = {
    4096: (
        *((1, 4096, 4, 1), (2, 4096, 4, 1), (2, 4096, 8, 1), (4, 4096, 8, 1), (8, 4096, 8, 1), (2, 2048, 4, 1)),
        *((4, 2048, 4, 1), (4, 2048, 8, 1), (8, 2048, 8, 1), (4, 1024, 4, 1), (8, 1024, 4, 1), (8, 1024, 8, 1)),
        *((16, 512, 4, 1), (4, 1024, 4, 3), (8, 1024, 8, 3), (8, 512, 4, 4)),
    ),
    14336: (
        *((1, 2048, 4, 1), (2, 2048, 4, 1), (2, 2048, 8, 1), (4, 2048, 8, 1), (8, 2048, 8, 1), (2, 1024, 4, 1)),
        *((4, 1024, 4, 1), (8, 1024, 4, 1), (4, 1024, 8, 1), (1, 16384, 8, 1), (1, 16384, 16, 1), (4, 1024, 4, 3)),
        *((2, 2048, 4, 3), (8, 512, 4, 4), (4, 2048, 8, 3), (1, 4096, 4, 1), (2, 4096, 8, 1)),
    ),
}
FEW = ((64, 64, 4, 5), (64, 128, 4, 4), (128, 64, 4, 4), (128, 64, 8, 5), (128, 128, 8, 3), (64, 256, 4, 3))
SPLITS = {"qkv": (1, 2, 4), "o": (2, 4, 8), "gate_up": (1,), "down": (2, 4, 7, 8), "head": (1,)}


@dataclass(frozen=True)
class Variant:
    """One kernel, compiled one way, at one shape."""

    shape: str
    kind: str
    setting: tuple[int, ...]
    rows: int = 1
    splits: int = 1
    pdl: bool = False

    def __str__(self) -> str:
        more = f" split {self.splits}" if self.splits > 1 else ""
        return f"{self.kind}{self.setting}{more}{' pdl' if self.pdl else ''}"


def variants(few: bool) -> Iterator[Variant]:
    """All that are tried."""
    if not few:
        for name, (_, k) in SHAPES.items():
            for setting in ONE_ROW[k]:
                halved = (max(1, setting[0] // 2), *setting[1:])
                yield Variant(name, "gemv", halved if name == "gate_up" else setting, pdl=False)
                if setting[3] == 1:
                    yield Variant(name, "gemv", halved if name == "gate_up" else setting, pdl=True)
    else:
        for name, rows, setting in itertools.product(SHAPES, (8, 32, 64), FEW):
            for splits in SPLITS[name]:
                if SHAPES[name][1] % (splits * setting[1]) == 0:
                    yield Variant(name, "few", setting, rows, splits)


def call(variant: Variant, x: Tensor, w: Tensor, y: Tensor, warm: bool = False) -> None:
    """Launch (or only compile) one variant on one copy of its weights."""
    n, k = SHAPES[variant.shape]
    gain = x
    if variant.kind == "gemv":
        rows, step, warps, stages = variant.setting
        shared = {"K": k, "ROWS": rows, "STEP": step, "STAGES": stages, "PDL": variant.pdl, "num_warps": warps}
        shared["FORM"] = 0
        if variant.pdl:
            shared["launch_pdl"] = True
        if variant.shape == "gate_up":
            kernel: Any = cuda_kernels.gemv_swiglu
            args: tuple[Any, ...] = (x, w, w, gain, y, n // 2, 1e-5)
            grid: tuple[int, ...] = (-(-(n // 2) // rows),)
        else:
            plain = variant.shape in ("o", "down")
            kernel, args, grid = cuda_kernels.gemv, (x, w, w, gain, y, gain, y, n, 1e-5), (-(-n // rows),)
            shared |= {"NORM": not plain, "BIAS": False, "RESIDUAL": plain}
    else:
        wide, step, warps, stages = variant.setting
        both = variant.shape == "gate_up"
        padded = max(16, variant.rows)
        shared = {"M": padded, "N": wide // 2 if both and wide > 64 else wide, "STEP": step, "SWIGLU": both, "FORM": 0}
        shared |= {"num_warps": warps, "num_stages": stages}
        out = n // 2 if both else n
        kernel, args = cuda_kernels.gemm_few, (x, w, w, y, variant.rows, out, k, variant.splits)
        grid = (-(-out // shared["N"]), variant.splits)
    if warm:
        kernel.warmup(*args, grid=grid, **shared)
    else:
        kernel[grid](*args, **shared)


def buffers(name: str, rows: int, copies: int) -> tuple[Tensor, list[Tensor], Tensor]:
    """Input, copies of the weights, and an output large enough for every variant."""
    n, k = SHAPES[name]
    x = torch.randn(max(rows, 1), k, dtype=torch.bfloat16, device="cuda")
    weights = [torch.randn(n, k, dtype=torch.bfloat16, device="cuda").mul_(k**-0.5) for _ in range(copies)]
    return x, weights, torch.zeros(8 * rows * n, dtype=torch.bfloat16, device="cuda")


def _compile(share: Sequence[Variant]) -> None:
    for variant in share:
        x, weights, y = (
            torch.empty(64, 14336, dtype=torch.bfloat16, device="cuda"),
            torch.empty(16, 16, dtype=torch.bfloat16, device="cuda"),
            torch.empty(16, dtype=torch.bfloat16, device="cuda"),
        )
        try:
            call(variant, x, weights, y, warm=True)
        except FAILURES as error:  # a variant that does not compile is a finding
            print(f"{variant.shape} {variant}: {type(error).__name__} {str(error)[:100]}", flush=True)


def seconds(rows: int, weights: Sequence[Tensor], work: Callable[[Tensor], object]) -> float:
    """Of one product, over all copies."""
    return replayed(lambda: [work(w) for w in weights]) / len(weights)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", action="store_true", help="several rows instead of one")
    options = parser.parse_args()
    todo = list(variants(options.few))
    began = time.perf_counter()
    workers = [
        multiprocessing.get_context("spawn").Process(target=_compile, args=(todo[at::14],), daemon=True)
        for at in range(14)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print(f"{len(todo)} variants compiled in {time.perf_counter() - began:.0f} s", flush=True)
    rate, line = read_rate()
    print(f"{torch.cuda.get_device_name()}; {line}; matmul {matmul_rate() / 1e12:.0f} TFLOP/s", flush=True)
    launch_cost()
    for name, (n, k) in SHAPES.items():
        for rows in (1,) if not options.few else (8, 32, 64):
            show(
                name,
                rows,
                rate,
                [v for v in todo if v.shape == name and v.rows == rows],
                max(2, int(1.2e9 / (2 * n * k))),
            )
    if options.few:
        prefill_attention()
    return 0


def show(name: str, rows: int, rate: float, todo: Sequence[Variant], copies: int) -> None:
    """Print the variants of one shape, best first."""
    n, k = SHAPES[name]
    x, weights, y = buffers(name, rows, copies)
    floor = 2 * n * k / rate
    found = {"cuBLAS": seconds(rows, weights, lambda w: linear(x, w))}
    exact = x.double() @ weights[0].double().T
    for variant in todo:
        try:
            found[str(variant)] = seconds(rows, weights, lambda w, v=variant: call(v, x, w, y))  # type: ignore[misc]
        except FAILURES as error:
            print(f"{name} {variant}: {type(error).__name__} {str(error)[:100]}", flush=True)
    ranked = sorted(found.items(), key=lambda pair: pair[1])
    print(f"{name} {n}×{k}, {rows} rows: floor {floor * 1e6:.1f} µs", flush=True)
    for shown, taken in ranked[:7]:
        print(f"   {taken * 1e6:8.1f} µs {floor / taken:6.1%}  {shown}")
    if "cuBLAS" not in dict(ranked[:7]):
        print(f"   {found['cuBLAS'] * 1e6:8.1f} µs {floor / found['cuBLAS']:6.1%}  cuBLAS", flush=True)
    if todo and name in ("o", "qkv") and rows > 1:
        best = next(v for v in todo if str(v) == next(s for s, _ in ranked if s != "cuBLAS"))
        y.fill_(float("nan"))
        call(best, x, weights[0], y)
        got = y[: best.splits * rows * n].view(best.splits, rows, n).double().sum(0)
        print(f"   error {float((got - exact).norm() / exact.norm()):.1e}")


def launch_cost() -> None:
    """Print what the host takes for a launch."""
    a = torch.ones(16, device="cuda")
    for _ in range(100):
        a.add_(1.0)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(1000):
        a.add_(1.0)
    took = time.perf_counter() - began
    torch.cuda.synchronize()
    print(f"host: {took * 1e3:.1f} µs a torch launch", flush=True)


def prefill_attention(n: int = 2048, heads: int = 32, kv: int = 8, d: int = 128, page: int = 16) -> None:
    """Print prefill attention of one sequence: paged kernel against scaled_dot_product_attention."""
    width = (heads + 2 * kv) * d
    qkv = torch.randn(n, width, dtype=torch.bfloat16, device="cuda")
    pages = n // page
    keys, values = (torch.randn(pages, page, kv, d, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    table = torch.randperm(pages, device="cuda").int()[None]
    out = torch.empty(n, heads * d, dtype=torch.bfloat16, device="cuda")
    work = 2 * 2 * n * n / 2 * heads * d
    for rows, tile, warps, stages in itertools.product((64, 128), (64, 128), (4, 8), (2, 3)):
        tiles = torch.tensor(
            [[at, rows, at, 0] for at in reversed(range(0, n, rows))], dtype=torch.int32, device="cuda"
        )

        def run(
            rows: int = rows, tile: int = tile, warps: int = warps, stages: int = stages, tiles: Tensor = tiles
        ) -> None:
            cuda_attention.ragged[(len(tiles), heads)](
                qkv, keys, values, table, tiles, out, d**-0.5, 0, table.stride(0), HEADS=heads, KV=kv, D=d, PAGE=page,
                ROWS=rows, TILE=tile, num_warps=warps, num_stages=stages,
            )  # fmt: skip

        try:
            taken = replayed(run)
        except FAILURES as error:
            print(f"   ragged {rows}/{tile}/{warps}/{stages}: {type(error).__name__}", flush=True)
            continue
        print(
            f"   ragged {rows}/{tile}/{warps}/{stages}: {taken * 1e6:.0f} µs, {work / taken / 1e12:.0f} TFLOP/s",
            flush=True,
        )
    q = qkv[:, : heads * d].view(n, heads, d).transpose(0, 1)[None]
    k, v = (torch.randn(1, kv, n, d, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    taken = replayed(lambda: scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True))
    print(f"   sdpa: {taken * 1e6:.0f} µs, {work / taken / 1e12:.0f} TFLOP/s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
