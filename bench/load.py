"""Does the gateway stay fair, flat and free of errors under many streaming clients?

    python -m bench.load                      # 64 clients, 60 s, three node processes, the default model
    python -m bench.load --clients 8 --seconds 20

Every client asks for one streamed answer after another. At the end all close their connections in the middle of an
answer, and the nodes are asked until no session is left. Memory of gateway and nodes: the last quarter of the time
against the second; in the first, pools and caches fill.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil
import trio

from bench.common import PROMPTS, Bars, equal_parts, machine, processes
from paceline.client.connect import ClientConfig, connect, home_folder
from paceline.client.core import ClientCore
from paceline.engine import default_model

EVENT_ID = re.compile(rb"^id: (\d+)\n", re.MULTILINE)
FAIR, FREED_S, FLAT = 0.5, 1.0, 0.05


@dataclass
class Rider:
    """What one client saw. Times in seconds."""

    tokens: int = 0
    answers: int = 0
    first: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@dataclass
class Memory:
    """Resident bytes by process, over time."""

    seen: dict[str, list[int]] = field(default_factory=dict)

    def note(self, processes: dict[str, psutil.Process]) -> None:
        """One sample of each."""
        for name, process in processes.items():
            self.seen.setdefault(name, []).append(process.memory_info().rss)

    def course(self, name: str) -> str:
        """MB at seven moments from first to last."""
        seen = self.seen[name]
        return " ".join(f"{seen[(len(seen) - 1) * step // 6] / 1e6:.0f}" for step in range(7))

    def growth(self) -> dict[str, float]:
        """Last quarter over the second of four, by process: the median of each."""
        return {
            name: _median(s[3 * len(s) // 4 :]) / _median(s[len(s) // 4 : len(s) // 2]) - 1
            for name, s in self.seen.items()
        }


def _median(sample: Sequence[float]) -> float:
    return statistics.median(sample)


@contextmanager
def gateway(bootstrap: str) -> Iterator[tuple[int, psutil.Process]]:
    """`paceline gateway` as a process: its port."""
    command = [sys.executable, "-m", "paceline.cli", "gateway", "--port", "0", "--swarm", bootstrap]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        assert process.stderr is not None
        port = next(int(found[1]) for line in process.stderr if (found := re.search(r"http://[\d.]+:(\d+)", line)))
        yield port, psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def request(number: int, tokens: int) -> bytes:
    """One POST for a streamed answer."""
    body = {
        "model": default_model.NAME,
        "messages": [{"role": "user", "content": PROMPTS[number % len(PROMPTS)]}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "ignore_eos": True,
    }
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n"
    return head.encode() + b"Content-Type: application/json\r\n\r\n" + data


async def ride(port: int, number: int, tokens: int, rider: Rider) -> None:
    """Answer after answer on one connection, until cancelled: that closes it, whatever it is at."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        while True:
            began, seen, first = time.perf_counter(), b"", True
            await stream.send_all(request(number + rider.answers, tokens))
            while b"[DONE]" not in seen:
                part = await stream.receive_some(65536)
                if not part or re.search(rb"HTTP/1.1 [45]", part) or b'"error":' in part:
                    rider.errors.append((seen + part)[-300:].decode(errors="replace"))
                    return
                fresh = len(EVENT_ID.findall(part))
                if fresh and first:
                    rider.first.append(time.perf_counter() - began)
                    first = False
                rider.tokens += fresh
                seen = seen[-8:] + part
            rider.answers += 1


async def load(given: argparse.Namespace, port: int, core: ClientCore, watched: dict[str, psutil.Process]) -> bool:
    """Run it, print it; True where all bars were met."""
    riders, memory = [Rider() for _ in range(given.clients)], Memory()
    with trio.move_on_after(given.seconds):
        async with trio.open_nursery() as nursery:
            for number, rider in enumerate(riders):
                nursery.start_soon(ride, port, number, given.tokens, rider)
            while True:
                memory.note(watched)
                await trio.sleep(0.5)
    freed = await all_freed(core)
    return told(given, riders, memory, freed)


async def all_freed(core: ClientCore) -> float:
    """Seconds until no node holds a session any more."""
    began = time.perf_counter()
    while True:
        nodes = await core.status()
        if not any(node.get("sessions", 0) for node in nodes):
            return time.perf_counter() - began


def told(given: argparse.Namespace, riders: Sequence[Rider], memory: Memory, freed: float) -> bool:
    """Print, and judge."""
    bars = Bars()
    tokens = sorted(rider.tokens for rider in riders)
    first = sorted(each for rider in riders for each in rider.first)
    total, middle = sum(tokens), statistics.median(tokens)
    print(
        f"{given.clients} clients, {given.seconds:.0f} s: {total} tokens, {total / given.seconds:.1f} tokens/s, "
        f"{sum(rider.answers for rider in riders)} answers complete"
    )
    if len(first) > 1:
        p50, p99 = statistics.median(first), statistics.quantiles(first, n=100, method="inclusive")[98]
        print(f"first token: p50 {p50:.2f} s, p99 {p99:.2f} s, of {len(first)}")
    errors = [error for rider in riders for error in rider.errors]
    bars.check("no error", not errors, f"{len(errors)}" + "".join(f"\n  {error!r}" for error in errors[:3]))
    bars.check(
        f"slowest client ≥ {FAIR} × median", tokens[0] >= FAIR * middle, f"{tokens[0]} against {middle:.0f} tokens"
    )
    growth = memory.growth()
    shown = "; ".join(f"{name} {memory.course(name)} MB ({share:+.1%})" for name, share in growth.items())
    bars.check(f"memory grows ≤ {FLAT:.0%}", max(growth.values()) <= FLAT, shown)
    bars.check(f"{given.clients} cut-off sessions freed ≤ {FREED_S} s", freed <= FREED_S, f"{freed:.2f} s")
    return bars.exit_status() == 0


async def alone(port: int, core: ClientCore) -> bool:
    """One client that leaves in the middle of its answer, five times: how soon its session is gone."""
    took = []
    for number in range(5):
        rider = Rider()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ride, port, number, 1000, rider)
            while rider.tokens < 5:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        took.append(await all_freed(core))
    print(f"one client leaves: its session freed after {', '.join(f'{1e3 * each:.0f}' for each in took)} ms")
    return max(took) <= FREED_S


async def measure(given: argparse.Namespace) -> int:
    """Everything."""
    print(machine(), flush=True)
    with (
        processes(equal_parts(3), "--threads", "1", *given.node_option) as swarm,
        gateway(swarm.bootstrap[0]) as (port, process),
    ):
        watched = {"gateway": process} | {node.name: psutil.Process(node.process.pid) for node in swarm.nodes}
        async with connect(ClientConfig(swarm.bootstrap, home_folder())) as core:
            good = await load(given, port, core, watched)
            await trio.sleep(2.0)
            rest = ", ".join(f"{name} {each.memory_info().rss / 1e6:.0f} MB" for name, each in watched.items())
            print(f"at rest, two seconds later: {rest}")
            return 0 if await alone(port, core) and good else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--node-option", action="append", default=[], metavar="--OPTION=VALUE")
    sys.exit(trio.run(measure, parser.parse_args()))
