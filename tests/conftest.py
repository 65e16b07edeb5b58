"""What every test runs under: no deadline on an example (machines are shared and slow), and two threads for tensors."""

from __future__ import annotations

import os

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

settings.register_profile("paceline", deadline=None, print_blob=True)
settings.load_profile("paceline")
