"""`paceline doctor` on planted faults: each is real for the process that looks, and is named with its cure."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from paceline.cli.local_swarm import LocalSwarm, local_swarm
from paceline.engine import default_model
from paceline.store.store import Store

AN_HOUR_AHEAD = "import time\nreal = time.time\ntime.time = lambda: real() + 3600.0\n"


@pytest.fixture(scope="module")
def one(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSwarm]:
    """A swarm of one node, to join and to compare clocks with."""
    with local_swarm(home, tmp_path_factory.mktemp("swarm"), default_model.NAME, ["0:1"]) as running:
        yield running


@dataclass
class Patient:
    """A process to be: its home, options, variables, and what is done to it before it starts."""

    home: Path
    options: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    harm: Callable[[], None] = lambda: None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def patient(one: LocalSwarm, home: Path, tmp_path: Path) -> Patient:
    """Healthy: a home with the small parts of the model, a free port, a swarm that answers, a disk with room."""
    store, source = Store(tmp_path / "home" / "store"), Store(home / "store")
    manifest = source.manifest(default_model.REVISION)
    for block in (*manifest.texts(), manifest.layers[0]):
        shutil.copy(source.path(block.digest), store.root / "blocks" / block.hash)
    store.put_manifest(manifest)
    options = ["--host", "127.0.0.1", "--port", str(free_port()), "--swarm", one.bootstrap[0], "--room", "0.001"]
    return Patient(tmp_path / "home", options)


def examined(patient: Patient) -> tuple[int, list[dict[str, str]]]:
    """Exit status, and all findings."""
    done = subprocess.run(
        [sys.executable, "-m", "paceline.cli", "doctor", "--json", *patient.options],
        env={**os.environ, "PACELINE_HOME": str(patient.home), **patient.environment},
        preexec_fn=patient.harm,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)


def the_fault(patient: Patient) -> tuple[str, str, str]:
    """The one fault that is found."""
    status, findings = examined(patient)
    faults = [finding for finding in findings if finding["cure"]]
    assert (status, len(faults)) == (1, 1), faults
    return faults[0]["about"], faults[0]["told"], faults[0]["cure"]


def test_a_healthy_machine_has_no_fault(patient: Patient) -> None:
    status, findings = examined(patient)
    assert [finding for finding in findings if finding["cure"]] == []
    assert status == 0
    assert {finding["about"] for finding in findings} >= {
        "versions",
        "ports",
        "swarm",
        "clock",
        "reached",
        "disk",
        "store",
        "GPU",
    }


def test_a_port_in_use(patient: Patient) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        patient.options[3] = str(port)
        about, told, cure = the_fault(patient)
    assert about == "ports"
    assert f"127.0.0.1:{port} is in use by " in told
    assert str(os.getpid()) in told
    assert "--port" in cure


def test_a_member_that_cannot_be_reached(patient: Patient, one: LocalSwarm) -> None:
    port = free_port()
    patient.options += ["--swarm", f"/ip4/127.0.0.1/tcp/{port}/p2p/{one.nodes[0].peer}"]
    about, told, cure = the_fault(patient)
    assert (about, f"127.0.0.1:{port} cannot be reached" in told) == ("swarm", True)
    assert "firewall" in cure


def test_a_port_that_nobody_outside_can_reach(patient: Patient) -> None:
    """It listens where the swarm does not see it: the member dials the address that the question came from."""
    patient.options[1] = "127.0.0.2"
    about, told, cure = the_fault(patient)
    assert (about, told) == ("reached", f"nobody outside can reach port {patient.options[3]}")
    assert "--relay" in cure


def test_a_disk_quota(patient: Patient) -> None:
    patient.harm = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    about, told, cure = the_fault(patient)
    assert about == "disk"
    assert str(patient.home) in told
    assert "quota" in cure


def test_a_disk_without_room(patient: Patient) -> None:
    patient.options[-1] = "1000000000"
    about, told, cure = the_fault(patient)
    assert (about, "wanted" in told) == ("disk", True)
    assert "PACELINE_HOME" in cure


def test_a_clock_that_is_wrong(patient: Patient, tmp_path: Path) -> None:
    (tmp_path / "skewed").mkdir()
    (tmp_path / "skewed" / "sitecustomize.py").write_text(AN_HOUR_AHEAD)
    patient.environment["PYTHONPATH"] = os.pathsep.join((str(tmp_path / "skewed"), os.environ.get("PYTHONPATH", "")))
    about, told, cure = the_fault(patient)
    assert (about, told) == ("clock", "this clock is 3600 s ahead of the swarm's")
    assert "set-ntp" in cure


@pytest.mark.parametrize(("package", "version"), [("torch", "1.13.1"), ("libp2p", "0.9.0")])
def test_a_package_of_the_wrong_version(patient: Patient, tmp_path: Path, package: str, version: str) -> None:
    facts = tmp_path / "other" / f"{package}-{version}.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    patient.environment["PYTHONPATH"] = os.pathsep.join((str(tmp_path / "other"), os.environ.get("PYTHONPATH", "")))
    about, told, cure = the_fault(patient)
    assert about == "versions"
    assert told.startswith(f"{package} {version}, ")
    assert cure.startswith(f"pip install '{package}")


def test_a_damaged_block(patient: Patient) -> None:
    store = Store(patient.home / "store")
    block = store.manifest(default_model.REVISION).layers[0]
    path = store.root / "blocks" / block.hash
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    about, told, cure = the_fault(patient)
    assert about == "store"
    assert block.hash[:12] in told
    assert cure == f"rm {path}; paceline pull {default_model.NAME}"


def test_a_gpu_that_does_not_answer(patient: Patient) -> None:
    patient.options += ["--device", "cuda"]
    patient.environment["CUDA_VISIBLE_DEVICES"] = ""
    about, told, cure = the_fault(patient)
    assert (about, "torch" in told) == ("GPU", True)
    assert "--device cpu" in cure
