"""Giving back what start-up took: for a process that will serve for weeks. Knows Linux and glibc, else does nothing.

Three things stay resident after a span is loaded though nothing needs them: arenas that glibc keeps, cycles that the
imports left, and pages of the libraries' code that ran once (torch registers some ten thousand operators by code).
"""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Iterator
from pathlib import Path

_MADV_DONTNEED = 4
_M_ARENA_MAX = -8
_M_MMAP_THRESHOLD = -3
_M_TRIM_THRESHOLD = -1
_MIB = 1024 * 1024
_ARENAS = 1
"""Of glibc, for the threads that allocate at once: the event loop's and the engine's."""
_LIBRARIES = re.compile(r"/lib[^/]*\.so[^/]*$|\.so$")
_MAPS = Path("/proc/self/maps")


def few_arenas() -> None:
    """Call before threads start: each of them would keep an arena of its own.

    While a span loads, weights get mappings of their own size: in arenas they would lie between what comes and goes.
    """
    libc = _libc()
    if libc is not None:
        libc.mallopt(_M_ARENA_MAX, _ARENAS)
        libc.mallopt(_M_MMAP_THRESHOLD, _MIB // 4)


def settle() -> None:
    """Give back to the system what loading no longer needs. A few tens of milliseconds; nothing changes its meaning."""
    gc.collect()
    if not gc.get_freeze_count():  # once: what comes after the imports may become garbage
        gc.freeze()
    libc = _libc()
    if libc is None:
        return
    # From now on large blocks are activations. Measured on a prompt of 512: giving back those of 2 MB and more costs no
    # time and saves 8 MB; from 1 MB on it costs 15 % (page faults), from 256 KB on 30 %.
    libc.mallopt(_M_MMAP_THRESHOLD, 2 * _MIB)
    libc.mallopt(_M_TRIM_THRESHOLD, 8 * _MIB)
    libc.malloc_trim(0)
    for start, size in _code():
        # Read-only pages of files: the kernel maps them again from its cache when they next run.
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), _MADV_DONTNEED)


def _code() -> Iterator[tuple[int, int]]:
    """Start and size of each mapping of a library's code: never written, so no page is this process's own."""
    for line in _MAPS.read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[1] == "r-xp" and _LIBRARIES.search(fields[5]):
            start, end = (int(part, 16) for part in fields[0].split("-"))
            yield start, end - start


def _libc() -> ctypes.CDLL | None:
    if not _MAPS.exists():
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    return libc if hasattr(libc, "malloc_trim") else None
