"""Is a swarm on one machine as fast as one process? And what does it weigh?

``python -m bench.local [--rounds N]``: three node processes and a client against transformers' `generate()` in one
process, float32, greedy, both free to use all cores. Contestants take turns within one run and medians are compared;
every round has prompts that no node has met.
Bars (exit status 1 where one is missed):

- decode ≥ 1.3 × generate()
- time to first token of a 48-token prompt ≤ 1.2 ×, prefill of 512 tokens ≤ 1.2 × generate()
- 4 concurrent clients together ≥ 2 × one stream of the swarm
- a node with a third of the model ≤ 450 MB resident, a client without torch ≤ 200 MB
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import AsyncExitStack
from statistics import median
from typing import Any

import torch
import trio

from bench.common import PROMPTS, Bars, default_manifest, equal_parts, machine, processes
from bench.memory import client_bytes
from bench.parity_shards import reference_model
from paceline.client.connect import ClientConfig, connect
from paceline.client.options import GenerateOptions
from paceline.client.results import Result
from paceline.client.sync import Client
from paceline.client.tokenizer import Tokenizer

TOKENS = 64
SHORT, LONG = 48, 512


def whole_seconds(model: Any, ids: list[int], tokens: int) -> float:
    """Wall time of generate() for exactly `tokens` tokens."""
    prompt = torch.tensor([ids])
    with torch.inference_mode():
        began = time.perf_counter()
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
        )
        return time.perf_counter() - began


def swarm_result(client: Client, ids: list[int], tokens: int) -> Result:
    """One generation, to its end."""
    generation = client.generate(ids, max_tokens=tokens, ignore_eos=True)
    for _ in generation:
        pass
    return generation.result


def together(bootstrap: tuple[str, ...], prompts: list[list[int]], tokens: int) -> float:
    """Aggregate decode speed (tokens per second) of one client per prompt, while all of them decode."""
    return trio.run(_together, bootstrap, prompts, tokens)


async def _together(bootstrap: tuple[str, ...], prompts: list[list[int]], tokens: int) -> float:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect(ClientConfig(bootstrap))) for _ in prompts]
        times: list[list[float]] = [[] for _ in prompts]

        async def one(number: int) -> None:
            options = GenerateOptions(max_tokens=tokens, ignore_eos=True)
            stream = await clients[number].generate(prompts[number], options)
            while await stream.receive() is not None:
                times[number].append(trio.current_time())

        async with trio.open_nursery() as nursery:
            for number in range(len(prompts)):
                nursery.start_soon(one, number)
    since, until = max(each[0] for each in times), min(each[-1] for each in times)
    return sum(sum(since < at <= until for at in each) for each in times) / (until - since)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=4)
    options = parser.parse_args()
    print(machine())
    store, manifest = default_manifest()
    assert manifest.tokenizer is not None
    tokenizer = Tokenizer(store.read(manifest.tokenizer.digest))
    text = tokenizer.encode(" ".join(PROMPTS) * 2)
    short, long = text[:SHORT], text[:LONG]
    model = reference_model(store, manifest)
    model.generation_config.eos_token_id = None
    rows: dict[str, list[tuple[float, float]]] = {"decode": [], "ttft": [], "prefill": []}
    with processes(equal_parts(3)) as swarm, Client(swarm.bootstrap) as client:
        whole_seconds(model, short, 4)
        swarm_result(client, short, 4)
        for number in range(options.rounds):
            # Another first token each time: what nodes keep of known prompts would make these times another thing.
            short, long = [number + 1, *short[1:]], [number + 1, *long[1:]]
            first = whole_seconds(model, short, 1)
            decode = (whole_seconds(model, short, TOKENS + 1) - first) / TOKENS
            ours = swarm_result(client, short, TOKENS + 1)
            rows["decode"].append((decode, (ours.total_s - ours.ttft_s) / TOKENS))
            rows["ttft"].append((first, ours.ttft_s))
            rows["prefill"].append((whole_seconds(model, long, 1), swarm_result(client, long, 1).ttft_s))
            print(f"round {number + 1}: " + ", ".join(f"{k} {v[-1][0]:.3f}/{v[-1][1]:.3f}" for k, v in rows.items()))
        single, many = _streams(swarm.bootstrap, text, options.streams)
        nodes = client.status()
        weight = client_bytes(swarm.bootstrap)
    bars = Bars()
    _speed_bars(bars, rows)
    bars.check(f"{options.streams} clients", many >= 2 * single, f"{many:.1f} tok/s together, {single:.1f} alone")
    for node in nodes:
        mega = node["rss_bytes"] / 1e6
        bars.check(f"memory of layers {node['services'][0]['span']}", mega <= 450, f"{mega:.0f} MB resident")
    bars.check("memory of a client", weight <= 200e6, f"{weight / 1e6:.0f} MB resident")
    return bars.exit_status()


def _streams(bootstrap: tuple[str, ...], text: list[int], streams: int) -> tuple[float, float]:
    prompts = [text[SHORT * k : SHORT * (k + 1)] for k in range(streams)]
    pairs = [(together(bootstrap, prompts[:1], TOKENS), together(bootstrap, prompts, TOKENS)) for _ in range(3)]
    return median(single for single, _ in pairs), median(many for _, many in pairs)


def _speed_bars(bars: Bars, rows: dict[str, list[tuple[float, float]]]) -> None:
    theirs, ours = (median(pair[side] for pair in rows["decode"]) for side in (0, 1))
    shown = f"{1 / ours:.1f} tok/s against {1 / theirs:.1f} of generate(): {theirs / ours:.2f} ×"
    bars.check("decode", theirs / ours >= 1.3, shown)
    for name, what in (("ttft", f"first token after {SHORT}"), ("prefill", f"prefill of {LONG}")):
        theirs, ours = (median(pair[side] for pair in rows[name]) for side in (0, 1))
        shown = f"{ours * 1e3:.0f} ms against {theirs * 1e3:.0f} ms of generate(): {ours / theirs:.2f} ×"
        bars.check(what, ours / theirs <= 1.2, shown)


if __name__ == "__main__":
    sys.exit(main())
