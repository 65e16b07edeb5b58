"""Ctrl-C at any moment leaves no process and no traceback: of `up`, `node` and an answer, early, in the middle, late.

The first tenth of a second, while the interpreter itself starts, is CPython's: no line of ours has run by then.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from paceline.cli.local_swarm import LocalSwarm

QUIET_STATUS = {0, 1, 130, -signal.SIGINT}
"""0: left in order; 130 and the signal: ended at once; 1: told in one line that something it needed went away."""


@pytest.fixture
def start(home: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command in a session of its own, as a terminal would; it prints each module that it has imported."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-X", "importtime", "-m", "paceline.cli", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, "PACELINE_HOME": str(home)},
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def interrupt(process: subprocess.Popen[str]) -> tuple[str, list[psutil.Process]]:
    """Ctrl-C for the whole foreground group; what was printed, and which children still live afterwards."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        children = []
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
    printed, _ = process.communicate(timeout=40)
    _, alive = psutil.wait_procs(children, timeout=20)
    return printed, alive


def check(process: subprocess.Popen[str]) -> None:
    printed, alive = interrupt(process)
    assert "Traceback" not in printed, printed
    assert not alive
    assert process.returncode in QUIET_STATUS


def read_until(process: subprocess.Popen[str], text: str) -> None:
    """Until a line of its output matches `text`: a module it has imported, or something it says."""
    assert process.stdout is not None
    for line in process.stdout:
        if re.search(text, line):
            return
    pytest.fail(f"{text!r} was never printed")


@pytest.mark.parametrize("moment", [r"\| +typer$", "cli.local_swarm", "nodes ready", "swarm is up"])
def test_up(start: Callable[..., subprocess.Popen[str]], moment: str) -> None:
    process = start("up", "--nodes", "2")
    read_until(process, moment)
    check(process)


@pytest.mark.parametrize(
    "moment", [r"\| +typer$", r"\| +libp2p$", r"\| +torch$", "loading the span", "measuring", "join with"]
)
def test_node(start: Callable[..., subprocess.Popen[str]], moment: str) -> None:
    process = start("node", "--span", "0:1", "--listen", "127.0.0.1", "--name", "interrupted")
    read_until(process, moment)
    check(process)


@pytest.mark.parametrize("moment", [r"\| +typer$", r"\| +trio$", r"\| +libp2p$", "client.connect", r"^\d+$"])
def test_an_answer(start: Callable[..., subprocess.Popen[str]], swarm: LocalSwarm, moment: str) -> None:
    process = start("generate", "1\n2\n3\n4\n5\n6\n", "--swarm", swarm.bootstrap[0])
    read_until(process, moment)
    check(process)
