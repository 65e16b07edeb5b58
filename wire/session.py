"""A session as its owner can hand it to another process: small, and all that a resume needs."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from paceline.wire import limits
from paceline.wire.codec import decode_header, encode_header
from paceline.wire.errors import Malformed
from paceline.wire.messages import U64, PositionInt, Priority, RevisionBytes, SessionBytes, ShortText, Stage
from paceline.wire.sampling import SamplingParams, TokenId


class SessionState(Struct, frozen=True, array_like=True):
    """`log[:prompt_length]` is the prompt. Whoever holds this may take the session over: keep it secret."""

    session: SessionBytes
    revision: RevisionBytes
    epoch: U64
    model: ShortText
    log: Annotated[tuple[TokenId, ...], Meta(max_length=limits.MAX_CONTEXT)]
    prompt_length: PositionInt
    max_positions: PositionInt
    sampling: SamplingParams
    route: tuple[Stage, ...] = ()
    priority: Priority = 0
    numerics: ShortText = ""
    """The class that the tokens so far were computed in: whoever goes on must stay in it. Empty: not known."""

    def to_bytes(self) -> bytes:
        """For a file, or another process: MessagePack."""
        return encode_header(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> SessionState:
        """The inverse of `to_bytes`. Raises Malformed for anything else."""
        state: SessionState = decode_header(data, cls)
        if not 0 < state.prompt_length <= len(state.log) <= state.max_positions:
            raise Malformed(f"a session of {len(state.log)} tokens, {state.prompt_length} of them its prompt")
        return state
