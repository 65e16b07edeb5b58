"""The swarm as the web page shows it: what nodes offer, and what each says of itself, asked at most once a second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import trio
from msgspec import Struct

from paceline.client.core import ClientCore
from paceline.wire.errors import PacelineError
from paceline.wire.ids import PeerId
from paceline.wire.messages import PeerAddress
from paceline.wire.offers import Offer

ASKED = 64
"""At most so many nodes are asked for their own account; of the rest only the offer is shown."""

ANSWER_S = 1.0


class ServiceStatus(Struct, frozen=True):
    kv_free: int = 0
    sessions: int = 0


class NodeStatus(Struct, frozen=True):
    """What the page shows of a node's account. A node is a stranger: nothing else of its words is passed on."""

    state: str = ""
    sessions: int = 0
    engine: dict[str, float] = {}
    rss_bytes: int = 0
    rtt_s: dict[str, float | None] = {}
    services: list[ServiceStatus] = []


class SwarmMap:
    """`fresh_s`: how long an answer is good for."""

    def __init__(self, core: ClientCore, fresh_s: float) -> None:
        self._core = core
        self._fresh_s = fresh_s
        self._asking = trio.Lock()
        self._at = float("-inf")
        self._map: dict[str, Any] = {}

    async def now(self) -> dict[str, Any]:
        """``{"nodes": […], "models": […], "join": …}``; see docs/gateway.md."""
        async with self._asking:
            if trio.current_time() - self._at >= self._fresh_s:
                self._map = await self._ask()
                self._at = trio.current_time()
        return self._map

    async def _ask(self) -> dict[str, Any]:
        offers = await self._core.offers()
        nodes = [self._offered(offer) for offer in offers]
        async with trio.open_nursery() as nursery:
            for offer, node in zip(offers[:ASKED], nodes, strict=False):
                nursery.start_soon(self._status, offer.at, node)
        return {"nodes": nodes, "models": _models(nodes), "join": _join(offers)}

    def _offered(self, offer: Offer) -> dict[str, Any]:
        return {
            "peer": offer.peer,
            "agent": offer.agent,
            "state": offer.state,
            "rtt_s": self._core.swarm.links.rtt_s(PeerId(offer.peer)),
            "links": dict(offer.rtts),
            "services": [
                {
                    "model": service.model,
                    "revision": service.revision.hex(),
                    "start": service.start,
                    "end": service.end,
                    "layers": service.layers,
                    "numerics": service.numerics,
                    "decode_s": service.measured.decode_s,
                    "kv_free": service.kv_free,
                    "sessions": service.sessions,
                    "shadow": service.shadow,
                }
                for service in offer.services
            ],
        }

    async def _status(self, at: PeerAddress, node: dict[str, Any]) -> None:
        try:
            told = msgspec.convert(await self._core.swarm.status(at, ANSWER_S), NodeStatus)
        except PacelineError as error:
            node["silent"] = error.message
            return
        except ValueError:  # JSON that is none, or of another shape (msgspec's errors are ValueErrors)
            node["silent"] = "its account cannot be read"
            return
        node |= {"state": told.state, "sessions": told.sessions, "engine": told.engine, "rss_bytes": told.rss_bytes}
        node["links"] = {peer: rtt for peer, rtt in told.rtt_s.items() if rtt is not None}
        for mine, theirs in zip(node["services"], told.services, strict=False):
            mine |= {"kv_free": theirs.kv_free, "sessions": theirs.sessions}


def _models(nodes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry a revision, with how many nodes hold each layer: no standbys, none that leave or are silent."""
    held: dict[tuple[str, str], list[int]] = {}
    for node in nodes:
        there = node["state"] == "serving" and "silent" not in node
        for service in node["services"]:
            replicas = held.setdefault((service["model"], service["revision"]), [0] * service["layers"])
            for layer in range(service["start"], min(service["end"], len(replicas))):
                replicas[layer] += there and not service["shadow"]
    return [
        {"model": model, "revision": revision, "replicas": replicas, "ready": all(replicas)}
        for (model, revision), replicas in sorted(held.items())
    ]


def _join(offers: tuple[Offer, ...]) -> str:
    """What a person types on another machine; empty where nobody says where to."""
    members = [f"{_widest(offer.at.control)}/p2p/{offer.peer}" for offer in offers if offer.at.control]
    return "paceline node --swarm " + " --swarm ".join(members[:2]) if members else ""


def _widest(addresses: Sequence[str]) -> str:
    """The first address that another machine can use, if there is one."""
    return next((each for each in addresses if not each.startswith(("/ip4/127.", "/ip6/::1/"))), addresses[0])
