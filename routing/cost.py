"""What a ring costs: the one formula that routing minimises, and the estimates shown beside it.

Knows measured capability and latencies. Refuses to know how rings are searched.

Time per token of a ring with stages 1 … S, stage k running ``n_k`` of the ``N_k`` layers of its service::

    T = Σ_k load_k · (fixed_k + decode_k(past) · n_k / N_k)  +  load_S · head_S  compute
      + Σ_k penalty_k                                                           stragglers, expected recovery
      + Σ_{k<S} (one_way(k, k+1) + frame_bytes / uplink_k)                       forward hops
      + one_way(S, 1)                                                           the token's way back to the head

A hop inside one peer costs nothing. The client is not in the loop, so its latency is in the time to first token only.

- ``decode_k(past) = decode_k + past · decode_past_k``, at the past that the session will have on average: its prompt
  and half of what it may generate. Prefill likewise, at half of its prompt.
- ``load_k = 1 + Σ_s max(extra_s / decode, 5 %)`` over the sessions already there, ``extra_s`` being `decode_extra` for
  those that fit into a batch of `FEW_SESSIONS` with us and `decode_many` for the others: what joining them costs us if
  all of them are in the same batch. The 5 % keep clients with the same view from all choosing the same replica.
- ``penalty_k``: optional, additive, seconds per token: a straggler's measured excess over its offer, plus expected
  recovery ``failure rate × repair time × token time``.
- Time to first token: every chunk of the prompt crosses all stages as a pipeline, so the first chunk pays each stage
  and hop once and the others wait for the slowest step only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from paceline.routing.latency import Floats, Ints
from paceline.routing.view import ServiceTable
from paceline.wire.offers import FEW_SESSIONS

FRAME_OVERHEAD_BYTES = 160
"""Header, length prefix and Noise tags of one frame."""

NUMBER_BYTES = 4
"""Activations travel as f32 unless a wire dtype was certified for the model."""

GUESS_UPLINK_BYTES_PER_S = 2.5e6
"""20 Mbit/s: an ordinary home uplink, for nodes that did not measure theirs."""

MIN_EXTRA_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class CostTerms:
    """Optional additive terms, per peer id.

    `straggler_s`: measured excess per token over what the peer offered (sliding p95 less the prediction).
    `failures_per_s`: observed rate at which the peer falls out of rings. `repair_s`: what one repair costs.
    `token_s`: the token time against which failures per second become failures per token.
    """

    straggler_s: Mapping[str, float] = field(default_factory=dict)
    failures_per_s: Mapping[str, float] = field(default_factory=dict)
    repair_s: float = 2.0
    token_s: float = 0.1

    def penalty_s(self, peer: str) -> float:
        """Seconds per token that `peer` is charged on top."""
        return self.straggler_s.get(peer, 0.0) + self.failures_per_s.get(peer, 0.0) * self.repair_s * self.token_s


@dataclass(frozen=True, eq=False)
class StageCosts:
    """Columns of length n, seconds: a stage of m layers of service i computes ``entry + m · per_layer`` (+ `tail`).

    `upload`: sending one decode frame. `prefill`: per position and layer. `load`: the factor already inside the others.
    """

    per_layer: Floats
    entry: Floats
    tail: Floats
    upload: Floats
    prefill: Floats
    uplink: Floats


def stage_costs(table: ServiceTable, terms: CostTerms, past: float = 0.0, prompt: float = 0.0) -> StageCosts:
    """The cost model's columns for every service of a revision.

    `past`: positions that a decode step attends to, on average over the session; `prompt`: positions to be prefilled.
    """
    decode, prefill, fixed, extra, head, uplink, many, decode_past, prefill_past = table.measured.T
    span = np.maximum(table.end - table.start, 1).astype(np.float64)
    load = _load(table.sessions, decode, extra, many)
    uplink = np.where(uplink > 0.0, uplink, GUESS_UPLINK_BYTES_PER_S)
    penalty = penalties(table, terms)
    return StageCosts(
        per_layer=load * (decode + past * decode_past) / span,
        entry=load * fixed + penalty,
        tail=load * head,
        upload=frame_bytes(table.hidden, 1) / uplink,
        prefill=load * (prefill + prompt / 2.0 * prefill_past) / span,
        uplink=uplink,
    )


def _load(sessions: Ints, decode: Floats, extra: Floats, many: Floats) -> Floats:
    """The factor by which the sessions already there slow ours."""
    few = np.minimum(sessions, FEW_SESSIONS - 1)
    shares = [
        np.maximum(np.divide(more, decode, out=np.zeros_like(more), where=decode > 0.0), MIN_EXTRA_SHARE)
        for more in (extra, np.where(many > 0.0, many, extra))
    ]
    load: Floats = 1.0 + few * shares[0] + (sessions - few) * shares[1]
    return load


def frame_bytes(hidden: int | Ints, positions: int) -> Floats:
    """Bytes of a frame of `positions` activations of width `hidden`."""
    return np.asarray(hidden, dtype=np.float64) * (NUMBER_BYTES * positions) + FRAME_OVERHEAD_BYTES


def time_to_first_token(
    prompt: int,
    chunk: int,
    prefill_s: Sequence[float],
    entry_s: Sequence[float],
    hop_s: Sequence[float],
    position_hop_s: Sequence[float],
    tail_s: float,
    client_s: tuple[float, float, float],
) -> float:
    """Estimated seconds from the client's call to its first token.

    Per stage: `prefill_s` per position, `entry_s` per frame. Per forward hop: `hop_s` latency, `position_hop_s`
    transfer per position. `client_s`: opening the session everywhere, client → head, tail → client.
    """
    first = min(prompt, chunk)
    others = -(-prompt // chunk) - 1
    steps = [entry + first * each for entry, each in zip(entry_s, prefill_s, strict=True)]
    transfers = [first * each for each in position_hop_s]
    return sum(client_s) + sum(steps) + sum(hop_s) + sum(transfers) + others * max([*steps, *transfers]) + tail_s


def penalties(table: ServiceTable, terms: CostTerms) -> Floats:
    cost = {peer: terms.penalty_s(peer) for peer in terms.straggler_s.keys() | terms.failures_per_s.keys()}
    if not cost:
        return np.zeros(len(table))
    return np.array([cost.get(address.peer, 0.0) for address in table.addresses], dtype=np.float64)
