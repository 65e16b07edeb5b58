"""What does the gateway add to the first token and to each token, over the library in the same run?

    python -m bench.gateway            # toy nodes in this process: every microsecond of the gateway shows
    python -m bench.gateway --real     # node processes with the default model

Library and gateway share one client core and take turns, so that both meet the same noise. The HTTP reader is a bare
socket that looks for event boundaries: its parsing is not the gateway's cost. With toy nodes everything shares one
thread, which is the worst case: with real nodes the gateway's work overlaps with theirs. CPU is that of this process,
reader included; on a machine that others use it is the steadier figure.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from paceline.cli.local_swarm import local_swarm
from paceline.client.connect import ClientConfig, connect, home_folder
from paceline.client.core import ClientCore
from paceline.client.options import GenerateOptions
from paceline.engine import default_model
from paceline.gateway.config import GatewayConfig
from paceline.gateway.serving import serve
from paceline.store.store import Store
from tests.gateway.toying import text_swarm

EVENT_ID = re.compile(rb"^id: (\d+)\n", re.MULTILINE)
MESSAGES = [{"role": "user", "content": "Tell me of cycling."}]


@dataclass
class Times:
    """Seconds. `cpu`: of this process, for a token."""

    first: list[float] = field(default_factory=list)
    token: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def add(self, began: float, arrivals: list[tuple[int, float]], cpu: float) -> None:
        """One answer: its first token, and the mean of the others. `arrivals`: token index and time."""
        (_, first), (index, last) = arrivals[0], arrivals[-1]
        self.first.append(first - began)
        self.token.append((last - first) / index)
        self.cpu.append(cpu / (index + 1))


async def by_library(core: ClientCore, model: str, tokens: int, times: Times) -> None:
    """One answer from the library."""
    cpu, began, arrivals = time.process_time(), time.perf_counter(), []
    options = GenerateOptions(model=model, max_tokens=tokens, ignore_eos=True)
    stream = await core.chat(MESSAGES, options)
    while (piece := await stream.receive()) is not None:
        arrivals.append((piece.index, time.perf_counter()))
    times.add(began, arrivals, time.process_time() - cpu)


async def by_gateway(port: int, model: str, tokens: int, times: Times) -> None:
    """The same answer through HTTP, on a connection that is open already."""
    body = {"model": model, "messages": MESSAGES, "max_tokens": tokens, "temperature": 0, "stream": True}
    data = json.dumps(body | {"ignore_eos": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n"
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        cpu, began, seen = time.process_time(), time.perf_counter(), b""
        arrivals: list[tuple[int, float]] = []
        await stream.send_all(head.encode() + b"Content-Type: application/json\r\n\r\n" + data)
        while b"[DONE]" not in seen:
            part = await stream.receive_some(65536)
            now = time.perf_counter()
            if not part or b"HTTP/1.1 4" in part or b"HTTP/1.1 5" in part:
                raise SystemExit(f"no answer: {(seen + part).decode()}")
            arrivals += [(int(mark), now) for mark in EVENT_ID.findall(part)]
            seen = seen[-8:] + part
        times.add(began, arrivals, time.process_time() - cpu)


async def compare(core: ClientCore, model: str, runs: int, tokens: int) -> None:
    """Take turns, and print."""
    library, gateway = Times(), Times()
    async with trio.open_nursery() as nursery:
        url: list[str] = []
        nursery.start_soon(partial(serve, core, GatewayConfig(port=0), started=url.append))
        while not url:
            await trio.sleep(0.01)
        port = int(url[0].rpartition(":")[2])
        for warm in range(runs + 2):
            await by_library(core, model, tokens, library if warm > 1 else Times())
            await by_gateway(port, model, tokens, gateway if warm > 1 else Times())
        nursery.cancel_scope.cancel()
    print(f"{runs} answers of {tokens} tokens each way, medians in ms (quartiles)")
    row("first token", library.first, gateway.first)
    row("each token ", library.token, gateway.token)
    row("CPU a token", library.cpu, gateway.cpu)


def row(what: str, library: list[float], gateway: list[float]) -> None:
    """One line; the difference is the median over neighbouring pairs."""
    added = [theirs - ours for ours, theirs in zip(library, gateway, strict=True)]
    print(f"{what}  library {spread(library)}  gateway {spread(gateway)}  added {spread(added)}")


def spread(seconds: list[float]) -> str:
    """Median and quartiles."""
    low, middle, high = (1e3 * each for each in statistics.quantiles(seconds, n=4))
    return f"{middle:.3f} ({low:.3f} … {high:.3f})"


@asynccontextmanager
async def toy(folder: Path) -> AsyncIterator[tuple[ClientCore, str]]:
    """Three toy nodes in this process."""
    async with text_swarm(folder) as swarm, swarm.client() as core:
        yield core, "toy"


@asynccontextmanager
async def real(folder: Path) -> AsyncIterator[tuple[ClientCore, str]]:
    """Three node processes with the default model."""
    home = home_folder()
    default_model.ensure(Store(home / "store"))
    with local_swarm(home, folder, default_model.NAME, ["1/3", "2/3", "3/3"], options=["--threads", "1"]) as swarm:
        async with connect(ClientConfig(swarm.bootstrap, home)) as core:
            yield core, default_model.NAME


async def measure(given: argparse.Namespace) -> None:
    """Start what is asked for, and compare."""
    with tempfile.TemporaryDirectory() as folder:
        async with (real if given.real else toy)(Path(folder)) as (core, model):
            await compare(core, model, given.runs, given.tokens)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=64)
    trio.run(measure, parser.parse_args())
