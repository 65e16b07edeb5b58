"""What a node serves: loaded spans, each a shard with its model's name, revision and measured speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import trio

from paceline.engine.shard import Shard, Spread
from paceline.node.grammar import Grammars, GrammarState
from paceline.wire.errors import UnsupportedModel
from paceline.wire.ids import Revision, Span
from paceline.wire.offers import Measured, Service


@dataclass(frozen=True, slots=True)
class LoadedService:
    """One loaded span. `shadow`: spare capacity, offered as a standby for somebody else's span."""

    model: str
    revision: Revision
    shard: Shard
    measured: Measured
    shadow: bool = False
    grammars: Grammars | None = None

    def begin_grammar(self, grammar: str) -> GrammarState:
        """State of a session's grammar. Raises InvalidRequest, UnsupportedModel."""
        if self.grammars is None:
            raise UnsupportedModel("this node serves no grammars")
        return self.grammars.begin(grammar)

    def offered(self, sessions: int, uplink_bytes_per_s: float = 0.0) -> Service:
        """As it is announced now. `uplink_bytes_per_s`: 0 where nobody has measured it."""
        shape, span = self.shard.shape, self.shard.span
        return Service(
            model=self.model,
            revision=self.revision,
            start=span.start,
            end=span.end,
            layers=shape.layers,
            hidden=shape.hidden,
            numerics=self.shard.numerics,
            measured=msgspec.structs.replace(self.measured, uplink_bytes_per_s=uplink_bytes_per_s),
            kv_free=self.shard.kv_free,
            max_context=shape.max_context,
            sessions=sessions,
            shadow=self.shadow,
        )


async def end(service: LoadedService) -> None:
    """A service that nobody rides any more: end the processes that computed along."""
    if isinstance(service.shard, Spread):
        await trio.to_thread.run_sync(service.shard.end)


def serving(services: Sequence[LoadedService], revision: bytes, span: Span) -> LoadedService | None:
    """The service that can run `span` of `revision`: the one with the fewest other layers."""
    able = [s for s in services if s.revision == revision and s.shard.span.covers(span)]
    return min(able, key=lambda s: len(s.shard.span), default=None)
