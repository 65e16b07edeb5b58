"""What an undisturbed run gives: the token log, and the state of every layer after every position.

Built by the same toy model in one process without any protocol; what the simulated ring is held against.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from paceline.engine.shard import Key, Work
from paceline.engine.toy import ToyModel, ToyShard, generate
from paceline.sim.chance import Chance
from paceline.wire.ids import Revision, Span
from paceline.wire.sampling import SamplingParams

LAYERS = 6
REVISION = Revision(b"sim-revision-one".ljust(32, b"."))
OTHER_REVISION = Revision(b"sim-revision-two".ljust(32, b"."))
POOL = 192
"""Different generations that runs choose from; each is computed once in a process."""


class CheckedShard(ToyShard):
    """A toy shard that shows the state it holds. Not strict: a broken protocol is to be caught by what it computes."""

    def __init__(self, revision: Revision) -> None:
        super().__init__(model_of(revision), Span(0, LAYERS), strict=False)

    def tips(self, key: Key, length: int) -> tuple[int, ...]:
        """State of each layer after `length` positions; each is folded from all that came before."""
        return tuple([chain[length] for chain in self._chains[key]])


@cache
def model_of(revision: Revision) -> ToyModel:
    """The toy that a revision names."""
    return ToyModel.of_revision(revision, LAYERS)


@dataclass(frozen=True)
class Reference:
    """One generation: `log` is prompt and tokens, `states[layer][n]` a layer's state after n positions of it."""

    prompt: tuple[int, ...]
    log: tuple[int, ...]
    most: int
    params: SamplingParams
    states: tuple[tuple[int, ...], ...]

    @property
    def finish(self) -> str:
        """How it ends."""
        return "stop" if self.log[-1] in self.params.stop_ids else "length"

    def tips(self, start: int, end: int, length: int) -> tuple[int, ...]:
        """What layers [start, end) hold after `length` positions."""
        return tuple([chain[length] for chain in self.states[start:end]])


@cache
def reference(number: int) -> Reference:
    """Generation `number` of the pool: short ones mostly; greedy, drawn, with penalties, ended by a stop id."""
    chance = Chance(number)
    model = model_of(REVISION)
    prompt = tuple(chance.below(model.vocab) for _ in range(1 + chance.below(9)))
    tokens = 30 + chance.below(30) if number % 24 == 23 else 1 + chance.below(11)
    params = SamplingParams(seed=number)
    if chance.yes(0.4):
        params = replace_params(params, temperature=0.8)
    if chance.yes(0.3):
        params = replace_params(params, repetition_penalty=1.2)
    if chance.yes(0.3):
        free = generate(model, prompt, tokens, params)
        params = replace_params(params, stop_ids=(free[chance.below(len(free))],))
    return build(prompt, tokens, params)


def build(prompt: tuple[int, ...], tokens: int, params: SamplingParams) -> Reference:
    """The undisturbed run of one generation."""
    model = replace(model_of(REVISION))
    log = (*prompt, *generate(model, prompt, tokens, params))
    shard = CheckedShard(REVISION)
    shard.open("all", len(log))
    shard.step([Work("all", 0, ids=log)])
    states = tuple(zip(*(shard.tips("all", n) for n in range(len(log) + 1)), strict=True))
    return Reference(prompt, log, len(prompt) + tokens, params, states)


def replace_params(params: SamplingParams, **changes: object) -> SamplingParams:
    """A copy with changes; the wire's records have no dataclass fields."""
    return SamplingParams(**{name: getattr(params, name) for name in SamplingParams.__struct_fields__} | changes)
