"""Does a swarm say what one process says while it batches, reuses prefixes, and moves KV out of memory and back?

``python -m bench.parity_kv`` (also the last part of bench.parity): three node processes with KV in memory for 512
positions; one client asks everything at once, four times what fits, each prompt with the same long beginning; then
everything again, now that the beginnings are known. Greedy tokens must equal transformers' `generate()` in float32,
and the nodes must have batched, reused and moved. Exit status 1 otherwise.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
import trio

from bench.common import PROMPTS, Bars, default_manifest, equal_parts, machine, processes
from bench.parity_shards import greedy_reference, reference_model
from paceline.client.connect import ClientConfig, connect
from paceline.client.options import GenerateOptions
from paceline.client.tokenizer import Tokenizer
from paceline.store.manifest import Manifest
from paceline.store.store import Store

BEGINNING = (
    "You are a patient teacher who writes short, plain sentences, gives one example for every idea, never uses a word "
    "that a child of ten would have to look up, and always ends with a question that makes the reader think a little "
    "further. "
    "Now, in the same manner, for a class that has just come in from the rain: "
)
BUDGET = 512


async def asked_twice(bootstrap: tuple[str, ...], prompts: list[list[int]], tokens: int) -> list[list[tuple[int, ...]]]:
    """All prompts at once through one client, and again."""
    rounds: list[list[tuple[int, ...]]] = []
    async with connect(ClientConfig(bootstrap)) as client:

        async def one(number: int, found: list[tuple[int, ...]]) -> None:
            stream = await client.generate(prompts[number], GenerateOptions(max_tokens=tokens, ignore_eos=True))
            while await stream.receive() is not None:
                pass
            found[number] = tuple(stream.result().tokens)

        for _ in range(2):
            rounds.append([()] * len(prompts))
            async with trio.open_nursery() as nursery:
                for number in range(len(prompts)):
                    nursery.start_soon(one, number, rounds[-1])
        rounds.append([])
        for node in await client.status():
            kv, steps = node["services"][0]["kv"], node["engine"]
            print(
                f"layers {node['services'][0]['span']}: {steps['works'] / steps['steps']:.1f} works a step, "
                f"{kv['prefix_reused']} positions reused, {kv['moved_out']} sessions out and {kv['moved_in']} back"
            )
            rounds[-1].append((kv["prefix_reused"], kv["moved_in"], steps["works"] - steps["steps"]))
    return rounds


def check(bars: Bars, store: Store, manifest: Manifest, count: int = 12, tokens: int = 48) -> None:
    """Run it, and judge."""
    assert manifest.tokenizer is not None
    tokenizer = Tokenizer(store.read(manifest.tokenizer.digest))
    prompts = [tokenizer.encode(BEGINNING + prompt) for prompt in PROMPTS[:count]]
    model = reference_model(store, manifest)
    model.generation_config.eos_token_id = None
    with torch.inference_mode():
        want = [greedy_reference(model, prompt, tokens) for prompt in prompts]
    del model
    positions = sum(len(prompt) + tokens for prompt in prompts)
    began = time.perf_counter()
    with processes(equal_parts(3), "--kv-positions", str(BUDGET), "--kv-spilled", str(2 * positions)) as swarm:
        *rounds, accounts = trio.run(asked_twice, swarm.bootstrap, prompts, tokens)
    took = time.perf_counter() - began
    for name, got in zip(("at once", "again"), rounds, strict=True):
        same = sum(list(tokens) == wanted for tokens, wanted in zip(got, want, strict=True))
        shown = f"{same}/{len(want)} prompts × {tokens} tokens equal, {positions} positions in memory for {BUDGET}"
        bars.check(f"swarm of 3, scarce KV, {name}", same == len(want), shown)
    bars.check("batched, reused and moved", all(min(each) > 0 for each in accounts), f"in each node ({took:.0f} s)")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=12, choices=range(1, 21), metavar="N")
    parser.add_argument("--tokens", type=int, default=48)
    options = parser.parse_args()
    print(machine())
    bars = Bars()
    check(bars, *default_manifest(), options.prompts, options.tokens)
    return bars.exit_status()


if __name__ == "__main__":
    sys.exit(main())
