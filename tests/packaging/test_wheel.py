"""What is built is whole: every module and type marker in the wheel, everything needed to go on in the sdist."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = sorted(path.parent.name for path in ROOT.glob("*/py.typed"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist, built from a copy: offline, with the environment's own setuptools."""
    source = tmp_path_factory.mktemp("source") / "paceline"
    out = tmp_path_factory.mktemp("dist")
    unwanted = shutil.ignore_patterns(
        ".venv", ".git", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", "*.whl"
    )
    shutil.copytree(ROOT, source, ignore=unwanted, symlinks=True)
    command = [sys.executable, "-m", "build", "--no-isolation", "--sdist", "--wheel", "--outdir", str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_the_wheel_holds_every_module_and_type_marker_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {f"paceline/{path.relative_to(ROOT)}" for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    markers = {f"paceline/{room}/py.typed" for room in ROOMS}
    assert modules | markers <= held
    assert {name.split("/")[0] for name in held} == {"paceline"}
    assert "paceline/__init__.py" not in held


def test_the_wheel_says_what_it_is(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    files = {name.split(".dist-info/")[1]: name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" in name}
    assert "licenses/LICENSE" in files
    metadata = zipfile.ZipFile(wheel).read(files["METADATA"]).decode()
    assert "License-Expression: Apache-2.0" in metadata
    needs = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:")]
    assert any("torch" in line and "extra == " in line for line in needs)
    assert not [line for line in needs if "torch" in line and "extra == " not in line]
    assert b"paceline = paceline.cli.__main__:main" in zipfile.ZipFile(wheel).read(files["entry_points.txt"])


def test_the_sdist_can_be_worked_on(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {"Makefile", "constraints.txt", "LICENSE", "README.md", "tests/packaging/test_wheel.py", ".ci/run"} <= held
    assert {"Dockerfile", "docker-compose.yml", "docker/healthy.py", "docs/docker.md", "bench/table.py"} <= held
    assert not [name for name in held if name.endswith((".whl", ".pyc"))]
