"""Builds a real client: identity, libp2p host, directory, store. The one place in the client that knows all of them."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

from paceline.client.core import ClientCore, unix_time
from paceline.client.levels import Frontiers
from paceline.client.swarm import Swarm
from paceline.consistency.owner import OwnerLimits
from paceline.consistency.staleness import STALE_S
from paceline.dht.kademlia import DirectoryConfig, KademliaDirectory
from paceline.net.conditioner import conditioned
from paceline.net.host import Libp2pTransport, NetConfig
from paceline.net.identity import Identity
from paceline.store import trust
from paceline.store.store import Store
from paceline.store.trust import Trust
from paceline.wire.errors import InvalidRequest

LOCAL_SWARM_FILE = "local-swarm.json"


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """`bootstrap`: multiaddrs of any members, each with ``/p2p/<peer id>``; empty: ``PACELINE_SWARM`` (separated by
    commas), else the local swarm that `paceline up` runs on this machine. `home`: where the store lies.
    `link_profile`: a link profile's name or file (`net.conditioner`); None: ``PACELINE_LINK_PROFILE``, else the network
    as it is. `stale_after_s`: how long a revision in use may be behind before the log says so.
    """

    bootstrap: tuple[str, ...] = ()
    home: Path | None = None
    owner: OwnerLimits = field(default_factory=OwnerLimits)
    link_profile: str | None = None
    stale_after_s: float = STALE_S


def home_folder(home: Path | None = None) -> Path:
    """``home``, else ``$PACELINE_HOME``, else the platform's user data folder."""
    named = home or os.environ.get("PACELINE_HOME")
    return Path(named) if named else Path(platformdirs.user_data_dir("paceline"))


def bootstrap_addresses(config: ClientConfig) -> tuple[str, ...]:
    """Where to join. Raises InvalidRequest, with the cure, where nothing says so."""
    if config.bootstrap:
        return config.bootstrap
    named = tuple(part.strip() for part in os.environ.get("PACELINE_SWARM", "").split(",") if part.strip())
    if named:
        return named
    local = home_folder(config.home) / LOCAL_SWARM_FILE
    if local.exists():
        return tuple(json.loads(local.read_text())["bootstrap"])
    raise InvalidRequest(
        "no swarm to join", cure="run `paceline up` here, or name a member with --swarm or PACELINE_SWARM"
    )


@asynccontextmanager
async def connect(config: ClientConfig | None = None) -> AsyncIterator[ClientCore]:
    """A joined client, for trio. Raises InvalidRequest, PeerUnavailable."""
    config = config or ClientConfig()
    bootstrap = bootstrap_addresses(config)
    identity = Identity.ephemeral()
    transport = Libp2pTransport(identity, NetConfig(listens=False))
    directory = KademliaDirectory(transport, identity, DirectoryConfig(bootstrap=bootstrap))
    profile = config.link_profile if config.link_profile is not None else os.environ.get("PACELINE_LINK_PROFILE")
    swarm = Swarm(conditioned(transport, profile), directory, unix_time=unix_time)
    home = home_folder(config.home)
    core = ClientCore(swarm, Store(home / "store"), config.owner, Frontiers(_trust(home), config.stale_after_s))
    async with core.run():
        yield core


def _trust(home: Path) -> Trust | None:
    """Whose releases count for strong and bounded requests; None where this machine's user never named anybody."""
    if not (home / trust.FILE).exists():
        return None
    key = home / "identities" / "publisher"
    return trust.load(home, own=Identity.load_or_create(key).public if key.exists() else None)


def as_addresses(swarm: str | Sequence[str] | None) -> tuple[str, ...]:
    """User's spelling of bootstrap members → tuple."""
    if swarm is None:
        return ()
    return tuple(swarm.split(",")) if isinstance(swarm, str) else tuple(swarm)
