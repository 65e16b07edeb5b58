"""A gateway on the toy swarm, asked over ASGI without a socket: bodies arrive piece by piece, and readers can leave."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from paceline.client.core import ClientCore
from paceline.consistency.owner import OwnerLimits
from paceline.gateway.app import Gateway, gateway
from paceline.gateway.config import GatewayConfig
from tests.gateway.toying import TextSwarm


@dataclass
class Answer:
    """One response as it comes in. `leave` is what a closed connection does."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    begun: trio.Event = field(default_factory=trio.Event)
    over: trio.Event = field(default_factory=trio.Event)
    gone: trio.Event = field(default_factory=trio.Event)
    changed: trio.Condition = field(default_factory=trio.Condition)

    def leave(self) -> None:
        """Close the connection."""
        self.gone.set()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[dict[str, str]]:
        """Server-sent events so far: fields by name."""
        blocks = [block for block in self.body.decode().split("\n\n") if block]
        return [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]

    @property
    def chunks(self) -> list[Any]:
        """The events' JSON."""
        return [json.loads(event["data"]) for event in self.events if event["data"] != "[DONE]"]

    @property
    def text(self) -> str:
        """Text of a chat stream so far."""
        choices = [choice for chunk in self.chunks for choice in chunk.get("choices", ())]
        return "".join(choice["delta"].get("content", "") for choice in choices)

    async def until(self, events: int) -> None:
        """Until so many events have come."""
        async with self.changed:
            while len(self.events) < events and not self.over.is_set():
                await self.changed.wait()


@dataclass
class Asker:
    """Requests to one gateway."""

    gateway: Gateway
    core: ClientCore
    nursery: trio.Nursery

    async def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        """GET, to the end of the response."""
        answer = self.begin("GET", path, headers=headers)
        await answer.over.wait()
        return answer

    async def post(self, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Answer:
        """POST JSON, to the end of the response."""
        answer = self.begin("POST", path, body, headers)
        await answer.over.wait()
        return answer

    def begin(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        """Send a request; its answer fills while others run. Bytes are sent as they are, other bodies as JSON."""
        answer = Answer()
        sent = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        all_headers = {"content-type": "application/json", **(headers or {})}
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in all_headers.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "state": {},
        }
        self.nursery.start_soon(self._run, scope, sent, answer)
        return answer

    async def _run(self, scope: dict[str, Any], sent: bytes, answer: Answer) -> None:
        waiting = [sent]

        async def receive() -> dict[str, Any]:
            if waiting:
                return {"type": "http.request", "body": waiting.pop(), "more_body": False}
            await answer.gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            await trio.lowlevel.checkpoint()
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
                answer.begun.set()
            else:
                answer.body += message.get("body", b"")
            async with answer.changed:
                answer.changed.notify_all()

        try:
            await self.gateway.app(scope, receive, send)
        finally:
            answer.over.set()
            with trio.CancelScope(shield=True):
                async with answer.changed:
                    answer.changed.notify_all()


@asynccontextmanager
async def asking(
    swarm: TextSwarm, config: GatewayConfig | None = None, limits: OwnerLimits | None = None
) -> AsyncIterator[Asker]:
    """A gateway of `swarm`."""
    async with swarm.client(limits) as core, trio.open_nursery() as nursery:
        yield Asker(gateway(core, config or GatewayConfig(ring_wait_s=1.0)), core, nursery)
        nursery.cancel_scope.cancel()
