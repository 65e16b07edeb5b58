"""Mirrored traffic and `paceline compare`: what two revisions answer to the same, and that nobody is told the text."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest
import trio

from paceline.cli.compare import compared, read, show
from paceline.client.agreement import Agreement, Summary
from paceline.client.mirror import Mirror, MirrorConfig
from paceline.client.options import GenerateOptions
from paceline.consistency.revisions import Frontier
from paceline.gateway.config import GatewayConfig
from paceline.net.identity import Identity
from paceline.node.node import Node
from paceline.store.releases import sign
from paceline.wire.errors import InvalidRequest
from paceline.wire.releases import Release
from tests.gateway.asking import asking
from tests.gateway.toying import TextSwarm, byte_level_json, script, text_swarm

PUBLISHER = Identity.ephemeral()


@dataclass
class Two:
    """A swarm with a canary. `seeds`: one of a session on the old side, one of a session that tries the canary."""

    swarm: TextSwarm
    old: bytes
    new: bytes
    node: Node
    seeds: tuple[int, int]

    def say(self, old: str, new: str) -> None:
        self.swarm.say(old)
        self.swarm.shards[-1].script = script(new)


@asynccontextmanager
async def two_revisions(folder: Path, *, tokenizer: bytes | None = None) -> AsyncIterator[Two]:
    async with text_swarm(folder) as swarm:
        made = swarm.manifest()
        other = msgspec.structs.replace(made, max_context=511)
        if tokenizer is not None:
            other = msgspec.structs.replace(other, tokenizer=swarm.store.put(tokenizer))
        swarm.store.put_manifest(other, name=False)
        node = await swarm.node("canary", (0, 12))
        node.table.services[0] = replace(node.table.services[0], revision=other.revision)
        key = PUBLISHER.public
        releases = [Release("toy", made.revision, 1, key), Release("toy", other.revision, 2, key, share=0.5)]
        signed = tuple(sign(PUBLISHER, release) for release in releases)
        for each in swarm.nodes.values():
            each.frontier = lambda: signed
            await each.offering.announce()
        drawn = [Frontier.of(releases).drawn(f"seed {seed}".encode()) for seed in range(40)]
        two = Two(swarm, made.revision, other.revision, node, (drawn.index(False), drawn.index(True)))
        two.say("the answer", "the anchor")
        yield two


def ask(seed: int) -> dict[str, object]:
    return {"model": "toy", "messages": [{"role": "user", "content": "a secret"}], "max_tokens": 30, "seed": seed}


async def test_a_share_of_answers_is_compared_with_the_other_side_afterwards(
    tmp_path: Path, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "paceline")
    config = GatewayConfig(mirror=MirrorConfig(1.0))
    async with two_revisions(tmp_path) as two, asking(two.swarm, config) as gateway:
        mirror = gateway.gateway.mirror
        assert mirror is not None
        gateway.nursery.start_soon(mirror.run)
        for seed, revision in zip(two.seeds, (two.old, two.new), strict=True):
            whole = await gateway.post("/v1/chat/completions", ask(seed))
            assert whole.headers["x-paceline-revision"] == revision.hex()
        two.say("the answer", "the answer")
        streamed = await gateway.post("/v1/chat/completions", ask(two.seeds[0]) | {"stream": True})
        assert streamed.text == "the answer"
        await trio.sleep(5)
        page = (await gateway.get("/metrics")).body.decode()
    for line in (
        'mirrored_total{outcome="differs"} 2.0',
        'mirrored_total{outcome="equal"} 1.0',
        "mirror_share_count 3.0",
        f'mirror_ttft_seconds_count{{revision="{two.old.hex()[:12]}"}} 3.0',
        f'mirror_token_seconds_count{{revision="{two.new.hex()[:12]}"}} 3.0',
        "paceline_gateway_active 0.0",
    ):
        assert line in page
    told = [each.args for each in caplog.records if each.message == "mirrored"]
    first = told[0]
    assert isinstance(first, dict)
    assert (first["equal"], first["a"]["tokens"], first["b"]["revision"]) == (6, 11, two.new.hex())  # type: ignore[index]
    assert "secret" not in str(told)
    assert "anchor" not in str(told)


async def test_a_mirror_that_fails_or_cannot_be_compared_or_must_wait_troubles_nobody(
    tmp_path: Path, autojump_clock: object
) -> None:
    async with two_revisions(tmp_path, tokenizer=byte_level_json()) as two, two.swarm.client() as core:
        told: list[str] = []
        mirror = Mirror(core, MirrorConfig(1.0), lambda outcome, result, found: told.append(outcome))
        options = GenerateOptions(model="toy", max_tokens=4, seed=two.seeds[0])
        stream = await core.generate([9, 9], options)
        while await stream.receive() is not None:
            pass
        result = stream.result()
        for _ in range(6):
            mirror.offer(result, options)
        assert told == ["skipped"] * 2
        nowhere = Mirror(core, MirrorConfig(1.0, bytes(32)), lambda outcome, result, found: told.append(outcome))
        nowhere.offer(result, options)
        two.swarm.nursery.start_soon(mirror.run)
        two.swarm.nursery.start_soon(nowhere.run)
        await trio.sleep(60)
        assert sorted(told) == ["failed", *["incomparable"] * 4, *["skipped"] * 2]


async def test_only_the_share_is_mirrored_and_nothing_where_there_is_no_other_side(
    tmp_path: Path, autojump_clock: object
) -> None:
    async with text_swarm(tmp_path) as swarm, swarm.client() as core:
        told: list[str] = []
        mirror = Mirror(core, MirrorConfig(1.0), lambda outcome, result, found: told.append(outcome))
        rarely = Mirror(core, MirrorConfig(1e-9, bytes(32)), lambda outcome, result, found: told.append(outcome))
        options = GenerateOptions(model="toy", max_tokens=2)
        for _ in range(6):
            stream = await core.generate([9, 9], options)
            while await stream.receive() is not None:
                pass
            mirror.offer(stream.result(), options)
            rarely.offer(stream.result(), options)
        assert told == []


async def test_compare_runs_each_prompt_on_both_sides(
    tmp_path: Path, autojump_clock: object, capsys: pytest.CaptureFixture[str]
) -> None:
    options = GenerateOptions(max_tokens=30, seed=0)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a secret"}\n\n{"messages": [{"role": "user", "content": "another"}]}\n')
    async with two_revisions(tmp_path) as two, two.swarm.client() as core:
        found = await compared(core, read(prompts), ("", ""), options)
        assert [(it.equal, it.same, it.a.tokens, it.b.tokens) for it in found] == [(6, False, 11, 11)] * 2
        assert {(it.a.revision, it.b.revision) for it in found} == {(two.old.hex(), two.new.hex())}
        other = await compared(core, ["x"], (two.new.hex()[:8], two.old.hex()), options)
        assert other[0].a.revision == two.new.hex()
        for sides in (("", two.old.hex()), ("zz", "")):
            with pytest.raises(InvalidRequest):
                await compared(core, ["x"], sides, options)
    show(found)
    said = capsys.readouterr().err
    assert "0 of 2 answers equal, 55% of an answer" in said
    assert "secret" not in said


@pytest.mark.parametrize("text", ["", "{", '{"other": 1}', "[]"])
def test_a_file_without_prompts_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    with pytest.raises(InvalidRequest):
        read(path)


@pytest.mark.parametrize(("share", "to"), [(0.0, ""), (1.1, ""), (float("nan"), ""), (0.5, "12"), (0.5, "x" * 64)])
def test_a_mirror_that_makes_no_sense_is_refused(share: float, to: str) -> None:
    with pytest.raises(InvalidRequest):
        MirrorConfig.parse(share, to)


def test_an_empty_answer_agrees_with_itself() -> None:
    from paceline.client.agreement import Run

    run = Run("ab", 0, 0.0, 0.0)
    found = Agreement(run, run, 0, same=True)
    assert found.share == 1.0
    assert Summary.of([found]).same == 1
