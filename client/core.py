"""The client proper, on trio: joins the swarm, prepares requests, starts sessions. `aio` and `sync` wrap it."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import trio

from paceline.client.chooser import Chooser
from paceline.client.hedge import Hedge
from paceline.client.levels import Frontiers
from paceline.client.models import Model, Models
from paceline.client.options import GenerateOptions, Messages, Prompt
from paceline.client.ride import Ride
from paceline.client.stream import Riding, Stream
from paceline.client.swarm import Swarm
from paceline.consistency.owner import Owner, OwnerLimits, Request
from paceline.consistency.revisions import Level
from paceline.routing.ring import RingPlan, RingRequest
from paceline.routing.view import SwarmView
from paceline.store.store import Store
from paceline.wire import limits
from paceline.wire.errors import ContextOverflow, InvalidRequest, ModelNotFound, PacelineError, PeerUnavailable
from paceline.wire.ids import PeerId, Revision, SessionId
from paceline.wire.messages import PeerAddress
from paceline.wire.offers import Offer
from paceline.wire.session import SessionState


class ClientCore:
    """One client in one trio run. Use inside ``async with core.run()``."""

    def __init__(
        self,
        swarm: Swarm,
        store: Store,
        owner_limits: OwnerLimits | None = None,
        frontiers: Frontiers | None = None,
    ) -> None:
        self.swarm = swarm
        self.models = Models(swarm, store)
        self.frontiers = frontiers or Frontiers()
        self._limits = owner_limits or OwnerLimits()
        self._nursery: trio.Nursery

    @asynccontextmanager
    async def run(self) -> AsyncIterator[ClientCore]:
        """Joined during the block; sessions that still run are cancelled at its end."""
        async with self.swarm.run(), trio.open_nursery() as nursery:
            self._nursery = nursery
            yield self
            nursery.cancel_scope.cancel()

    # --- questions ----------------------------------------------------------------------------------------------

    async def offers(self) -> tuple[Offer, ...]:
        """Everything the swarm offers."""
        return await self.swarm.offers()

    async def status(self) -> list[dict[str, Any]]:
        """Each node's own account; a node that does not answer has an ``error`` instead."""
        offers = await self.swarm.offers()
        found: list[dict[str, Any]] = [{"peer": offer.peer} for offer in offers]

        async def ask(at: PeerAddress, into: dict[str, Any]) -> None:
            try:
                into.update(await self.swarm.status(at))
            except PacelineError as error:
                into["error"] = str(error)

        async with trio.open_nursery() as nursery:
            for offer, into in zip(offers, found, strict=True):
                nursery.start_soon(ask, offer.at, into)
        return found

    async def model_name(self, wanted: str | None, timeout_s: float) -> str:
        """`wanted`, or the only model the swarm serves. Raises InvalidRequest where there are several."""
        if wanted is not None:
            return wanted
        deadline = trio.current_time() + timeout_s
        while True:
            names = sorted({service.model for offer in await self.swarm.offers() for service in offer.services})
            if len(names) == 1:
                return names[0]
            if names:
                raise InvalidRequest("the swarm serves several models", cure=f"name one of: {', '.join(names)}")
            if trio.current_time() >= deadline:
                raise PeerUnavailable("the swarm is empty: no node offers anything", cure="start one: paceline node")
            await trio.sleep(0.1)

    async def model(self, options: GenerateOptions) -> Model:
        """Manifest and tokenizer of the revision that a session with `options` would ride now, if it is not one of a
        canary's. Raises as `generate`.
        """
        view, revision, _ = await self._ring_for(options)
        return await self._model(view, revision)

    # --- generation ---------------------------------------------------------------------------------------------

    async def generate(self, prompt: Prompt, options: GenerateOptions) -> Stream:
        """Start generating after `prompt` (text, or token ids)."""
        session = _new_session()
        view, revision, name = await self._ring_for(options, _lot_of(session, options))
        model = None
        if isinstance(prompt, str):
            model = await self._model(view, revision)
            ids = model.tokenizer.encode(prompt)
        else:
            ids = list(prompt)
            model = await self._model_if_any(view, revision)
        return self._start(session, ids, model, view, revision, name, options)

    async def chat(self, messages: Messages, options: GenerateOptions, **variables: Any) -> Stream:
        """Start the assistant's answer to `messages`, through the model's chat template."""
        session = _new_session()
        view, revision, name = await self._ring_for(options, _lot_of(session, options))
        model = await self._model(view, revision)
        return self._start(session, model.tokenizer.chat(messages, **variables), model, view, revision, name, options)

    async def resume(self, state: SessionState, options: GenerateOptions) -> Stream:
        """Take a session over from its exported state and go on; whoever owned it before is fenced.

        It stays in the numerics class that it began in, and with the riders that still hold its KV.
        """
        view = await self.swarm.view(state.model)
        model = await self._model_if_any(view, state.revision)
        owner = Owner.resume(state, secrets.randbits(32), trio.current_time(), self._limits)
        if state.numerics:
            options = replace(options, numerics=state.numerics)
        return self._ride(owner, model, options)

    async def repeat(self, state: SessionState, revision: bytes, options: GenerateOptions) -> Stream:
        """The request that `state` answers as a new session on another revision: the same prompt, sampling and length.

        `options`: how it rides. Raises LevelUnmet where no complete ring serves the revision.
        """
        view = await self._pinned(state.model, revision, options.timeout_s)
        request = Request(
            session=_new_session(),
            revision=Revision(revision),
            model=state.model,
            prompt=state.log[: state.prompt_length],
            max_positions=state.max_positions,
            sampling=state.sampling,
            chunk=options.chunk,
            priority=options.priority,
        )
        owner = Owner(request, secrets.randbits(32), trio.current_time(), self._limits)
        return self._ride(owner, await self._model_if_any(view, revision), options)

    async def same_tokens(self, state: SessionState, revision: bytes, timeout_s: float = 5.0) -> bool:
        """Whether a session's token ids mean the same to another revision: it has the same tokenizer, or none either.

        Raises LevelUnmet where no complete ring serves the revision.
        """
        view = await self._pinned(state.model, revision, timeout_s)
        found = [await self._model_if_any(view, it) for it in (state.revision, revision)]
        one, other = (None if it is None else it.manifest.tokenizer for it in found)
        return one == other

    async def _pinned(self, name: str, revision: bytes, timeout_s: float) -> SwarmView:
        level = Level("pinned", revision=revision)
        return (await self.frontiers.revision(self.swarm, name, level, timeout_s))[0]

    async def _ring_for(self, options: GenerateOptions, key: bytes | None = None) -> tuple[SwarmView, bytes, str]:
        name = await self.model_name(options.model, options.timeout_s)
        level = Level.parse(options.consistency)
        view, revision = await self.frontiers.revision(self.swarm, name, level, options.timeout_s, key)
        return view, revision, name

    async def _model(self, view: SwarmView, revision: bytes) -> Model:
        holders = [offer.at for offer in view.offers if any(service.revision == revision for service in offer.services)]
        return await self.models.load(revision, holders)

    async def _model_if_any(self, view: SwarmView, revision: bytes) -> Model | None:
        try:
            return await self._model(view, revision)
        except (ModelNotFound, PeerUnavailable):
            return None

    def _start(
        self,
        session: SessionId,
        ids: list[int],
        model: Model | None,
        view: SwarmView,
        revision: bytes,
        name: str,
        options: GenerateOptions,
    ) -> Stream:
        services = view.table(revision).services
        room = min(min(service.max_context for service in services), limits.MAX_CONTEXT)
        if not ids:
            raise InvalidRequest("the prompt has no tokens", cure="send at least one")
        vocabulary = model.manifest.vocab if model else limits.MAX_VOCAB
        if wrong := [token for token in ids if not 0 <= token < vocabulary]:
            raise InvalidRequest(f"token id {wrong[0]} is not one of the {vocabulary} of {name}")
        if len(ids) >= room:
            raise ContextOverflow(f"the prompt has {len(ids)} tokens, {name} takes {room}", cure="shorten it")
        request = Request(
            session=session,
            revision=Revision(revision),
            model=name,
            prompt=tuple(ids),
            max_positions=min(len(ids) + options.max_tokens, room),
            sampling=options.sampling(model.manifest.eos_ids if model else ()),
            chunk=options.chunk,
            trace=options.trace or options.avoid_stragglers,
            priority=options.priority,
        )
        owner = self._owner(request)
        other = self._owner(replace(request, session=SessionId(os.urandom(16)))) if options.hedge else None
        return self._ride(owner, model, options, other)

    def _owner(self, request: Request) -> Owner:
        return Owner(request, secrets.randbits(32), trio.current_time(), self._limits)

    def _ride(self, owner: Owner, model: Model | None, options: GenerateOptions, other: Owner | None = None) -> Stream:
        """`other`: the same request once more, to be run beside it until either has its first token."""
        request = owner.request
        ring = RingRequest(
            request.revision,
            positions=request.max_positions,
            prompt=len(request.prompt),
            numerics=options.numerics,
            trusted=options.trusted,
            regions=options.regions,
            ends=options.ends,
            max_stages=options.max_stages,
            chunk=options.chunk,
            objective=options.objective,
            seed=int.from_bytes(request.session[:8], "big"),
        )
        stream = Stream(model.tokenizer if model else None, options.stops())
        stream.remember(owner.log[len(request.prompt) :])
        chooser = Chooser(self.swarm, request.model, ring, shadows=options.shadows, prompt=request.prompt)
        ride: Riding = Ride(self.swarm, owner, chooser, stream.on_token)
        if other is not None:

            def beside(plan: RingPlan) -> Chooser:
                alike = replace(ring, numerics=plan.numerics)  # else its tokens might be others
                return Chooser(self.swarm, request.model, alike, shadows=options.shadows)

            ride = Hedge(self.swarm, (owner, other), chooser, beside, stream.on_token)
        stream.ride = ride
        self._nursery.start_soon(stream.run, ride, frozenset[PeerId]())
        return stream


def _new_session() -> SessionId:
    return SessionId(os.urandom(16))


def _lot_of(session: SessionId, options: GenerateOptions) -> bytes:
    """What a session draws for a canary by: the seed, where the user chose one, so that it stays on its revision."""
    return session if options.seed is None else f"seed {options.seed}".encode()


def unix_time() -> float:
    """Seconds since 1970: the clock that offers are dated by."""
    return time.time()
