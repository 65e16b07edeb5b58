"""An error crosses the wire as a code and comes back as its class."""

from __future__ import annotations

import pytest

from paceline.wire.errors import ERRORS, Overloaded, PacelineError, PeerUnavailable, ProtocolViolation, from_code

FAULTS = ("protocol_violation", "peer_unavailable", "overloaded", "refused", "invalid_request", "cancelled")


@pytest.mark.parametrize("code", sorted(ERRORS))
def test_codes_come_back_as_their_class(code: str) -> None:
    error = from_code(code, "what happened", peer="B")
    assert type(error) is ERRORS[code]
    assert error.code == code
    assert str(error) == "what happened [peer B]"


def test_an_unknown_code_is_still_an_error() -> None:
    assert type(from_code("from_the_future", "x")) is PacelineError


def test_every_error_says_whose_fault_it_is() -> None:
    branches = tuple(ERRORS[code] for code in (*FAULTS, "internal_error"))
    assert all(issubclass(kind, branches) for code, kind in ERRORS.items() if code != "error")


def test_only_absence_and_overload_are_retried() -> None:
    retried = {kind for kind in ERRORS.values() if kind.retryable}
    assert all(issubclass(kind, PeerUnavailable | Overloaded) for kind in retried)
    assert not ProtocolViolation.retryable


def test_the_cure_is_told() -> None:
    assert str(PacelineError("no room", cure="try later")) == "no room (try later)"
