"""The processes of a tensor-parallel span's other ranks, seen from the first: started, told, watched, ended.

Knows pipes and processes; no tensors. A worker that ends by itself is noticed at once by a thread that waits for
nothing else; one that stands still is noticed by the group, whose sums have a bound (engine.tensor_group).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

from paceline.wire.errors import WorkerLost, from_code

LOADED, READY = "loaded", "ready"
_END_S = 2.0
"""How long an ended worker may take to be gone."""
_LAST_WORDS_S = 1.0


@dataclass(slots=True)
class Worker:
    """One rank's process, the pipe that it is told things through, and the one whose end it does not outlive."""

    rank: int
    process: subprocess.Popen[bytes]
    pipe: Connection
    lifeline: int


@dataclass
class Workers:
    """Start with `start`, end with `close`."""

    all: list[Worker] = field(default_factory=list)
    lost: str = ""
    """What became of the first that ended unasked."""
    _closing: bool = False
    _on_lost: Callable[[], None] = lambda: None

    @classmethod
    def start(cls, jobs: Sequence[bytes], module: str = "paceline.engine.tensor_rank") -> Workers:
        """A process of `module` for each job, ranks 1 and up; they load while the caller does. Raises WorkerLost."""
        made = cls()
        for rank, job in enumerate(jobs, 1):
            made.all.append(_start(rank, module))
            made._send(made.all[-1], job)
        return made

    def wait(self, word: str) -> None:
        """Until each has said `word`: LOADED when it has its part of the span, READY when it has met the others.

        Raises what a worker says it failed with, or WorkerLost where one ended.
        """
        for worker in self.all:
            try:
                code, *why = json.loads(worker.pipe.recv_bytes())
            except (EOFError, OSError):
                self._ended(worker)
                raise self.error() from None
            if code != word:
                error = from_code(code, f"rank {worker.rank}: {why[0]}")
                error.cure = why[1]
                raise error

    def watch(self, on_lost: Callable[[], None]) -> None:
        """From now on call `on_lost`, on a thread, when a worker ends that was not told to."""
        self._on_lost = on_lost
        threading.Thread(target=self._watch, name="tensor-workers", daemon=True).start()

    def _watch(self) -> None:
        with suppress(OSError, EOFError):
            ended: Any = wait([worker.pipe for worker in self.all])
            for worker in [] if self._closing else [worker for worker in self.all if worker.pipe in ended]:
                self._ended(worker)
                self._on_lost()

    def _ended(self, worker: Worker) -> None:
        with suppress(subprocess.TimeoutExpired):
            worker.process.wait(_LAST_WORDS_S)
        status = worker.process.poll()
        how = (
            "closed its pipe" if status is None else f"killed by signal {-status}" if status < 0 else f"status {status}"
        )
        self.lost = self.lost or f"the process of rank {worker.rank} (pid {worker.process.pid}) ended: {how}"

    def tell(self, calls: Sequence[Sequence[Any]]) -> None:
        """Have every worker make `calls`. Raises WorkerLost."""
        message = json.dumps(calls).encode()
        for worker in self.all:
            self._send(worker, message)

    def _send(self, worker: Worker, message: bytes) -> None:
        try:
            worker.pipe.send_bytes(message)
        except OSError:
            self._ended(worker)
            raise self.error() from None

    def check(self) -> None:
        """Raises WorkerLost where one is known to be gone."""
        if self.lost:
            raise self.error()

    def notice(self) -> None:
        """Look whether one has ended or is just ending."""
        if not self.lost:
            with suppress(OSError, EOFError):
                ended: Any = wait([worker.pipe for worker in self.all], _LAST_WORDS_S)
                for worker in self.all:
                    if worker.pipe in ended:
                        self._ended(worker)

    @property
    def pids(self) -> list[int]:
        """Of all that have not been ended."""
        return [worker.process.pid for worker in self.all]

    def error(self, otherwise: str = "a rank stands still") -> WorkerLost:
        """What to say of a span that cannot go on. Waits a moment for a worker that is just ending."""
        self.notice()
        return WorkerLost(
            f"one of the processes that compute this span is lost: {self.lost or otherwise}",
            cure="start the node again; what rode here goes on elsewhere",
        )

    def close(self) -> None:
        """End all of them, and wait until they are gone. Idempotent."""
        self._closing = True
        self.lost = self.lost or "they were told to end"
        for worker in self.all:
            with suppress(OSError):
                os.close(worker.lifeline)
        for worker in self.all:
            try:
                worker.process.wait(_END_S)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            worker.pipe.close()
        self.all.clear()


def _start(rank: int, module: str) -> Worker:
    ours, theirs = Pipe()
    reading, lifeline = os.pipe()
    given = (theirs.fileno(), reading)
    paths = [path or os.getcwd() for path in sys.path]
    process = subprocess.Popen(
        [sys.executable, "-m", module, *map(str, given)],
        stdin=subprocess.DEVNULL,
        pass_fds=given,
        start_new_session=True,  # a terminal's Ctrl-C is the first rank's to decide
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    theirs.close()
    os.close(reading)
    return Worker(rank, process, ours, lifeline)
