"""How fast is a node's engine against transformers' `generate()` on the same cores, in the same run?

``python -m bench.engine``: the default model. One stream in each class of weights against `generate()` in float32,
sixteen streams against one, prefill, perplexity; then a known prefix, KV at three times the budget, and long
contexts. Rounds of all sides alternate and the best round of each counts, because the machine is shared. No network
takes part (bench.local, bench.prefix and bench.memory_kv have the swarm's side). Exit status 1 where a bar is missed:

- one stream in float32 ≥ 1.4 ×, the fastest quantised class ≥ 2.5 × `generate()`
- 16 sessions together ≥ 5 × one stream
- a second prompt with the same 1,000 tokens ≤ 15 % of the first's time to its token
- with 3 × the KV that fits, everything finishes with the same tokens
- the cost of a position grows no faster than attention must, up to 8,192

``--only speed,prefix,kv,context`` runs parts; ``--spans`` prints the cost and memory of single spans. llama.cpp's
4-bit speed is printed where ``--llama`` names a folder that has it (bench.llama_cpp). With ``--shape llama-8b
--random`` the GPU part runs instead (bench.engine_gpu).
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and any(option.partition("=")[0] == "--shape" for option in sys.argv):
    # A GPU machine need not have what the CPU part wants (a swarm's network).
    from bench import engine_gpu

    sys.exit(engine_gpu.main())

import argparse
import subprocess
import time
from pathlib import Path
from typing import Protocol

import psutil
import torch

from bench.common import Bars, default_manifest, machine
from bench.parity_shards import reference_model
from paceline.engine.linear import CLASSES
from paceline.engine.measure import measure
from paceline.engine.shard import SampleRequest, Weights, Work
from paceline.engine.split import suggest_split
from paceline.engine.torch_shard import TorchShard
from paceline.store.manifest import Manifest
from paceline.store.store import Store
from paceline.wire.ids import Span
from paceline.wire.sampling import SamplingParams

_GREEDY = SamplingParams()
_PROMPT = 48
STREAMS = 16


class Generate:
    """transformers' own loop."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self._model = reference_model(store, manifest)
        self._model.generation_config.eos_token_id = None
        self._threads = torch.get_num_threads()

    def run(self, sessions: int, prompt: int, tokens: int) -> tuple[float, float]:
        """Seconds of a prefill of `prompt` positions in each of `sessions` rows, and until `tokens` of each."""
        torch.set_num_threads(self._threads)  # a shard leaves the number that its last step ran on
        ids = torch.randint(100, 40_000, (sessions, prompt))
        first = self._timed(ids, 1)
        return first, self._timed(ids, tokens) if tokens > 1 else first

    def _timed(self, ids: torch.Tensor, tokens: int) -> float:
        mask = torch.ones_like(ids)
        began = time.perf_counter()
        self._model.generate(ids, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
        return time.perf_counter() - began


class Shards:
    """One shard of the whole model, stepped without a node."""

    def __init__(self, store: Store, manifest: Manifest, weights: Weights, threads: int) -> None:
        self.shard = TorchShard.load(store, manifest, manifest.span, weights=weights, threads=threads)

    def run(self, sessions: int, prompt: int, tokens: int) -> tuple[float, float]:
        """As `Generate.run`."""
        keys = list(range(sessions))
        fresh = {key: torch.randint(100, 40_000, (prompt,)).tolist() for key in keys}
        for key in keys:
            self.shard.open(key, prompt + tokens)
        times = []
        for _ in range(tokens):
            began = time.perf_counter()
            for output in self.shard.step([self._work(key, fresh[key]) for key in keys]):
                assert output.sampled is not None
                fresh[int(str(output.key))] = [output.sampled.token]
            times.append(time.perf_counter() - began)
        for key in keys:
            self.shard.close(key)
        return times[0], sum(times)

    def _work(self, key: int, ids: list[int]) -> Work:
        start = self.shard.length(key)
        return Work(key, start, ids=ids, sample=SampleRequest(_GREEDY, start + len(ids)))


class Side(Protocol):
    """Something that generates."""

    def run(self, sessions: int, prompt: int, tokens: int) -> tuple[float, float]: ...


def speed(bars: Bars, store: Store, manifest: Manifest, rounds: int, tokens: int, llama: Path | None) -> None:
    """The table of speeds, and their bars."""
    from bench.llama_cpp import tokens_per_second
    from bench.perplexity import perplexity, texts

    sides: dict[str, Side] = {"generate()": Generate(store, manifest)}
    shards = {weights: Shards(store, manifest, weights, torch.get_num_threads()) for weights in CLASSES}
    sides |= shards
    cases = {
        "one stream, ms a token": (1, _PROMPT, tokens),
        f"{STREAMS} streams, ms a step": (STREAMS, _PROMPT, max(4, tokens // 3)),
        "prefill of 48, ms": (1, 48, 1),
        "prefill of 512, ms": (1, 512, 1),
    }
    found: dict[str, dict[str, float]] = {}
    print(f"{'':28s}" + "".join(f"{name:>12s}" for name in sides))
    for name, (sessions, prompt, new) in cases.items():
        taken: dict[str, list[tuple[float, float]]] = {which: [] for which in sides}
        for _ in range(rounds):
            for which, side in sides.items():
                taken[which].append(side.run(sessions, prompt, new))
        best = found[name] = {which: _best(times, new) for which, times in taken.items()}
        print(f"{name:28s}" + "".join(f"{best[which] * 1e3:12.1f}" for which in sides), flush=True)
    asked = texts(store, manifest)
    cost = {weights: perplexity(shards[weights].shard, asked) for weights in CLASSES}
    print(f"{'perplexity':28s}{'':12s}" + "".join(f"{cost[weights]:12.3f}" for weights in CLASSES))
    one, many = found["one stream, ms a token"], found[f"{STREAMS} streams, ms a step"]
    print(f"llama.cpp, 4 bits, one stream: {tokens_per_second(llama)}; ours: {1 / one['int4']:.1f} tokens/s")
    _bars(bars, one, many, cost)


def _best(times: list[tuple[float, float]], tokens: int) -> float:
    """Seconds of a decode step, or of the prefill where there is one token only."""
    first, whole = (min(column) for column in zip(*times, strict=True))
    return first if tokens == 1 else (whole - first) / (tokens - 1)


def _bars(bars: Bars, one: dict[str, float], many: dict[str, float], cost: dict[Weights, float]) -> None:
    theirs = one["generate()"]
    shown = f"{1 / one['f32']:.1f} tokens/s against {1 / theirs:.1f}: {theirs / one['f32']:.2f} ×"
    bars.check("one stream, float32, ≥ 1.4 × generate()", theirs >= 1.4 * one["f32"], shown)
    fastest = min((weights for weights in CLASSES if weights != "f32"), key=lambda weights: one[weights])
    change = 100 * (cost[fastest] / cost["f32"] - 1)
    shown = f"{fastest}: {1 / one[fastest]:.1f} tokens/s, {theirs / one[fastest]:.2f} ×, perplexity {change:+.2f} %"
    bars.check("fastest quantised class ≥ 2.5 × generate()", theirs >= 2.5 * one[fastest], shown)
    gains = {weights: STREAMS * one[weights] / many[weights] for weights in CLASSES}
    shown = ", ".join(
        f"{weights} {STREAMS / many[weights]:.0f} tokens/s ({gain:.1f} ×)" for weights, gain in gains.items()
    )
    bars.check(f"{STREAMS} sessions together ≥ 5 × one stream (float32)", gains["f32"] >= 5, shown)


def show_span(store: Store, manifest: Manifest, span: Span, packed: bool, budget: int | None = None) -> None:
    """Load one span in this process; print its cost and the process's memory."""
    before = psutil.Process().memory_info().rss
    began = time.perf_counter()
    shard = TorchShard.load(store, manifest, span, packed=packed, budget=budget)
    took = time.perf_counter() - began
    found = measure(shard)
    memory = psutil.Process().memory_full_info()
    how = "packed" if packed else "mapped"
    if budget is not None:
        how += f" up to {budget / 1e6:.0f} MB"
    print(
        f"span {span!s:6s} {how}: load {took:.1f} s, decode {found.decode_s * 1e3:.1f} ms "
        f"(+{found.head_s * 1e3:.1f} head, +{found.decode_extra_s * 1e3:.1f} a further stream, "
        f"+{found.decode_many_s * 1e3:.1f} beyond four, +{found.decode_past_s * 1e6:.2f} for 1,000 positions of past), "
        f"prefill {found.prefill_s_per_position * 1e3:.2f} ms a position (+{found.prefill_past_s * 1e6:.3f}), "
        f"RSS {memory.rss / 1e6:.0f} MB (before {before / 1e6:.0f}, of it pages of files {memory.shared / 1e6:.0f})",
        flush=True,
    )


def show_spans(manifest: Manifest, threads: int) -> None:
    """Each span in a process of its own, packed and mapped."""
    for span in (*suggest_split(manifest, 3), Span(0, 10), Span(10, 20), Span(20, 30)):
        for extra in ([], ["--mapped"]):
            command = [sys.executable, "-m", "bench.engine", "--span", str(span), "--threads", str(threads), *extra]
            subprocess.run(command, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="speed,prefix,kv,context", help="parts, joined by commas")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--llama", type=Path, metavar="FOLDER", help="where llama.cpp is (bench.llama_cpp)")
    parser.add_argument("--spans", action="store_true", help="only the cost and memory of single spans")
    parser.add_argument("--span", help="only load this span and print its cost (used by --spans)")
    parser.add_argument("--mapped", action="store_true", help="with --span: leave weights in the store's files")
    parser.add_argument("--weights-gb", type=float, default=0.0, help="with --span: as the node's option")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    store, manifest = default_manifest()
    if options.span:
        budget = int(options.weights_gb * 1e9) or None
        show_span(store, manifest, Span.parse(options.span), not options.mapped, budget)
        return 0
    if options.spans:
        show_spans(manifest, options.threads)
        return 0
    print(machine())
    from bench import context, memory_kv, prefix

    bars, parts = Bars(), options.only.split(",")
    if "speed" in parts:
        speed(bars, store, manifest, options.rounds, options.tokens, options.llama)
    if "prefix" in parts:
        prefix.engine(bars, store, manifest)
    if "kv" in parts:
        memory_kv.engine(bars, store, manifest)
    if "context" in parts:
        context.table(bars, store, manifest)
    return bars.exit_status()


if __name__ == "__main__":
    sys.exit(main())
