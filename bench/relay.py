"""Does a node that nobody can dial serve, and what does its relay cost? Needs root, `ip` and Linux's namespaces.

``python -m bench.relay [--tokens 48] [--rounds 3]``: two network namespaces, each joined to this machine by a cable of
its own and to nothing else; packets are not forwarded between them. A meeting point here carries circuits
(`paceline bootstrap --relay`). The first third of the model is served here; the second and the last are served in the
two namespaces, by nodes that open no port (`paceline node --relay`). The frames from one to the other, the tokens
back to the first, and the client's own link all go through the relay. Beside it in turns: the same three thirds as
ordinary processes on loopback.

Bar: all tokens equal, greedy and sampled. Exits 1 where it is missed; prints both speeds.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.common import PROMPTS, Bars, default_manifest, equal_parts, machine, processes
from paceline.client.connect import home_folder
from paceline.client.sync import Client

READY_S = 120.0


@dataclass(frozen=True)
class Island:
    """A namespace with one cable: our end of it, and its own."""

    name: str
    here: str
    there: str


ISLANDS = (Island("paceline-a", "10.201.1.1", "10.201.1.2"), Island("paceline-b", "10.201.2.1", "10.201.2.2"))
RELAY = ISLANDS[0].here


def ip(*words: str, check: bool = True) -> None:
    """One call of the `ip` command."""
    subprocess.run(["ip", *words], check=check, capture_output=True)


@contextmanager
def islands() -> Iterator[None]:
    """Both namespaces, for the time of the block."""
    try:
        for number, island in enumerate(ISLANDS):
            ends = f"plh{number}", f"plt{number}"
            ip("netns", "add", island.name)
            ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1], "netns", island.name)
            ip("addr", "add", f"{island.here}/30", "dev", ends[0])
            ip("link", "set", ends[0], "up")
            ip("-n", island.name, "addr", "add", f"{island.there}/30", "dev", ends[1])
            ip("-n", island.name, "link", "set", ends[1], "up")
            ip("-n", island.name, "link", "set", "lo", "up")
            if island.here != RELAY:
                # To this machine's address at the first cable, where the relay listens, and to nothing beyond.
                ip("-n", island.name, "route", "add", f"{RELAY}/32", "via", island.here)
        yield
    finally:
        for number, island in enumerate(ISLANDS):
            ip("link", "del", f"plh{number}", check=False)
            ip("netns", "del", island.name, check=False)


@contextmanager
def started(folder: Path, name: str, words: Sequence[str], island: Island | None = None) -> Iterator[dict[str, Any]]:
    """A `paceline` process, in a namespace or here; yields what its ready file says."""
    ready, log = folder / f"{name}.json", folder / f"{name}.log"
    inside = ["ip", "netns", "exec", island.name] if island else []
    command = [*inside, sys.executable, "-m", "paceline.cli", *words, "--name", name, "--ready-file", str(ready)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + READY_S
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{name} did not come up: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        yield json.loads(ready.read_text())
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


@contextmanager
def hidden_swarm(folder: Path) -> Iterator[tuple[str, ...]]:
    """The relay, the first third here, the others on islands; yields where to join."""
    relay_file = f"@{folder / 'relay.json'}"
    home = ["--home", str(home_folder())]
    with islands(), ExitStack() as stack:
        begin = ["bootstrap", "--listen", "0.0.0.0", "--port", str(_free_port()), "--announce", RELAY, "--relay"]
        relay = stack.enter_context(started(folder, "relay", [*begin, *home]))
        join = ["--swarm", relay_file, *home]
        stack.enter_context(started(folder, "open", ["node", "--span", "1/3", "--listen", RELAY, *join]))
        for number, island in enumerate(ISLANDS):
            words = ["node", "--span", f"{number + 2}/3", *join, "--relay", relay_file]
            found = stack.enter_context(started(folder, f"hidden-{number + 1}", words, island))
            assert all(address.endswith(f"/p2p-circuit/p2p/{found['peer']}") for address in found["bootstrap"])
            assert not found["data"]
        yield tuple(relay["bootstrap"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("0.0.0.0", 0))
        return int(probe.getsockname()[1])


def answers(client: Client, tokens: int) -> tuple[list[list[int]], float, float]:
    """Tokens of a greedy and of sampled answers; decode speed, and time to the first token."""
    found, speeds, firsts = [], [], []
    for number, prompt in enumerate(PROMPTS[:4]):
        answer = client.generate(prompt, max_tokens=tokens, temperature=0.9 * (number % 2), seed=7, ignore_eos=True)
        found.append([piece.token for piece in answer])
        speeds.append(answer.result.tokens_per_s)
        firsts.append(answer.result.ttft_s)
    return found, median(speeds), median(firsts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if os.geteuid():
        raise SystemExit("network namespaces need root")
    print(machine())
    default_manifest()
    bars = Bars()
    speeds: dict[str, list[tuple[float, float]]] = {"loopback": [], "relayed": []}
    equal = asked = 0
    with (
        tempfile.TemporaryDirectory(prefix="paceline-relay-") as name,
        hidden_swarm(Path(name)) as hidden,
        processes(equal_parts(3)) as swarm,
        Client(swarm.bootstrap) as near,
        Client(hidden) as far,
    ):
        for _ in range(options.rounds):
            want, *figures = answers(near, options.tokens)
            speeds["loopback"].append((figures[0], figures[1]))
            got, *figures = answers(far, options.tokens)
            speeds["relayed"].append((figures[0], figures[1]))
            print(f"round: {speeds['loopback'][-1][0]:.1f}, {speeds['relayed'][-1][0]:.1f} tokens/s", flush=True)
            equal, asked = equal + sum(a == b for a, b in zip(want, got, strict=True)), asked + len(want)
        kinds = {node["agent"]: node["transport"] for node in far.status()}
    for kind, figures_of in speeds.items():
        decode, first = (median(pair[side] for pair in figures_of) for side in (0, 1))
        print(f"{kind:9s} {decode:.1f} tokens/s, first token after {first * 1e3:.0f} ms")
    print(f"channels: {kinds}")
    bars.check("tokens equal through the relay", equal == asked > 0, f"{equal} of {asked} answers of {options.tokens}")
    return bars.exit_status()


if __name__ == "__main__":
    sys.exit(main())
