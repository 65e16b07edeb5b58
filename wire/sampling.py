"""How the tail picks a token. Pure data; the arithmetic is the engine's."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from paceline.wire.errors import InvalidRequest
from paceline.wire.limits import MAX_GRAMMAR, MAX_STOP_IDS, MAX_TOP_LOGPROBS, MAX_VOCAB

TokenId = Annotated[int, Meta(ge=0, lt=MAX_VOCAB)]


class SamplingParams(Struct, frozen=True, array_like=True, kw_only=True):
    """Sampling parameters of one session; the defaults are greedy decoding.

    The draw for log index i depends on ``(seed, i)`` alone, so a replayed index gives the same token.
    ``temperature`` 0 is greedy. ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 switch their filter off. Penalties count
    over prompt and generated tokens for ``repetition_penalty`` (as transformers does) and over generated tokens
    for ``frequency_penalty`` and ``presence_penalty`` (as the OpenAI API does).
    """

    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 0
    temperature: Annotated[float, Meta(ge=0.0, le=100.0)] = 0.0
    top_k: Annotated[int, Meta(ge=0, lt=MAX_VOCAB)] = 0
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=100.0)] = 1.0
    frequency_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    presence_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    logprobs: Annotated[int, Meta(ge=-1, le=MAX_TOP_LOGPROBS)] = -1
    """-1: none; 0: the chosen token's; k: also the k most likely."""
    stop_ids: Annotated[tuple[TokenId, ...], Meta(max_length=MAX_STOP_IDS)] = ()
    """Token ids that end the session (end of sequence, and the user's)."""
    min_tokens: Annotated[int, Meta(ge=0)] = 0
    """Stop ids are masked until this many tokens were generated."""
    grammar: Annotated[str, Meta(max_length=MAX_GRAMMAR)] = ""
    """What the answer must be: ``json:`` and a JSON schema, or ``lark:`` and a grammar in llguidance's dialect."""

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def needs_history(self) -> bool:
        """True where the tail must know the session's whole token log."""
        penalties = (self.repetition_penalty - 1.0, self.frequency_penalty, self.presence_penalty)
        return bool(self.grammar) or any(penalties)

    def validated(self) -> SamplingParams:
        """Self, or InvalidRequest: constructors do not check ranges, the wire does, and so does the client."""
        import msgspec

        try:
            return msgspec.convert(msgspec.to_builtins(self), SamplingParams)
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"sampling parameters: {error}") from error
