"""A span on two ranks says what it says on one, family by family; a rank that is lost is an error, and soon.

Most of it runs the ranks as threads of this process, over the same pipes and the same sums as processes have.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import CONFIG_MAPPING, LlamaForCausalLM

from bench.parity_shards import tiny_model
from bench.rank_threads import in_threads
from paceline.engine.convert import from_model
from paceline.engine.family import CERTIFIED
from paceline.engine.measure import measure
from paceline.engine.shard import Paged, SampleRequest, Weights, Work
from paceline.engine.source import publish
from paceline.engine.tensor_parallel import TensorParallelShard, devices_from
from paceline.engine.tensor_split import Part, check, cuts
from paceline.engine.tensor_worker import Assignment
from paceline.engine.tensor_workers import LOADED, READY, Workers
from paceline.engine.torch_shard import TorchShard
from paceline.store.manifest import Manifest
from paceline.store.store import Store
from paceline.wire.errors import CorruptBlock, InvalidRequest, UnsupportedModel, WorkerLost
from paceline.wire.ids import Span
from paceline.wire.messages import Dtype
from paceline.wire.sampling import SamplingParams

GREEDY = SamplingParams()
FAMILIES = ("cohere", "gemma2", "glm4", "gpt_oss", "mixtral", "phi3", "qwen2", "qwen2_moe", "qwen3", "starcoder2")
"""One for each way of being cut; `python -m bench.tensor_parallel` has all."""


def logits(shard: TorchShard, ids: Sequence[int], pieces: Sequence[tuple[int, int]]) -> torch.Tensor:
    shard.open("logits", 64)
    found = []
    for start, end in pieces:
        work = Work("logits", start, ids=ids[start:end])
        with torch.inference_mode():
            rows = shard.input(work)
            assert rows is not None
            found.append(shard.logits(shard.forward([work], rows)))
    shard.close("logits")
    return torch.cat(found)


def tokens(shard: TorchShard, key: object, prompt: list[int], n: int) -> list[int]:
    log, fresh = list(prompt), list(prompt)
    while len(log) < len(prompt) + n:
        (output,) = shard.step([Work(key, shard.length(key), ids=fresh, sample=SampleRequest(GREEDY, len(log)))])
        assert output.sampled is not None
        fresh = [output.sampled.token]
        log += fresh
    return log[len(prompt) :]


@pytest.mark.parametrize("arch", FAMILIES)
def test_every_family_says_on_two_ranks_what_it_says_on_one(arch: str, tmp_path: Path) -> None:
    """Prefill in chunks, then decode past any window."""
    store = Store(tmp_path / "store")
    manifest = publish(store, from_model(tiny_model(arch, tmp_path / "hf"), "f32"), f"tiny-{arch}")
    ids = torch.randint(3, 256, (32,), generator=torch.Generator().manual_seed(1)).tolist()
    pieces = ((0, 5), (5, 24), *((at, at + 1) for at in range(24, 32)))
    one = logits(TorchShard.load(store, manifest, manifest.span), ids, pieces)
    shard = TensorParallelShard.load(store, manifest, manifest.span, 2, threads=1, start=in_threads)
    two = logits(shard, ids, pieces)
    shard.end()
    assert (one - two).abs().max() <= 2e-4 * one.std()
    assert torch.equal(one.argmax(-1), two.argmax(-1))


# --- how tensors are cut


@given(st.integers(1, 300), st.integers(1, 8), st.sampled_from((1, 32)))
def test_cuts_are_whole_and_even(whole: int, ranks: int, unit: int) -> None:
    found = cuts(whole, ranks, unit)
    assert [found[0][0], found[-1][1]] == [0, whole]
    assert all(end == start for (_, end), (start, _) in pairwise(found))
    widths = [end - start for start, end in found]
    assert max(widths) - min(widths) < 2 * unit + whole % unit
    assert all(width % unit == 0 for width in widths[:-1])


STYLES = {"colwise": 0, "colwise_gather_output": 0, "rowwise": 1, "rowwise_split_input": 1}


@pytest.mark.parametrize("family", sorted(CERTIFIED - {"gpt_oss", "olmo2", "olmo3"}))
def test_parameters_are_cut_on_the_side_that_transformers_names(family: str) -> None:
    config = CONFIG_MAPPING[family](num_attention_heads=8, num_key_value_heads=4, head_dim=16, hidden_size=64)
    part = Part(1, 2, lambda x: x, lambda x, widths: x)
    plan = CONFIG_MAPPING[family].base_model_tp_plan
    seen = 0
    for path, style in plan.items():
        name = path.removeprefix("layers.*.") + ".weight"
        if style in STYLES and ".experts." not in name:
            whole = torch.zeros(256, 256)
            cut = part.cut(name, whole, config)
            assert [cut.shape[side] < 256 for side in (0, 1)] == [side == STYLES[style] for side in (0, 1)], name
            seen += 1
        elif style.startswith("replicated"):
            whole = torch.zeros(16)
            assert part.cut(name, whole, config) is whole
    assert seen >= 4
    routers = ("mlp.gate.weight", "input_layernorm.weight", "mlp.shared_expert_gate.weight")
    assert all(part.cut(name, whole, config) is whole for name in routers for whole in [torch.zeros(8, 64)])


def test_what_cannot_be_cut_is_refused_with_a_cure() -> None:
    with pytest.raises(InvalidRequest, match=r"2 key-value heads cannot .* among 3 .*--tensor-parallel 2 at most"):
        check(CONFIG_MAPPING["llama"](num_key_value_heads=2), 3)
    for config in (CONFIG_MAPPING["olmo2"](), CONFIG_MAPPING["cohere"](use_qk_norm=True)):
        with pytest.raises(UnsupportedModel, match="over all heads"):
            check(config, 2)
    with pytest.raises(InvalidRequest, match="this machine has 0"):
        devices_from("cuda:1", 2)
    assert devices_from("cpu", 2) == ["cpu", "cpu"]


def test_classes_of_weights_are_kept(tiny_store: tuple[Store, Manifest]) -> None:
    shapes: tuple[tuple[Weights, Dtype], ...] = (("int8", "f32"), ("f32", "bf16"))
    for weights, dtype in shapes:
        shard = TensorParallelShard.load(
            *tiny_store, Span(0, 6), 2, weights=weights, dtype=dtype, threads=1, start=in_threads
        )
        assert shard.numerics == ("cpu-f32-int8-tp2" if weights == "int8" else "cpu-bf16-tp2")
        shard.open("s", 40)
        assert len(set(tokens(shard, "s", [5, 99, 17, 3], 12))) > 2
        shard.end()


# --- when ranks fail


def test_a_rank_that_stands_still_is_an_error_within_its_bound(tiny_store: tuple[Store, Manifest]) -> None:
    def deaf(pipe: Connection) -> None:
        job = Assignment(**json.loads(pipe.recv_bytes()))
        pipe.send_bytes(json.dumps([LOADED]).encode())
        group = job.group()
        group.meet()
        pipe.send_bytes(json.dumps([READY]).encode())
        with suppress(EOFError):
            while pipe.recv_bytes():
                assert group

    start = partial(in_threads, run=deaf)
    shard = TensorParallelShard.load(*tiny_store, Span(0, 6), 2, threads=1, stall_s=2.0, start=start)
    shard.open("s", 10)
    with pytest.raises(WorkerLost, match="stands still"):
        shard.step([Work("s", 0, ids=[1])])
    shard.end()
    with pytest.raises(WorkerLost, match="told to end"):
        shard.step([Work("s", 0, ids=[1])])


def test_why_a_rank_could_not_load_is_told(tiny_store: tuple[Store, Manifest]) -> None:
    def unable(pipe: Connection) -> None:
        pipe.recv_bytes()
        pipe.send_bytes(json.dumps(["corrupt_block", "its hash is wrong", "fetch it"]).encode())

    with pytest.raises(CorruptBlock, match=r"rank 1: its hash is wrong \(fetch it\)"):
        TensorParallelShard.load(*tiny_store, Span(0, 6), 2, start=partial(in_threads, run=unable))


# --- processes


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Manifest]:
    """Three key-value heads, five units of inner width, an odd vocabulary: nothing divides by two."""
    config = CONFIG_MAPPING["llama"](
        vocab_size=129,
        hidden_size=48,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=3,
        max_position_embeddings=128,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    store = Store(tmp_path_factory.mktemp("uneven"))
    return store, publish(store, from_model(model, "f32"), "uneven")


@pytest.fixture(scope="module")
def pair(uneven: tuple[Store, Manifest]) -> Iterator[TensorParallelShard]:
    """Two processes. The last test of this file takes one away."""
    start = partial(Workers.start, module="paceline.node.lean_rank")
    shard = TensorParallelShard.load(*uneven, Span(0, 3), 2, threads=1, kv_positions=200, start=start)
    yield shard
    shard.end()


def test_two_processes_serve_sessions_as_one_does(pair: TensorParallelShard, uneven: tuple[Store, Manifest]) -> None:
    one = TorchShard.load(*uneven, Span(0, 3), kv_positions=200)
    assert (pair.numerics, one.numerics, pair.lean_layers) == ("cpu-f32-tp2", "cpu-f32", 3)
    assert isinstance(pair, Paged)
    for shard in (one, pair):
        shard.open("a", 64)
        shard.open("b", 64)
    first = tokens(one, "a", [5, 99, 17, 3], 10)
    assert len(set(first)) > 2
    assert tokens(pair, "a", [5, 99, 17, 3], 10) == first
    assert tokens(pair, "b", [8, 8], 6) == tokens(one, "b", [8, 8], 6)
    for shard in (one, pair):
        shard.crop("a", 4)
        works = [Work("a", 4, ids=[first[0]]), Work("b", 7, ids=[1, 2, 3])]
        works = [replace(work, sample=SampleRequest(GREEDY, work.start + work.n, (), 1)) for work in works]
        assert [output.error for output in shard.step(works)] == ["", ""]
    assert tokens(pair, "a", [7], 5) == tokens(one, "a", [7], 5)
    for key in ("a", "b", "b"):
        pair.close(key)
    assert pair.untidy
    pair.tidy()
    assert not pair.untidy
    assert pair.kv_free == 200


def test_nobody_outside_can_reach_the_ranks(pair: TensorParallelShard) -> None:
    ranks = [psutil.Process(), *map(psutil.Process, pair.pids)]
    heard = [it.laddr.ip for each in ranks for it in each.net_connections() if it.status == "LISTEN"]
    assert set(heard) <= {"127.0.0.1"}


def test_part_of_a_span_and_bad_works_do_no_harm(pair: TensorParallelShard, uneven: tuple[Store, Manifest]) -> None:
    one = TorchShard.load(*uneven, Span(0, 3))
    for shard in (one, pair):
        shard.open("part", 20, Span(0, 2))
    works = [Work("part", 0, ids=[3, 4, 5])]
    emitted = [shard.step(works)[0].activations for shard in (one, pair)]
    rows = [torch.frombuffer(bytearray(it.data), dtype=torch.float32) for it in emitted if it is not None]
    assert torch.allclose(*rows, rtol=1e-4, atol=1e-4)
    assert "vocabulary" in pair.step([Work("part", 3, ids=[129])])[0].error
    assert "reserved" in pair.step([Work("part", 3, ids=[1] * 18)])[0].error
    with pytest.raises(ValueError, match="starts"):
        pair.step([Work("part", 1, ids=[1])])
    pair.close("part")
    ticks = iter(range(1_000_000))
    assert measure(pair, clock=lambda: next(ticks) / 10).decode_s > 0
    assert pair.kv_free == 200


def test_a_killed_rank_is_an_error_at_once_and_leaves_nothing(pair: TensorParallelShard) -> None:
    """Last in this file: it takes `pair` apart."""
    pair.open("s", 20)
    pair.step([Work("s", 0, ids=[1, 2])])
    (child,) = map(psutil.Process, pair.pids)  # not this process's children: other tests' helpers are among those
    child.send_signal(signal.SIGTERM)  # meant for all of a service's processes: the first decides
    pair.step([Work("s", 2, ids=[3])])
    child.kill()
    for _ in range(2):
        with pytest.raises(WorkerLost, match="killed by signal 9"):
            pair.step([Work("s", 3, ids=[4])])
    pair.end()
    assert not child.is_running()
