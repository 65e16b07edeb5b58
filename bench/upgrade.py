"""Does a swarm change its model under load without anybody noticing? Real processes, eight clients, no pause.

``python -m bench.upgrade``: six node processes hold every third of a small random Llama twice, each with a store of its
own. Eight clients ask without a break. After a while a revision with other weights is published on one of the nodes'
machines; the nodes take it up one after another, by gossip, and let the old one go. Bars:

- no request fails
- every response equals what one process gives for the revision that the response names (transformers' `generate()`,
  computed before), and both revisions are named
- tokens a second in any window of 4 s, from the publication to the end, at least 60 % of the median before

A window may also be low because others had the processors: how much they had in it is told beside the bars.

Exits 1 where a bar is missed. The model is small (6 layers of 96) so that two cores can feed eight clients; prompts
whose next token is a near tie (where rounding may decide) are left out beforehand.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
import trio
from transformers import LlamaConfig, LlamaForCausalLM

from bench.common import Bars, machine
from paceline.cli.local_swarm import LocalSwarm
from paceline.cli.publish import opened
from paceline.client.connect import ClientConfig, connect
from paceline.client.core import ClientCore
from paceline.client.options import GenerateOptions
from paceline.engine.convert import from_model
from paceline.engine.source import build
from paceline.wire.errors import PacelineError

NAME, CLIENTS, TOKENS, WINDOW_S, KEPT_BAR = "bench/upgrade", 8, 24, 4.0, 0.6
PROMPTS = 24
MARGIN = 1e-3
"""Least distance of the two best logits, in units of their spread, of a prompt that is used."""


def small_model(seed: int) -> Any:
    """A random Llama with weights wide enough that tokens vary."""
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    model.generation_config.eos_token_id = None
    return model


def answer(model: Any, prompt: list[int]) -> tuple[list[int], float]:
    """Greedy tokens in one process, and the least margin on the way."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
    margins = []
    for logits in out.logits:
        best = logits[0].topk(2).values
        margins.append(float(best[0] - best[1]) / float(logits.std()))
    return [int(token) for token in out.sequences[0, len(prompt) :]], min(margins)


def prompts_for(models: list[Any]) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Prompts without near ties, and each model's answers to them."""
    made: list[list[int]] = []
    answers: list[list[list[int]]] = [[] for _ in models]
    generator = torch.Generator().manual_seed(5)
    while len(made) < PROMPTS:
        prompt = torch.randint(3, 512, (12,), generator=generator).tolist()
        found = [answer(model, prompt) for model in models]
        if min(margin for _, margin in found) >= MARGIN:
            made.append(prompt)
            for kept, (tokens, _) in zip(answers, found, strict=True):
                kept.append(tokens)
    return made, answers


@dataclass
class Load:
    """What eight clients saw."""

    prompts: list[list[int]]
    want: dict[str, list[list[int]]]
    times: list[float] = field(default_factory=list)
    named: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    failovers: int = 0
    over: bool = False
    others: list[tuple[float, float]] = field(default_factory=list)
    """Moments, and the part of all processors that others had since the one before."""

    async def watch(self) -> None:
        """What others take of the machine, until it is over."""
        busy, own = _busy_s()
        at = trio.current_time()
        while not self.over:
            await trio.sleep(0.5)
            now, (busy_now, own_now) = trio.current_time(), _busy_s()
            taken = (busy_now - busy) - (own_now - own)
            self.others.append((now, max(0.0, taken) / ((now - at) * (os.cpu_count() or 1))))
            at, busy, own = now, busy_now, own_now

    def taken(self, since: float, until: float) -> float:
        """The part of all processors that others had between two moments."""
        found = [share for at, share in self.others if since < at <= until]
        return sum(found) / len(found) if found else 0.0

    async def client(self, core: ClientCore, number: int) -> None:
        """One client, until it is over."""
        turn = 0
        while not self.over:
            which = (number * 5 + turn) % len(self.prompts)
            turn += 1
            try:
                await self._ask(core, which)
            except PacelineError as error:
                self.failed.append(f"{type(error).__name__}: {error}")

    async def _ask(self, core: ClientCore, which: int) -> None:
        options = GenerateOptions(model=NAME, max_tokens=TOKENS, ignore_eos=True)
        stream = await core.generate(self.prompts[which], options)
        tokens = []
        while (piece := await stream.receive()) is not None:
            tokens.append(piece.token)
            self.times.append(trio.current_time())
        result = stream.result()
        self.failovers += len(result.failovers)
        self.named[result.revision] += 1
        if tokens != self.want[result.revision][which]:
            self.wrong.append(f"prompt {which} on {result.revision[:12]}")

    def low(self, since: float, until: float) -> tuple[float, float]:
        """The least window that begins between two moments, each half second: tokens a second, and when it began."""
        starts = [since + k / 2 for k in range(int(2 * (until - WINDOW_S - since)))]
        return min((self.rate(start), start) for start in starts)

    def rate(self, since: float) -> float:
        """Tokens a second in the window that begins at `since`."""
        return sum(since <= at < since + WINDOW_S for at in self.times) / WINDOW_S


async def run(
    bootstrap: tuple[str, ...], load: Load, publish: Any, before_s: float, patience_s: float
) -> tuple[float, ...]:
    """Load, publication, change and afterglow; when each began."""
    async with AsyncExitStack() as stack:
        cores = [await stack.enter_async_context(connect(ClientConfig(bootstrap))) for _ in range(CLIENTS)]
        watcher = await stack.enter_async_context(connect(ClientConfig(bootstrap)))
        async with trio.open_nursery() as nursery:
            for number, core in enumerate(cores):
                nursery.start_soon(load.client, core, number)
            nursery.start_soon(load.watch)
            await trio.sleep(5)
            began = trio.current_time()
            await trio.sleep(before_s)
            published = trio.current_time()
            new = await trio.to_thread.run_sync(publish)
            print(f"published {new[:12]} after {len(load.times)} tokens", flush=True)
            with trio.fail_after(patience_s):
                while (held := await revisions(watcher)) != {new: 6}:
                    rate = load.rate(trio.current_time() - WINDOW_S)
                    print(f"  {trio.current_time() - published:5.1f} s: {shown(held)}, {rate:.0f} tok/s", flush=True)
                    await trio.sleep(4)
            changed = trio.current_time()
            await trio.sleep(10)
            load.over = True
        return began, published, changed, trio.current_time()


async def revisions(watcher: ClientCore) -> dict[str, int]:
    """How many nodes hold each revision."""
    found: Counter[str] = Counter()
    for node in await watcher.status():
        found.update({service["revision"] for service in node.get("services", ())})
    return dict(found)


def _busy_s() -> tuple[float, float]:
    """Processor seconds so far: of the whole machine, and of this process and its children."""
    times, me = psutil.cpu_times(), psutil.Process()
    own = [each.cpu_times() for each in (me, *me.children(recursive=True))]
    return sum(times) - times.idle - times.iowait - times.guest - times.guest_nice, sum(
        it.user + it.system for it in own
    )


def tell(log: Path, published_at: float) -> None:
    """What the nodes did, by their own logs, in seconds after the publication."""
    names: dict[str, str] = {}
    for line in log.read_text().splitlines():
        told = json.loads(line)
        if told["event"].startswith("revision "):
            who = names.setdefault(told["node"], f"node {len(names) + 1}")
            spent = f" in {told['seconds']} s" if "seconds" in told else ""
            print(f"  {told['at'] - published_at:5.1f} s: {who}: {told['event']} {told['revision'][:8]}{spent}")


def shown(held: dict[str, int]) -> str:
    return ", ".join(f"{count} nodes hold {revision[:8]}" for revision, count in sorted(held.items()))


def judge(load: Load, moments: tuple[float, ...]) -> int:
    """The bars."""
    began, published, changed, ended = moments
    bars = Bars()
    steady = median(load.rate(began + k) for k in range(int(published - began - WINDOW_S)))
    windows = [load.rate(published + k / 2) for k in range(int(2 * (ended - published - WINDOW_S)))]
    total = sum(load.named.values())
    bars.check(
        "failed requests", not load.failed, f"{len(load.failed)} of {total + len(load.failed)} {load.failed[:2]}"
    )
    names = ", ".join(f"{count} on {revision[:12]}" for revision, count in load.named.items())
    both = len(load.named) == 2
    bars.check("responses exact", not load.wrong and both, f"{total - len(load.wrong)} of {total} equal; {names}")
    kept = min(windows) / steady
    figure = f"least {min(windows):.0f} tok/s, before {steady:.0f} ({kept:.0%}), median {median(windows):.0f}"
    bars.check("throughput", kept >= KEPT_BAR, f"{figure}; changed over in {changed - published:.0f} s")
    print(f"{load.failovers} reroutes of running sessions")
    (before, _), (_, at) = load.low(began, published), load.low(published, ended)
    seconds = [sum(began + k <= at < began + k + 1 for at in load.times) for k in range(int(ended - began))]
    print(f"tokens of each second, published after {published - began:.1f}: {' '.join(map(str, seconds))}")
    print(f"least window before {before:.0f} tok/s; least of all begins {at - published:.1f} s after the publication")
    then, usual = load.taken(at, at + WINDOW_S), load.taken(began, published)
    print(f"others had {then:.0%} of the processors then, {usual:.0%} before")
    return bars.exit_status()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=float, default=25.0, help="seconds of load before the publication")
    parser.add_argument("--patience", type=float, default=240.0, help="seconds for the change")
    options = parser.parse_args()
    print(machine())
    models = [small_model(seed) for seed in (1, 2)]
    prompts, answers = prompts_for(models)
    with tempfile.TemporaryDirectory(prefix="paceline-upgrade-") as folder:
        home = Path(folder) / "publisher"
        store, releases, identity = opened(home)
        manifests = [build(store, from_model(model, "f32"), NAME) for model in models]
        store.put_manifest(manifests[0])
        releases.publish(identity, manifests[0], time.time())

        log, published_at = Path(folder) / "log", [0.0]
        os.environ["PACELINE_LOG"] = str(log)

        def publish() -> str:
            published_at[0] = time.time()
            store.put_manifest(manifests[1])
            releases.publish(identity, manifests[1], time.time())
            return manifests[1].revision.hex()

        want = {it.revision.hex(): answers[at] for at, it in enumerate(manifests)}
        load = Load(prompts, want)
        swarm = LocalSwarm(home, Path(folder), NAME, ("--threads", "1"))
        try:
            swarm.wait_ready([swarm.start("node-1", "1/3")])
            for number, span in enumerate(("2/3", "3/3", "1/3", "2/3", "3/3"), 2):
                mine = str(Path(folder) / f"home-{number}")
                trusted = f"{identity.public.hex()}={NAME}"
                swarm.start(f"node-{number}", span, "--home", mine, "--trust", trusted)
            swarm.wait_ready(swarm.nodes)
            moments = trio.run(run, swarm.bootstrap, load, publish, options.before, options.patience)
        finally:
            swarm.stop()
        tell(log, published_at[0])
    return judge(load, moments)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
