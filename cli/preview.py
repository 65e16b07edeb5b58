"""`paceline node --preview`: which layers this machine would take in the swarm as it is now, and what that would do."""

from __future__ import annotations

import hashlib
import sys
import time
from typing import TYPE_CHECKING

from rich.table import Table

from paceline.cli.console import console

if TYPE_CHECKING:
    from paceline.client.core import ClientCore
    from paceline.node.daemon import DaemonConfig
    from paceline.node.placing import Subject
    from paceline.routing.view import SwarmView
    from paceline.store.manifest import Manifest
    from paceline.wire.ids import Span


def show(config: DaemonConfig) -> None:
    """Print the choice. Raises InvalidRequest, PeerUnavailable, ModelNotFound."""
    import trio

    sys.stdout.write(trio.run(_preview, config) + "\n")


async def _preview(config: DaemonConfig) -> str:
    import trio

    from paceline.client.connect import ClientConfig, connect
    from paceline.node.machine import subject_of
    from paceline.routing.placement import choose_span, holders

    async with connect(ClientConfig(config.bootstrap, config.home, link_profile=config.link_profile)) as core:
        view, manifest = await _model(core, config.load.model)
        subject = await trio.to_thread.run_sync(subject_of, manifest, config.load, config.room_bytes)
        others = holders(view.table(manifest.revision))
        await trio.sleep(0.5)  # round trips of the links just opened
        tie_break = int.from_bytes(hashlib.sha256(str(config.identity).encode()).digest()[:4])
        found = choose_span(subject.blank.layers, others, subject.device, _Rings(core, view, subject), tie_break)
    _table(view, manifest.revision)
    device = subject.device
    return (
        f"this machine: room for {device.capacity} of {subject.blank.layers} layers, about "
        f"{device.per_layer_s * 1e3:.2f} ms a layer (read from memory; measured once loaded)\n{found}"
    )


class _Rings:
    """Token time of the best ring if this machine held a span, as near to others as this process has measured."""

    def __init__(self, core: ClientCore, view: SwarmView, subject: Subject) -> None:
        from paceline.wire.ids import PeerId

        links = core.swarm.links
        measured = ((offer.peer, links.rtt_s(PeerId(offer.peer))) for offer in view.offers)
        self._rtts = tuple((peer, rtt) for peer, rtt in measured if rtt is not None)[:32]
        self._view, self._subject = view, subject

    def __call__(self, span: Span) -> float:
        from msgspec import structs

        from paceline.routing.ring import RingRequest, cheapest_ring
        from paceline.routing.view import swarm_view
        from paceline.wire.errors import NoRoute
        from paceline.wire.messages import PeerAddress
        from paceline.wire.offers import Offer

        blank, now = self._subject.blank, time.time()
        ready = structs.replace(self._subject.planned(span), kv_free=blank.max_context)
        mine = Offer(PeerAddress("this machine"), 1, now, now + 60.0, (ready,), rtts=self._rtts)
        view = swarm_view(blank.model, [*self._view.offers, mine], now=now)
        try:
            return cheapest_ring(view, RingRequest(blank.revision, mix_numerics=True)).token_s
        except NoRoute:
            return float("inf")


async def _model(core: ClientCore, wanted: str) -> tuple[SwarmView, Manifest]:
    """The swarm's view of the model, and its manifest."""
    from paceline.wire.errors import ModelNotFound

    view = await core.swarm.view(wanted)
    if not view.revisions:
        served = sorted({service.model for offer in await core.offers() for service in offer.services})
        raise ModelNotFound(f"no node serves {wanted!r}", cure=f"served here: {', '.join(served) or 'nothing'}")
    revision = max(view.revisions, key=lambda one: len(view.table(one)))
    holders = [offer.at for offer in view.offers if any(service.revision == revision for service in offer.services)]
    return view, (await core.models.load(revision, holders)).manifest


def _table(view: SwarmView, revision: bytes) -> None:
    table = Table("node", "state", "layers", "decode")
    for offer in view.offers:
        for service in offer.services:
            if service.revision == revision:
                decode = f"{service.measured.decode_s * 1e3:.1f} ms"
                table.add_row(offer.peer[-8:], offer.state, str(service.span), decode)
    console.print(table)
