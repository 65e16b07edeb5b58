"""What every shard must do, run against the toy and against the real one."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pytest

from paceline.engine.cuda_shard import LeanShard
from paceline.engine.measure import measure
from paceline.engine.shard import Activations, Key, Output, SampleRequest, Shard, Work
from paceline.engine.torch_shard import TorchShard
from paceline.engine.toy import ToyModel, ToyShard
from paceline.store.manifest import Manifest
from paceline.store.store import Store
from paceline.wire.errors import ContextOverflow, Overloaded
from paceline.wire.ids import Span
from paceline.wire.messages import Dtype
from paceline.wire.sampling import SamplingParams

GREEDY = SamplingParams()
PROMPT = [5, 99, 17, 3, 64, 12, 80]


@dataclass(frozen=True)
class Kit:
    """One kind of shard: `make(span, kv_positions)`, of a model of 6 layers; `poison`: one bad number."""

    make: Callable[[Span, int], Shard]
    poison: bytes


def lean(stored: tuple[Store, Manifest], span: Span, room: int) -> Shard:
    """The GPU's shard, on the CPU; pages small enough that room is counted as finely as the contract asks."""
    return LeanShard.load(*stored, span, device="cpu", dtype="f32", kv_positions=room, page=4)


@pytest.fixture(params=["toy", "torch", "torch-unpacked", "torch-bf16", "lean"])
def kit(request: pytest.FixtureRequest, tiny_store: tuple[Store, Manifest]) -> Kit:
    if request.param == "toy":
        model = ToyModel(layers=6, vocab=128, max_context=128)
        return Kit(lambda span, room: ToyShard(model, span, room), struct.pack("<q", -1))
    if request.param == "lean":
        return Kit(partial(lean, tiny_store), struct.pack("<f", float("nan")))
    packed = request.param == "torch"
    dtype: Dtype = "bf16" if request.param == "torch-bf16" else "f32"

    def make(span: Span, room: int) -> Shard:
        return TorchShard.load(*tiny_store, span, kv_positions=room, packed=packed, dtype=dtype)

    return Kit(make, b"\xc0\x7f" if dtype == "bf16" else struct.pack("<f", float("nan")))


def ring(kit: Kit, *cuts: int) -> list[Shard]:
    edges = [0, *cuts, 6]
    return [kit.make(Span(start, end), 1000) for start, end in itertools.pairwise(edges)]


def push(shards: Sequence[Shard], key: Key, ids: Sequence[int], sample: SampleRequest | None = None) -> Output:
    """Append ids to one session, all the way round."""
    output = Output(key)
    for at, shard in enumerate(shards):
        work = Work(key, shard.length(key), sample=sample if at == len(shards) - 1 else None)
        work = replace(work, ids=ids) if at == 0 else replace(work, activations=output.activations)
        (output,) = shard.step([work])
        assert not output.error
    return output


def generate(
    shards: Sequence[Shard], key: Key, prompt: Sequence[int], n: int, params: SamplingParams = GREEDY
) -> list[int]:
    log, fresh = list(prompt), list(prompt)
    while len(log) < len(prompt) + n:
        sampled = push(shards, key, fresh, SampleRequest(GREEDY, len(log), log, len(prompt))).sampled
        assert sampled is not None
        fresh = [sampled.token]
        log += fresh
    return log[len(prompt) :]


def opened(shards: list[Shard], *keys: Key) -> list[Shard]:
    for shard in shards:
        for key in keys:
            shard.open(key, 64)
    return shards


@pytest.mark.parametrize("cuts", [(3,), (1, 4), (1, 2, 3, 4, 5)])
def test_a_split_model_says_what_the_whole_says(kit: Kit, cuts: tuple[int, ...]) -> None:
    whole = generate(opened(ring(kit), "s"), "s", PROMPT, 12)
    assert len(set(whole)) > 2
    assert generate(opened(ring(kit, *cuts), "s"), "s", PROMPT, 12) == whole


def test_a_session_may_use_part_of_a_span(kit: Kit) -> None:
    whole = generate(opened(ring(kit), "s"), "s", PROMPT, 8)
    shards = [kit.make(Span(0, 6), 1000) for _ in range(3)]
    for shard, part in zip(shards, (Span(0, 2), Span(2, 5), Span(5, 6)), strict=True):
        shard.open("s", 64, part)
    assert generate(shards, "s", PROMPT, 8) == whole
    with pytest.raises(ValueError, match="not inside"):
        kit.make(Span(2, 4), 100).open("s", 64, Span(1, 3))


def test_chunked_prefill_is_prefill(kit: Kit) -> None:
    whole, chunked = opened(ring(kit, 2), "s"), opened(ring(kit, 2), "s")
    push(chunked, "s", PROMPT[:3])
    push(chunked, "s", PROMPT[3:4])
    assert [shard.length("s") for shard in chunked] == [4, 4]
    request = SampleRequest(GREEDY, len(PROMPT))
    assert push(chunked, "s", PROMPT[4:], request) == push(whole, "s", PROMPT, request)


def test_crop_and_redo_never_happened(kit: Kit) -> None:
    shards = opened(ring(kit, 3), "s")
    first = generate(shards, "s", PROMPT, 8)
    for keep in (0, 4, len(PROMPT)):
        for shard in shards:
            shard.crop("s", keep)
        push(shards, "s", [7, 7, 7])
        for shard in shards:
            shard.crop("s", keep)
        log = PROMPT[keep:] or PROMPT[-1:]
        if keep == len(PROMPT):
            for shard in shards:
                shard.crop("s", keep - 1)
        assert generate(shards, "s", log, 8)[:1] == first[:1]
    with pytest.raises(ValueError, match="crop"):
        shards[0].crop("s", 63)


def test_a_batch_is_its_members_one_by_one(kit: Kit) -> None:
    """Ragged: two prefill chunks of different lengths and a decode step in one call."""
    alone, together = kit.make(Span(0, 6), 1000), kit.make(Span(0, 6), 1000)
    for shard in (alone, together):
        opened([shard], "a", "b", "c")
        push([shard], "c", [9, 8, 7, 6])
    works = [
        Work("a", 0, ids=PROMPT, sample=SampleRequest(SamplingParams(temperature=0.7, seed=3), len(PROMPT))),
        Work("b", 0, ids=PROMPT[:2], sample=SampleRequest(GREEDY, 2)),
        Work("c", 4, ids=[11], sample=SampleRequest(GREEDY, 5)),
    ]
    singles = [alone.step([work])[0].sampled for work in works]
    assert [output.sampled for output in together.step(works)] == singles
    assert [output.key for output in together.step([])] == []


def test_sessions_do_not_see_each_other(kit: Kit) -> None:
    alone = generate(opened(ring(kit, 3), "s"), "s", PROMPT, 6)
    shards = opened(ring(kit, 3), "s", "other")
    generate(shards, "other", [1, 2, 3], 5)
    shards[0].close("other")
    assert generate(shards, "s", PROMPT, 6) == alone


def test_a_bad_work_fails_alone(kit: Kit) -> None:
    tail = opened([kit.make(Span(3, 6), 1000)], "good", "bad", "wide")[0]
    middle = opened([kit.make(Span(0, 3), 1000)], "s")[0]
    came = push([middle], "s", PROMPT).activations
    assert came is not None
    poisoned = bytearray(came.data)
    poisoned[-len(kit.poison) :] = kit.poison
    outputs = tail.step(
        [
            Work("bad", 0, activations=replace(came, data=bytes(poisoned))),
            Work("good", 0, activations=came, sample=SampleRequest(GREEDY, len(PROMPT))),
            Work("wide", 0, activations=replace(came, hidden=came.hidden + 1)),
        ]
    )
    assert [bool(output.error) for output in outputs] == [True, False, True]
    assert "finite" in outputs[0].error
    assert [tail.length(key) for key in ("bad", "good", "wide")] == [0, len(PROMPT), 0]


@pytest.mark.parametrize("change", [{"data": b""}, {"dtype": "i8"}, {"n": 8}])
def test_malformed_activations_are_refused(kit: Kit, change: dict[str, object]) -> None:
    head, tail = opened([kit.make(Span(0, 3), 100)], "s")[0], opened([kit.make(Span(3, 6), 100)], "s")[0]
    came = push([head], "s", PROMPT).activations
    assert came is not None
    assert tail.step([Work("s", 0, activations=replace(came, **change))])[0].error  # type: ignore[arg-type]
    assert tail.length("s") == 0


def test_ids_and_roles_are_checked(kit: Kit) -> None:
    head, middle = opened([kit.make(Span(0, 3), 100)], "s")[0], opened([kit.make(Span(2, 4), 100)], "s")[0]
    assert "vocabulary" in head.step([Work("s", 0, ids=[128])])[0].error
    assert "embed" in middle.step([Work("s", 0, ids=[1])])[0].error
    assert "tail" in head.step([Work("s", 0, ids=[1], sample=SampleRequest(GREEDY, 1))])[0].error
    assert head.step([Work("s", 0, activations=Activations(1, 4, "i64", bytes(32)))])[0].error
    assert head.step([Work("s", 0, ids=[])])[0].error


def test_room_is_reserved_and_given_back(kit: Kit) -> None:
    shard = kit.make(Span(0, 6), 100)
    shard.open("a", 60)
    assert shard.kv_free == 40
    with pytest.raises(Overloaded):
        shard.open("b", 41)
    with pytest.raises(ContextOverflow):
        shard.open("b", 129)
    with pytest.raises(ValueError, match="already open"):
        shard.open("a", 1)
    assert "reserved" in shard.step([Work("a", 0, ids=[1] * 61)])[0].error
    shard.step([Work("a", 0, ids=[1] * 60)])
    shard.close("a")
    shard.close("a")
    assert shard.kv_free == 100
    with pytest.raises(KeyError):
        shard.length("a")


def test_our_own_mistakes_raise(kit: Kit) -> None:
    shard = opened([kit.make(Span(0, 6), 100)], "s")[0]
    for works in (
        [Work("s", 1, ids=[1])],
        [Work("s", 0, ids=[1]), Work("s", 0, ids=[1])],
        [Work("s", 0)],
    ):
        with pytest.raises(ValueError, match=r"starts|one work|exactly"):
            shard.step(works)
    with pytest.raises(KeyError):
        shard.step([Work("absent", 0, ids=[1])])
    assert shard.length("s") == 0


def test_the_tail_can_fill_without_sampling_and_can_explain(kit: Kit) -> None:
    shard = opened([kit.make(Span(0, 6), 100)], "s")[0]
    (silent,) = shard.step([Work("s", 0, ids=PROMPT[:-1])])
    assert (silent.activations, silent.sampled, silent.error) == (None, None, "")
    request = SampleRequest(SamplingParams(logprobs=2), len(PROMPT))
    (told,) = shard.step([Work("s", len(PROMPT) - 1, ids=PROMPT[-1:], sample=request)])
    assert told.sampled is not None
    assert told.sampled.logprob is not None
    assert told.sampled.top[0][0] == told.sampled.token


def test_measuring_leaves_nothing_behind(kit: Kit) -> None:
    ticks = iter(range(1_000_000))
    shard = kit.make(Span(0, 6), 4096)
    found = measure(shard, clock=lambda: next(ticks) / 10)
    assert found.decode_s > 0
    assert shard.kv_free == 4096
