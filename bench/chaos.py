"""Does every request end as it should while the swarm is torn at? Real processes, the real model, seeded faults.

``python -m bench.chaos [--minutes 20] [--seed 1] [--workers 3]``: six node processes hold every third of the model
twice. Workers keep asking: greedy and sampled prompts of different lengths, some answers given up half-way. Meanwhile
nodes are

- killed (SIGKILL) and started again some seconds later, sometimes both holders of a third at once;
- frozen (SIGSTOP) and thawed; cut off from everybody and joined again; all links stalled and slowed for a while.

The first node and the last third's first holder are frozen and cut off like the others, but never killed: theirs are
the memory and files of processes that lived through all of it. Faults and requests come from the seed; how they meet is
the machine's affair.

Bars (exit status 1 where one is missed): every request ends with exactly the undisturbed tokens or a typed error whose
tokens until then were exact; none hangs; afterwards, at rest, no node holds a session or a journal, and no process has
more open files or more memory than at rest before, but for a small allowance.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import trio

from bench.common import PROMPTS, Bars, default_manifest, machine
from bench.weather import Weather
from paceline.cli.local_swarm import LocalSwarm, NodeProcess, local_swarm
from paceline.client.connect import ClientConfig, connect, home_folder
from paceline.client.core import ClientCore
from paceline.client.options import GenerateOptions
from paceline.client.tokenizer import Tokenizer
from paceline.engine import default_model
from paceline.wire.errors import PacelineError, PeerUnavailable

SPANS = ("1/3", "2/3", "3/3") * 2
NEVER_KILLED = ("node-1", "node-3")
LONGEST = 64
HANG_S = 120.0
"""A request that has not ended after so long hangs: it is a violation, whatever comes later."""

FAULT_EVERY_S = 5.0
MOST_TROUBLED = 3
REST_S = 60.0
"""How long the swarm may take to come to rest after the last fault is mended."""

MORE_FILES = 12
MORE_MEMORY = 1.15


@dataclass(frozen=True)
class Case:
    """A request and the tokens that it must give."""

    prompt: tuple[int, ...]
    temperature: float
    seed: int
    want: tuple[int, ...] = ()

    def options(self, tokens: int) -> GenerateOptions:
        return GenerateOptions(max_tokens=tokens, temperature=self.temperature, seed=self.seed, ignore_eos=True)


@dataclass
class Tally:
    """How requests ended."""

    exact: int = 0
    given_up: int = 0
    tokens: int = 0
    repairs: int = 0
    typed: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    untyped: list[str] = field(default_factory=list)
    hung: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)

    def shown(self) -> str:
        typed = ", ".join(f"{code} {count}" for code, count in self.typed.most_common()) or "none"
        ended = (
            f"{self.exact} exact, {self.given_up} given up by their reader, {self.typed.total()} typed errors ({typed})"
        )
        bad = f"{len(self.wrong)} wrong, {len(self.untyped)} untyped, {len(self.hung)} hung"
        return f"{ended}; {bad}; {self.tokens} tokens, {self.repairs} repairs; faults: {dict(self.faults)}"


@dataclass(frozen=True)
class Weight:
    """A process at rest. `kept`: of its files, those of the prefix cache, by the node's account; they are bounded."""

    rss: int
    files: int
    kept: int = 0

    @property
    def other_files(self) -> int:
        return self.files - self.kept


def weigh(pid: int) -> Weight:
    process = psutil.Process(pid)
    return Weight(process.memory_info().rss, process.num_fds())


def kept_files(service: dict[str, Any]) -> int:
    """Files of kept prefixes: each extent that is on disk has one."""
    kv = service["kv"]
    return int(kv.get("prefix_extents", 0)) if kv.get("prefix_disk_bytes") else 0


class Chaos:
    """One run: workers and faults until `until`, on trio's clock."""

    def __init__(self, swarm: LocalSwarm, weather: Weather, cases: list[Case], seed: int) -> None:
        self.tally = Tally()
        self.until = 0.0
        self._swarm = swarm
        self._weather = weather
        self._cases = cases
        self._seed = seed
        self._troubled: set[str] = set()

    # --- requests -----------------------------------------------------------------------------------------------

    async def ask(self, core: ClientCore, number: int) -> None:
        """One worker: one request after another."""
        dice = random.Random(f"{self._seed} worker {number}")
        count = 0
        while trio.current_time() < self.until:
            count += 1
            case, tokens = dice.choice(self._cases), dice.choice((8, 24, LONGEST))
            leave_after = dice.randrange(1, tokens) if dice.random() < 0.1 else None
            await self._request(core, case, tokens, leave_after, f"worker {number}, request {count}")

    async def _request(self, core: ClientCore, case: Case, tokens: int, leave_after: int | None, name: str) -> None:
        got: list[int] = []
        ended = "hung"
        with trio.move_on_after(HANG_S):
            ended = await self._ended(core, case, tokens, leave_after, got, name)
        if tuple(got) != case.want[: len(got)] or (ended == "exact" and len(got) != tokens):
            self.tally.wrong.append(f"{name}: {ended}, {got} in place of {case.want[:tokens]}")
        elif ended == "hung":
            self.tally.hung.append(f"{name}: {len(got)} of {tokens} tokens")
        elif ended in ("exact", "given_up"):
            setattr(self.tally, ended, getattr(self.tally, ended) + 1)
        self.tally.tokens += len(got)

    async def _ended(
        self, core: ClientCore, case: Case, tokens: int, leave_after: int | None, got: list[int], name: str
    ) -> str:
        try:
            stream = await core.generate(list(case.prompt), case.options(tokens))
            while (piece := await stream.receive()) is not None:
                got.append(piece.token)
                if len(got) == leave_after:
                    stream.cancel()
                    await stream.finished()
                    return "given_up"
            self.tally.repairs += len(stream.result().failovers)
        except PacelineError as error:
            self.tally.typed[error.code] += 1
            await trio.sleep(0.5)
            return "typed"
        except Exception as error:  # noqa: BLE001 - an untyped error is exactly what this run looks for
            self.tally.untyped.append(f"{name}: {error!r}")
            return "untyped"
        return "exact"

    # --- faults -------------------------------------------------------------------------------------------------

    async def disturb(self) -> None:
        """Faults at random moments until the time is over; returns when all are mended."""
        dice = random.Random(f"{self._seed} faults")
        kinds: list[tuple[str, Callable[[random.Random, NodeProcess], Awaitable[None]]]] = [
            ("kill", self._kill),
            ("kill", self._kill),
            ("freeze", self._freeze),
            ("partition", self._partition),
        ]
        async with trio.open_nursery() as nursery:
            while trio.current_time() < self.until:
                await trio.sleep(dice.expovariate(1 / FAULT_EVERY_S))
                name, fault = dice.choice(kinds)
                own = random.Random(dice.random())
                if dice.random() < 0.15:
                    nursery.start_soon(self._storm, own)
                    continue
                able = [n for n in self._swarm.nodes if n.peer and n.name not in self._troubled]
                able = [n for n in able if name != "kill" or n.name not in NEVER_KILLED]
                if able and len(self._troubled) < MOST_TROUBLED:
                    victim = own.choice(sorted(able, key=lambda node: node.name))
                    self.tally.faults[name] += 1
                    nursery.start_soon(self._fault, victim.name, partial(fault, own, victim))

    async def _fault(self, name: str, fault: Callable[[], Awaitable[None]]) -> None:
        self._troubled.add(name)
        try:
            await fault()
        finally:
            self._troubled.discard(name)

    async def _kill(self, dice: random.Random, victim: NodeProcess) -> None:
        await trio.to_thread.run_sync(victim.kill)
        await trio.sleep(dice.uniform(0.2, 6.0))
        while not await self._started(victim):
            self.tally.faults["joined nobody, tried again"] += 1
            victim = next(node for node in self._swarm.nodes if node.name == victim.name)

    async def _started(self, victim: NodeProcess) -> bool:
        """Its process again, joining through everybody who is well. False where it found nobody in time and ended."""
        well = [n for n in self._swarm.nodes if n.name not in self._troubled for _ in n.bootstrap]
        again = self._swarm.restart(victim, *(word for n in well for word in ("--swarm", n.bootstrap[0])))
        try:
            while not again.poll_ready():
                await trio.sleep(0.1)
        except PeerUnavailable:
            return False
        return True

    async def _freeze(self, dice: random.Random, victim: NodeProcess) -> None:
        victim.freeze()
        await trio.sleep(dice.uniform(0.3, 8.0))
        victim.thaw()

    async def _partition(self, dice: random.Random, victim: NodeProcess) -> None:
        self._weather.cut([victim.peer])
        await trio.sleep(dice.uniform(0.5, 8.0))
        self._weather.heal([victim.peer])

    async def _storm(self, dice: random.Random) -> None:
        self.tally.faults["storm"] += 1
        self._weather.everywhere(
            latency_ms=dice.uniform(1, 20),
            jitter_ms=dice.uniform(0, 10),
            stalls_per_s=0.5,
            stall_ms=dice.uniform(50, 400),
        )
        await trio.sleep(dice.uniform(1.0, 6.0))
        self._weather.everywhere()

    # --- rest ---------------------------------------------------------------------------------------------------

    async def rest(self, core: ClientCore) -> list[dict[str, Any]]:
        """The status of all nodes once none of them holds anything, or when patience is over."""
        with trio.move_on_after(REST_S):
            while True:
                await trio.sleep(2.0)
                status = await core.status()
                full = len(status) == len(self._swarm.nodes) and all("error" not in node for node in status)
                if full and not any(node["sessions"] or node["journal_bytes"] for node in status):
                    break
        await trio.sleep(3.0)
        return await core.status()

    def weights(self, status: Sequence[dict[str, Any]] = ()) -> dict[str, Weight]:
        """Every node and this client; what is kept on purpose from `status`."""
        kept = {node["peer"]: sum(kept_files(service) for service in node.get("services", ())) for node in status}
        found = {"client": weigh(psutil.Process().pid)}
        for node in self._swarm.nodes:
            try:
                found[node.name] = replace(weigh(node.process.pid), kept=kept.get(node.peer, 0))
            except psutil.Error:
                # Just killed.
                continue
        return found


async def reference(core: ClientCore, case: Case) -> Case:
    """The case with the tokens of an undisturbed run."""
    stream = await core.generate(list(case.prompt), case.options(LONGEST))
    want = []
    while (piece := await stream.receive()) is not None:
        want.append(piece.token)
    return Case(case.prompt, case.temperature, case.seed, tuple(want))


async def run(swarm: LocalSwarm, weather: Weather, options: argparse.Namespace, bars: Bars) -> None:
    """References, a first rest, the chaos, a second rest, the verdict."""
    store, manifest = default_manifest()
    assert manifest.tokenizer is not None
    tokenizer = Tokenizer(store.read(manifest.tokenizer.digest))
    cases = [Case(tuple(tokenizer.encode(text)), 0.8 * (k % 2), k) for k, text in enumerate(PROMPTS[:8])]
    config = ClientConfig(swarm.bootstrap, link_profile=str(weather.file))
    async with connect(config) as core:
        while len(await core.offers()) < len(SPANS):
            await trio.sleep(0.2)
        chaos = Chaos(swarm, weather, [await reference(core, case) for case in cases], options.seed)
        # Each node once at work, so that what is weighed has everything loaded that serving needs.
        chaos.until = trio.current_time() + options.warm_up_s
        async with trio.open_nursery() as nursery:
            for number in range(options.workers):
                nursery.start_soon(chaos.ask, core, -1 - number)
        before = chaos.weights(await chaos.rest(core))
        warm, chaos.tally = chaos.tally, Tally()
        print(f"undisturbed: {warm.shown()}", flush=True)
        began = trio.current_time()
        chaos.until = began + 60 * options.minutes
        async with trio.open_nursery() as nursery:
            nursery.start_soon(chaos.disturb)
            nursery.start_soon(_report, chaos, began)
            for number in range(options.workers):
                nursery.start_soon(chaos.ask, core, number)
        weather.heal()
        weather.everywhere()
        print(f"after {(trio.current_time() - began) / 60:.1f} minutes: {chaos.tally.shown()}", flush=True)
        after = await chaos.rest(core)
        judge(bars, chaos.tally, after, before, chaos.weights(after))


async def _report(chaos: Chaos, began: float) -> None:
    while trio.current_time() < chaos.until:
        await trio.sleep(min(60.0, max(0.1, chaos.until - trio.current_time())))
        weights = ", ".join(f"{name} {it.rss / 1e6:.0f} MB {it.files}" for name, it in sorted(chaos.weights().items()))
        print(f"minute {(trio.current_time() - began) / 60:.1f}: {chaos.tally.shown()}\n  {weights}", flush=True)


def judge(
    bars: Bars, tally: Tally, status: list[dict[str, Any]], before: dict[str, Weight], after: dict[str, Weight]
) -> None:
    """The bars. Names what went wrong."""
    for kind in ("wrong", "untyped", "hung"):
        for line in getattr(tally, kind)[:5]:
            print(f"  {kind}: {line}")
    bad = len(tally.wrong), len(tally.untyped), len(tally.hung)
    ended = tally.exact + tally.given_up + tally.typed.total()
    bars.check(
        "every request ended with exact tokens or a typed error",
        not any(bad) and tally.exact > 0,
        (f"{ended} did, {tally.exact} of them with all their tokens; wrong {bad[0]}, untyped {bad[1]}, hung {bad[2]}"),
    )
    held = {str(node.get("agent")): (node.get("sessions"), node.get("journal_bytes")) for node in status}
    left = [name for name, (sessions, journal) in held.items() if sessions or journal or sessions is None]
    bars.check("sessions and journals left", not left and len(status) == len(SPANS), f"{held}")
    for name, then in sorted(before.items()):
        now = after.get(name)
        good = (
            now is not None and now.other_files <= then.other_files + MORE_FILES and now.rss <= then.rss * MORE_MEMORY
        )
        lived = "lived through" if name in (*NEVER_KILLED, "client") else "as restarted"
        shown = (
            "gone"
            if now is None
            else (
                f"{then.rss / 1e6:.0f} → {now.rss / 1e6:.0f} MB, "
                f"{then.other_files} → {now.other_files} files (and {now.kept} of kept prefixes), {lived}"
            )
        )
        bars.check(f"memory and files of {name}", good, shown)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--warm-up-s", type=float, default=20.0)
    options = parser.parse_args()
    print(machine(), f"seed {options.seed}")
    default_manifest()
    bars = Bars()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="paceline-chaos-") as name:
        folder = Path(name)
        weather = Weather(folder / "links.json", options.seed)
        profile = ("--link-profile", str(weather.file), "--threads", "1")
        with local_swarm(home_folder(), folder, default_model.NAME, SPANS, options=profile) as swarm:
            trio.run(run, swarm, weather, options, bars)
    print(f"{time.monotonic() - began:.0f} s")
    return bars.exit_status()


if __name__ == "__main__":
    sys.exit(main())
