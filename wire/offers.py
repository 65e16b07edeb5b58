"""What a node announces. The signature is made and checked in dht; here is only its shape.

An offer is small, sequenced and short-lived: a dead node vanishes when its last offer expires.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from paceline.wire import limits
from paceline.wire.ids import Span
from paceline.wire.messages import Layer, PeerAddress, PeerText, RevisionBytes, ShortText
from paceline.wire.releases import SignedRelease

Seconds = Annotated[float, Meta(ge=0.0, le=1e9)]
UnixSeconds = Annotated[float, Meta(ge=0.0, le=1e11)]
Count = Annotated[int, Meta(ge=0, lt=1 << 62)]


FEW_SESSIONS = 4
"""Sessions in the batch that `Measured.decode_extra_s` was measured with; further ones cost `decode_many_s` each."""


class Measured(Struct, frozen=True, array_like=True):
    """Capability of one service, measured by running its own span. Times in seconds.

    Decode of a batch of b sessions costs about ``decode_s + (b - 1) * decode_extra_s``, over the whole span; a part
    of the span costs its share by layers. `fixed_s` is paid per frame whatever its size. `head_s`: norm, LM head and
    sampling, where this node is the tail (0 where it cannot be). Both decode and prefill grow with the past that is
    attended to, in proportion.
    """

    decode_s: Seconds
    prefill_s_per_position: Seconds
    fixed_s: Seconds = 0.0
    decode_extra_s: Seconds = 0.0
    head_s: Seconds = 0.0
    uplink_bytes_per_s: Seconds = 0.0
    """0: not measured."""
    decode_many_s: Seconds = 0.0
    """What each session beyond the first `FEW_SESSIONS` adds to a step; 0: not measured, as `decode_extra_s`."""
    decode_past_s: Seconds = 0.0
    """What each position of past adds to one session's decode step."""
    prefill_past_s: Seconds = 0.0
    """What each position of past adds to each prefilled position."""


class Service(Struct, frozen=True, array_like=True):
    """One span of one revision that the node serves now."""

    model: Annotated[str, Meta(min_length=1, max_length=128)]
    revision: RevisionBytes
    start: Layer
    end: Layer
    layers: Layer
    """Layers of the whole model: a ring covers ``[0, layers)``."""
    hidden: Annotated[int, Meta(ge=1, le=limits.MAX_HIDDEN)]
    numerics: ShortText
    """Numerics class, for example ``cpu-f32``: tokens are comparable inside one class."""
    measured: Measured
    kv_free: Count
    """Positions of KV still free."""
    max_context: Annotated[int, Meta(ge=1, le=limits.MAX_CONTEXT)]
    sessions: Count = 0
    shadow: bool = False
    """Offers spare capacity as a standby."""

    @property
    def span(self) -> Span:
        return Span(self.start, self.end)


RttSeconds = Annotated[float, Meta(ge=-limits.FARTHEST_S, le=limits.FARTHEST_S)]
Place = tuple[
    RttSeconds,
    RttSeconds,
    RttSeconds,
    Annotated[float, Meta(ge=0.0, le=limits.FARTHEST_S)],
    Annotated[float, Meta(ge=0.0, le=1.0)],
]
"""A network coordinate: position (seconds of round trip), height, and relative error (routing/coordinates.py)."""


class Offer(Struct, frozen=True, array_like=True):
    """A node's announcement. `sequence` grows with every new one; times are unix seconds."""

    at: PeerAddress
    sequence: Count
    issued_at: UnixSeconds
    expires_at: UnixSeconds
    services: Annotated[tuple[Service, ...], Meta(max_length=limits.MAX_SPANS_PER_OFFER)]
    state: Literal["joining", "serving", "draining"] = "serving"
    rtts: Annotated[tuple[tuple[PeerText, Seconds], ...], Meta(max_length=limits.MAX_NEAR_PEERS)] = ()
    """Measured round trips to near peers."""
    agent: ShortText = ""
    frontier: Annotated[tuple[SignedRelease, ...], Meta(max_length=limits.MAX_FRONTIER)] = ()
    """The newest releases that the node knows of the models it serves: how the version frontier spreads."""
    place: Place | None = None
    """Where the node has found itself to be; None before it knows."""
    region: ShortText = ""
    """Where its owner says it stands. Nobody checks it."""

    @property
    def peer(self) -> str:
        return self.at.peer


class SignedOffer(Struct, frozen=True, array_like=True):
    """`body`: the encoded Offer. `signature`: Ed25519 by the peer's own key over a domain tag and `body`."""

    body: Annotated[bytes, Meta(max_length=limits.MAX_OFFER_BYTES)]
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]
