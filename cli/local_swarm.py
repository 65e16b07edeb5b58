"""A swarm of node processes on this machine: what `paceline up`, the benchmarks and the end-to-end tests start.

Every node is a real `paceline node` process with its own identity, talking over loopback. A node leaves when it is told
to, and when the process that started it goes away, however that happens (its standard input ends).
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from paceline.net.identity import Identity
from paceline.wire.errors import PeerUnavailable

START_S = 90.0


@dataclass
class NodeProcess:
    """One node process. `peer` and `bootstrap` are known once it is ready."""

    name: str
    span: str
    process: subprocess.Popen[bytes]
    ready_file: Path
    log: Path
    peer: str = ""
    bootstrap: tuple[str, ...] = ()

    def poll_ready(self) -> bool:
        """True once announced. Raises PeerUnavailable with the end of its log where it has died."""
        if self.peer:
            return True
        if self.ready_file.exists():
            facts = json.loads(self.ready_file.read_text())
            self.peer, self.bootstrap = facts["peer"], tuple(facts["bootstrap"])
            return True
        if self.process.poll() is not None:
            raise PeerUnavailable(
                f"{self.name} ended with status {self.process.returncode}: {self.last_words()}",
                cure=f"read {self.log}",
            )
        return False

    def last_words(self) -> str:
        """The end of its log."""
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        return " | ".join(lines[-3:])

    def kill(self) -> None:
        """SIGKILL: nothing is said."""
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """SIGSTOP."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)


@dataclass
class LocalSwarm:
    """Start with `local_swarm`."""

    home: Path
    folder: Path
    model: str
    options: tuple[str, ...] = ()
    nodes: list[NodeProcess] = field(default_factory=list)
    _first: str | None = None

    def start(self, name: str, span: str, *options: str) -> NodeProcess:
        """Begin starting a node. All join through the first, whose identity and port are settled before it runs."""
        log, ready_file = self.folder / f"{name}.log", self.folder / f"{name}.ready"
        ready_file.unlink(missing_ok=True)
        if self._first is None:
            port = _free_port()
            peer = Identity.load_or_create(self.home / "identities" / name).peer
            self._first = f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer}"
            members = ["--port", str(port)]
        else:
            members = ["--swarm", self._first]
        command = [sys.executable, "-m", "paceline.cli", "node", "--model", self.model, "--span", span]
        command += ["--name", name, "--home", str(self.home), "--listen", "127.0.0.1", "--until-stdin-closes"]
        command += ["--ready-file", str(ready_file), *members, *self.options, *options]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
            )
        node = NodeProcess(name, span, process, ready_file, log)
        self.nodes.append(node)
        return node

    def restart(self, node: NodeProcess, *options: str) -> NodeProcess:
        """The same node again, after its process has ended; joins through whoever is left."""
        self.nodes.remove(node)
        alive = [other for other in self.nodes if other.process.poll() is None and other.bootstrap]
        self._first = alive[0].bootstrap[0] if alive else None
        return self.start(node.name, node.span, *options)

    def wait_ready(self, nodes: Sequence[NodeProcess], report: Callable[[int], None] = lambda ready: None) -> None:
        """Until all of `nodes` are announced. Raises PeerUnavailable."""
        deadline = time.monotonic() + START_S
        while True:
            count = sum(node.poll_ready() for node in nodes)
            report(count)
            if count == len(nodes):
                return
            if time.monotonic() > deadline:
                waiting = next(node for node in nodes if not node.peer)
                raise PeerUnavailable(f"{waiting.name} was not ready within {START_S:.0f} s: {waiting.last_words()}")
            time.sleep(0.02)

    @property
    def bootstrap(self) -> tuple[str, ...]:
        """Where clients and further nodes join."""
        return tuple(address for node in self.nodes if node.process.poll() is None for address in node.bootstrap)

    def name_of(self, peer: str) -> str:
        """A node's name; a short peer id for a stranger."""
        return next((node.name for node in self.nodes if node.peer == peer), peer[-8:])

    def stop(self, patience_s: float = 8.0) -> None:
        """Ask all to leave, then end those that did not."""
        running = [node for node in self.nodes if node.process.poll() is None]
        for node in running:
            node.thaw()
            node.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + patience_s
        for node in running:
            try:
                node.process.wait(max(0.05, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                node.kill()
        for node in self.nodes:
            if node.process.stdin is not None:
                node.process.stdin.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def local_swarm(
    home: Path,
    folder: Path,
    model: str,
    spans: Sequence[str],
    *,
    options: Sequence[str] = (),
    report: Callable[[int], None] = lambda ready: None,
) -> Iterator[LocalSwarm]:
    """Nodes ``node-1`` … serving `spans`, ready when the body begins, gone after it. `folder`: logs and ready files."""
    folder.mkdir(parents=True, exist_ok=True)
    swarm = LocalSwarm(home, folder, model, tuple(options))
    try:
        swarm.wait_ready([swarm.start(f"node-{number}", span) for number, span in enumerate(spans, 1)], report)
        yield swarm
    finally:
        swarm.stop()
