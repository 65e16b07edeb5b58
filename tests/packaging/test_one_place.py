"""Facts that several files must agree on: the version, what the images copy, what the dashboard asks for."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

from prometheus_client import generate_latest

from paceline.gateway.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_version_is_written_in_one_place() -> None:
    version = PROJECT["project"]["version"]
    assert metadata.version("paceline") == version
    rooms = [name.removeprefix("paceline.") for name in PROJECT["tool"]["setuptools"]["packages"]]
    named = [str(path) for room in rooms for path in (ROOT / room).rglob("*.py") if version in path.read_text("utf-8")]
    assert not named
    assert version not in _text("Dockerfile") + _text("docker-compose.yml")


def test_the_change_log_begins_with_this_version() -> None:
    first = re.search(r"^## (\S+?),? ", _text("CHANGELOG.md"), re.M)
    assert first is not None
    assert first[1] == PROJECT["project"]["version"]


def test_the_images_copy_every_package_and_nothing_secret() -> None:
    kept = {line[1:] for line in _text(".dockerignore").splitlines() if line.startswith("!")}
    packages = {name.removeprefix("paceline.") for name in PROJECT["tool"]["setuptools"]["packages"]}
    assert _text(".dockerignore").splitlines()[0] == "*"
    assert packages <= kept
    assert all((ROOT / name).exists() for name in kept)
    assert not kept & {".git", ".venv", "shared"}


def test_images_and_services_run_as_nobody_special() -> None:
    stages = {stage.split("\n")[0].split(" AS ")[-1]: stage for stage in _text("Dockerfile").split("\nFROM ")}
    for name, base in {"client": "runtime", "node": "runtime", "model": "node", "lab": "model"}.items():
        assert stages[name].startswith(f"{base} AS ")
        assert base != "runtime" or stages[name].rstrip().endswith("\nUSER paceline")
    assert "USER root" not in _text("Dockerfile")
    compose = _text("docker-compose.yml")
    assert "privileged" not in compose.replace("no-new-privileges", "")
    assert "docker.sock" not in compose


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    held = set(re.findall(r"^# TYPE (\w+)", generate_latest(Metrics().registry).decode(), re.M))
    board = json.loads(_text("docker/grafana/dashboards/paceline.json"))
    asked = {
        name for panel in board["panels"] for it in panel["targets"] for name in re.findall(r"paceline_\w+", it["expr"])
    }
    assert asked
    assert {name.removesuffix("_bucket") for name in asked} <= held


def test_no_wheel_and_no_model_is_committed() -> None:
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=False)
    large = [name for name in listed.stdout.splitlines() if name.endswith((".whl", ".gguf", ".safetensors"))]
    assert not large
