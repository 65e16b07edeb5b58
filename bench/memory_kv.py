"""Does everything finish where sessions want three times the KV that memory holds?

``python -m bench.memory_kv``: (1) one shard of the whole default model: sessions whose prompts and answers take up
three times the budget, against the same sessions with room for all of them; (2) three node processes, twelve clients at
once, three times the budget of each node. Every session must end with the tokens that it has with room enough; what was
moved to disk and back is printed. Exit status 1 otherwise.

``--part engine`` or ``--part swarm``: only that.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psutil
import torch
import trio

from bench.common import Bars, default_manifest, equal_parts, machine, processes
from paceline.client.connect import ClientConfig, connect
from paceline.client.options import GenerateOptions
from paceline.client.sync import Client
from paceline.engine.kv_room import KvLimits
from paceline.engine.shard import SampleRequest, Work
from paceline.engine.torch_shard import TorchShard
from paceline.store.manifest import Manifest
from paceline.store.store import Store
from paceline.wire.sampling import SamplingParams

SESSIONS, PROMPT, ANSWER = 18, 96, 32
TIMES = 3
CLIENTS, SHORT_PROMPT, SHORT_ANSWER = 12, 96, 48


def prompts(count: int, length: int) -> list[list[int]]:
    """Random tokens, the same at every call."""
    draw = random.Random(11)
    return [[draw.randrange(100, 40_000) for _ in range(length)] for _ in range(count)]


def served(shard: TorchShard, asked: list[list[int]], answer: int) -> tuple[list[list[int]], float, int]:
    """All prompts at once, batched as a node batches them: logs, seconds, and the most that was resident."""
    logs, at, most = [list(prompt) for prompt in asked], [0] * len(asked), 0
    for key, prompt in enumerate(asked):
        shard.open(key, len(prompt) + answer)
    began = time.perf_counter()
    while wanting := [key for key, log in enumerate(logs) if len(log) < len(asked[key]) + answer]:
        works, rows = [], 0
        for key in sorted(shard.turn(wanting), key=lambda key: at[int(str(key))] == 0):
            number = int(str(key))
            log = logs[number]
            works.append(Work(key, at[number], ids=log[at[number] :], sample=SampleRequest(SamplingParams(), len(log))))
            rows += works[-1].n
            if rows >= 512:
                break
        for output in shard.step(works):
            assert output.sampled is not None, output.error
            number = int(str(output.key))
            at[number] = len(logs[number])
            logs[number].append(output.sampled.token)
            if len(logs[number]) == len(asked[number]) + answer:
                shard.close(output.key)
        most = max(most, shard.kv_statistics().resident)
    return logs, time.perf_counter() - began, most


def engine(bars: Bars, store: Store, manifest: Manifest) -> None:
    """Part (1)."""
    asked, whole = prompts(SESSIONS, PROMPT), SESSIONS * (PROMPT + ANSWER)
    budget = whole // TIMES
    room = TorchShard.load(store, manifest, manifest.span, kv_positions=whole)
    want, free_s, _ = served(room, asked, ANSWER)
    del room
    with tempfile.TemporaryDirectory() as folder:
        tight = TorchShard.load(
            store, manifest, manifest.span, kv=KvLimits(budget, spilled=whole - budget, folder=Path(folder))
        )
        before = psutil.Process().memory_info().rss
        logs, tight_s, most = served(tight, asked, ANSWER)
        grown = psutil.Process().memory_info().rss - before
    account = tight.account()
    tokens = SESSIONS * ANSWER
    same = sum(log == other for log, other in zip(logs, want, strict=True))
    print(
        f"{SESSIONS} sessions of {PROMPT + ANSWER} positions, memory for {budget}: {account['moved_out']} times out "
        f"({account['bytes_out'] / 1e6:.0f} MB written), {account['moved_in']} times back "
        f"({account['bytes_in'] / 1e6:.0f} MB read), {account['seconds']:.2f} s of {tight_s:.1f}"
    )
    print(
        f"{tokens / tight_s:.1f} tokens/s, with room for all {tokens / free_s:.1f}; "
        f"resident set grew {grown / 1e6:.0f} MB"
    )
    bars.check("KV in memory", most <= budget, f"at most {most} of {budget} positions")
    bars.check("the tokens", same == SESSIONS, f"{same} of {SESSIONS} sessions as with room for all")


async def _clients(bootstrap: tuple[str, ...], asked: list[list[int]]) -> list[tuple[int, ...]]:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect(ClientConfig(bootstrap))) for _ in asked]
        found: list[tuple[int, ...]] = [()] * len(asked)

        async def one(number: int) -> None:
            stream = await clients[number].generate(
                asked[number], GenerateOptions(max_tokens=SHORT_ANSWER, ignore_eos=True)
            )
            while await stream.receive() is not None:
                pass
            found[number] = tuple(stream.result().tokens)

        async with trio.open_nursery() as nursery:
            for number in range(len(asked)):
                nursery.start_soon(one, number)
    return found


def swarm(bars: Bars, store: Store, manifest: Manifest) -> None:
    """Part (2)."""
    asked = prompts(CLIENTS, SHORT_PROMPT)
    budget = CLIENTS * (SHORT_PROMPT + SHORT_ANSWER) // TIMES
    alone = TorchShard.load(store, manifest, manifest.span)
    want = [tuple(served(alone, [prompt], SHORT_ANSWER)[0][0][SHORT_PROMPT:]) for prompt in asked]
    del alone
    options = ("--kv-positions", str(budget), "--kv-spilled", str(TIMES * budget))
    with processes(equal_parts(3), *options) as nodes, Client(nodes.bootstrap) as client:
        began = time.perf_counter()
        found = trio.run(_clients, nodes.bootstrap, asked)
        took = time.perf_counter() - began
        status: list[dict[str, Any]] = client.status()
    for node in status:
        service = node["services"][0]
        kv = service.get("kv", {})
        out = f"{kv.get('moved_out', 0)} times out ({kv.get('bytes_out', 0) / 1e6:.0f} MB)"
        back = f"{kv.get('moved_in', 0)} back ({kv.get('bytes_in', 0) / 1e6:.0f} MB)"
        print(
            f"node of layers {service['span']}: {out}, {back}, {kv.get('seconds', 0):.2f} s of {took:.1f}; "
            f"{node['rss_bytes'] / 1e6:.0f} MB resident"
        )
    same = sum(tokens == other for tokens, other in zip(found, want, strict=True))
    shown = (
        f"{same} of {CLIENTS} finished with the tokens they have alone, {CLIENTS * SHORT_ANSWER / took:.1f} tokens/s"
    )
    bars.check(f"{CLIENTS} clients, memory for {budget} positions a node", same == CLIENTS, shown)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("engine", "swarm"))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(machine())
    bars = Bars()
    for name, part in (("engine", engine), ("swarm", swarm)):
        if options.part in (None, name):
            part(bars, *default_manifest())
    return bars.exit_status()


if __name__ == "__main__":
    sys.exit(main())
