"""A client's place in the swarm: its links, its view of the offers, and who is waiting for which answer.

Sessions subscribe by id and get their messages in order; requests (status, blocks) get theirs by number. Knows no token
and no text.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, get_args

import msgspec
import trio

from paceline.client.losses import Losses
from paceline.client.prefixes import Prefixes
from paceline.client.stragglers import Stragglers
from paceline.consistency.owner import farewell
from paceline.dht.directory import Directory
from paceline.net.links import Links, LinksConfig
from paceline.net.transport import Transport
from paceline.routing.view import SwarmView, swarm_view
from paceline.wire import limits
from paceline.wire.errors import (
    CorruptBlock,
    DeadlineExceeded,
    Malformed,
    Overloaded,
    PacelineError,
    PeerUnavailable,
)
from paceline.wire.ids import PeerId
from paceline.wire.messages import (
    BlockPiece,
    BlockRequest,
    Message,
    PeerAddress,
    SessionMessage,
    Status,
    StatusRequest,
)
from paceline.wire.offers import Offer

SESSION_MESSAGES = get_args(SessionMessage)
WARM_LINKS = 16
"""Links opened ahead of need to offered nodes: they measure round trips, and spare the first request its dials."""

MOST_COMPLETED = 4
"""Revisions whose missing layers are looked for at once."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """A message of a session."""

    peer: PeerId
    message: SessionMessage


@dataclass(frozen=True, slots=True)
class LinkLost:
    """The link to `peer` fell."""

    peer: PeerId


SessionEvent = Arrived | LinkLost


class Swarm:
    """See the module's docstring. `unix_time` judges the age of offers."""

    def __init__(
        self,
        transport: Transport,
        directory: Directory,
        *,
        unix_time: Callable[[], float],
        links: LinksConfig | None = None,
    ) -> None:
        self.directory = directory
        self.links = Links(transport, self._on_message, self._on_lost, links or LinksConfig())
        self.unix_time = unix_time
        self._sessions: dict[bytes, list[trio.MemorySendChannel[SessionEvent]]] = {}
        """Two inboxes where a session is resumed in the process that owns it: epochs tell whose a message is."""
        self._answers: dict[int, trio.MemorySendChannel[tuple[PeerId, Message, bytes]]] = {}
        self._next_request = 0
        self._noticed: dict[PeerId, float] = {}
        """When it was first seen that the link to a peer had fallen, in unix seconds."""
        self.stragglers = Stragglers(unix_time)
        self.losses = Losses(unix_time)
        self.prefixes = Prefixes(unix_time)

    @asynccontextmanager
    async def run(self) -> AsyncIterator[Swarm]:
        """Joined to the swarm during the block. Raises PeerUnavailable where no member can be reached."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.links.run())
            await stack.enter_async_context(self.directory.run())
            yield self

    # --- messages -----------------------------------------------------------------------------------------------

    def _on_message(self, peer: PeerId, message: Message, payload: memoryview) -> None:
        if isinstance(message, SESSION_MESSAGES):
            inboxes = self._sessions.get(message.session)
            if inboxes is not None:
                for inbox in inboxes:
                    inbox.send_nowait(Arrived(peer, message))
            elif (close := farewell(message)) is not None:
                self.send(peer, close)
        elif isinstance(message, Status | BlockPiece):
            answer = self._answers.get(message.request)
            if answer is not None:
                answer.send_nowait((peer, message, bytes(payload)))

    def _on_lost(self, peer: PeerId, error: PacelineError) -> None:
        for inbox in chain.from_iterable(self._sessions.values()):
            inbox.send_nowait(LinkLost(peer))

    @asynccontextmanager
    async def subscribe(self, session: bytes) -> AsyncIterator[trio.MemoryReceiveChannel[SessionEvent]]:
        """Everything that concerns one session. Its length is bounded by the session's tokens and the links' ends."""
        send, receive = trio.open_memory_channel[SessionEvent](float("inf"))
        self._sessions.setdefault(session, []).append(send)
        try:
            yield receive
        finally:
            self._sessions[session].remove(send)
            if not self._sessions[session]:
                del self._sessions[session]
            send.close()

    def send(self, to: PeerAddress | PeerId, message: Message) -> None:
        """Never blocks. A full outbox counts as a lost message: the protocol's deadlines deal with it."""
        try:
            if isinstance(to, PeerAddress):
                self.links.send(to, message)
            else:
                self.links.reply(to, message)
        except Overloaded:
            return

    # --- the swarm ----------------------------------------------------------------------------------------------

    async def offers(self, model: str | None = None) -> tuple[Offer, ...]:
        """Live offers; opens links to some of them ahead of need."""
        found = tuple(await self.directory.offers(model))
        gone = self.fallen(found)
        for offer in found[:WARM_LINKS]:
            peer = PeerId(offer.peer)
            self.links.want(offer.at, now=peer not in gone and self.links.fallen_s(peer) is not None)
        return found

    def fallen(self, offers: Iterable[Offer]) -> frozenset[PeerId]:
        """Peers whose link fell a short while ago, and that have not announced themselves since that was noticed.

        Their offer lives on for seconds. Clocks of others decide here, so this is a hint and no verdict.
        """
        self._noticed = {peer: at for peer, at in self._noticed.items() if self.links.fallen_s(peer) is not None}
        down = {PeerId(o.peer): o.issued_at for o in offers if self.links.fallen_s(PeerId(o.peer)) is not None}
        for peer in down:
            self._noticed.setdefault(peer, self.unix_time())
        return frozenset(peer for peer, issued_at in down.items() if issued_at <= self._noticed[peer])

    async def cover(self, view: SwarmView, revision: bytes, missing: Sequence[int], layers: int = 0) -> bool:
        """Look for nodes with these layers beyond the view; True where some were found, and a new view has them."""
        layers = layers or view.table(revision).layers
        return bool(missing) and await self.directory.cover(revision, layers, missing) > 0

    async def complete(self, view: SwarmView) -> bool:
        """The same for whatever a view lacks of its revisions, where it has no complete one."""
        lacking = [view.coverage(revision) for revision in view.revisions[:MOST_COMPLETED]]
        found = [await self.cover(view, it.revision, it.missing) for it in lacking]
        return any(found)

    async def view(self, model: str) -> SwarmView:
        """What routing decides on, now."""
        found = await self.offers(model)
        measured = ((offer.peer, self.links.rtt_s(PeerId(offer.peer))) for offer in found)
        rtts = {peer: rtt for peer, rtt in measured if rtt is not None}
        return swarm_view(model, found, now=self.unix_time(), client_rtts=rtts)

    # --- requests -----------------------------------------------------------------------------------------------

    async def status(self, at: PeerAddress, timeout_s: float = 5.0) -> dict[str, Any]:
        """A node's account of itself. Raises PeerUnavailable; Malformed where it is no JSON object."""
        request = self._number()
        _, message, _ = await self._ask(at, StatusRequest(request), request, timeout_s)
        if not isinstance(message, Status):
            raise PeerUnavailable("answered something else", peer=at.peer)
        try:
            return msgspec.json.decode(message.json, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Malformed(f"its status cannot be read: {error}", peer=at.peer) from error

    async def block(
        self,
        at: PeerAddress,
        digest: bytes,
        *,
        most: int = 256 * 1024 * 1024,
        timeout_s: float = 20.0,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> bytes:
        """One whole block, not yet verified, in pieces. Raises PeerUnavailable where the peer does not have it."""
        data = bytearray()
        while True:
            request = self._number()
            wanted = BlockRequest(request, digest, len(data), limits.MAX_BLOCK_PIECE_BYTES)
            _, message, piece = await self._ask(at, wanted, request, timeout_s)
            if not isinstance(message, BlockPiece) or message.total == 0 or not piece:
                raise PeerUnavailable(f"does not hold block {digest.hex()[:12]}", peer=at.peer)
            if message.total > most:
                raise CorruptBlock(f"block of {message.total} bytes is over the limit of {most}", peer=at.peer)
            data += piece
            progress(len(data), message.total)
            if len(data) >= message.total:
                return bytes(data)

    def _number(self) -> int:
        self._next_request = (self._next_request + 1) % (1 << 32)
        return self._next_request

    async def _ask(
        self, at: PeerAddress, question: Message, request: int, timeout_s: float
    ) -> tuple[PeerId, Message, bytes]:
        send, receive = trio.open_memory_channel[tuple[PeerId, Message, bytes]](1)
        self._answers[request] = send
        try:
            with trio.move_on_after(timeout_s):
                await self.links.connect(at, timeout_s)
                self.links.send(at, question)
                return await receive.receive()
        finally:
            del self._answers[request]
        raise DeadlineExceeded(f"no answer within {timeout_s:g} s", peer=at.peer)
