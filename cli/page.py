"""The gateway beside a local swarm, in the process of `paceline up`: its page and API for the time of a block."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from anyio.from_thread import start_blocking_portal

if TYPE_CHECKING:
    from anyio.abc import TaskStatus


@contextmanager
def gateway_page(bootstrap: Sequence[str], home: Path, port: int) -> Iterator[str]:
    """The page's URL, on loopback. `port` 0: any free one. Raises InvalidRequest where the port is taken."""
    from paceline.client.connect import ClientConfig, connect
    from paceline.gateway.config import GatewayConfig
    from paceline.gateway.serving import serve

    async def run(*, task_status: TaskStatus[str]) -> None:
        async with connect(ClientConfig(tuple(bootstrap), home)) as core:
            await serve(core, GatewayConfig(port=port), started=task_status.started)

    with start_blocking_portal(backend="trio") as portal:
        served, url = portal.start_task(run)
        try:
            yield f"{url}/"
        finally:
            served.cancel()


def opened(url: str) -> tuple[int, int]:
    """HTTP status and bytes of the page, fetched as a browser would."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.status, len(answer.read())
