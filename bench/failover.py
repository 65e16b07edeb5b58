"""What does a lost node cost a user? Real processes, the real model, faults in the middle of an answer.

``python -m bench.failover [--runs N]``: six node processes hold every third of the model twice. While 128 tokens are
generated, after 64 positions of history, the head, the middle or the tail is

- killed (SIGKILL), with the other holder as a plain replica: repaired from the neighbour's journal;
- killed, with the other holder as a shadow;
- frozen (SIGSTOP), and partitioned from everybody (link conditioner), journal repair.

Stall: the longest wait for a token from the fault on. Bars: tokens equal the undisturbed run in every case; median
stall ≤ 400 ms (journal), ≤ 150 ms (shadow), every stall ≤ 2.5 s (frozen, partitioned). Survivors recompute nothing: the
positions that their engines ran beyond the undisturbed run are counted and printed. Exits 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.common import Bars, default_manifest, machine
from paceline.cli.local_swarm import LocalSwarm, NodeProcess, local_swarm
from paceline.client.connect import home_folder
from paceline.client.sync import Client
from paceline.client.tokenizer import Tokenizer
from paceline.engine import default_model

TOKENS = 128
HISTORY = 64
ROLES = ("head", "middle", "tail")
STALL_BARS_S = {"kill, journal": 0.4, "kill, shadow": 0.15, "freeze": 2.5, "partition": 2.5}


@dataclass(frozen=True)
class Run:
    """One disturbed generation."""

    equal: bool
    stall_s: float
    recomputed: int
    tier: str


@dataclass
class Laboratory:
    """A swarm, its link profile file, and a client."""

    swarm: LocalSwarm
    profile: Path
    client: Client
    prompt: list[int]
    want: list[int]

    def positions(self) -> dict[str, int]:
        """Positions that each node's engine has run."""
        return {node["peer"]: node["engine"]["positions"] for node in self.client.status() if "engine" in node}

    def settle(self, since: float = 0.0) -> None:
        """Until the client sees six nodes that have all announced themselves after `since` (unix seconds)."""
        deadline = time.monotonic() + 60
        while sum(offer.issued_at > since for offer in self.client.offers()) < len(self.swarm.nodes):
            if time.monotonic() > deadline:
                raise TimeoutError("the swarm did not heal within 60 s")
            time.sleep(0.1)

    def disturb(self, how: str, victim: NodeProcess) -> None:
        if how.startswith("kill"):
            victim.kill()
        elif how == "freeze":
            victim.freeze()
        else:
            self.cut(victim.peer)

    def mend(self, how: str, victim: NodeProcess, options: Sequence[str]) -> None:
        """Undo the fault and wait until the client knows: an offer of before it would name a dead peer as healthy."""
        since = time.time()
        if how.startswith("kill"):
            self.swarm.wait_ready([self.swarm.restart(victim, *options)])
        elif how == "freeze":
            victim.thaw()
        else:
            self.cut()
        self.settle(since)

    def cut(self, *peers: str) -> None:
        """Partition `peers` from everybody."""
        rows = [{"from": peer, "to": "*", "partition": True} for peer in peers]
        partial = self.profile.with_suffix(".part")
        partial.write_text(json.dumps({"links": rows + [{**row, "from": "*", "to": row["from"]} for row in rows]}))
        partial.replace(self.profile)

    def run(self, how: str, role: int, options: Sequence[str]) -> Run:
        """One generation with one fault."""
        before = self.positions()
        answer = self.client.generate(self.prompt, max_tokens=TOKENS, ignore_eos=True)
        tokens: list[int] = []
        at = HISTORY - len(self.prompt)
        for piece in answer:
            tokens.append(piece.token)
            if len(tokens) == at:
                peer = answer.result.route[role].peer
                victim = next(node for node in self.swarm.nodes if node.peer == peer)
                self.disturb(how, victim)
        result = answer.result
        survivors = {rider.peer for rider in result.route} & set(before) - {peer}
        kept = {failover.kept for failover in result.failovers}
        after = self.positions()
        once = len(self.prompt) + TOKENS - 1
        replaced = result.route[role].peer
        extra = [after[p] - before[p] - once for p in survivors if p != replaced]
        self.mend(how, victim, options)
        tier = "+".join(failover.tier.value for failover in result.failovers)
        assert kept
        return Run(tokens == self.want, max(result.intervals_s[at - 1 :]), max(extra, default=0), tier)


def scenario(how: str, runs: int, bars: Bars, roles: Sequence[str]) -> None:
    """All roles × runs of one kind of fault, on a swarm of its own."""
    store, manifest = default_manifest()
    assert manifest.tokenizer is not None
    prompt = Tokenizer(store.read(manifest.tokenizer.digest)).encode("Tell me how a bicycle stays upright.")
    plain = ["--prefix-mb", "0"]  # the same prompt again and again: its reuse would hide what a repair recomputes
    spare = [*plain, "--shadow"] if how == "kill, shadow" else plain
    with tempfile.TemporaryDirectory(prefix="paceline-failover-") as folder:
        profile = Path(folder) / "links.json"
        profile.write_text('{"links": []}')
        options = [*plain, "--link-profile", str(profile)] if how == "partition" else spare
        spans = ["1/3", "2/3", "3/3"] * 2
        with (
            local_swarm(home_folder(), Path(folder), default_model.NAME, spans, options=options) as swarm,
            Client(swarm.bootstrap) as client,
        ):
            want = [piece.token for piece in client.generate(prompt, max_tokens=TOKENS, ignore_eos=True)]
            laboratory = Laboratory(swarm, profile, client, prompt, want)
            laboratory.settle()
            for role in roles:
                done = [laboratory.run(how, ROLES.index(role), []) for _ in range(runs)]
                judge(how, role, done, bars)


def judge(how: str, role: str, runs: Sequence[Run], bars: Bars) -> None:
    """One line of the table."""
    stalls = [run.stall_s for run in runs]
    figure = median(stalls) if how.startswith("kill") else max(stalls)
    equal = sum(run.equal for run in runs)
    shown = (
        f"stall median {median(stalls) * 1e3:.0f} ms, most {max(stalls) * 1e3:.0f} ms; "
        f"tokens equal {equal}/{len(runs)}; "
        f"survivors recomputed at most {max(run.recomputed for run in runs)} positions; "
        f"repaired by {', '.join(sorted({run.tier for run in runs}))}"
    )
    met = equal == len(runs) and figure <= STALL_BARS_S[how] and all(run.recomputed <= 0 for run in runs)
    bars.check(f"{how:13s} {role:6s}", met, shown)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", choices=sorted(STALL_BARS_S), help="one kind of fault")
    parser.add_argument("--role", choices=ROLES, help="one victim")
    options = parser.parse_args()
    print(machine())
    bars = Bars()
    roles = (options.role,) if options.role else ROLES
    for how in (options.only,) if options.only else STALL_BARS_S:
        scenario(how, options.runs, bars, roles)
    return bars.exit_status()


if __name__ == "__main__":
    sys.exit(main())
