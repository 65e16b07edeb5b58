"""Prefixes computed once and sessions that take turns in memory: the tokens must not know."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from paceline.engine.chain import BLOCK
from paceline.engine.kv_room import KvLimits
from paceline.engine.prefixes import PrefixLimits
from paceline.engine.shard import Activations, Paged, SampleRequest, Work
from paceline.engine.spill import SpillFile
from paceline.engine.torch_shard import TorchShard
from paceline.engine.toy import ToyModel, ToyShard
from paceline.store.manifest import Manifest
from paceline.store.store import Store
from paceline.wire.errors import Overloaded
from paceline.wire.ids import Span
from paceline.wire.sampling import SamplingParams

MANY = 1 << 20
PROMPT = [(7 * k + k * k) % 120 + 3 for k in range(3 * BLOCK + 5)]


@pytest.fixture(params=["memory", "disk", "both"])
def limits(request: pytest.FixtureRequest, tmp_path: Path) -> KvLimits:
    memory = {"memory": MANY, "disk": 0, "both": 40_000}[request.param]
    folder = None if request.param == "memory" else tmp_path
    return KvLimits(1000, folder=folder, prefixes=PrefixLimits(memory, MANY))


def ring(store: tuple[Store, Manifest], limits: KvLimits, *cuts: int) -> list[TorchShard]:
    edges = [0, *cuts, 6]
    return [TorchShard.load(*store, Span(a, b), kv=limits) for a, b in itertools.pairwise(edges)]


def push(shards: Sequence[TorchShard], key: str, ids: Sequence[int], at: int) -> int:
    """Append ids, all the way round; the next token."""
    carried: Activations | None = None
    for shard in shards:
        assert shard.length(key) == at
        sample = SampleRequest(SamplingParams(), at + len(ids)) if shard is shards[-1] else None
        work = Work(key, at, ids=ids if carried is None else None, activations=carried, sample=sample)
        (output,) = shard.step([work])
        assert not output.error
        carried = output.activations
    assert output.sampled is not None
    return output.sampled.token


def run(
    shards: Sequence[TorchShard], key: str, prompt: Sequence[int], n: int, scope: bytes | None = b"me"
) -> list[int]:
    for shard in shards:
        shard.open(key, 128)
        if scope is not None:
            shard.share(key, scope)
    log, at = list(prompt), 0
    for _ in range(n):
        fresh = log[at:]
        log.append(push(shards, key, fresh, at))
        at += len(fresh)
    for shard in shards:
        shard.close(key)
    return log[len(prompt) :]


def reused(shards: Sequence[TorchShard]) -> list[int]:
    return [shard.kv_statistics().prefixes.reused for shard in shards]


@pytest.mark.parametrize("cuts", [(), (2, 4)])
def test_a_prefix_is_computed_once(tiny_store: tuple[Store, Manifest], limits: KvLimits, cuts: tuple[int, ...]) -> None:
    shards = ring(tiny_store, limits, *cuts)
    plain = run(shards, "plain", PROMPT, 20, scope=None)
    assert run(shards, "first", PROMPT, 20) == plain
    assert reused(shards) == [0] * len(shards)
    assert run(shards, "second", PROMPT, 20) == plain
    assert reused(shards) == [3 * BLOCK] * len(shards)
    other = [*PROMPT[: BLOCK + 3], 5, *PROMPT[BLOCK + 4 :]]
    assert run(shards, "other", other, 5) == run(shards, "other, plain", other, 5, scope=None)
    assert reused(shards) == [4 * BLOCK] * len(shards)
    for shard in shards:
        assert shard.kv_free == 1000
        assert isinstance(shard, Paged)


def test_an_answer_is_a_prefix_too(tiny_store: tuple[Store, Manifest], limits: KvLimits) -> None:
    shards = ring(tiny_store, limits, 3)
    answer = run(shards, "turn 1", PROMPT[:20], 20)
    longer = [*PROMPT[:20], *answer, 9, 9]
    assert run(shards, "turn 2", longer, 6) == run(shards, "plain", longer, 6, scope=None)
    assert reused(shards) == [BLOCK] * 2


def test_a_prompt_of_whole_blocks_still_draws(tiny_store: tuple[Store, Manifest], limits: KvLimits) -> None:
    shards = ring(tiny_store, limits, 3)
    whole = PROMPT[: 2 * BLOCK]
    assert run(shards, "first", whole, 4) == run(shards, "second", whole, 4)
    assert reused(shards) == [2 * BLOCK] * 2


def test_others_prefixes_are_not_reused(tiny_store: tuple[Store, Manifest], limits: KvLimits) -> None:
    shards = ring(tiny_store, limits)
    run(shards, "mine", PROMPT, 2, scope=b"me")
    run(shards, "yours", PROMPT, 2, scope=b"you")
    assert reused(shards) == [0]


def test_a_running_session_lends_what_it_has(tiny_store: tuple[Store, Manifest], limits: KvLimits) -> None:
    (shard,) = shards = ring(tiny_store, limits)
    shard.open("lender", 128)
    shard.share("lender", b"me")
    token = push(shards, "lender", PROMPT, 0)
    assert run(shards, "borrower", PROMPT, 3)[0] == token
    assert reused(shards) == [3 * BLOCK]
    shard.crop("lender", BLOCK + 1)
    push(shards, "lender", [1] * 70, BLOCK + 1)
    shard.close("lender")
    assert run(shards, "third", PROMPT, 3) == run(shards, "plain", PROMPT, 3, scope=None)


def test_what_is_kept_is_bounded(tiny_store: tuple[Store, Manifest], tmp_path: Path) -> None:
    one = 6 * 2 * 2 * BLOCK * 8 * 4
    for folder, memory in ((None, 3 * one), (tmp_path, 0)):
        limits = KvLimits(1000, folder=folder, prefixes=PrefixLimits(memory, 3 * one, 2 if folder else 99))
        (shard,) = ring(tiny_store, limits)
        for at in range(6):
            run([shard], f"session {at}", [at + 3] * (BLOCK + 1), 1)
        shard.tidy()
        kept = shard.kv_statistics().prefixes
        assert kept.memory_bytes + kept.disk_bytes == kept.extents * one
        assert kept.extents == (2 if folder else 3)
        run([shard], "again", [8] * (BLOCK + 1), 1)
        assert shard.kv_statistics().prefixes.reused == BLOCK


def test_demand_over_memory_waits_and_finishes(tiny_store: tuple[Store, Manifest], tmp_path: Path) -> None:
    """Eight sessions of 60 positions in memory for 128, chosen at random: each says what it says alone."""
    names = [f"session {k}" for k in range(8)]
    prompts = {name: PROMPT[k : k + 20 + k] for k, name in enumerate(names)}
    (alone,) = ring(tiny_store, KvLimits(1000))
    want = {name: run([alone], name, prompts[name], 20, scope=None) for name in names}
    (shard,) = ring(tiny_store, KvLimits(128, spilled=400, folder=tmp_path))
    for name in names:
        shard.open(name, 60)
    with pytest.raises(Overloaded):
        shard.open("too many", 60)
    logs, at, choice = {name: list(prompts[name]) for name in names}, dict.fromkeys(names, 0), random.Random(3)
    while any(len(logs[name]) < len(prompts[name]) + 20 for name in names):
        group = [name for name in names if len(logs[name]) < len(prompts[name]) + 20 and choice.random() < 0.6]
        works = [
            Work(name, at[name], ids=logs[name][at[name] :], sample=SampleRequest(SamplingParams(), len(logs[name])))
            for name in group
        ]
        for output in shard.step(works):
            assert output.sampled is not None
            name = str(output.key)
            at[name] = len(logs[name])
            logs[name].append(output.sampled.token)
        assert shard.kv_statistics().resident <= 128
    assert {name: logs[name][len(prompts[name]) :] for name in names} == want
    assert shard.kv_statistics().moved_out > 0
    assert shard.kv_statistics().moved_in > 0
    for name in names:
        shard.close(name)
    assert shard.kv_free == 528


def test_one_session_must_fit_into_memory(tiny_store: tuple[Store, Manifest], tmp_path: Path) -> None:
    (shard,) = ring(tiny_store, KvLimits(100, spilled=400, folder=tmp_path))
    with pytest.raises(Overloaded, match="memory holds"):
        shard.open("too large", 101)
    assert shard.kv_free == 500


def test_a_session_cut_while_it_was_away_is_cut(tiny_store: tuple[Store, Manifest], tmp_path: Path) -> None:
    (shard,) = shards = ring(tiny_store, KvLimits(64, spilled=200, folder=tmp_path))
    for name in ("a", "b"):
        shard.open(name, 64)
    first = push(shards, "a", PROMPT[:30], 0)
    push(shards, "a", [1, 2, 3], 30)
    push(shards, "b", PROMPT[:40], 0)
    shard.crop("a", 29)
    assert push(shards, "a", PROMPT[29:30], 29) == first
    push(shards, "b", [5], 40)
    shard.crop("a", 10)
    push(shards, "a", PROMPT[10:29], 10)
    push(shards, "b", [5], 41)
    assert push(shards, "a", PROMPT[29:30], 29) == first


def test_files_give_back_what_they_were_given(tmp_path: Path) -> None:
    file = SpillFile(tmp_path)
    assert not list(tmp_path.iterdir())
    keys, values = torch.randn(2, 9, 4), torch.randn(2, 9, 3).bfloat16()
    for start, end in ((0, 4), (4, 5), (5, 9)):
        file.append([keys[:, start:end], values[:, start:end]])
    file.crop(6)
    assert file.length == 5
    file.append([keys[:, 5:8], values[:, 5:8]])
    parts: list[list[torch.Tensor]] = [[], []]
    for number, start, tensor in file.read():
        assert start == sum(part.shape[1] for part in parts[number])
        parts[number].append(tensor)
    assert torch.equal(torch.cat(parts[0], 1), keys[:, :8])
    assert torch.equal(torch.cat(parts[1], 1), values[:, :8])
    file.close()
    file.close()


def test_the_toy_offers_no_pages() -> None:
    assert not isinstance(ToyShard(ToyModel(), Span(0, 12)), Paged)
