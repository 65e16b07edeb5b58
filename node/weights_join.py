"""From an empty store to a loaded span: which revision, fetched from whom, and loaded; or at once where all is here.

Knows the daemon's settings, weights and the engine. The order of sources: this machine's store, the swarm, what the
owner has named besides, and for the default model the package that it ships in.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import msgspec
import trio

from paceline.engine import default_model
from paceline.engine.loading import LoadConfig, Loaded, load_beside, load_service, resolve_span
from paceline.node.engine_thread import Engine, handoff_s
from paceline.node.grammar import Grammars
from paceline.node.node import Node
from paceline.node.services import LoadedService
from paceline.node.weights import Weights
from paceline.node.weights_source import refill
from paceline.store.manifest import Manifest
from paceline.wire.errors import CorruptBlock, ModelNotFound, PeerUnavailable
from paceline.wire.ids import Revision, Span

Report = Callable[[str, int, int], None]

_BRISK_S = 0.0005
"""While a thread loads, it gives the interpreter back this often: each token needs it several times on each node."""

_DEFAULT = (default_model.NAME, default_model.REVISION)


class Joiner:
    """Brings one node's span to where it can be served. `shadow`: offered as a standby."""

    def __init__(
        self,
        weights: Weights,
        engine: Engine,
        config: LoadConfig,
        report: Report,
        *,
        alone: bool,
        shadow: bool,
        source: str = "",
    ) -> None:
        """`alone`: there is no swarm to fetch from. `source`: a folder, file or hub id for what no peer sends."""
        self.weights = weights
        self.config = config
        self._engine = engine
        self._report = report
        self._alone = alone
        self._shadow = shadow
        self._source = source

    def here(self) -> LoadConfig | None:
        """What to load without asking anybody; None where the swarm has to be asked."""
        revision = self._revision()
        if revision is None:
            return self.config if self._alone and self.config.model in _DEFAULT else None
        self.weights.store.lease.hold(revision)
        try:
            manifest = self.weights.store.manifest(revision)
        except ModelNotFound:
            return self.config if self._alone and revision.hex() == default_model.REVISION else None
        if self.weights.missing(manifest, resolve_span(manifest, self.config.span)):
            return self.config if self._alone and revision.hex() == default_model.REVISION else None
        return replace(self.config, model=revision.hex())

    def _revision(self) -> Revision | None:
        found = self.weights.local(self.config.model)
        if found is None and self.config.model in _DEFAULT:
            return Revision(bytes.fromhex(default_model.REVISION))
        return found

    async def load(self, config: LoadConfig) -> LoadedService:
        """On the engine's thread. Raises as `engine.loading.load_service`."""
        if config.model in _DEFAULT:
            self.weights.store.lease.hold(Revision(bytes.fromhex(default_model.REVISION)))
        loaded: Loaded = await self._engine.run(load_service, self.weights.store, config, self._report)
        measured = msgspec.structs.replace(loaded.measured, fixed_s=await handoff_s(self._engine))
        grammars = self._grammars(loaded.revision)
        return LoadedService(loaded.model, loaded.revision, loaded.shard, measured, self._shadow, grammars)

    def _grammars(self, revision: Revision) -> Grammars | None:
        store = self.weights.store
        manifest = store.manifest(revision)
        block = manifest.tokenizer
        return None if block is None else Grammars(lambda: store.path(block.digest), manifest.vocab, manifest.eos_ids)

    async def beside(self, node: Node, manifest: Manifest, running: LoadedService) -> LoadedService:
        """The same span of another revision, while `running` goes on: fetched, and loaded on another thread."""
        span = running.shard.span
        await self._ensure(node, manifest, span)
        config = replace(self.config, model=manifest.revision.hex(), span=str(span))
        call = partial(load_beside, self.weights.store, manifest, config, running.shard)
        usual = sys.getswitchinterval()
        sys.setswitchinterval(_BRISK_S)
        try:
            shard = await trio.to_thread.run_sync(call)
        finally:
            sys.setswitchinterval(usual)
        grammars = self._grammars(manifest.revision)
        return LoadedService(manifest.name, manifest.revision, shard, running.measured, running.shadow, grammars)

    async def join(self, node: Node) -> LoadedService:
        """Fetch what the span needs through a running node's links, and load it. Raises typed errors."""
        try:
            manifest = await self._manifest(node)
            await self._ensure(node, manifest, resolve_span(manifest, self.config.span))
        except PeerUnavailable:
            if self.config.model not in _DEFAULT:
                raise
            return await self.load(self.config)  # the package has it
        return await self.load(replace(self.config, model=manifest.revision.hex()))

    async def _ensure(self, node: Node, manifest: Manifest, span: Span) -> None:
        """All blocks of a span: from peers, else from the source that the owner has named, if there is one."""
        assert node.fetcher is not None
        if not (self._alone and self._source):
            try:
                await self.weights.ensure(manifest, span, node.fetcher, node.directory.offers, self._report)
            except (PeerUnavailable, CorruptBlock):
                if not self._source:
                    raise
            else:
                return
        self._report("source", 0, 0)
        await refill(self.weights.store, manifest, span, self._source, node.fetcher.in_thread)

    async def manifest(self, node: Node) -> Manifest:
        """What the wanted model consists of: from here, the swarm, or the package. Raises typed errors."""
        try:
            return await self._manifest(node)
        except PeerUnavailable:
            if self.config.model not in _DEFAULT:
                raise
            return await trio.to_thread.run_sync(default_model.ensure, self.weights.store, self._report)

    async def _manifest(self, node: Node) -> Manifest:
        assert node.fetcher is not None
        offers = partial(node.directory.offers)
        revision = self._revision() or await self.weights.revision(self.config.model, offers)
        patience_s = 0.0 if self._alone else 5.0 if revision.hex() == default_model.REVISION else 20.0
        return await self.weights.manifest(revision, node.fetcher, offers, patience_s)
