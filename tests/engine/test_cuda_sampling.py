"""A batch sampled at once gives the tokens that engine.sampling gives row by row."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.engine.cuda_sampling import LOOK, draw_rows, sample_batch
from paceline.engine.sampling import sample_rows
from paceline.engine.shard import SampleRequest
from paceline.wire.sampling import SamplingParams

PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 5, LOOK, LOOK + 9]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.05, 0.9]),
    seed=st.integers(0, 2**32),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3]),
    logprobs=st.sampled_from([-1, -1, 2]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(PARAMS, min_size=1, max_size=5), st.integers(0, 10_000), st.sampled_from([40, 3000]), st.booleans())
def test_the_tokens_are_those_of_one_row_at_a_time(
    params: list[SamplingParams], seed: int, vocab: int, coarse: bool
) -> None:
    logits = torch.randn(len(params), vocab, generator=torch.Generator().manual_seed(seed)) * 3
    if coarse:  # many equal values: the order of ids decides
        logits = logits.round()
    requests = [SampleRequest(one, 7, [1, 2, 3, 1, 4, 9, 8], 3) for one in params]
    peak, best = logits.max(dim=-1)
    best = logits.argmax(dim=-1) if coarse else best
    order = list(reversed(range(len(params))))
    got = sample_batch(logits, best.tolist(), peak.tolist(), [(at, requests[at]) for at in order])
    want = sample_rows(logits, requests)
    assert got == [want[at] for at in order]


def test_a_row_that_is_not_finite_has_no_token() -> None:
    logits = torch.zeros(3, 50)
    logits[1, 7] = float("nan")
    logits[2, 9] = float("inf")
    peak, best = logits.max(dim=-1)
    requests = [(at, SampleRequest(SamplingParams(temperature=1.0), 1)) for at in range(3)]
    got = sample_batch(logits, best.tolist(), peak.tolist(), requests)
    assert [one is None for one in got] == [False, True, True]


def test_a_flat_distribution_is_left_to_the_slow_path() -> None:
    logits = torch.randn(1, 5000, generator=torch.Generator().manual_seed(0)) * 0.01
    wanted = [(0, SampleRequest(SamplingParams(temperature=1.0, top_p=0.9, seed=seed), 1)) for seed in range(3)]
    assert draw_rows(logits, wanted) == [-1, -1, -1]
