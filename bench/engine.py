"""How fast is a node's engine against transformers' `generate()` on the same cores, in the same run?

``python -m bench.engine``: the default model in float32. Decode of one stream and of four, prefill of 48 and of 512
positions, the cost of three spans, and memory. Rounds of the two sides alternate and the best round counts, because the
machine is shared. No network takes part. With ``--shape llama-8b --random`` the GPU part runs instead
(bench.engine_gpu).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from typing import Protocol

import psutil
import torch

from bench.parity_shards import reference_model
from paceline.engine import default_model
from paceline.engine.measure import measure
from paceline.engine.shard import SampleRequest, Work
from paceline.engine.split import suggest_split
from paceline.engine.torch_shard import TorchShard
from paceline.store.manifest import Manifest
from paceline.store.store import Store
from paceline.wire.ids import Span
from paceline.wire.sampling import SamplingParams

_GREEDY = SamplingParams()
_PROMPT = 48


class Generate:
    """transformers' own loop."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self._model = reference_model(store, manifest)
        self._model.generation_config.eos_token_id = None

    def run(self, sessions: int, prompt: int, tokens: int) -> None:
        """Prefill `prompt` positions in each of `sessions` rows and generate exactly `tokens`."""
        ids = torch.randint(100, 40_000, (sessions, prompt))
        mask = torch.ones_like(ids)
        self._model.generate(ids, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)


class Shards:
    """One shard of the whole model, stepped without a node."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self._shard = TorchShard.load(store, manifest, manifest.span)

    def run(self, sessions: int, prompt: int, tokens: int) -> None:
        """As `Generate.run`."""
        keys = list(range(sessions))
        fresh = {key: torch.randint(100, 40_000, (prompt,)).tolist() for key in keys}
        for key in keys:
            self._shard.open(key, prompt + tokens)
        for _ in range(tokens):
            works = [self._work(key, fresh[key]) for key in keys]
            for output in self._shard.step(works):
                assert output.sampled is not None
                fresh[int(str(output.key))] = [output.sampled.token]
        for key in keys:
            self._shard.close(key)

    def _work(self, key: int, ids: list[int]) -> Work:
        start = self._shard.length(key)
        return Work(key, start, ids=ids, sample=SampleRequest(_GREEDY, start + len(ids)))


class Side(Protocol):
    """Something that generates."""

    def run(self, sessions: int, prompt: int, tokens: int) -> None: ...


def seconds(side: Side, sessions: int, prompt: int, tokens: int) -> float:
    """Of one prefill where `tokens` is 1, else of one decode step after it."""
    began = time.perf_counter()
    side.run(sessions, prompt, tokens)
    whole = time.perf_counter() - began
    return whole if tokens == 1 else (whole - seconds(side, sessions, prompt, 1)) / (tokens - 1)


def compare(store: Store, manifest: Manifest, rounds: int, tokens: int) -> None:
    """Print the table."""
    sides: tuple[Side, Side] = (Generate(store, manifest), Shards(store, manifest))
    cases = {
        "decode, 1 stream, ms/token": (1, _PROMPT, tokens),
        "decode, 4 streams, ms/step": (4, _PROMPT, tokens),
        "prefill 48, ms": (1, 48, 1),
        "prefill 512, ms": (1, 512, 1),
    }
    print(f"{'':28s} {'generate()':>11s} {'shard':>9s} {'faster':>8s}")
    for name, (sessions, prompt, new) in cases.items():
        for side in sides:
            side.run(sessions, prompt, min(new, 4))
        taken = [[seconds(side, sessions, prompt, new) for side in sides] for _ in range(rounds)]
        theirs, ours = (1e3 * min(column) for column in zip(*taken, strict=True))
        print(f"{name:28s} {theirs:11.1f} {ours:9.1f} {theirs / ours:7.2f}×", flush=True)


def show_span(store: Store, manifest: Manifest, span: Span, packed: bool) -> None:
    """Load one span in this process; print its cost and the process's memory."""
    before = psutil.Process().memory_info().rss
    began = time.perf_counter()
    shard = TorchShard.load(store, manifest, span, packed=packed)
    took = time.perf_counter() - began
    found = measure(shard)
    memory = psutil.Process().memory_full_info()
    how = "packed" if packed else "mapped"
    print(
        f"span {span!s:6s} {how}: load {took:.1f} s, decode {found.decode_s * 1e3:.1f} ms "
        f"(+{found.head_s * 1e3:.1f} head, +{found.decode_extra_s * 1e3:.1f} a further stream), "
        f"RSS {memory.rss / 1e6:.0f} MB (before {before / 1e6:.0f}, of it pages of files {memory.shared / 1e6:.0f})",
        flush=True,
    )


def _let_waiting_threads_sleep() -> None:
    """As a node does (cli.node): spinning at barriers costs a shared machine up to 50 times. Read when torch loads."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.execv(sys.executable, [sys.executable, "-m", "bench.engine", *sys.argv[1:]])


def _wants_gpu(arguments: list[str]) -> bool:
    """`--shape` names a shape with random weights: the GPU part (bench.engine_gpu)."""
    return any(argument == "--shape" or argument.startswith("--shape=") for argument in arguments)


def main() -> int:
    if _wants_gpu(sys.argv[1:]):
        from bench import engine_gpu

        return engine_gpu.main()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--span", help="only load this span and print its cost (used by the benchmark itself)")
    parser.add_argument("--mapped", action="store_true", help="with --span: leave weights in the store's files")
    options = parser.parse_args()
    _let_waiting_threads_sleep()
    torch.set_num_threads(options.threads)
    store = Store()
    manifest = default_model.ensure(store)
    if options.span:
        show_span(store, manifest, Span.parse(options.span), not options.mapped)
        return 0
    for span in (*suggest_split(manifest, 3), Span(0, 10), Span(10, 20), Span(20, 30)):
        for extra in ([], ["--mapped"]):
            command = [
                sys.executable,
                "-m",
                "bench.engine",
                "--span",
                str(span),
                "--threads",
                str(options.threads),
                *extra,
            ]
            subprocess.run(command, check=True)
    compare(store, manifest, options.rounds, options.tokens)
    return 0


if __name__ == "__main__":
    sys.exit(main())
