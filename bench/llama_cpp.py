"""llama.cpp's speed on the same file, through node-llama-cpp, whose package brings compiled kernels for each make of
processor: for comparison only, and not a dependency of anything.

``python -m bench.llama_cpp --llama FOLDER``: one stream of the default model's GGUF (Q4_1), greedy, the better of one
thread and two. FOLDER is where this was called (it wants Node.js; nothing is compiled or downloaded by the packages):

    npm install --ignore-scripts --omit=optional node-llama-cpp @node-llama-cpp/linux-x64
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from paceline.engine import default_model

PROMPT, TOKENS = 48, 24
"""As bench.engine's one stream has them."""
SCRIPT = """
import {getLlama} from "node-llama-cpp";
const [file, prompt, tokens, rounds] = [process.argv[2], ...process.argv.slice(3).map(Number)];
const llama = await getLlama({gpu: false, build: "never", logLevel: "error"});
const model = await llama.loadModel({modelPath: file});
let best = 0;
for (const threads of [1, 2]) {
  const context = await model.createContext({contextSize: 512, threads});
  const sequence = context.getSequence();
  for (let round = 0; round < rounds; round++) {
    await sequence.clearHistory();
    const ids = Array.from({length: prompt}, (_, k) => 100 + k);
    let n = 0, began = 0;
    for await (const token of sequence.evaluate(ids, {temperature: 0, yieldEogToken: true})) {
      if (n === 0) began = performance.now();
      if (n++ === tokens) break;
    }
    best = Math.max(best, 1000 * tokens / (performance.now() - began));
  }
  await context.dispose();
}
console.log(best);
process.exit(0);
"""


def tokens_per_second(folder: Path | None, rounds: int = 4) -> str:
    """In words; also where it cannot be had."""
    if folder is None:
        return "not measured (--llama names a folder that has it, see bench.llama_cpp)"
    with tempfile.TemporaryDirectory() as temporary:
        path = default_model.fetch_file(Path(temporary))
        with tempfile.NamedTemporaryFile("w", suffix=".mjs", dir=folder) as script:
            script.write(SCRIPT)
            script.flush()
            command = ["node", script.name, str(path), *map(str, (PROMPT, TOKENS, rounds))]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"failed: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}"
    return f"{float(done.stdout.strip().splitlines()[-1]):.1f} tokens/s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama", type=Path, required=True, metavar="FOLDER")
    print(tokens_per_second(parser.parse_args().llama))
    return 0


if __name__ == "__main__":
    sys.exit(main())
