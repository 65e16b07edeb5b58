"""One line of JSON for each answer, in a file: who asked, what ran it, how it ended. Never the text.

Knows results; no HTTP.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from paceline.client.results import Result
from paceline.wire.errors import InvalidRequest, PacelineError


class Audit:
    """Appends to `path`; raises InvalidRequest where it cannot be written. `unix_time` in seconds."""

    def __init__(self, path: Path, unix_time: Callable[[], float]) -> None:
        self._unix_time = unix_time
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise InvalidRequest(f"{path}: {error.strerror}", cure="name a file that can be written") from error

    def note(self, told: dict[str, Any]) -> None:
        """An answer is over."""
        self._file.write(msgspec.json.encode({"at": round(self._unix_time(), 3), **told}) + b"\n")


def record(key: str, endpoint: str, result: Result, error: PacelineError | None, *, complete: bool) -> dict[str, Any]:
    """The line. `ended`: stop, length, an error's code, or "reader left"."""
    ended = error.code if error else result.finish_reason if complete else "reader left"
    return {
        "trace": result.trace,
        "key": key,
        "endpoint": endpoint,
        "model": result.model,
        "revision": result.revision,
        "numerics": result.numerics,
        "seed": result.seed,
        "route": [f"{rider.peer}:{rider.start}-{rider.end}" for rider in result.route],
        "epochs": result.epochs,
        "failovers": [{"lost": list(f.lost), "tier": f.tier.value, "stall_s": f.stall_s} for f in result.failovers],
        "prompt_tokens": result.prompt_tokens,
        "answer_tokens": len(result.tokens),
        "ttft_s": round(result.ttft_s, 4),
        "total_s": round(result.total_s, 4),
        "ended": ended,
    }
