"""How the command line speaks: one console for people (stderr), progress bars, typed errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from paceline.wire.errors import PacelineError

console = Console(stderr=True, highlight=False)

Report = Callable[[str, int, int], None]

_WORDS = {
    "download": "fetching the model",
    "verify": "verifying",
    "convert": "converting once",
    "source": "converting the source again",
    "fetch": "fetching blocks from peers",
    "load": "loading the span",
    "measure": "measuring this machine",
}


def fail(error: PacelineError) -> NoReturn:
    """One line with the cure, and exit status 1."""
    console.print(f"[bold red]error[/] ({error.code}): {error.message}", soft_wrap=True)
    if error.peer:
        console.print(f"  peer: {error.peer}", soft_wrap=True)
    if error.cure:
        console.print(f"  [bold]cure[/]: {error.cure}", soft_wrap=True)
    raise SystemExit(1)


@contextmanager
def progress(label: str = "") -> Iterator[Report]:
    """A reporter of long work: a bar a step on a terminal, a line a step elsewhere."""
    if not console.is_terminal:
        yield _lines(label)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            for other, task in tasks.items():
                if other != what:
                    bars.update(task, visible=False)
            if what not in tasks:
                tasks[what] = bars.add_task(f"{label}{_WORDS.get(what, what)}", total=total or None)
            bars.update(tasks[what], completed=done, total=total or None)

        yield report


def _lines(label: str) -> Report:
    told: set[str] = set()

    def report(what: str, done: int, total: int) -> None:
        if what not in told:
            told.add(what)
            console.print(f"{label}{_WORDS.get(what, what)} …")

    return report
