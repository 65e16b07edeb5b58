"""The whole table, by one command: ``make bench``, or ``python -m bench.table [--rounds N] [--only ARM …]``.

Arms, each on the default model in float32:

- ``local``: no network at all (transformers' `generate()` in one process), and in turns with it a ring on loopback
- ``routes``: the same model split into rings of 1, 2, 3 and 5 processes
- ``links``: a ring of three under each built-in link profile (docs/link-profiles.md)
- ``hops``: 25 ms one way; time per token against the physical limit (`bench.wan`)
- ``streams``: 1, 2, 4 and 8 clients at once
- ``churn``: speed kept while hops fail (`bench.churn`; six processes, one of two holders loses everything)

Writes ``docs/benchmarks/table.json``, ``table.md`` and a plot an arm: medians with least and greatest, the machine, the
commit. Compared with `--against`, by default the table that was there before. The ``local`` arm is always run: on
another machine, or another day, only ratios to it mean something.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import psutil
import torch

from bench import churn, local, wan
from bench.common import PROMPTS, default_manifest, equal_parts, processes
from bench.plots import Bar, chart
from bench.weather import LOOKED_AT_S, Weather
from paceline.client.sync import Client
from paceline.client.tokenizer import Tokenizer
from paceline.wire.errors import PacelineError

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "benchmarks"
PROFILES = ("lan", "city", "continent", "world", "home-uplink")
TOKENS = 48
STREAMS = (1, 2, 4, 8)
RATES = (0.0, 1e-3, 1e-2)


class Row(msgspec.Struct, frozen=True):
    """One line of the table: what was measured, its unit, and every value."""

    arm: str
    setting: str
    metric: str
    unit: str
    values: list[float]

    @property
    def key(self) -> tuple[str, str, str]:
        return self.arm, self.setting, self.metric

    @property
    def median(self) -> float:
        return median(self.values)


class Table(msgspec.Struct, frozen=True):
    """A result as it lies in table.json."""

    facts: dict[str, str]
    rows: list[Row]


def facts() -> dict[str, str]:
    """Where the figures come from."""
    cpu = next(
        (line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), ": ?"
    )
    commit = _git("rev-parse", "--short=12", "HEAD")
    changed = " with local changes" if _git("status", "--porcelain", "--untracked-files=no") else ""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit + changed,
        "processor": f"{cpu.split(': ', 1)[1]}, {os.cpu_count()} cores, {platform.machine()}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "software": f"Linux {platform.release()}, Python {platform.python_version()}, torch {torch.__version__}",
        "load before": ", ".join(f"{value:.1f}" for value in os.getloadavg()),
    }


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=FOLDER.parent, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def prompt_ids() -> list[int]:
    """A long text of the prompts, in tokens."""
    store, manifest = default_manifest()
    assert manifest.tokenizer is not None
    return Tokenizer(store.read(manifest.tokenizer.digest)).encode(" ".join(PROMPTS) * 2)


def generated(client: Client, ids: list[int], tokens: int = TOKENS) -> tuple[float, float]:
    """Decode speed (tokens a second) and time to the first token (seconds) of one answer."""
    result = local.swarm_result(client, ids, tokens + 1)
    return tokens / (result.total_s - result.ttft_s), result.ttft_s


# --- arms ---------------------------------------------------------------------------------------------------------


def local_arm(rounds: int, ids: list[int]) -> Iterator[Row]:
    store, manifest = default_manifest()
    model = local.reference_model(store, manifest)
    model.generation_config.eos_token_id = None
    short, long = ids[: local.SHORT], ids[: local.LONG]
    alone: dict[str, list[float]] = {"decode": [], "first": [], "prefill": []}
    ring: dict[str, list[float]] = {"decode": [], "first": [], "prefill": []}
    with processes(equal_parts(3)) as swarm, Client(swarm.bootstrap) as client:
        local.whole_seconds(model, short, 4)
        generated(client, short, 4)
        for _ in range(rounds):
            first = local.whole_seconds(model, short, 1)
            alone["first"].append(first * 1e3)
            alone["decode"].append(TOKENS / (local.whole_seconds(model, short, TOKENS + 1) - first))
            alone["prefill"].append(local.whole_seconds(model, long, 1) * 1e3)
            speed, first = generated(client, short)
            ring["decode"].append(speed)
            ring["first"].append(first * 1e3)
            ring["prefill"].append(local.swarm_result(client, long, 1).ttft_s * 1e3)
    for setting, found in (("one process, no network", alone), ("ring of 3, loopback", ring)):
        yield Row("local", setting, "decode", "tokens/s", found["decode"])
        yield Row("local", setting, f"first token after {local.SHORT}", "ms", found["first"])
        yield Row("local", setting, f"prefill of {local.LONG}", "ms", found["prefill"])


def routes_arm(rounds: int, ids: list[int]) -> Iterator[Row]:
    for parts in (1, 2, 3, 5):
        with processes(equal_parts(parts)) as swarm, Client(swarm.bootstrap) as client:
            generated(client, ids[: local.SHORT], 4)
            found = [generated(client, ids[: local.SHORT]) for _ in range(rounds)]
        yield Row("routes", f"ring of {parts}", "decode", "tokens/s", [speed for speed, _ in found])
        yield Row("routes", f"ring of {parts}", "first token", "ms", [first * 1e3 for _, first in found])


def links_arm(rounds: int, ids: list[int]) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="paceline-links-") as folder:
        weather = Weather(Path(folder) / "links.json")
        flags = ("--link-profile", str(weather.file))
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in ("no profile", *PROFILES)}
        with processes(equal_parts(3), *flags) as swarm, Client(swarm.bootstrap) as client:
            generated(client, ids[: local.SHORT], 4)
            for _ in range(rounds):
                for name, values in found.items():
                    weather.everywhere(None if name == "no profile" else name)
                    time.sleep(LOOKED_AT_S)
                    values.append(generated(client, ids[: local.SHORT]))
    for name, values in found.items():
        yield Row("links", name, "decode", "tokens/s", [speed for speed, _ in values])
        yield Row("links", name, "first token", "ms", [first * 1e3 for _, first in values])


def hops_arm(rounds: int, ids: list[int]) -> Iterator[Row]:
    hop_s = 0.025
    near, far = wan.trips(hop_s, TOKENS, rounds)
    yield Row("hops", "no latency", "time per token", "ms", [it.token_s * 1e3 for it in near])
    yield Row("hops", "3 × 25 ms", "time per token", "ms", [it.token_s * 1e3 for it in far])
    yield Row("hops", "3 × 25 ms", "compute", "ms", [it.compute_s * 1e3 for it in far])
    limit = [it.token_s / (wan.STAGES * hop_s + it.compute_s) for it in far]
    yield Row("hops", "3 × 25 ms", "time per token / (Σ hops + compute)", "×", limit)


def streams_arm(rounds: int, ids: list[int]) -> Iterator[Row]:
    found: dict[int, list[float]] = {count: [] for count in STREAMS}
    parts = [ids[local.SHORT * k : local.SHORT * (k + 1)] for k in range(max(STREAMS))]
    with processes(equal_parts(3)) as swarm:
        local.together(swarm.bootstrap, parts[:1], 4)
        for _ in range(min(rounds, 3)):
            for count, values in found.items():
                values.append(local.together(swarm.bootstrap, parts[:count], TOKENS))
    for count, values in found.items():
        yield Row("streams", f"{count} at once", "decode, together", "tokens/s", values)


def churn_arm(rounds: int, ids: list[int]) -> Iterator[Row]:
    levels: dict[float, list[churn.Level]] = {rate: [] for rate in RATES}
    with processes(["1/3", "2/3", "3/3"] * 2, "--crash-on-usr1") as swarm, Client(swarm.bootstrap) as client:
        dice, want = random.Random(1), list[int]()
        generated(client, ids[:32], 8)
        for number in range(min(rounds, 3)):
            for rate, rows in levels.items():
                rows.append(churn.Level(rate))
                got = churn.disturbed(client, swarm, ids[32 * number : 32 * (number + 1)], rows[-1], dice)
                want = got if rate == 0.0 else want
                rows[-1].wrong += got != want
    for rate, rows in levels.items():
        name = f"p = {rate:g} a hop and token"
        yield Row("churn", name, "decode", "tokens/s", [row.speed for row in rows])
        yield Row("churn", name, "failures", "in all", [float(sum(row.failures for row in rows))])
        yield Row("churn", name, "sessions with a wrong token", "in all", [float(sum(row.wrong for row in rows))])


ARMS: dict[str, Callable[[int, list[int]], Iterator[Row]]] = {
    "local": local_arm,
    "routes": routes_arm,
    "links": links_arm,
    "hops": hops_arm,
    "streams": streams_arm,
    "churn": churn_arm,
}
PLOTTED = {"local": "decode", "routes": "decode", "links": "decode", "hops": "time per token", "churn": "decode"}
PLOTTED["streams"] = "decode, together"


# --- what is written ----------------------------------------------------------------------------------------------


def markdown(table: Table, before: Table | None) -> str:
    """The table for people, with a column of the older medians where there are any."""
    old = {row.key: row.median for row in before.rows} if before else {}
    lines = ["# The table", "", "Written by `make bench`; what each arm does is said in `bench/table.py`.", ""]
    lines += [f"- {name}: {value}" for name, value in table.facts.items()]
    if before:
        lines.append(f"- before: commit {before.facts['commit']}, {before.facts['date']}")
    for arm in dict.fromkeys(row.arm for row in table.rows):
        lines += ["", f"## {arm}", "", f"![{arm}]({arm}.svg)", ""]
        lines += ["| | | median | least – greatest | n | before |", "|---|---|---|---|---|---|"]
        for row in (row for row in table.rows if row.arm == arm):
            spread = f"{min(row.values):.4g} – {max(row.values):.4g}"
            then = f"{old[row.key]:.4g}" if row.key in old else ""
            value = f"{row.median:.4g} {row.unit}"
            lines.append(f"| {row.setting} | {row.metric} | {value} | {spread} | {len(row.values)} | {then} |")
    return "\n".join((*lines, ""))


def plots(table: Table, before: Table | None) -> dict[str, str]:
    """File name → SVG."""
    old = {row.key: row.median for row in before.rows} if before else {}
    found = {}
    for arm in dict.fromkeys(row.arm for row in table.rows):
        rows = [row for row in table.rows if row.arm == arm and row.metric == PLOTTED[arm]]
        bars = [Bar(r.setting, r.median, min(r.values), max(r.values), old.get(r.key)) for r in rows]
        found[f"{arm}.svg"] = chart(f"{arm}: {rows[0].metric}", rows[0].unit, bars)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=ARMS, default=[], help="besides local")
    parser.add_argument("--against", type=Path, default=FOLDER / "table.json", help="an older table.json")
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args()
    before = msgspec.json.decode(options.against.read_bytes(), type=Table) if options.against.exists() else None
    where, rows = facts(), list[Row]()
    ids = prompt_ids()
    began = time.monotonic()
    failed = []
    for name, arm in ARMS.items():
        if name != "local" and options.only and name not in options.only:
            continue
        try:
            for row in arm(options.rounds, ids):
                rows.append(row)
                print(f"{row.arm:8s} {row.setting:26s} {row.metric:36s} {row.median:9.4g} {row.unit}", flush=True)
        except PacelineError as error:
            failed.append(name)
            print(f"{name}: {error.code}: {error.message}", flush=True)
        took = f"{time.monotonic() - began:.0f} s" + (f"; failed: {', '.join(failed)}" if failed else "")
        write(options.out, Table({**where, "took": took}, rows), before)
    print(f"{len(rows)} rows in {took}: {options.out / 'table.md'}")
    return 1 if failed else 0


def write(folder: Path, table: Table, before: Table | None) -> None:
    """All files of a result."""
    folder.mkdir(parents=True, exist_ok=True)
    rounded: Any = msgspec.to_builtins(table)
    for row in rounded["rows"]:
        row["values"] = [float(f"{value:.5g}") for value in row["values"]]
    (folder / "table.json").write_text(json.dumps(rounded, indent=1) + "\n")
    (folder / "table.md").write_text(markdown(table, before))
    for name, text in plots(table, before).items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    sys.exit(main())
