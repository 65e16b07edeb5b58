"""A model comes from a hub through the hub's own client, over real HTTP to a hub on this machine, or says why not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from paceline.engine.convert import from_model, open_source
from paceline.engine.hub import HubUnavailable, parse, snapshot
from paceline.engine.refill import folder_of, refill
from paceline.engine.source import build, publish
from paceline.node import weights_source
from paceline.store.manifest import Manifest
from paceline.store.store import Store
from paceline.wire.errors import CorruptBlock, ModelNotFound, PacelineError
from paceline.wire.ids import Span
from tests.engine.fake_hub import COMMIT, GATED, REPO, FakeHub, serving


@pytest.fixture
def hub(tiny: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The tiny model at a hub, with other things beside it that nobody needs."""
    folder = tmp_path / "hub"
    tiny.save_pretrained(folder, max_shard_size="40KB")
    (folder / "README.md").write_text("read me")
    (folder / "pytorch_model.bin").write_bytes(b"the same once more")
    (folder / "consolidated.safetensors").write_bytes(b"and once more")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.safetensors").write_bytes(b"and once more")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with serving(folder) as served:
        yield served


def test_only_what_is_needed_is_fetched_and_once(hub: FakeHub, tiny: LlamaForCausalLM, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    found = snapshot(REPO, "main", lambda *step: told.append(step), hub.url)
    assert found.name == COMMIT
    files = {path.name for path in found.iterdir()}
    assert files == set(hub.asked)
    assert {"config.json", "generation_config.json", "model.safetensors.index.json"} <= files
    assert not files & {"README.md", "pytorch_model.bin", "consolidated.safetensors", "onnx"}
    size = sum(path.stat().st_size for path in found.iterdir())
    assert told[0] == ("download", 0, 0)
    assert told[-1] == ("download", size, size)
    asked = len(hub.asked)
    assert snapshot(REPO, None, lambda *step: None, hub.url) == found
    assert len(hub.asked) == asked
    hub.broken = True
    assert snapshot(REPO, COMMIT, lambda *step: None, hub.url) == found, "the cache has it"
    direct = publish(Store(tmp_path / "direct"), from_model(tiny, "f32"), "tiny")
    assert publish(Store(tmp_path / "store"), open_source(found), "tiny").revision == direct.revision


def test_what_goes_wrong_has_a_name_and_a_cure(hub: FakeHub) -> None:
    def refused(repo: str, revision: str | None = None) -> str:
        with pytest.raises(PacelineError) as error:
            snapshot(repo, revision, lambda *step: None, hub.url)
        assert error.value.cure
        return error.value.code

    assert refused("org/unknown") == "model_not_found"
    assert refused("org/..") == "model_not_found"
    assert refused(REPO, "v9") == "model_not_found"
    assert refused(GATED) == "hub_refused"
    for path in hub.folder.glob("model*.safetensors"):
        path.unlink()
    assert refused(REPO) == "unsupported_model"


def test_a_hub_that_cannot_be_reached(hub: FakeHub) -> None:
    hub.broken = True
    with pytest.raises(HubUnavailable, match="org/tiny@v1") as refused:
        snapshot(REPO, "v1", lambda *step: None, hub.url)
    assert "HF_ENDPOINT" in refused.value.cure


def test_how_ids_are_written() -> None:
    assert parse("org/name") == ("org/name", None)
    assert parse("org/Na.me-7b_it@refs/pr/1") == ("org/Na.me-7b_it", "refs/pr/1")
    for other in ("name", "./folder/x", "a/b/c", "org/name@", "/etc/passwd", "org/na me", ""):
        assert parse(other) is None


def paceline(hub: FakeHub, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    named = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(home / "cache"), "PACELINE_HOME": str(home)}
    command = [sys.executable, "-m", "paceline.cli", *words]
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"} | named
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_publish_from_a_hub(hub: FakeHub, tiny: LlamaForCausalLM, tmp_path: Path) -> None:
    done = paceline(hub, tmp_path / "home", "publish", f"{REPO}@v1", "--name", "team/chat")
    assert done.returncode == 0, done.stderr
    assert COMMIT[:12] in done.stderr
    store = Store(tmp_path / "home" / "store")
    made = store.manifest("team/chat")
    assert store.missing(made) == []
    assert made.revision == publish(Store(tmp_path / "direct"), from_model(tiny, "f32"), "team/chat").revision


# --- blocks that no peer sends


def lacking(folder: Path, manifest: Manifest) -> Store:
    """A store that knows what the model consists of, and has none of it."""
    store = Store(folder)
    store.put_manifest(manifest, name=False)
    return store


def test_a_source_fills_only_what_the_span_lacks(
    hub: FakeHub, tiny_store: tuple[Store, Manifest], tmp_path: Path
) -> None:
    store, span = lacking(tmp_path / "store", tiny_store[1]), Span(0, 2)
    found = open_source(snapshot(REPO, None, lambda *step: None, hub.url), "f32")
    assert refill(store, tiny_store[1], span, found) == len(list(tiny_store[1].blocks(span)))
    assert store.missing(tiny_store[1], span) == []
    assert store.missing(tiny_store[1]) != []
    assert refill(store, tiny_store[1], span, found) == 0


def test_a_source_with_other_weights_is_refused(
    tiny: LlamaForCausalLM, tiny_store: tuple[Store, Manifest], tmp_path: Path
) -> None:
    state = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    state["model.layers.1.mlp.up_proj.weight"][0, 0] += 1
    other = LlamaForCausalLM(tiny.config)
    other.load_state_dict(state)
    store = lacking(tmp_path / "store", tiny_store[1])
    with pytest.raises(CorruptBlock, match="wanted block") as refused:
        refill(store, tiny_store[1], Span(0, 3), from_model(other, "f32"))
    assert "another" in refused.value.cure
    lacks = [block.hash for block in store.missing(tiny_store[1], Span(0, 3))]
    assert tiny_store[1].layers[1].hash in lacks
    assert tiny_store[1].layers[0].hash not in lacks
    with pytest.raises(ModelNotFound, match="neither here"):
        folder_of("nowhere", lambda *step: None)


async def test_a_node_converts_beside_itself(
    tiny: LlamaForCausalLM, tiny_store: tuple[Store, Manifest], tmp_path: Path
) -> None:
    tiny.save_pretrained(tmp_path / "hf")
    store, span = lacking(tmp_path / "store", tiny_store[1]), Span(4, 6)
    await weights_source.refill(store, tiny_store[1], span, str(tmp_path / "hf"))
    assert store.missing(tiny_store[1], span) == []
    with pytest.raises(ModelNotFound, match="neither here"):
        await weights_source.refill(store, tiny_store[1], Span(0, 2), str(tmp_path / "nowhere" / "x" / "y"))
    shown = build(Store(tmp_path / "again"), open_source(tmp_path / "hf", "f32"), "tiny")
    assert json.loads(shown.encode())["layers"] == json.loads(tiny_store[1].encode())["layers"]
