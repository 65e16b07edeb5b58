"""Publish, join and generate with real processes; and real processes that break a rule of weights.

Two architectures that no other test uses: a safetensors folder of Arcee's, a GGUF file of StarCoder2's.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ArceeConfig, ArceeForCausalLM, Starcoder2Config, Starcoder2ForCausalLM

from paceline.client import Client
from paceline.store.store import Store

PROMPT = [5, 3, 1, 4, 1, 5, 9, 2, 6]
SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
pytestmark = pytest.mark.timeout(300)
EVIL = Path(__file__).with_name("evil_node.py")


def random_model(model: Any, seed: int) -> Any:
    """Weights wide enough that tokens vary."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    return model.eval()


def greedy(model: Any, n: int) -> list[int]:
    model.generation_config.eos_token_id = None
    ids = torch.tensor([PROMPT])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, min_new_tokens=n, do_sample=False)
    return [int(token) for token in out[0, len(PROMPT) :]]


def write_gguf(path: Path, model: Any) -> None:
    """As llama.cpp lays StarCoder2 out, in float32."""
    config, writer = model.config, gguf.GGUFWriter(path, "starcoder2")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_eps(config.norm_epsilon)
    tokens = ["<unk>", "<s>", "</s>", *(chr(0x100 + at) for at in range(config.vocab_size - 4)), "ĀĀ"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, *([1] * (len(tokens) - 3))])
    writer.add_token_merges(["Ā Ā"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.STARCODER2, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is not None and not (name == "lm_head.weight" and config.tie_word_embeddings):
            writer.add_tensor(target, np.ascontiguousarray(tensor.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@dataclass
class Lab:
    """Processes on loopback, and their homes."""

    folder: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def command(self, *arguments: str, home: str, check: bool = True) -> str:
        """One `paceline` command, to its end; what it printed."""
        line = [sys.executable, "-m", "paceline.cli", *arguments]
        done = subprocess.run(
            line,
            env={**ENVIRONMENT, "PACELINE_HOME": str(self.folder / home)},
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout + done.stderr if check else f"{done.returncode} {done.stderr}"

    def start(self, name: str, *arguments: str, home: str, evil: str = "") -> Path:
        """Begin a node; its ready file."""
        ready = self.folder / f"{name}.ready"
        line = [sys.executable, str(EVIL), evil] if evil else [sys.executable, "-m", "paceline.cli"]
        line += ["node", "--listen", "127.0.0.1", "--name", name, "--ready-file", str(ready), *arguments]
        with (self.folder / f"{name}.log").open("wb") as log:
            environment = {**ENVIRONMENT, "PACELINE_HOME": str(self.folder / home)}
            self.running.append(subprocess.Popen(line, env=environment, stdout=log, stderr=log))
        return ready

    def ready(self, file: Path) -> str:
        """Wait until a node serves; where to join it."""
        deadline = time.monotonic() + 120
        while not file.exists():
            assert time.monotonic() < deadline, file.with_suffix(".log").read_text()
            assert self.running[-1].poll() is None, file.with_suffix(".log").read_text()
            os.sched_yield()
        return str(json.loads(file.read_text())["bootstrap"][0])

    def node(self, name: str, *arguments: str, home: str, evil: str = "") -> str:
        return self.ready(self.start(name, *arguments, home=home, evil=evil))

    def stop(self) -> None:
        for process in self.running:
            process.send_signal(signal.SIGTERM)
        for process in self.running:
            process.wait(30)
        self.running.clear()

    def key(self, home: str) -> str:
        return str(json.loads(self.command("models", "--json", home=home))["publisher"])

    def blocks(self, home: str) -> set[str]:
        return {path.name for path in (self.folder / home / "store" / "blocks").iterdir()}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A publisher's home with both models, and the models."""
    folder = tmp_path_factory.mktemp("published")
    arcee = random_model(ArceeForCausalLM(ArceeConfig(**SIZES, head_dim=16)), 1)
    star = random_model(Starcoder2ForCausalLM(Starcoder2Config(**SIZES)), 2)
    arcee.save_pretrained(folder / "arcee")
    write_gguf(folder / "star.gguf", star)
    lab = Lab(folder)
    told = lab.command("publish", str(folder / "arcee"), "--name", "team/arcee", home="pub")
    assert "release 1" in told
    assert "ArceeForCausalLM" in told
    assert "Starcoder2ForCausalLM" in lab.command("publish", str(folder / "star.gguf"), "--name", "star", home="pub")
    return folder, arcee, star


@pytest.fixture
def lab(published: tuple[Path, Any, Any], tmp_path: Path) -> Iterator[Lab]:
    shutil.copytree(published[0] / "pub", tmp_path / "pub")
    lab = Lab(tmp_path)
    yield lab
    lab.stop()


def generated(lab: Lab, swarm: str, model: str, n: int = 24) -> list[int]:
    with Client(swarm, home=lab.folder / "client") as client:
        answer = client.generate(PROMPT, model=model, max_tokens=n, ignore_eos=True, timeout_s=30)
        return [piece.token for piece in answer]


@pytest.mark.parametrize("which", ["team/arcee", "star"])
def test_a_folder_and_a_gguf_go_from_publish_through_join_to_tokens(
    lab: Lab, published: tuple[Path, Any, Any], which: str
) -> None:
    first = lab.node("first", "--model", which, "--span", "0:2", home="pub")
    trusted = ("--trust", f"{lab.key('pub')}={which}")
    joined = lab.node("second", "--model", which, "--span", "2:4", "--swarm", first, *trusted, home="empty")
    assert generated(lab, joined, which) == greedy(published[1 if which == "team/arcee" else 2], 24)
    manifest = Store(lab.folder / "pub" / "store").manifest(which)
    needed = [*manifest.layers[2:], manifest.head, *([manifest.embed] if manifest.tied else []), *manifest.texts()]
    assert lab.blocks("empty") == {block.hash for block in needed}


def test_an_edited_revision_stores_and_sends_only_its_layer(lab: Lab, published: tuple[Path, Any, Any]) -> None:
    first = lab.node("first", "--model", "team/arcee", "--span", "0:4", home="pub")
    trusted = ("--trust", lab.key("pub"), "--swarm", first)
    lab.node("second", "--model", "team/arcee", "--span", "all", *trusted, home="other")
    other_before = lab.blocks("other")
    store, before = Store(lab.folder / "pub" / "store"), lab.blocks("pub")
    tensors = load_file(store.path(store.manifest("team/arcee").layers[2].digest))
    save_file({name: tensor * 0.5 for name, tensor in tensors.items()}, lab.folder / "layer.safetensors")
    edit = f"2={lab.folder / 'layer.safetensors'}"
    told = lab.command("publish", "team/arcee", "--layer", edit, home="pub")
    assert "release 2" in told
    assert "new here: 1 of " in told
    second = Store(lab.folder / "pub" / "store").manifest("team/arcee")
    assert lab.blocks("pub") - before == {second.layers[2].hash}
    revision = ""
    deadline = time.monotonic() + 120
    while revision != second.revision.hex() and time.monotonic() < deadline:
        status = status_of(lab, first, "second")
        revision = status["services"][-1]["revision"]
    assert revision == second.revision.hex()
    assert [report["bytes"] for report in status["fetched"]][1:] == [second.layers[2].size]
    assert lab.blocks("other") - other_before == {second.layers[2].hash}


def test_a_corrupted_block_is_refused_and_comes_from_another(lab: Lab) -> None:
    evil = lab.node("evil", "--model", "team/arcee", "--span", "all", home="pub", evil="corrupt")
    wanted = ("--model", "team/arcee", "--span", "0:2", "--trust", lab.key("pub"), "--swarm", evil)
    alone = lab.command("node", *wanted, "--listen", "127.0.0.1", home="empty", check=False)
    assert alone.startswith("1 ")
    assert "corrupt_block" in alone
    assert not lab.blocks("empty")
    lab.node("honest", "--model", "team/arcee", "--span", "all", "--swarm", evil, home="pub")
    lab.node("joiner", *wanted, home="empty")
    manifest = Store(lab.folder / "pub" / "store").manifest("team/arcee")
    assert {block.hash for block in manifest.blocks(manifest.span) if block in manifest.layers[:2]} <= lab.blocks(
        "empty"
    )
    status = status_of(lab, evil, "joiner")
    assert len(status["banned"]) <= 1


def status_of(lab: Lab, swarm: str, name: str) -> dict[str, Any]:
    """What a node says of itself."""
    with Client(swarm, home=lab.folder / "client") as client:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for node in client.status():
                if node.get("agent") == f"paceline/{name}":
                    return node
    raise AssertionError(f"{name} is not seen")


def test_a_forged_manifest_and_a_forged_release_are_refused(lab: Lab) -> None:
    for how in ("manifest", "forge"):
        evil = lab.node(how, "--model", "team/arcee", "--span", "all", home="pub", evil=how)
        wanted = ("--model", "team/arcee", "--span", "0:2", "--trust", lab.key("pub"), "--swarm", evil)
        told = lab.command("node", *wanted, "--listen", "127.0.0.1", home=f"empty-{how}", check=False)
        assert told.startswith("1 ")
        assert "forged_manifest" in told
        assert not lab.blocks(f"empty-{how}")
        lab.stop()


def test_an_unauthorised_publisher_is_refused(lab: Lab) -> None:
    first = lab.node("first", "--model", "team/arcee", "--span", "all", home="pub")
    key = lab.key("pub")
    wanted = ("--model", "team/arcee", "--span", "0:2", "--swarm", first, "--trust", f"{key}=other/*")
    told = lab.command("node", *wanted, "--listen", "127.0.0.1", home="empty", check=False)
    assert told.startswith("1 ")
    assert "unauthorised_publisher" in told
    assert not lab.blocks("empty")


def test_a_replayed_release_is_refused(lab: Lab) -> None:
    store = Store(lab.folder / "pub" / "store")
    tensors = load_file(store.path(store.manifest("team/arcee").layers[0].digest))
    save_file({name: tensor * 0.5 for name, tensor in tensors.items()}, lab.folder / "layer.safetensors")
    old = lab.node("old", "--model", "team/arcee", "--span", "all", home="pub", evil="replay")
    lab.command("publish", "team/arcee", "--layer", f"0={lab.folder / 'layer.safetensors'}", home="pub")
    newest = store.manifest("team/arcee").revision.hex()
    knows = lab.node("knows", "--model", "team/arcee", "--span", "all", "--swarm", old, home="pub")
    status = status_of(lab, knows, "knows")
    deadline = time.monotonic() + 30
    while not status["releases_refused"] and time.monotonic() < deadline:
        status = status_of(lab, knows, "knows")
    assert status["releases_refused"] == {"replayed_release": 1}
    assert status["services"][0]["revision"] == newest
