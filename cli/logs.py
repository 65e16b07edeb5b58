"""`paceline --log FILE`: what happens, one line of JSON an event, for machines to read. Never what anybody said.

Rooms tell ``logging.getLogger("paceline.…")`` an event's name and, as its only argument, its facts by name. `trace` is
the name of an answer everywhere: in the logs of gateway and nodes, in spans, and in ``x-paceline-trace``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from paceline.wire.errors import InvalidRequest


class Lines(logging.Formatter):
    """A record as a line of JSON. `at`: unix seconds."""

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        facts = record.args if isinstance(record.args, Mapping) else {}
        told: dict[str, Any] = {
            "at": round(record.created, 3),
            "level": record.levelname.lower(),
            "room": record.name.removeprefix("paceline."),
            "event": record.getMessage(),
            "pid": record.process,
            **facts,
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False, default=str)


def log_to(file: str) -> logging.Handler:
    """From now on, events of all rooms are appended to `file`; "-" is standard error. Raises InvalidRequest."""
    try:
        handler = logging.StreamHandler() if file == "-" else logging.FileHandler(file, encoding="utf-8")
    except OSError as error:
        raise InvalidRequest(f"{file}: {error.strerror}", cure="name a file that can be written") from error
    handler.setFormatter(Lines())
    log = logging.getLogger("paceline")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    return handler
