"""Typed errors as OpenAI clients know them: an HTTP status, an error object, and when to try again."""

from __future__ import annotations

import math

from paceline.gateway.replies import ErrorBody, ErrorObject
from paceline.wire.errors import (
    Cancelled,
    ContextOverflow,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PacelineError,
    PeerUnavailable,
    ProtocolViolation,
    Refused,
)


class BadField(InvalidRequest):
    """One field of the body cannot be served. `param`: which."""

    code = "invalid_field"

    def __init__(self, message: str, *, param: str = "", cure: str = "", peer: str = "") -> None:
        super().__init__(message, cure=cure, peer=peer)
        self.param = param


class BadKey(InvalidRequest):
    """No API key, or an unknown one."""

    code = "invalid_api_key"


class BodyTooLarge(InvalidRequest):
    """The body is over the gateway's bound."""

    code = "body_too_large"


class NotHere(InvalidRequest):
    """No such path, or no such stream."""

    code = "not_found"


class WrongMethod(InvalidRequest):
    """The path exists, the method does not."""

    code = "method_not_allowed"


class WrongType(InvalidRequest):
    """The body is not JSON by its own account."""

    code = "unsupported_media_type"


class RateLimited(Overloaded):
    """This caller's own limit; the swarm may well be idle."""

    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after_s: float = 1.0, cure: str = "", peer: str = "") -> None:
        super().__init__(message, cure=cure, peer=peer)
        self.retry_after_s = retry_after_s


_STATUS: tuple[tuple[type[PacelineError], int, str], ...] = (
    (BadKey, 401, "authentication_error"),
    (BodyTooLarge, 413, "invalid_request_error"),
    (WrongType, 415, "invalid_request_error"),
    (WrongMethod, 405, "invalid_request_error"),
    (NotHere, 404, "invalid_request_error"),
    (ModelNotFound, 404, "invalid_request_error"),
    (InvalidRequest, 400, "invalid_request_error"),
    (RateLimited, 429, "rate_limit_error"),
    (Overloaded, 429, "overloaded_error"),
    (PeerUnavailable, 503, "unavailable_error"),
    (Cancelled, 503, "unavailable_error"),
    (Refused, 503, "unavailable_error"),
    (ProtocolViolation, 502, "peer_error"),
    (PacelineError, 500, "server_error"),
)
"""First match wins: the order goes from the particular to the general."""

_CODES: dict[type[PacelineError], str] = {ContextOverflow: "context_length_exceeded"}
"""Where OpenAI's clients look for another code than ours."""

UNAVAILABLE_RETRY_S = 2.0


def status_of(error: PacelineError) -> int:
    """The HTTP status."""
    return next(status for kind, status, _ in _STATUS if isinstance(error, kind))


def body_of(error: PacelineError) -> ErrorBody:
    """The error as OpenAI's clients read it; the cure is part of the message."""
    kind = next(name for kind, _, name in _STATUS if isinstance(error, kind))
    message = error.message + (f" ({error.cure})" if error.cure else "")
    param = (error.param or None) if isinstance(error, BadField) else None
    return ErrorBody(ErrorObject(message, kind, param, _CODES.get(type(error), error.code)))


def headers_of(error: PacelineError) -> dict[str, str]:
    """``Retry-After`` in whole seconds where trying again helps, and what a 401 must carry."""
    if isinstance(error, BadKey):
        return {"www-authenticate": "Bearer"}
    if isinstance(error, RateLimited):
        return {"retry-after": str(max(1, math.ceil(error.retry_after_s)))}
    if isinstance(error, Overloaded):
        return {"retry-after": "1"}
    if status_of(error) == 503:
        return {"retry-after": f"{UNAVAILABLE_RETRY_S:.0f}"}
    return {}
