"""Does the swarm of docker-compose.yml do what a user expects of it? Needs a Docker engine.

``python -m bench.docker [--compose "docker compose"] [--build-only]``: builds and starts everything, fetches the page,
streams an answer to an `openai` client outside the containers, then streams the same answer again and sends SIGKILL to
the node that runs the middle layers while it is being written. Then stops everything, looks at the exit codes, takes it
down, and looks for what is left.

Bars (exit status 1 where one is missed): all services healthy; both answers complete and equal; the second one says
that it was repaired; every process left by itself when it was told to; no container and no network is left.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import OpenAI

from bench.common import Bars, machine

ROOT = Path(__file__).resolve().parent.parent
PROJECT = "paceline-bench"
SERVICES = ("bootstrap", "node-1", "node-2", "node-3", "spare", "gateway")
PROMPT = "Explain in three sentences why the sky is blue."
TOKENS = 96
KILL_AT = 24
UP_S = 300.0


@dataclass(frozen=True)
class Answer:
    """A streamed answer: pieces with the times of their arrival, and what the gateway said of its ring."""

    text: str
    pieces: int
    longest_s: float
    finish: str
    route: list[str]
    failovers: int


def run(command: Sequence[str], *, check: bool = True, shown: bool = False) -> str:
    """Output of a command; with `shown` it goes to the terminal."""
    pipe = None if shown else subprocess.PIPE
    done = subprocess.run(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, check=False)
    if check and done.returncode:
        raise SystemExit(f"{shlex.join(command)}: status {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout or ""


class Swarm:
    """The compose project, by its command line."""

    def __init__(self, compose: str, port: int) -> None:
        self.compose = [*shlex.split(compose), "--project-name", PROJECT]
        self.url = f"http://127.0.0.1:{port}"

    def container(self, service: str) -> dict[str, Any]:
        """`docker inspect` of a service's container; {} where it has none."""
        ids = self._ids("--filter", f"label=com.docker.compose.service={service}")
        found: list[dict[str, Any]] = json.loads(run(["docker", "inspect", *ids])) if ids else [{}]
        return found[0]

    def _ids(self, *filters: str) -> list[str]:
        label = f"label=com.docker.compose.project={PROJECT}"
        return run(["docker", "ps", "--all", "--quiet", "--filter", label, *filters]).split()

    def health(self) -> dict[str, str]:
        return {name: _health(self.container(name).get("State", {})) for name in SERVICES}

    def wait_healthy(self) -> dict[str, str]:
        deadline = time.monotonic() + UP_S
        while set((health := self.health()).values()) != {"healthy"} and time.monotonic() < deadline:
            time.sleep(1.0)
        return health

    def names(self) -> dict[str, str]:
        """Peer id → service, by the agents' names."""
        with urllib.request.urlopen(f"{self.url}/paceline/swarm", timeout=10) as answer:
            nodes = json.load(answer)["nodes"]
        return {node["peer"]: str(node["agent"]).removeprefix("paceline/") for node in nodes}

    def left_behind(self) -> list[str]:
        label = f"label=com.docker.compose.project={PROJECT}"
        networks = run(["docker", "network", "ls", "--quiet", "--filter", label]).split()
        return self._ids() + networks


def _health(state: dict[str, Any]) -> str:
    return str(state.get("Health", {}).get("Status") or state.get("Status", "absent"))


def stream(swarm: Swarm, kill: bool) -> Answer:
    """One answer. With `kill`, the middle rider's container is killed after `KILL_AT` pieces."""
    api = OpenAI(base_url=f"{swarm.url}/v1", api_key="none", max_retries=0)
    model = api.models.list().data[0].id
    names = swarm.names()
    extra = {"ignore_eos": True, "paceline_events": True}
    answer = api.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": PROMPT}],
        max_tokens=TOKENS,
        temperature=0.7,
        seed=11,
        stream=True,
        extra_body=extra,
    )
    route = [part.split(":")[0] for part in answer.response.headers["x-paceline-route"].split(",")]
    riders = [names.get(peer.strip(), peer) for peer in route]
    text, times, finish, failovers = "", [time.monotonic()], "", 0
    for chunk in answer:
        account = (chunk.model_extra or {}).get("paceline") or {}
        failovers = max(failovers, len(account.get("failovers", ())))
        if not chunk.choices:
            continue
        text += chunk.choices[0].delta.content or ""
        finish = chunk.choices[0].finish_reason or finish
        times.append(time.monotonic())
        if kill and len(times) == KILL_AT:
            run(["docker", "kill", swarm.container(riders[1])["Id"]])
    gaps = [later - earlier for earlier, later in itertools.pairwise(times[1:])]
    return Answer(text, len(times) - 1, max(gaps), finish, riders, failovers)


def judge(swarm: Swarm, bars: Bars) -> None:
    """Everything between up and down."""
    health = swarm.wait_healthy()
    bars.check("all services are healthy", set(health.values()) == {"healthy"}, str(health))
    with urllib.request.urlopen(f"{swarm.url}/", timeout=10) as page:
        bars.check("the page opens", page.status == 200, f"HTTP {page.status}, {len(page.read())} bytes")
    whole = stream(swarm, kill=False)
    shown = f"{whole.pieces} pieces over {' → '.join(whole.route)}, finish {whole.finish}"
    bars.check("an openai client outside gets a streamed answer", whole.pieces > TOKENS // 2, shown)
    print(f"  {whole.text!r}")
    broken = stream(swarm, kill=True)
    equal = broken.text == whole.text and broken.finish == whole.finish
    shown = (
        f"{broken.route[1]} killed at piece {KILL_AT} of {broken.pieces}, {broken.failovers} repair, longest wait "
        f"{broken.longest_s * 1e3:.0f} ms, text {'equal' if equal else repr(broken.text)}"
    )
    bars.check("docker kill in mid-stream: complete and equal", equal and broken.failovers > 0, shown)
    memory = run(["docker", "stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}"])
    print("  " + memory.strip().replace("\n", "\n  "))
    began = time.monotonic()
    run([*swarm.compose, "stop"])
    codes = {name: swarm.container(name).get("State", {}).get("ExitCode") for name in SERVICES}
    killed = broken.route[1]
    good = all(code == (137 if name == killed else 0) for name, code in codes.items())
    bars.check("everybody left when told to", good, f"{codes} within {time.monotonic() - began:.0f} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compose", default="docker-compose")
    parser.add_argument("--build-only", action="store_true")
    parser.add_argument("--keep", action="store_true", help="leave it running")
    options = parser.parse_args()
    print(machine(), run(["docker", "version", "--format", "engine {{.Server.Version}}"]).strip())
    print(run([*shlex.split(options.compose), "version"], check=False).splitlines()[0])
    swarm = Swarm(options.compose, int(os.environ.get("PACELINE_PORT", "8080")))
    began = time.monotonic()
    run([*swarm.compose, "build"], shown=True)
    print(f"built in {time.monotonic() - began:.0f} s", flush=True)
    print(
        run(["docker", "images", "--filter", "reference=paceline/*", "--format", "{{.Repository}} {{.Size}}"]).strip()
    )
    if options.build_only:
        return 0
    bars = Bars()
    began = time.monotonic()
    try:
        run([*swarm.compose, "up", "--detach"], shown=True)
        print(f"up in {time.monotonic() - began:.0f} s", flush=True)
        judge(swarm, bars)
    finally:
        if not options.keep:
            run([*swarm.compose, "down", "--volumes"], shown=True)
    if not options.keep:
        left = swarm.left_behind()
        bars.check("down leaves nothing", not left, f"{len(left)} containers and networks left")
    return bars.exit_status()


if __name__ == "__main__":
    sys.exit(main())
