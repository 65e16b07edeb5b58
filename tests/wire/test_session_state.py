"""A session's exported state: what comes back, and what is refused."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.wire.errors import Malformed
from paceline.wire.messages import PeerAddress, Stage
from paceline.wire.sampling import SamplingParams
from paceline.wire.session import SessionState

STATE = SessionState(
    bytes(range(16)),
    bytes(range(32)),
    7 << 32 | 5,
    "a model",
    (1, 2, 3, 4),
    2,
    9,
    SamplingParams(seed=3, temperature=0.5),
    (Stage(PeerAddress("12D3KooW", control=("/ip4/127.0.0.1/tcp/1",)), 0, 4),),
)


def test_comes_back_as_it_was() -> None:
    assert SessionState.from_bytes(STATE.to_bytes()) == STATE


@given(st.binary(max_size=200))
def test_anything_else_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        SessionState.from_bytes(data)


@pytest.mark.parametrize("change", [{"prompt_length": 0}, {"prompt_length": 5}, {"max_positions": 3}, {"log": ()}])
def test_a_state_that_cannot_be_is_malformed(change: dict[str, object]) -> None:
    with pytest.raises(Malformed):
        SessionState.from_bytes(msgspec.structs.replace(STATE, **change).to_bytes())
