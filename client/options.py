"""What a user may ask of one generation, checked before anything is sent."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paceline.routing.plan import OBJECTIVES, Objective
from paceline.wire.errors import InvalidRequest
from paceline.wire.limits import MAX_STAGES
from paceline.wire.sampling import SamplingParams

__all__ = ["GenerateOptions", "Messages", "Objective", "Prompt", "json_schema", "lark", "objective_named"]

Prompt = str | Sequence[int]
Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateOptions:
    """Options of one generation. `model` None: the only model that the swarm serves. `seed` None: a fresh one, named
    in the result. `temperature` 0 is greedy. `logprobs`: None, or how many alternatives to report beside the chosen
    token. `stop`: strings that end the answer, not part of it. `ignore_eos`: go on to `max_tokens`.
    `consistency`: which revision a new session may run on: available, strong, bounded(k), pinned(<hex>), see
    docs/revisions.md. `trusted`: the only peers that may ride; `regions`: the only regions, as nodes' owners name them;
    `ends`: the only peers that may hold the first and the last layer; `max_stages`: the longest ring. `trace`: every
    token tells how long each stage had it. `avoid_stragglers`: a rider who becomes much slower than he offered to be is
    left behind, where that pays. `objective`: what the ring is chosen for: latency, throughput or fair, see
    docs/routing.md. `priority`, 1, 0 or -1: which of this client's sessions go first at a node where not all can.
    `timeout_s`: how long to wait for a complete ring. `hedge`: the first token is asked of two rings, as
    different as can be, and whoever has it first stays; a prompt is then computed twice (new sessions only).
    """

    model: str | None = None
    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    stop: str | Sequence[str] = ()
    grammar: str = ""
    """What the answer must be: made by `json_schema` or `lark`."""
    logprobs: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    shadows: bool = True
    trusted: frozenset[str] | None = None
    regions: frozenset[str] | None = None
    ends: frozenset[str] | None = None
    max_stages: int = MAX_STAGES
    numerics: str | None = None
    chunk: int = 256
    trace: bool = False
    avoid_stragglers: bool = True
    timeout_s: float = 15.0
    consistency: str = "available"
    priority: int = 0
    objective: Objective = "latency"
    hedge: bool = False

    def stops(self) -> tuple[str, ...]:
        """Stop strings as a tuple. Raises InvalidRequest for empty ones."""
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if not all(stops):
            raise InvalidRequest("an empty stop string would end every answer at once")
        return stops

    def sampling(self, eos_ids: Sequence[int]) -> SamplingParams:
        """As the tail gets it. Raises InvalidRequest."""
        if self.max_tokens < 1:
            raise InvalidRequest(f"max_tokens is {self.max_tokens}", cure="ask for at least one token")
        if self.priority not in (-1, 0, 1):
            raise InvalidRequest(f"priority is {self.priority}", cure="choose 1, 0 or -1")
        objective_named(self.objective)
        if self.grammar and (self.ignore_eos or self.min_tokens):
            raise InvalidRequest("an answer of a grammar ends where that ends", cure="no ignore_eos, no min_tokens")
        return SamplingParams(
            seed=secrets.randbits(63) if self.seed is None else self.seed,
            temperature=float(self.temperature),
            top_k=self.top_k,
            top_p=float(self.top_p),
            min_p=float(self.min_p),
            repetition_penalty=float(self.repetition_penalty),
            frequency_penalty=float(self.frequency_penalty),
            presence_penalty=float(self.presence_penalty),
            logprobs=-1 if self.logprobs is None else self.logprobs,
            stop_ids=() if self.ignore_eos else tuple(eos_ids),
            min_tokens=self.min_tokens,
            grammar=self.grammar,
        ).validated()


def objective_named(name: str) -> Objective:
    """Raises InvalidRequest for what is none."""
    for objective in OBJECTIVES:
        if objective == name:
            return objective
    raise InvalidRequest(f"objective is {name!r}", cure=f"choose one of: {', '.join(OBJECTIVES)}")


def json_schema(schema: Mapping[str, Any]) -> str:
    """A grammar: the answer is one JSON text that `schema` describes."""
    return "json:" + json.dumps(schema, ensure_ascii=False, separators=(",", ":"))


def lark(grammar: str) -> str:
    """A grammar in llguidance's dialect of Lark."""
    return "lark:" + grammar
