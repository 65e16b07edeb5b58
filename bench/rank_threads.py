"""Ranks of a tensor-parallel span as threads of this process: over the same pipes and sums as processes, but at once.

For comparing many small models, each of which would wait for a process to import torch.
"""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import cast

from paceline.engine.tensor_worker import serve
from paceline.engine.tensor_workers import Worker, Workers


class Threaded:
    """Stands where a worker's process does: a thread, which ends when its pipe closes."""

    pid = 0

    def __init__(self, theirs: Connection, ours: Connection, run: Callable[[Connection], None]) -> None:
        self._ours = ours
        self._thread = threading.Thread(target=run, args=(theirs,), daemon=True)
        self._thread.start()

    def wait(self, timeout: float = 0.0) -> None:
        """Close the pipe, and wait for the thread."""
        with socket.socket(fileno=os.dup(self._ours.fileno())) as pipe:
            pipe.shutdown(socket.SHUT_RDWR)
        self._thread.join(timeout)

    def poll(self) -> None:
        """Has no status."""


def in_threads(jobs: Sequence[bytes], run: Callable[[Connection], None] = serve) -> Workers:
    """As `Workers.start`; `run` is what each thread does with its end of the pipe."""
    made = Workers()
    for rank, job in enumerate(jobs, 1):
        ours, theirs = Pipe()
        process = cast("subprocess.Popen[bytes]", Threaded(theirs, ours, run))
        made.all.append(Worker(rank, process, ours, os.open(os.devnull, os.O_RDONLY)))
        ours.send_bytes(job)
    return made
