"""The bars of bench.engine_gpu, and tables beside them. Imported only where there is a GPU."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from statistics import median

import torch

from bench import gpu_check, gpu_families, gpu_limits, gpu_transformers
from bench.gpu_models import config_of, known, lean_shard, random_weights
from paceline.engine.cuda_arch import Arch
from paceline.engine.cuda_shard import LeanShard
from paceline.engine.shard import Activations, SampleRequest, Work
from paceline.wire.ids import Span
from paceline.wire.sampling import SamplingParams

_GREEDY = SamplingParams()
_SESSIONS, _PROMPT, _NEW, _LONG = 64, 128, 128, 2048


class Bars:
    """Prints each verdict; `missed` decides the exit status."""

    def __init__(self) -> None:
        self.missed: list[str] = []

    def judge(self, what: str, good: bool, shown: str) -> None:
        print(f"{'ok    ' if good else 'MISSED'} {what}: {shown}", flush=True)
        if not good:
            self.missed.append(what)


def tokens(n: int, seed: int) -> list[int]:
    """A prompt of random ids."""
    return torch.randint(10, 100_000, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def step(shard: LeanShard, keys: Sequence[int], fresh: Sequence[Sequence[int]]) -> list[list[int]]:
    """One step of every session: its fresh ids in, the next greedy token of each out."""
    works = []
    for key, ids in zip(keys, fresh, strict=True):
        start = shard.length(key)
        works.append(Work(key, start, ids=ids, sample=SampleRequest(_GREEDY, start + len(ids))))
    found = []
    for output in shard.step(works):
        assert output.sampled is not None, output.error
        found.append([output.sampled.token])
    return found


def run_sessions(shard: LeanShard, sessions: int, prompt: int, new: int) -> tuple[float, list[float]]:
    """Seconds of the prompts' step (which yields the first tokens), and of each decode step."""
    keys = list(range(sessions))
    fresh: list[list[int]] = [tokens(prompt, key) for key in keys]
    for key in keys:
        shard.open(key, prompt + new)
    times = []
    for _ in range(new):
        began = time.perf_counter()
        fresh = step(shard, keys, fresh)
        times.append(time.perf_counter() - began)
    for key in keys:
        shard.close(key)
    return times[0], times[1:]


def prefill_seconds(shard: LeanShard, n: int, repeats: int = 7) -> float:
    """Median of a whole prompt's step, next token included."""
    times = []
    for repeat in range(repeats + 2):
        ids = tokens(n, repeat)
        shard.open("prefill", n)
        began = time.perf_counter()
        shard.step([Work("prefill", 0, ids=ids, sample=SampleRequest(_GREEDY, n))])
        times.append(time.perf_counter() - began)
        shard.close("prefill")
    return median(times[2:])


def span_seconds(shard: LeanShard, steps: int = 120) -> float:
    """Median of one decode step of a span in the middle: activations in, activations out, as bytes."""
    hidden = shard.shape.hidden
    data = torch.randn(hidden, dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes()
    shard.open("span", 2 * steps)
    times = []
    for at in range(steps):
        work = Work("span", at, activations=Activations(1, hidden, "bf16", data))
        began = time.perf_counter()
        (output,) = shard.step([work])
        times.append(time.perf_counter() - began)
        assert output.activations is not None, output.error
    shard.close("span")
    return median(times[20:])


def profile(shard: LeanShard, sessions: int) -> None:
    """Print where a decode step's device time goes."""
    keys = list(range(sessions))
    fresh: list[list[int]] = [tokens(_PROMPT, key) for key in keys]
    for key in keys:
        shard.open(key, _PROMPT + 16)
    for _ in range(3):
        fresh = step(shard, keys, fresh)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        for _ in range(4):
            fresh = step(shard, keys, fresh)
        torch.cuda.synchronize()
    for key in keys:
        shard.close(key)
    print(f"{sessions} sessions, µs a step by kernel:")
    rows = sorted(seen.key_averages(), key=lambda row: -row.self_device_time_total)
    for row in rows[:12]:
        print(f"   {row.self_device_time_total / 4:8.1f}  {row.count / 4:5.0f} × {row.key[:90]}")


def decode_bars(bars: Bars, shard: LeanShard, rate: float) -> float:
    """One session's decode. Returns the seconds that the ends of a step take (norm, LM head, argmax)."""
    floor = shard.lean.weights.nbytes / rate
    run_sessions(shard, 1, _PROMPT, 16)
    one = median(run_sessions(shard, 1, _PROMPT, _NEW)[1])
    print(
        f"weights read in a step: {shard.lean.weights.nbytes / 1e9:.2f} GB, {floor * 1e3:.2f} ms at the measured rate"
    )
    share = floor / one
    shown = f"{share:.1%} of the limit ({one * 1e3:.2f} ms a token, {1 / one:.0f} tokens/s; limit {1 / floor:.0f})"
    bars.judge("decode, 1 session, >= 80 %", share >= 0.80, shown)
    h = torch.randn(1, shard.shape.hidden, dtype=torch.bfloat16, device="cuda")
    return gpu_limits.replayed(lambda: shard.lean.logits(h).max(dim=-1), 20)


def batch_table(shard: LeanShard, rate: float) -> None:
    """Print decode by batch, and by length of the past."""
    floor = shard.lean.weights.nbytes / rate
    print("decode by sessions, ms a step (tokens/s; share of the weights' limit):")
    for sessions in (1, 2, 4, 8, 16, 32, 64, 128):
        taken = median(run_sessions(shard, sessions, _PROMPT, 24)[1][4:])
        print(f"   {sessions:4d}  {taken * 1e3:6.2f}  {sessions / taken:7.0f}  {floor / taken:6.1%}", flush=True)
    print("decode of one session by positions in its past, ms a step:")
    for past in (128, 1024, 4096, 8000):
        taken = median(run_sessions(shard, 1, past, 24)[1][4:])
        print(f"   {past:5d}  {taken * 1e3:6.2f}", flush=True)


def work_of(arch: Arch, positions: int) -> float:
    """Operations of the layers' products; attention is not counted."""
    return 2.0 * arch.layers * arch.layer_parameters * positions


def judge_throughput(bars: Bars, theirs: dict[str, float], ours: float) -> None:
    """generate_batch as it comes is the bar; the best of its settings is printed beside it."""
    made = _SESSIONS * _NEW
    for name, taken in theirs.items():
        shown = f"{taken / ours:.1f} × ({made / ours:.0f} against {made / taken:.0f} tokens/s)"
        if name == gpu_transformers.AS_IT_COMES:
            bars.judge("64 sessions, >= 10 × generate_batch as it comes", taken >= 10 * ours, shown)
        else:
            print(f"       against generate_batch with {name}: {shown}")


def run(options: argparse.Namespace) -> int:
    """Measure and judge everything; 0 where every bar was met, else 1."""
    bars = Bars()
    rate, line = gpu_limits.read_rate()
    products = gpu_limits.matmul_rate()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bf16 products {products / 1e12:.0f} TFLOP/s")
    print(f"reading: {line}", flush=True)
    gpu_families.check(bars.judge)
    gpu_check.check(options.shape, bars.judge)
    config = config_of(options.shape)
    weights = random_weights(config)
    shard = lean_shard(config, weights)
    began = time.perf_counter()
    shard.warm()
    print(f"graphs captured in {time.perf_counter() - began:.1f} s", flush=True)
    ends = decode_bars(bars, shard, rate)
    middle = lean_shard(config, weights, Span(8, 16), 8192)
    layers = known(config).layers
    rounds = [(median(run_sessions(shard, 1, _PROMPT, 64)[1]), span_seconds(middle, 84)) for _ in range(5)]
    whole, part = (min(column) for column in zip(*rounds, strict=True))  # alternating: the host is shared
    due = (whole - ends) * 8 / layers
    shown = (
        f"{part * 1e3:.3f} ms against {due * 1e3:.3f}, 8/{layers} of the layers' time ({part / due - 1:+.1%}); rounds "
    )
    shown += ", ".join(f"{mine / ((each - ends) * 8 / layers) - 1:+.1%}" for each, mine in rounds)
    bars.judge("8 layers alone, within 5 %", part <= 1.05 * due, shown)
    taken = prefill_seconds(shard, _LONG)
    arch = known(config)
    work = work_of(arch, _LONG) + 2 * arch.vocab * arch.hidden
    shown = f"{work / taken / products:.1%} of the rate ({taken * 1e3:.1f} ms, {work / taken / 1e12:.0f} TFLOP/s, "
    bars.judge(f"prefill of {_LONG}, >= 50 %", work / taken >= 0.5 * products, f"{shown}{_LONG / taken:.0f} tokens/s)")
    batch_table(shard, rate)
    if options.profile:
        profile(shard, 1)
        profile(shard, 64)
    prompts = [tokens(_PROMPT, key) for key in range(_SESSIONS)]
    ours = min(sum((first, *rest)) for first, rest in (run_sessions(shard, _SESSIONS, _PROMPT, _NEW) for _ in range(3)))
    first, rest = run_sessions(shard, _SESSIONS, _PROMPT, _NEW)
    print(f"{_SESSIONS} sessions × {_PROMPT} + {_NEW}: {ours:.2f} s, {_SESSIONS * _NEW / ours:.0f} tokens/s")
    print(f"   of which prompts {first * 1e3:.0f} ms, then {median(rest) * 1e3:.2f} ms a step", flush=True)
    del shard, middle
    torch.cuda.empty_cache()
    if not options.alone:
        judge_throughput(bars, gpu_transformers.generate_batch(config, weights, prompts, _NEW), ours)
        least = (work_of(arch, _SESSIONS * _PROMPT) + 2 * _SESSIONS * arch.vocab * arch.hidden) / products
        least += (_NEW - 1) * weights.nbytes / rate
        print(f"   the products' and the weights' limits alone: {least:.2f} s, {_SESSIONS * _NEW / least:.0f} tokens/s")
    print("all bars met" if not bars.missed else f"{len(bars.missed)} missed: {'; '.join(bars.missed)}")
    return 1 if bars.missed else 0
