"""The toy model is worth believing only if every protocol fault changes its tokens."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from paceline.engine.shard import Activations, Work
from paceline.engine.toy import HIDDEN, ToyModel, ToyShard, generate, toy_generate
from paceline.wire.ids import Span
from paceline.wire.sampling import SamplingParams

MODEL = ToyModel(layers=4)
IDS = st.lists(st.integers(0, MODEL.vocab - 1), min_size=2, max_size=12)


def state(ids: list[int], model: ToyModel = MODEL, end: int = 3) -> bytes:
    shard = ToyShard(model, Span(0, end))
    shard.open("s", 64)
    output = shard.step([Work("s", 0, ids=ids)])[0].activations
    assert output is not None
    return bytes(output.data)[-8 * HIDDEN :]


@given(IDS, st.data())
def test_any_change_of_history_changes_the_last_state(ids: list[int], data: st.DataObject) -> None:
    where = data.draw(st.integers(0, len(ids) - 1))
    other = list(ids)
    other[where] = (other[where] + 1) % MODEL.vocab
    assert state(ids) != state(other)
    assert state(ids) != state([*ids[:where], *ids[where + 1 :]])
    swapped = [*ids[:-2], ids[-1], ids[-2]]
    assert ids == swapped or state(ids) != state(swapped)


def test_salt_layer_count_and_span_matter() -> None:
    seen = {
        tuple(toy_generate([1, 2, 3], 8)),
        tuple(toy_generate([1, 2, 3], 8, salt=1)),
        tuple(toy_generate([1, 2, 3], 8, layers=11)),
        tuple(generate(ToyModel.of_revision(b"\1" * 32), [1, 2, 3], 8, SamplingParams())),
    }
    assert len(seen) == 4


def test_a_wrong_position_goes_unnoticed_by_a_lax_shard_but_not_by_its_tokens() -> None:
    def last(start: int) -> bytes:
        shard = ToyShard(MODEL, Span(1, 2), strict=False)
        shard.open("s", 64)
        row = Activations(1, HIDDEN, "i64", (7).to_bytes(8, "little") * HIDDEN)
        shard.step([Work("s", 0, activations=row)])
        output = shard.step([Work("s", start, activations=row)])[0].activations
        assert output is not None
        return bytes(output.data)

    assert len({last(0), last(1), last(2)}) == 3


def test_sampling_depends_on_seed_and_history_only_where_asked() -> None:
    hot = SamplingParams(temperature=1.0, seed=1)
    assert toy_generate([5], 6, params=hot) == toy_generate([5], 6, params=hot)
    assert toy_generate([5], 6, params=hot) != toy_generate([5], 6, params=SamplingParams(temperature=1.0, seed=2))
    assert toy_generate([5], 6, params=SamplingParams(seed=1)) == toy_generate([5], 6, params=SamplingParams(seed=2))
    assert toy_generate([5], 6, params=SamplingParams(presence_penalty=0.5)) != toy_generate([5], 6)


def test_stop_ids_end_the_log_and_are_masked_until_min_tokens() -> None:
    free = toy_generate([5], 8)
    stopped = toy_generate([5], 8, params=SamplingParams(stop_ids=(free[2],)))
    assert stopped == free[:3]
    held = toy_generate([5], 8, params=SamplingParams(stop_ids=(free[2],), min_tokens=8))
    assert len(held) == 8
    assert free[2] not in held


def test_the_toy_needs_neither_torch_nor_numpy() -> None:
    code = "import sys, paceline.engine.toy; sys.exit(bool({'torch', 'numpy', 'trio'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
