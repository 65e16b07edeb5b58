"""What does a node weigh, and why?

``python -m bench.memory``: three node processes share the default model in three parts of equal cost, answer requests
with long and short prompts, and are weighed while they serve; then a client that has generated is. Exit status 1 where
a bar is missed: a node with a third of the model ≤ 450 MB resident, a client ≤ 200 MB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

from bench.common import Bars, equal_parts, machine, processes
from paceline.client.sync import Client

NODE_BYTES, CLIENT_BYTES = 450e6, 200e6
REQUESTS = ((8, 32), (48, 64), (512, 16), (48, 64))
"""Prompt and answer, in tokens."""

CLIENT_SCRIPT = """
import json, sys, psutil
from paceline.client import Client
with Client(sys.argv[1].split(",")) as client:
    text = client.generate("The capital of France is", max_tokens=16)
    count = sum(1 for _ in text)
assert "torch" not in sys.modules and "transformers" not in sys.modules
print(json.dumps({"tokens": count, "rss": psutil.Process().memory_info().rss}))
"""
"""A client in a process of its own. Prints its resident bytes."""


def client_bytes(bootstrap: tuple[str, ...]) -> int:
    """Resident memory of a process that has just generated 16 tokens."""
    script = [sys.executable, "-c", CLIENT_SCRIPT, ",".join(bootstrap)]
    done = subprocess.run(script, capture_output=True, text=True, check=True, timeout=120)
    return int(json.loads(done.stdout.strip().splitlines()[-1])["rss"])


def resident(pid: int) -> Counter[str]:
    """Resident bytes of a process by kind: heap, anonymous, each library of over 1 MB, other files."""
    found: Counter[str] = Counter()
    kind = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if not fields[0].endswith(":"):
            path = fields[5] if len(fields) == 6 else ""
            kind = Path(path).name if path.startswith("/") else {"[heap]": "heap"}.get(path, "anonymous")
        elif fields[0] == "Rss:":
            found[kind] += int(fields[1]) * 1024
    named = Counter({kind: size for kind, size in found.items() if size >= 1_000_000})
    named["other files"] += found.total() - named.total()
    return named


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(machine())
    bars = Bars()
    with processes(equal_parts(3)) as swarm, Client(swarm.bootstrap) as client:
        for prompt, tokens in REQUESTS:
            for _ in client.generate([1] * prompt, max_tokens=tokens, ignore_eos=True):
                pass
        spans = {node["pid"]: node["services"][0]["span"] for node in client.status()}
        for pid, span in spans.items():
            kinds = resident(pid)
            bars.check(f"layers {span}", kinds.total() <= NODE_BYTES, f"{kinds.total() / 1e6:.0f} MB resident")
            print("       " + ", ".join(f"{kind} {size / 1e6:.0f}" for kind, size in kinds.most_common(8)))
        weight = client_bytes(swarm.bootstrap)
    bars.check("client", weight <= CLIENT_BYTES, f"{weight / 1e6:.0f} MB resident")
    return bars.exit_status()


if __name__ == "__main__":
    sys.exit(main())
