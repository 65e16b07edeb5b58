"""Does a node that leaves modules out compute what one with everything computes?

``python -m bench.parity_lean``: every certified family as a tiny random model in 3 shards, chunked prefill and decode
past any window, in two processes: one imports everything, one leaves out what `engine.lean_imports` names. Logits must
be the same, bit by bit, and no placeholder may have been needed. Exit status 1 on any difference.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path

LEAN = "lean"
PIECES = ((0, 5), (5, 17), (17, 24), *((at, at + 1) for at in range(24, 40)))


def digests(folder: Path) -> dict[str, str]:
    """Of the logits of each model in the stores below `folder`."""
    import torch

    from bench.parity_shards import ShardRing
    from paceline.engine.split import even_split
    from paceline.store.store import Store

    torch.set_num_threads(1)
    log = [3 + (7 * at) % 250 for at in range(40)]
    found = {}
    for place in sorted(folder.iterdir()):
        store = Store(place)
        manifest = store.manifest(place.name)
        ring = ShardRing(store, manifest, even_split(len(manifest.layers), 3))
        ring.open(64)
        rows = torch.cat([ring.last_logits(log[start:end]) for start, end in PIECES])
        found[place.name] = sha256(rows.numpy().tobytes()).hexdigest()[:16]
    return found


def make(folder: Path) -> None:
    """A store for each architecture, named after it, below `folder`."""
    from bench.parity_shards import ARCHITECTURES, tiny_model
    from paceline.engine.convert import from_model
    from paceline.engine.source import publish
    from paceline.store.store import Store

    for arch in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as scratch:
            publish(Store(folder / arch), from_model(tiny_model(arch, Path(scratch)), "f32"), arch)


def lean(folder: Path) -> int:
    """The second process: prints what it found, one model a line. Status 1 where a placeholder was needed."""
    from paceline.engine import lean_imports
    from paceline.node import placeholders

    placeholders.install(lean_imports.ROWS, lean_imports.HIDDEN)
    for name, digest in digests(folder).items():
        print(name, digest)
    return 0 if placeholders.suspected(placeholders.PlaceholderUsed()) else 1


def main() -> int:
    if sys.argv[1:2] == [LEAN]:
        return lean(Path(sys.argv[2]))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make(folder)
        expected = digests(folder)
        command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "bench.parity_lean", LEAN, scratch]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    found = dict(line.split() for line in done.stdout.splitlines())
    for name, digest in expected.items():
        print(f"{'ok    ' if found.get(name) == digest else 'DIFFERS'} {name} {digest} {found.get(name, '-')}")
    return 0 if found == expected and done.returncode == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
