"""llama.cpp's speed on the same file, through llama-cpp-python in an environment of its own: for comparison only.

``python -m bench.llama_cpp --python PATH``: one stream of the default model's GGUF (Q4_1). Not a dependency of
anything.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from paceline.engine import default_model

SCRIPT = """
import sys, time
from llama_cpp import Llama
best = 0.0
for threads in (1, 2):
    model = Llama(sys.argv[1], n_ctx=512, n_threads=threads, verbose=False)
    for _ in range(3):
        model.reset()
        model.eval(list(range(100, 148)))
        began = time.perf_counter()
        for _ in range(24):
            model.eval([model.sample(temp=0.0)])
        best = max(best, 24 / (time.perf_counter() - began))
print(best)
"""
"""For the other Python. Prints tokens per second, the better of one thread and two."""


def tokens_per_second(python: str | None) -> str:
    """In words; also where it cannot be had."""
    if python is None:
        return "not measured (--llama-python names a Python that has it)"
    with tempfile.TemporaryDirectory() as folder:
        path = default_model.fetch_file(Path(folder))
        done = subprocess.run([python, "-c", SCRIPT, str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"failed: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}"
    return f"{float(done.stdout.strip().splitlines()[-1]):.1f} tokens/s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable)
    print(tokens_per_second(parser.parse_args().python))
    return 0


if __name__ == "__main__":
    sys.exit(main())
