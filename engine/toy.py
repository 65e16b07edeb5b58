"""A model of exact integers that has everything a protocol can get wrong, and nothing else. No torch, no numpy.

A layer's state is a chain: one number per position, folded from the one before, the layer's number, the revision's
salt, the position and the layer's input. So a hole, a blend of two branches, a position applied twice or at the wrong
place, a frame of another revision or a forgotten crop changes every token from there on. A negative activation plays
the part of a non-finite one.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b

from paceline.engine.draw import uniform
from paceline.engine.sessions import Reservations, check_caller, refusal
from paceline.engine.shard import Activations, Key, ModelShape, Output, Sampled, SampleRequest, Work
from paceline.wire.ids import Span
from paceline.wire.messages import Dtype
from paceline.wire.sampling import SamplingParams

HIDDEN = 4
_MASK = (1 << 63) - 1
_M1, _M2, _M3 = 0x5851F42D4C957F2D, 0x2545F4914F6CDD1D, 0x369DEA0F31A53F85
_ROW = struct.Struct("<4q")

State = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class ToyModel:
    """A revision of the toy: two models that differ in any field give unrelated tokens."""

    layers: int = 12
    salt: int = 0
    vocab: int = 50_021
    max_context: int = 4_096
    eos_ids: tuple[int, ...] = ()
    keys: tuple[int, ...] = field(init=False, repr=False)
    """One constant per layer, and one for embedding and head."""

    def __post_init__(self) -> None:
        made = tuple(_digest("layer", self.salt, self.layers, self.vocab, layer) for layer in range(self.layers + 1))
        object.__setattr__(self, "keys", made)

    @property
    def shape(self) -> ModelShape:
        return ModelShape(self.layers, HIDDEN, self.vocab, self.max_context, self.eos_ids)

    @classmethod
    def of_revision(cls, revision: bytes, layers: int = 12, vocab: int = 50_021) -> ToyModel:
        """The toy whose weights are named by a revision."""
        return cls(layers=layers, salt=_digest("revision", revision.hex()), vocab=vocab)


class ToyShard:
    """A `Shard` over a span of a ToyModel.

    ``strict=False`` drops the check that a work starts at the KV's length: what the protocol's checker uses to see
    that a broken protocol machine is caught by its tokens.
    """

    numerics = "toy-i64"
    dtype: Dtype = "i64"

    def __init__(self, model: ToyModel, span: Span, kv_positions: int = 1 << 20, *, strict: bool = True) -> None:
        if span.end > model.layers:
            raise ValueError(f"span {span} of a model of {model.layers} layers")
        self.model, self.span, self.shape = model, span, model.shape
        self._strict = strict
        self._room = Reservations(kv_positions, model.max_context)
        self._chains: dict[Key, list[list[int]]] = {}
        self._spans: dict[Key, Span] = {}

    @property
    def kv_free(self) -> int:
        return self._room.free

    def open(self, key: Key, max_positions: int, span: Span | None = None) -> None:
        span = span or self.span
        if not self.span.covers(span):
            raise ValueError(f"span {span} is not inside {self.span}")
        self._room.reserve(key, max_positions)
        self._spans[key] = span
        self._chains[key] = [[key_] for key_ in self.model.keys[span.start : span.end]]

    def close(self, key: Key) -> None:
        self._room.release(key)
        self._spans.pop(key, None)
        self._chains.pop(key, None)

    def length(self, key: Key) -> int:
        return len(self._chains[key][0]) - 1

    def crop(self, key: Key, length: int) -> None:
        if not 0 <= length <= self.length(key):
            raise ValueError(f"crop to {length} of a KV of {self.length(key)} positions")
        for chain in self._chains[key]:
            del chain[length + 1 :]

    def step(self, batch: Sequence[Work]) -> list[Output]:
        lengths = [self.length(work.key) for work in batch]
        check_caller(batch, lengths if self._strict else [work.start for work in batch])
        return [self._run(work) for work in batch]

    def _run(self, work: Work) -> Output:
        span = self._spans[work.key]
        wrong = refusal(work, self.shape, span, self._room.held(work.key), (self.dtype,))
        rows = [] if wrong else self._rows(work)
        if wrong or any(min(row) < 0 for row in rows):
            return Output(work.key, error=wrong or "non-finite activations from upstream")
        for layer, chain in zip(range(span.start, span.end), self._chains[work.key], strict=True):
            rows = _layer(rows, chain, work.start, self.model.keys[layer])
        if span.end < self.model.layers:
            data = b"".join([_ROW.pack(*row) for row in rows])
            return Output(work.key, activations=Activations(len(rows), HIDDEN, "i64", data))
        sampled = None if work.sample is None else sample(self.model, rows[-1], work.sample)
        return Output(work.key, sampled=sampled)

    def _rows(self, work: Work) -> list[State]:
        if work.ids is not None:
            head = self.model.keys[-1]
            return [_embed(token, head) for token in work.ids]
        assert work.activations is not None
        return list(_ROW.iter_unpack(work.activations.data))


def sample(model: ToyModel, state: State, request: SampleRequest) -> Sampled:
    """The token after `state`: a hash of it, and with a temperature also of the draw for the request's index."""
    params = request.params
    final = _digest("head", model.keys[-1], *state)
    if params.needs_history:
        final = _digest("history", final, request.prompt_length, *request.history)
    if not params.greedy:
        final = _digest("draw", final, uniform(params.seed, request.index).hex())
    masked = params.stop_ids if request.index - request.prompt_length < params.min_tokens else ()
    allowed = request.allowed() if request.allowed is not None else b"\xff" * (model.vocab // 8 + 1)
    token = final % model.vocab
    for _ in range(model.vocab):
        if token not in masked and token >> 3 < len(allowed) and allowed[token >> 3] >> (token & 7) & 1:
            break
        token = (token + 1) % model.vocab
    if params.logprobs < 0:
        return Sampled(token)
    top = tuple(((token + k) % model.vocab, -1.0 - k) for k in range(params.logprobs))
    return Sampled(token, -1.0, top)


def toy_generate(
    prompt: Sequence[int], n: int, salt: int = 0, layers: int = 12, params: SamplingParams | None = None
) -> list[int]:
    """Reference: up to `n` tokens in one process, ending after a stop id. `salt` and `layers` as in ToyModel."""
    return generate(ToyModel(layers=layers, salt=salt), prompt, n, params or SamplingParams())


def generate(model: ToyModel, prompt: Sequence[int], n: int, params: SamplingParams) -> list[int]:
    """As `toy_generate`, for any ToyModel."""
    shard = ToyShard(replace(model, max_context=len(prompt) + n + 1), Span(0, model.layers))
    shard.open("reference", len(prompt) + n)
    log, fresh = list(prompt), list(prompt)
    while len(log) < len(prompt) + n:
        request = SampleRequest(params, len(log), log if params.needs_history else (), len(prompt))
        work = Work("reference", len(log) - len(fresh), ids=fresh, sample=request)
        sampled = shard.step([work])[0].sampled
        assert sampled is not None
        fresh = [sampled.token]
        log += fresh
        if sampled.token in params.stop_ids:
            break
    return log[len(prompt) :]


def _layer(rows: Sequence[State], chain: list[int], start: int, key: int) -> list[State]:
    """One layer over consecutive positions from `start`; extends the layer's chain."""
    h, out = chain[-1], []
    for position, (a, b, c, d) in enumerate(rows, start):
        h = ((h ^ a) * _M1 + key + position) & _MASK
        h = (((h ^ (h >> 31)) ^ b) * _M2 + c) & _MASK
        h = (((h ^ (h >> 29)) + d) * _M3) & _MASK
        h ^= h >> 32
        chain.append(h)
        out.append(((a + h) & _MASK, b ^ (h >> 5), (c + 3 * h) & _MASK, d ^ (h >> 11)))
    return out


def _embed(token: int, key: int) -> State:
    h = ((token + 1) * _M1 ^ key) & _MASK
    return h, (h * _M2) & _MASK, (h * _M3) & _MASK, h ^ _M1


def _digest(*parts: object) -> int:
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), "little") & _MASK
