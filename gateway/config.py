"""How one gateway is set up, and its file of API keys. Knows files; no HTTP and no swarm."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from paceline.client.mirror import MirrorConfig
from paceline.wire.errors import InvalidRequest

Limit = Annotated[int, Meta(ge=0)]


class ApiKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One caller. Limits of 0 are no limits. Tokens count prompt and answer together.

    Give `key` as it is sent, or `sha256`, its hash in hexadecimal, so that the file holds no secret.
    """

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    key: str = ""
    sha256: str = ""
    requests_per_minute: Limit = 0
    tokens_per_minute: Limit = 0
    tokens_per_day: Limit = 0
    concurrent: Limit = 0
    answer_tokens: Limit = 0
    """The longest answer."""

    @property
    def digest(self) -> str:
        """What a presented key must hash to."""
        return sha256(self.key.encode()).hexdigest() if self.key else self.sha256.lower()


class _KeysFile(Struct, frozen=True, forbid_unknown_fields=True):
    keys: Annotated[list[ApiKey], Meta(min_length=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """`port` 0: any free one. `keys` empty: no key is asked for. `ring_wait_s`: how long a request waits for a ring
    that has holes. A cut-off stream can be resumed for `resume_s`; `resumable` of them are remembered.
    `default_tokens`: the length of an answer whose request names none. `running`: so many answers at once; others wait,
    by service tier.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    keys: tuple[ApiKey, ...] = ()
    max_body_bytes: int = 1024 * 1024
    default_tokens: int = 512
    ring_wait_s: float = 5.0
    swarm_cache_s: float = 1.0
    resume_s: float = 300.0
    resumable: int = 256
    running: int = 256
    mirror: MirrorConfig | None = None
    """Which answers to ask for again on another revision, afterwards, to compare."""
    audit: Path | None = None
    """Where to append a record of each answer."""


def load_keys(path: Path) -> tuple[ApiKey, ...]:
    """Keys of a TOML file with one ``[[keys]]`` table each. Raises InvalidRequest with what is wrong."""
    try:
        keys = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _KeysFile).keys
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InvalidRequest(f"{path}: {error}", cure="see docs/gateway.md for the format of the keys file") from error
    for key in keys:
        if bool(key.key) == bool(key.sha256) or len(key.digest) != 64:
            raise InvalidRequest(f"{path}: key {key.name!r} needs either `key` or `sha256` (64 hexadecimal digits)")
    if len({key.name for key in keys}) < len(keys) or len({key.digest for key in keys}) < len(keys):
        raise InvalidRequest(f"{path}: two keys are the same or share a name")
    return tuple(keys)
