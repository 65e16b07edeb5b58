"""A node that leaves modules out computes what one with everything computes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_certified_family_gives_the_same_bits() -> None:
    done = subprocess.run([sys.executable, "-m", "bench.parity_lean"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
