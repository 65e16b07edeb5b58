"""Does the built wheel work where nothing else is? ``make package-test``, or ``python -m bench.package``.

Builds wheel and sdist from a clean copy of the committed tree, then makes two fresh environments from the wheel alone:

- ``node``: ``paceline[node]``; pulls the default model if the store lacks it, and serves it in three processes;
- ``client``: ``paceline``; has no torch, finds the swarm, and generates.

Both give the same tokens for the same prompt, each counts what it installed and what it weighs, and the sdist is
built again into the same wheel contents. Exit status 1 where anything of this fails. Takes minutes: torch is copied.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROMPT = "The three primary colours are"
READY_S = 120.0

GENERATE = """
import importlib.util, json, sys
from paceline.client import Client
with Client("@" + sys.argv[1], home=sys.argv[2]) as client:
    with client.generate(sys.argv[3], max_tokens=24, ignore_eos=True) as answer:
        tokens = [piece.token for piece in answer]
torch = importlib.util.find_spec("torch") is not None
print(json.dumps({"tokens": tokens, "riders": len(answer.result.route), "torch": torch}))
"""


def run(command: Sequence[str | Path], **more: object) -> str:
    """Output of a command. Raises SystemExit with what it said where it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **more)  # type: ignore[call-overload]
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}")
    return str(done.stdout)


def build(folder: Path) -> tuple[Path, Path]:
    """Wheel and sdist of the committed tree."""
    source, out = folder / "source", folder / "dist"
    source.mkdir()
    archive = folder / "tree.tar"
    run(["git", "-C", ROOT, "archive", "--output", archive, "HEAD"])
    run(["tar", "-xf", archive, "-C", source])
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source])
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


def same_from_sdist(wheel: Path, sdist: Path, folder: Path) -> None:
    """The sdist builds the same wheel."""
    unpacked = folder / "unpacked"
    unpacked.mkdir()
    run(["tar", "-xf", sdist, "-C", unpacked])
    (source,) = unpacked.iterdir()
    run([sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder / "again", source])
    (again,) = (folder / "again").glob("*.whl")
    names = [sorted(zipfile.ZipFile(each).namelist()) for each in (wheel, again)]
    if names[0] != names[1]:
        raise SystemExit(f"the sdist builds another wheel: {set(names[0]) ^ set(names[1])}")


def environment(folder: Path, wheel: Path, extra: str) -> Path:
    """A fresh virtual environment with nothing but the wheel and what it requires; its python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    began = time.monotonic()
    run([python, "-m", "pip", "install", "-c", ROOT / "constraints.txt", f"{wheel}{extra}"])
    took = time.monotonic() - began
    run([python, "-m", "pip", "check"])
    packages = run([python, "-m", "pip", "list", "--format=freeze"]).splitlines()
    size = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    print(f"{wheel.name}{extra}: {len(packages)} packages, {size / 1e6:.0f} MB, installed in {took:.0f} s", flush=True)
    return python


@contextmanager
def served(python: Path, home: Path, folder: Path, spans: Sequence[str]) -> Iterator[Path]:
    """Node processes of the node environment; yields the first one's ready file."""
    first = folder / "node-1.ready"
    with ExitStack() as stack:
        for number, span in enumerate(spans, 1):
            ready = folder / f"node-{number}.ready"
            join = ["--swarm", f"@{first}"] if number > 1 else []
            command = [python, "-m", "paceline.cli", "node", "--span", span, "--listen", "127.0.0.1", "--home", home]
            command += ["--name", f"package-test-{number}", "--ready-file", ready, "--until-stdin-closes", *join]
            log = stack.enter_context((folder / f"node-{number}.log").open("wb"))
            process = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=log, stderr=log, cwd="/")
            stack.callback(_end, process)
            _await(ready, process, folder / f"node-{number}.log")
        yield first


def _await(ready: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"a node did not come up:\n{log.read_text(errors='replace')}")
        time.sleep(0.1)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()


def ask(python: Path, ready: Path, home: Path) -> dict[str, object]:
    """One generation by the library of an environment."""
    answer: dict[str, object] = json.loads(run([python, "-c", GENERATE, ready, home, PROMPT], cwd="/").splitlines()[-1])
    return answer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=os.environ.get("PACELINE_HOME"), help="a store to reuse")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="paceline-package-") as name:
        folder = Path(name)
        wheel, sdist = build(folder)
        same_from_sdist(wheel, sdist, folder)
        print(f"built {wheel.name} ({wheel.stat().st_size / 1e3:.0f} kB) and {sdist.name}; the sdist builds the same")
        client = environment(folder / "client", wheel, "")
        node = environment(folder / "node", wheel, "[node]")
        version = run([folder / "client" / "bin" / "paceline", "--version"], cwd="/").strip()
        if not re.match(rf"paceline-{re.escape(version)}-", wheel.name):
            raise SystemExit(f"paceline --version says {version}, the wheel is {wheel.name}")
        home = options.home or folder / "home"
        print(run([node, "-m", "paceline.cli", "pull", "--home", home], cwd="/").strip() or f"model in {home.name}/")
        with served(node, home, folder, ("1/3", "2/3", "3/3")) as ready:
            by_client = ask(client, ready, folder / "client-home")
            by_node = ask(node, ready, folder / "node-home")
    print(f"client: torch {by_client['torch']}, {by_client['riders']} riders, tokens {by_client['tokens']}")
    print(f"node:   torch {by_node['torch']}, {by_node['riders']} riders, tokens {by_node['tokens']}")
    good = by_client["tokens"] == by_node["tokens"] and not by_client["torch"] and by_node["torch"]
    print("ok: both installs work, and agree" if good else "MISSED: the installs differ")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
