"""In every certified family: a batch's logits are its sessions' own, and so are tokens where KV moves and is reused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.parity_shards import ARCHITECTURES, tiny_model
from paceline.engine.convert import from_model
from paceline.engine.kv_room import KvLimits
from paceline.engine.prefixes import PrefixLimits
from paceline.engine.shard import SampleRequest, Work
from paceline.engine.source import publish
from paceline.engine.torch_shard import TorchShard
from paceline.store.store import Store
from paceline.wire.sampling import SamplingParams

LOGS = {
    "long": [(5 * k) % 250 + 3 for k in range(70)],
    "short": [9, 8, 7],
    "other": [(3 * k) % 200 + 4 for k in range(41)],
}


def logits(shard: TorchShard, works: list[Work]) -> list[Tensor]:
    rows = [shard.input(work) for work in works]
    whole = shard.logits(shard.forward(works, torch.cat([row for row in rows if row is not None])))
    return list(whole.split([work.n for work in works]))


def fed(shard: TorchShard, cuts: dict[str, list[int]], together: bool) -> dict[str, Tensor]:
    """Logits of all positions; in each round every session gets its next piece."""
    found: dict[str, list[Tensor]] = {name: [] for name in LOGS}
    for name in LOGS:
        shard.open(name, 80)
    for at in range(max(map(len, cuts.values())) - 1):
        works = [
            Work(name, cut[at], ids=LOGS[name][cut[at] : cut[at + 1]])
            for name, cut in cuts.items()
            if at + 1 < len(cut)
        ]
        for group in [works] if together else [[work] for work in works]:
            for work, part in zip(group, logits(shard, group), strict=True):
                found[str(work.key)].append(part)
    for name in LOGS:
        shard.close(name)
    return {name: torch.cat(parts) for name, parts in found.items()}


def tokens(shard: TorchShard, names: list[str], n: int, tag: str) -> dict[str, list[int]]:
    """Greedy, all sessions in one batch."""
    logs, at = {name: list(LOGS[name]) for name in names}, dict.fromkeys(names, 0)
    for name in names:
        shard.open(tag + name, 80)
        shard.share(tag + name, b"test")
    for _ in range(n):
        works = [
            Work(tag + name, at[name], ids=log[at[name] :], sample=SampleRequest(SamplingParams(), len(log)))
            for name, log in logs.items()
        ]
        for name, output in zip(names, shard.step(works), strict=True):
            assert output.sampled is not None
            at[name] = len(logs[name])
            logs[name].append(output.sampled.token)
    for name in names:
        shard.close(tag + name)
    return {name: log[len(LOGS[name]) :] for name, log in logs.items()}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_batch_is_its_sessions(arch: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    manifest = publish(store, from_model(tiny_model(arch, tmp_path / "hf"), "f32"), arch)
    shard = TorchShard.load(store, manifest, manifest.span)
    cuts = {"long": [0, 33, 50, 69, 70], "short": [0, 1, 2, 3], "other": [0, 40, 41]}
    alone, together = fed(shard, cuts, together=False), fed(shard, cuts, together=True)
    for name in LOGS:
        assert (alone[name] - together[name]).abs().max() <= 1e-4 * alone[name].std()
    names = list(LOGS)
    want = {name: tokens(shard, [name], 6, "alone ")[name] for name in names}
    del shard
    limits = KvLimits(100, spilled=400, folder=tmp_path / "kv", prefixes=PrefixLimits(disk_bytes=1 << 24))
    scarce = TorchShard.load(store, manifest, manifest.span, kv=limits)
    assert tokens(scarce, names, 6, "first ") == want
    assert tokens(scarce, names, 6, "again ") == want
    account = scarce.account()
    assert account["prefix_reused"] == 64 + 32
    assert account["moved_in"] > 0
    assert account["resident"] <= 100
