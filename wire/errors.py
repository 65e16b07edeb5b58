"""The error tree: every error says whose fault it is, and carries a code that crosses the wire.

Five branches: the peer broke the protocol, the peer is unavailable, somebody is overloaded, the user's request is
invalid, or it is our bug. Only `retryable` errors may be retried, and an assertion never is.
"""

from __future__ import annotations

from typing import ClassVar


class PacelineError(Exception):
    """Base of everything Paceline raises on purpose. `cure` is one sentence that tells a person what to do."""

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, cure: str = "", peer: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.cure = cure
        self.peer = peer

    def __str__(self) -> str:
        where = f" [peer {self.peer}]" if self.peer else ""
        return f"{self.message}{where}" + (f" ({self.cure})" if self.cure else "")


class ProtocolViolation(PacelineError):
    """A peer sent what the protocol forbids. The connection ends; nothing is retried with this peer."""

    code = "protocol_violation"


class Malformed(ProtocolViolation):
    """Bytes that do not decode to a message, or a message outside the limits."""

    code = "malformed"


class OfferRejected(ProtocolViolation):
    """A forged, stale, expired or oversized offer. `reason` is one word, for counters (listed in dht/offers.py)."""

    code = "offer_rejected"

    def __init__(self, message: str, *, reason: str = "", cure: str = "", peer: str = "") -> None:
        super().__init__(message, cure=cure, peer=peer)
        self.reason = reason


class CorruptBlock(ProtocolViolation):
    """A block whose bytes do not have the hash that the manifest names."""

    code = "corrupt_block"


class ForgedManifest(ProtocolViolation):
    """A release that its publisher did not sign, or a manifest that is not the one it names."""

    code = "forged_manifest"


class PeerUnavailable(PacelineError):
    """A peer cannot be reached, went away, or stayed silent past its deadline."""

    code = "peer_unavailable"
    retryable = True


class DeadlineExceeded(PeerUnavailable):
    """An operation did not end within its stated bound."""

    code = "deadline_exceeded"


class Unreachable(PeerUnavailable):
    """Others cannot dial this process at what it announces. Told in the status and by `paceline doctor`, not raised."""

    code = "unreachable"


class NoRoute(PeerUnavailable):
    """The live offers do not cover every layer of one revision. `missing` names the layers."""

    code = "no_route"

    def __init__(self, message: str, *, missing: tuple[int, ...] = (), cure: str = "", peer: str = "") -> None:
        super().__init__(message, cure=cure, peer=peer)
        self.missing = missing


class LevelUnmet(NoRoute):
    """No complete ring serves a revision that the requested consistency level allows."""

    code = "level_unmet"


class SessionLost(PeerUnavailable):
    """The session could not be repaired within its bound. Tokens delivered so far are exact."""

    code = "session_lost"


class WorkerLost(PeerUnavailable):
    """One of the processes that compute a node's span together has ended or stands still: the node ends with it."""

    code = "worker_lost"


class Overloaded(PacelineError):
    """A bound was reached: KV room, queue, bandwidth. Try again later or elsewhere."""

    code = "overloaded"
    retryable = True


class Draining(Overloaded):
    """The node is leaving and takes no new sessions."""

    code = "draining"


class Refused(PacelineError):
    """A node declined, and says why. Branch of errors that name a conflict rather than a fault."""

    code = "refused"


class WrongRevision(Refused):
    """A stage does not serve the session's pinned revision."""

    code = "wrong_revision"


class UnauthorisedPublisher(Refused):
    """The publisher is not trusted here, or not for this name: its revision is not loaded."""

    code = "unauthorised_publisher"


class ReplayedRelease(Refused):
    """A release older than one that is already known of the same name."""

    code = "replayed_release"


class Fenced(Refused):
    """A newer epoch owns the session: this owner, or this route, has been replaced."""

    code = "fenced"


class JournalShort(Refused):
    """A stage's journal no longer reaches back to what a replacement needs: the owner falls to the next repair tier."""

    code = "journal_short"


class InvalidRequest(PacelineError):
    """The user's request cannot be served as written."""

    code = "invalid_request"


class ContextOverflow(InvalidRequest):
    """Prompt plus requested tokens exceed what the model or the ring can hold."""

    code = "context_overflow"


class UnsupportedModel(InvalidRequest):
    """A model family, option or file that is refused rather than run wrong."""

    code = "unsupported_model"


class ModelNotFound(InvalidRequest):
    """No such model in the store, or in the swarm."""

    code = "model_not_found"


class Cancelled(PacelineError):
    """The owner cancelled the session."""

    code = "cancelled"


class InternalError(PacelineError):
    """Our bug. Never retried."""

    code = "internal_error"


def _tree(root: type[PacelineError]) -> dict[str, type[PacelineError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


ERRORS: dict[str, type[PacelineError]] = _tree(PacelineError)
"""Code on the wire → class. Unknown codes become the base class."""


def from_code(code: str, message: str, *, peer: str = "") -> PacelineError:
    """Rebuild an error that a peer reported."""
    return ERRORS.get(code, PacelineError)(message, peer=peer)
