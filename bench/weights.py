"""What does it cost to get weights from peers, and what does it cost the peers?

``python -m bench.weights [--rounds N]``: three real node processes hold the default model. In one run:

1. An empty node joins and fetches only its span (a third) from the three. MB/s from the first question to the last
   verified, stored block, against one plain TCP copy of the same files between two processes (read, send, receive,
   write, fsync; nothing encrypted, nothing verified), the two in turns. Bar: median ≥ 0.7 of the copy's.
2. The three answer a client all the while. While a joiner fetches under a rate cap, tokens a second against before
   and after. Bar: at most 10 % slower.
3. A source and the fetcher are killed (SIGKILL) midway; the fetcher starts again. Bar: all blocks verified, no block
   fetched twice, no piece asked for twice.

Exits 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

from bench.common import PROMPTS, Bars, default_manifest, machine
from paceline.cli.local_swarm import LocalSwarm, NodeProcess, local_swarm
from paceline.client.connect import home_folder
from paceline.client.sync import Client
from paceline.engine import default_model
from paceline.engine.loading import resolve_span
from paceline.store.manifest import Block, Manifest
from paceline.store.store import Store

SPAN = "2/3"
SPEED_BAR, SLOWER_BAR = 0.7, 0.10
CAP_MB_S = 4.0
"""Of each source, where decoding must not suffer."""

COPY = """
import os, socket, sys
folder, port = sys.argv[1], int(sys.argv[2])
with socket.create_connection(("127.0.0.1", port)) as source:
    buffer = memoryview(bytearray(1 << 20))
    for line in sys.stdin:
        name, size = line.split()
        left = int(size)
        with open(os.path.join(folder, name), "wb", buffering=0) as file:
            while left:
                got = source.recv_into(buffer, min(left, len(buffer)))
                file.write(buffer[:got])
                left -= got
            os.fsync(file.fileno())
"""
"""The receiving process of the plain copy: names and sizes on its standard input."""


def plain_copy_s(store: Store, blocks: list[Block], folder: Path) -> float:
    """Seconds of one TCP copy of the blocks' files between two processes, durable at the end."""
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        receiver = subprocess.Popen([sys.executable, "-c", COPY, str(folder), port], stdin=subprocess.PIPE)
        channel, _ = listener.accept()
        assert receiver.stdin is not None
        receiver.stdin.write("".join(f"{block.hash} {block.size}\n" for block in blocks).encode())
        began = time.perf_counter()
        receiver.stdin.close()
        with channel:
            for block in blocks:
                with store.path(block.digest).open("rb", buffering=0) as file:
                    while piece := file.read(1 << 20):
                        channel.sendall(piece)
            receiver.wait()
        seconds = time.perf_counter() - began
    assert sum(path.stat().st_size for path in folder.iterdir()) == sum(block.size for block in blocks)
    return seconds


@dataclass
class Laboratory:
    """A swarm of sources, and joiners with empty homes beside it."""

    swarm: LocalSwarm
    client: Client
    folder: Path
    store: Store
    manifest: Manifest
    joined: int = 0

    @property
    def blocks(self) -> list[Block]:
        """What the joiner's span needs."""
        wanted = self.manifest.blocks(resolve_span(self.manifest, SPAN))
        return [*wanted, *self.manifest.texts()]

    def join(self, home: Path, *options: str) -> NodeProcess:
        """A joiner's process begins."""
        self.joined += 1
        name = f"joiner-{self.joined}"
        log, ready = self.folder / f"{name}.log", self.folder / f"{name}.ready"
        member = self.swarm.bootstrap[0]
        command = [sys.executable, "-m", "paceline.cli", "node", "--model", default_model.NAME, "--span", SPAN]
        command += ["--name", name, "--home", str(home), "--listen", "127.0.0.1", "--until-stdin-closes"]
        command += ["--swarm", member, "--ready-file", str(ready), *options]
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output)
        return NodeProcess(name, SPAN, process, ready, log)

    def report(self, node: NodeProcess) -> dict[str, Any]:
        """Wait until the joiner serves; its own account of its fetch."""
        wait_until(node.poll_ready, 180, lambda: f"{node.name} never served: {node.last_words()}")
        found: list[dict[str, Any]] = []

        def told() -> bool:
            found[:] = [it for it in self.client.status() if it["peer"] == node.peer and "fetched" in it]
            return bool(found)

        wait_until(told, 60, lambda: f"{node.name} is not seen")
        return dict(found[0]["fetched"][-1])

    def leave(self, node: NodeProcess) -> None:
        """The joiner goes, before the next one comes."""
        node.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            node.process.wait(20)
        node.kill()

    def check(self, home: Path) -> bool:
        """Whether the joiner's store holds exactly the span's blocks, each with its hash."""
        files = list((home / "store" / "blocks").iterdir())
        sound = all(sha256(path.read_bytes()).hexdigest() == path.name for path in files)
        return sound and {path.name for path in files} == {block.hash for block in self.blocks}


def wait_until(done: Callable[[], bool], seconds: float, why: Callable[[], str]) -> None:
    """Poll. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(why())
        time.sleep(0.05)


def speed(lab: Laboratory, rounds: int, bars: Bars) -> None:
    """Line 1: MB/s against a plain copy."""
    size = sum(block.size for block in lab.blocks) / 1e6
    ours, plain, peers = [], [], []
    for number in range(rounds):
        plain.append(size / plain_copy_s(lab.store, lab.blocks, lab.folder / f"copy-{number}"))
        home = lab.folder / f"empty-{number}"
        node = lab.join(home)
        report = lab.report(node)
        lab.leave(node)
        assert lab.check(home), "the joiner holds something else than its span"
        ours.append(report["bytes"] / 1e6 / report["seconds"])
        peers.append(len(report["sent"]))
        print(f"round {number + 1}: {ours[-1]:.0f} MB/s from {peers[-1]} peers, plain copy {plain[-1]:.0f}", flush=True)
        shutil.rmtree(home)
        shutil.rmtree(lab.folder / f"copy-{number}")
    ratio = median(a / b for a, b in zip(ours, plain, strict=True))
    shown = (
        f"{median(ours):.0f} MB/s from {min(peers)} peers against {median(plain):.0f} ({ratio:.2f} ×), {size:.0f} MB"
    )
    bars.check("span from peers", ratio >= SPEED_BAR and min(peers) == 3, shown)


class Stream:
    """One endless answer on a thread; remembers when each token came."""

    def __init__(self, bootstrap: tuple[str, ...]) -> None:
        self.times: list[float] = []
        self._bootstrap = bootstrap
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with Client(self._bootstrap) as client:
            while not self._stop.is_set():
                for _ in client.generate(PROMPTS[0], max_tokens=512, ignore_eos=True):
                    self.times.append(time.monotonic())
                    if self._stop.is_set():
                        break

    def rate(self, since: float, until: float) -> float:
        """Tokens a second, from intervals inside one answer."""
        inside = [at for at in self.times if since <= at <= until]
        return (len(inside) - 1) / (inside[-1] - inside[0])

    def end(self) -> None:
        self._stop.set()
        self._thread.join()


def survivors(lab: Laboratory, rounds: int, bars: Bars) -> None:
    """Line 2: decode while others fetch under a cap. The joiner's own start is not part of either window."""
    stream = Stream(lab.swarm.bootstrap)
    slower = []
    for number in range(rounds):
        home = lab.folder / f"slow-{number}"
        time.sleep(10)
        quiet_until = time.monotonic()
        node = lab.join(home)
        blocks = home / "store" / "blocks"
        wait_until(lambda at=blocks: at.exists() and any(at.iterdir()), 120, node.last_words)  # type: ignore[misc]
        began = time.monotonic()
        time.sleep(10)
        ended = time.monotonic()
        whole = len(list(blocks.iterdir())) == len(lab.blocks)
        lab.leave(node)
        settled = time.monotonic() + 2
        time.sleep(10)
        alone = (stream.rate(quiet_until - 8, quiet_until), stream.rate(settled, time.monotonic()))
        during = stream.rate(began, ended)
        slower.append(1 - during / (sum(alone) / 2))
        print(
            f"round {number + 1}: {alone[0]:.1f} tok/s before, {during:.1f} during, {alone[1]:.1f} after"
            + ("; the fetch ended early" if whole else ""),
            flush=True,
        )
        shutil.rmtree(home)
    stream.end()
    shown = f"{median(slower):+.1%} slower, at most {3 * CAP_MB_S:.0f} MB/s from three nodes on two cores"
    bars.check("decode of the sources", median(slower) <= SLOWER_BAR, shown)


def killed(lab: Laboratory, bars: Bars) -> None:
    """Line 3: a source and the fetcher die midway."""
    home = lab.folder / "killed"
    blocks = home / "store" / "blocks"
    node = lab.join(home, "--download-mb-s", "20")
    wait_until(lambda: blocks.exists() and len(list(blocks.iterdir())) >= len(lab.blocks) // 2, 120, node.last_words)
    node.kill()
    victim = lab.swarm.nodes[1]
    victim.kill()
    before = {path.name: path.stat().st_mtime_ns for path in blocks.iterdir()}
    landed = sum(path.stat().st_blocks * 512 for path in (home / "store" / "partial").iterdir())
    total = sum(block.size for block in lab.blocks)
    here = sum(path.stat().st_size for path in blocks.iterdir())
    again = lab.join(home)
    report = lab.report(again)
    lab.leave(again)
    untouched = all((blocks / name).stat().st_mtime_ns == at for name, at in before.items())
    good = lab.check(home) and untouched and report["again"] == 0
    good &= report["blocks"] + len(before) == len(lab.blocks) and report["bytes"] <= total - here
    shown = (
        f"{len(before)} blocks and {landed / 1e6:.0f} MB of others were here; {report['blocks']} blocks, "
        f"{report['bytes'] / 1e6:.1f} of {(total - here) / 1e6:.1f} MB fetched after, {report['again']} pieces twice, "
        f"{report['resumed']} resumed; all verified"
    )
    bars.check("killed midway", good, shown)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("speed", "survivors", "killed"))
    options = parser.parse_args()
    print(machine())
    store, manifest = default_manifest()
    bars = Bars()
    parts = {
        "speed": lambda lab: speed(lab, options.rounds, bars),
        "survivors": lambda lab: survivors(lab, options.rounds, bars),
        "killed": lambda lab: killed(lab, bars),
    }
    for name, part in parts.items():
        if options.only not in (None, name):
            continue
        capped = ["--upload-mb-s", str(CAP_MB_S)] if name == "survivors" else []
        with tempfile.TemporaryDirectory(prefix="paceline-weights-") as folder:
            spans = ["1/3", "2/3", "3/3"]
            with (
                local_swarm(home_folder(), Path(folder), default_model.NAME, spans, options=capped) as swarm,
                Client(swarm.bootstrap) as client,
            ):
                part(Laboratory(swarm, client, Path(folder), store, manifest))
    return bars.exit_status()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    sys.exit(main())
