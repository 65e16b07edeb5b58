"""A model's manifest and tokenizer: from the local store, else from the nodes that serve it, verified by hash."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256

import trio

from paceline.client.swarm import Swarm
from paceline.client.tokenizer import Tokenizer
from paceline.store.leases import touch
from paceline.store.manifest import MAX_MANIFEST_BYTES, Block, Manifest, decode
from paceline.store.store import Store
from paceline.wire.errors import CorruptBlock, ModelNotFound, PacelineError, PeerUnavailable
from paceline.wire.ids import Revision
from paceline.wire.messages import PeerAddress

MAX_TEXT_BLOCK_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Model:
    """One revision, as a client needs it."""

    manifest: Manifest
    tokenizer: Tokenizer


class Models:
    """Loads each revision once."""

    def __init__(self, swarm: Swarm, store: Store) -> None:
        self._swarm = swarm
        self._store = store
        self._loaded: dict[bytes, Model] = {}
        self._loading = trio.Lock()

    async def load(self, revision: bytes, holders: Sequence[PeerAddress]) -> Model:
        """Raises PeerUnavailable where neither the store nor a holder has the parts, CorruptBlock from liars only."""
        async with self._loading:
            if revision not in self._loaded:
                manifest = await self._manifest(revision, holders)
                if manifest.tokenizer is None:
                    raise ModelNotFound(f"{manifest.name} has no tokenizer", cure="send token ids instead of text")
                tokenizer = await self._block(manifest.tokenizer, holders)
                config = b"{}"
                if manifest.tokenizer_config is not None:
                    config = await self._block(manifest.tokenizer_config, holders)
                self._loaded[revision] = Model(manifest, Tokenizer(tokenizer, config))
                touch(self._store.root, revision.hex())
        return self._loaded[revision]

    async def _manifest(self, revision: bytes, holders: Sequence[PeerAddress]) -> Manifest:
        try:
            return self._store.manifest(Revision(revision))
        except ModelNotFound:
            data = await self._fetch(revision, MAX_MANIFEST_BYTES, holders)
        manifest = decode(data)
        self._store.put_manifest(manifest, name=False)
        return manifest

    async def _block(self, block: Block, holders: Sequence[PeerAddress]) -> bytes:
        with suppress(ModelNotFound):  # it is not here, or has just been removed to make room
            return await trio.to_thread.run_sync(self._store.read, block.digest)
        data = await self._fetch(block.digest, MAX_TEXT_BLOCK_BYTES, holders)
        self._store.put(data)
        return data

    async def _fetch(self, digest: bytes, most: int, holders: Sequence[PeerAddress]) -> bytes:
        """The first holder whose bytes have the right hash; a liar is passed over."""
        refused: list[str] = []
        for at in holders:
            try:
                data = await self._swarm.block(at, digest, most=most)
            except PacelineError as error:
                refused.append(str(error))
                continue
            if sha256(data).digest() == digest:
                return data
            refused.append(str(CorruptBlock("sent bytes of another hash", peer=at.peer)))
        tried = "; ".join(refused) or "nobody to ask"
        raise PeerUnavailable(f"block {digest.hex()[:12]} could not be fetched: {tried}")
