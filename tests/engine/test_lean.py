"""The lean layer is the family's own; the classes of weights multiply what they say; no row knows of another."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate
from pathlib import Path

import pytest
import torch

from bench.parity_shards import tiny_model
from paceline.engine.convert import from_model
from paceline.engine.linear import GROUP, Packed, Plain, Product, can_pack, product, quickest, share
from paceline.engine.loading import LoadConfig
from paceline.engine.shard import Weights, Work
from paceline.engine.source import publish
from paceline.engine.torch_shard import TorchShard
from paceline.node.machine import subject_of
from paceline.store.manifest import Manifest
from paceline.store.store import Store

CLASSES: tuple[Weights, ...] = ("f32", "bf16", "int8", "int4")
ERROR = {"f32": 1e-5, "bf16": 2e-2, "int8": 3e-2, "int4": 0.2}


@pytest.fixture(scope="module", autouse=True)
def packable() -> None:
    assert can_pack(torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("weights", CLASSES)
@pytest.mark.parametrize("rows", [1, 5, 33])
def test_a_product_is_near_the_true_one_and_adds_what_it_is_told(weights: Weights, rows: int) -> None:
    draw = torch.Generator().manual_seed(1)
    weight, bias, x, other = (
        torch.randn(*shape, generator=draw) for shape in ((64, 96), (64,), (rows, 96), (rows, 64))
    )
    for given in (bias, None):
        made = product(weight, given, weights)
        want = torch.nn.functional.linear(x, weight, given)
        assert (made(x) - want).abs().max() <= ERROR[weights] * want.abs().max()
        assert torch.allclose(made.plus(x, other), made(x) + other, atol=1e-4)


@pytest.mark.parametrize("form", [Plain, partial(Packed, dtype=torch.float32)])
@pytest.mark.parametrize("rows", [1, 5, 33])
def test_both_forms_of_float32_are_near_the_true_product(
    form: Callable[[torch.Tensor, torch.Tensor | None], Product], rows: int
) -> None:
    draw = torch.Generator().manual_seed(4)
    weight, bias, x, other = (
        torch.randn(*shape, generator=draw) for shape in ((64, 96), (64,), (rows, 96), (rows, 64))
    )
    for given in (bias, None):
        made, want = form(weight, given), torch.nn.functional.linear(x, weight, given)
        assert torch.allclose(made(x), want, atol=1e-4)
        assert torch.allclose(made.plus(x, other), want + other, atol=1e-4)


@pytest.mark.parametrize("times", [0.5, 2.0])
def test_the_quicker_form_is_told_by_the_clock_it_is_given(times: float) -> None:
    """A clock on which the first of each pair of products takes `times` as long as the second."""

    def ticks() -> Iterator[float]:
        while True:
            yield from (1.0, times, 1.0, 1.0)  # rest, first, rest, second

    threads, now = torch.get_num_threads(), accumulate(ticks())
    assert share(Plain, Plain, lambda: next(now)) == pytest.approx(times)
    assert torch.get_num_threads() == threads


def test_a_process_keeps_to_one_form() -> None:
    assert quickest() is quickest()


def test_integer_rows_do_not_know_their_batch() -> None:
    weight, x = torch.randn(48, 64), torch.randn(19, 64) * torch.logspace(-3, 3, 19)[:, None]
    made = product(weight, None, "int8")
    assert torch.equal(made(x), torch.cat([made(row[None]) for row in x]))


def test_weights_on_a_q4_grid_are_kept_as_they_are() -> None:
    draw = torch.Generator().manual_seed(2)
    whole = torch.randint(0, 16, (32, 4, GROUP), generator=draw).float()
    whole[..., 0], whole[..., 1] = 0, 15
    weight = (whole * 0.25 - 1.75).view(32, 4 * GROUP)
    x = torch.eye(4 * GROUP)
    assert torch.equal(product(weight, None, "int4")(x), weight.T)


def published(arch: str, folder: Path) -> tuple[Store, Manifest]:
    store = Store(folder / "store")
    return store, publish(store, from_model(tiny_model(arch, folder / "hf"), "f32"), f"tiny-{arch}")


@pytest.mark.parametrize(("arch", "taken"), [("llama", True), ("qwen2", True), ("qwen3", True), ("gemma2", False)])
def test_families_that_fit_run_lean_and_others_as_they_are(arch: str, taken: bool, tmp_path: Path) -> None:
    store, manifest = published(arch, tmp_path)
    shard = TorchShard.load(store, manifest, manifest.span)
    assert shard.lean_layers == (len(manifest.layers) if taken else 0)


def test_a_window_is_taken_over(tmp_path: Path) -> None:
    """Mistral tells the attention function of its window, not its attributes."""
    store, manifest = published("mistral", tmp_path)
    lean, plain = (TorchShard.load(store, manifest, manifest.span, packed=packed) for packed in (True, False))
    assert lean.lean_layers == len(manifest.layers)
    assert plain.lean_layers == 0
    rows = torch.arange(3, 43)
    logits = []
    for shard in (lean, plain):
        shard.open("s", 64)
        work = Work("s", 0, ids=rows.tolist())
        hidden = shard.input(work)
        assert hidden is not None
        logits.append(shard.logits(shard.forward([work], hidden)))
    assert torch.allclose(*logits, atol=1e-3 * float(logits[0].abs().max()))


@pytest.mark.parametrize("weights", CLASSES)
def test_a_class_is_announced(weights: Weights, tiny_store: tuple[Store, Manifest]) -> None:
    shard = TorchShard.load(*tiny_store, tiny_store[1].span, weights=weights)
    assert shard.numerics == ("cpu-f32" if weights == "f32" else f"cpu-f32-{weights}")
    subject = subject_of(tiny_store[1], LoadConfig(weights=weights), 1e9)  # what placement expects of it
    assert subject.blank.numerics == shard.numerics
    shard.open("s", 8)
    assert shard.step([Work("s", 0, ids=[5, 6, 7])])[0].error == ""
    shard.close("s")
    gone = weakref.ref(shard)
    gc.disable()  # no cycle: a process that froze its objects (engine.memory) would keep an upgraded shard for ever
    try:
        del shard
        assert gone() is None
    finally:
        gc.enable()
