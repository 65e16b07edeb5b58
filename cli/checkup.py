"""What `paceline doctor` looks at: one function a concern, each gives findings. Knows this machine; changes nothing.

A finding that is no fault may still be worth a word. Every fault has a cure: one sentence that tells a person what to
do.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil
from packaging.requirements import InvalidRequirement, Requirement

from paceline.store.store import Listing, Store
from paceline.wire.errors import PacelineError

PROBE_BYTES = 4 * 1024 * 1024
CONNECT_S = 3.0
ROLES = ("node", "gateway", "telemetry")


@dataclass(frozen=True, slots=True)
class Finding:
    """`cure` is empty where nothing is wrong."""

    about: str
    told: str
    cure: str = ""

    @property
    def fault(self) -> bool:
        return bool(self.cure)


# --- versions ---------------------------------------------------------------------------------------------------


def versions(roles: Sequence[str]) -> Iterator[Finding]:
    """Installed packages, against what this release was made for. `roles`: extras that must be whole; others are
    looked at where a part of them is installed.
    """
    wrong = []
    for role in ("", *ROLES):
        needed = list(_requirements(role))
        present = [requirement for requirement in needed if _installed(requirement.name)]
        if role and role not in roles and not present:
            yield Finding("versions", f"paceline[{role}] is not installed")
            continue
        wrong += [(role, requirement) for requirement in needed if not _satisfied(requirement)]
    for role, requirement in wrong:
        have = _installed(requirement.name)
        told = f"{requirement.name} {have or 'is missing'}, {requirement.specifier} is needed"
        yield Finding("versions", told, f"pip install '{requirement.name}{requirement.specifier}'{_for(role)}")
    if not wrong:
        yield Finding("versions", f"Python {sys.version.split()[0]}, packages as they should be")


def _for(role: str) -> str:
    return f" (for paceline[{role}])" if role else ""


def _requirements(role: str) -> Iterator[Requirement]:
    for text in metadata.requires("paceline") or ():
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        marker = requirement.marker
        base = marker is None or marker.evaluate({"extra": ""})
        if base != bool(role) and (marker is None or marker.evaluate({"extra": role})):
            yield requirement


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _satisfied(requirement: Requirement) -> bool:
    have = _installed(requirement.name)
    return bool(have) and requirement.specifier.contains(have, prereleases=True)


# --- ports and reachability -----------------------------------------------------------------------------------------


def ports(host: str, wanted: Sequence[int]) -> Iterator[Finding]:
    """Whether `wanted` TCP ports can be listened on; a Paceline that listens there already is no fault."""
    for port in wanted:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                yield Finding("ports", f"{host}:{port} is free")
            except OSError as error:
                yield _taken(host, port, error)


def _taken(host: str, port: int, error: OSError) -> Finding:
    if error.errno == errno.EACCES:
        return Finding("ports", f"{host}:{port} needs privileges", "choose a port from 1024 on with --port")
    if error.errno == errno.EADDRNOTAVAIL:
        return Finding("ports", f"{host} is no address of this machine", "listen on 0.0.0.0 or one of its own")
    holder = _holder(port)
    if holder is not None and "paceline" in " ".join(holder[1]):
        return Finding("ports", f"{host}:{port} is used by a Paceline that runs (pid {holder[0]})")
    who = f"by {Path(holder[1][0]).name if holder[1] else 'a process'} (pid {holder[0]})" if holder else "already"
    cure = f"end it, or choose another port with --port{'' if holder is None else f' (to see it: ps {holder[0]})'}"
    return Finding("ports", f"{host}:{port} is in use {who}", cure)


def _holder(port: int) -> tuple[int, list[str]] | None:
    try:
        listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        pid = next((c.pid for c in listening if c.laddr.port == port and c.pid), None)
        return None if pid is None else (pid, psutil.Process(pid).cmdline())
    except psutil.Error:
        return None


def reachable(members: Sequence[str]) -> Iterator[Finding]:
    """Whether a TCP connection to each member of the swarm (multiaddrs) comes about."""
    for member in members:
        parts = member.split("/")
        if len(parts) < 5 or parts[1] not in ("ip4", "ip6", "dns", "dns4", "dns6") or parts[3] != "tcp":
            cure = "write it as /ip4/<address>/tcp/<port>/p2p/<peer id>, as the node prints it"
            yield Finding("swarm", f"{member!r} is no address of a member", cure)
            continue
        try:
            socket.create_connection((parts[2], int(parts[4])), CONNECT_S).close()
            yield Finding("swarm", f"{parts[2]}:{parts[4]} can be reached")
        except (OSError, ValueError) as error:
            cure = "see that the node runs there, and that firewall and router let its port through"
            yield Finding("swarm", f"{parts[2]}:{parts[4]} cannot be reached: {error}", cure)


def addresses() -> Iterator[Finding]:
    """Whether strangers could dial this machine, as far as it can tell by itself."""
    own = [a.address for each in psutil.net_if_addrs().values() for a in each if a.family == socket.AF_INET]
    public = [address for address in own if not _private(address)]
    if public:
        yield Finding("NAT", f"has a public address: {', '.join(public)}")
        return
    yield Finding("NAT", "no public address: from beyond this network it is reached by a forwarded port (--announce)")


def _private(address: str) -> bool:
    import ipaddress

    return not ipaddress.ip_address(address).is_global


# --- disk -----------------------------------------------------------------------------------------------------------


def disk(home: Path, need_bytes: int) -> Iterator[Finding]:
    """Whether `home` takes files, and has room for `need_bytes` more."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home, buffering=0) as probe:
            for _ in range(PROBE_BYTES // 65536):
                if probe.write(bytes(65536)) != 65536:
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            os.fsync(probe.fileno())
        free = shutil.disk_usage(home).free
    except OSError as error:
        yield Finding("disk", f"{home} takes no {PROBE_BYTES >> 20} MiB: {error.strerror}", _disk_cure(error.errno))
        return
    if free < need_bytes:
        told = f"{free / 1e9:.1f} GB free in {home}, {need_bytes / 1e9:.1f} GB wanted"
        yield Finding("disk", told, "free some space, or set PACELINE_HOME to another disk")
    else:
        yield Finding("disk", f"{free / 1e9:.1f} GB free in {home}")


def _disk_cure(number: int | None) -> str:
    if number in (errno.EDQUOT, errno.EFBIG):
        return "a quota or limit stops it: raise it (ulimit -f, quota), or set PACELINE_HOME elsewhere"
    if number == errno.ENOSPC:
        return "the disk is full: free some space, or set PACELINE_HOME to another disk"
    return "give this user the folder, or set PACELINE_HOME elsewhere"


def models(home: Path) -> Iterator[Finding]:
    """Whether every block of every named model has the hash that names it. Reads them all."""
    if not (home / "store").is_dir():
        yield Finding("store", "no model is here yet")
        return
    try:
        store = Store(home / "store")
        listings = store.list()
    except PacelineError as error:
        yield Finding("store", error.message, error.cure or "pull the model again")
        return
    for listing in listings:
        yield _model(store, listing)


def _model(store: Store, listing: Listing) -> Finding:
    blocks = {block.digest: block for block in (*listing.manifest.blocks(), *listing.manifest.texts())}
    for digest in blocks:
        if store.has(digest):
            try:
                store.path(digest)
            except PacelineError as error:
                where = store.root / "blocks" / digest.hex()
                return Finding("store", f"{listing.name}: {error.message}", f"rm {where}; paceline pull {listing.name}")
    share = "" if listing.present == listing.total else f", {listing.present / listing.total:.0%} of it here"
    return Finding("store", f"{listing.name}: {len(blocks)} blocks as their hashes say{share}")


# --- GPU ------------------------------------------------------------------------------------------------------------

_ASK_TORCH = """
import json, torch
told = {"version": torch.__version__, "cuda": torch.version.cuda or getattr(torch.version, "hip", None)}
try:
    torch.zeros(1, device=DEVICE).add(1).item()
    told["name"] = torch.cuda.get_device_name(DEVICE)
except (RuntimeError, AssertionError, ValueError) as error:
    told["error"] = str(error).splitlines()[0]
print(json.dumps(told))
"""


def gpu(device: str) -> Iterator[Finding]:
    """Whether torch computes on `device` (such as cuda or cuda:1); where none is asked for, only if one is seen."""
    seen = sorted(Path("/dev").glob("nvidia[0-9]*"))
    if device == "cpu" and not seen:
        yield Finding("GPU", "none seen; the CPU serves")
        return
    wanted = device if device != "cpu" else "cuda"
    program = f"DEVICE = {wanted!r}\n{_ASK_TORCH}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        yield Finding("GPU", f"torch does not start: {last}", "pip install 'paceline[node]' anew")
        return
    told = json.loads(done.stdout)
    if "error" not in told:
        yield Finding("GPU", f"{told['name']}, torch {told['version']}, CUDA {told['cuda']}")
    elif not told["cuda"]:
        cure = "install the torch build for your CUDA version, or serve with --device cpu"
        yield Finding("GPU", f"torch {told['version']} was built without GPU support", cure)
    else:
        cure = "install or update the driver (nvidia-smi must list the card), or serve with --device cpu"
        yield Finding("GPU", f"torch {told['version']} cannot use {wanted}: {told['error']}", cure)
