"""The process of a rank other than the first: started by engine.tensor_workers, never by hand.

``python -m paceline.engine.tensor_rank FD LIFELINE``: the socket that it is told things through, and a pipe that only
the first rank holds open. When that closes the process ends, whatever it is doing, importing included, so that no rank
outlives the first; signals that a service manager sends to all are left to the first.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from multiprocessing.connection import Connection


def main() -> None:
    """The process. What it computes with is imported once it cannot be left behind any more."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    pipe, lifeline = (int(number) for number in sys.argv[1:])
    threading.Thread(target=_live_no_longer_than, args=(lifeline,), daemon=True).start()
    from paceline.engine.memory import few_arenas

    few_arenas()
    from paceline.engine.tensor_worker import serve

    serve(Connection(pipe))
    sys.stdout.flush()
    os._exit(0)  # no destructors of groups and devices, which may wait for ranks that are gone


def _live_no_longer_than(lifeline: int) -> None:
    os.read(lifeline, 1)
    os._exit(0)


if __name__ == "__main__":
    main()
