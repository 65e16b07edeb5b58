"""What the pure machines ask their shell to do. Data only."""

from __future__ import annotations

from dataclasses import dataclass

from paceline.wire.codec import Buffer
from paceline.wire.errors import PacelineError
from paceline.wire.ids import PeerId
from paceline.wire.messages import PeerAddress, SessionMessage, TokenEvent


@dataclass(frozen=True, slots=True)
class Send:
    """Send one message. A bare PeerId is somebody who cannot be dialled (an owner): use the link that exists."""

    to: PeerAddress | PeerId
    message: SessionMessage
    payload: Buffer = b""


@dataclass(frozen=True, slots=True)
class CropKv:
    """Forget KV positions from `length` on, before any later work."""

    length: int


@dataclass(frozen=True, slots=True)
class FreeKv:
    """The session has ended here."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A peer broke the protocol; nothing was changed. For counters and logs."""

    peer: PeerId
    detail: str


@dataclass(frozen=True, slots=True)
class Emit:
    """Hand this token to the user: exactly once, in order."""

    event: TokenEvent


@dataclass(frozen=True, slots=True)
class NeedRoute:
    """The ring is broken: find a route without `lost`, then call `install`."""

    lost: frozenset[PeerId]
    reason: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The session has ended: `finish` is "stop", "length" or "cancelled", or `error` says why not."""

    finish: str = ""
    error: PacelineError | None = None


StageEffect = Send | CropKv | FreeKv | Violation
OwnerEffect = Send | Emit | NeedRoute | Ended
