"""What Ctrl-C does: ends the process at once and quietly while there is nothing to clean up, and later raises
KeyboardInterrupt where a command has asked for it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130


def end_at_once() -> None:
    """Ctrl-C ends the process here and now. For start-up: imports, argument parsing, loading."""
    signal.signal(signal.SIGINT, _end)


def raise_instead() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt: the command has something to close."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def deferred() -> Iterator[None]:
    """Ctrl-C waits until the block is over: for starting threads that could not be stopped half-way."""
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda signum, _: came.append(signum))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


def end(status: int = INTERRUPTED) -> None:
    """End the process without waiting for threads or running handlers; shows a hidden cursor again."""
    if sys.stderr.isatty():
        sys.stderr.write("\x1b[?25h\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _end(signum: int, frame: FrameType | None) -> None:
    if sys.stderr.isatty():
        os.write(2, b"\x1b[?25h\n")
    os._exit(INTERRUPTED)
