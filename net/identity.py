"""A process's identity: one Ed25519 key, and the libp2p peer id that is its public half.

Knows the key file and the form of peer ids. Refuses to know sockets, and does not import libp2p: a client that only
verifies offers must stay light.
"""

from __future__ import annotations

import os
import stat
import tempfile
from functools import lru_cache
from pathlib import Path

import base58
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from paceline.wire.errors import InvalidRequest, ProtocolViolation
from paceline.wire.ids import PeerId

_PEER_PREFIX = bytes((0x00, 0x24, 0x08, 0x01, 0x12, 0x20))
"""libp2p peer id of an Ed25519 key: identity multihash (0x00) of 36 bytes, a protobuf of key type 1 and 32 bytes
(libp2p specs, peer-ids). The key can be read back from the id."""

_PEER_BYTES = len(_PEER_PREFIX) + 32
_MAX_PEER_CHARS = 64
_MAX_KEY_FILE_BYTES = 4096


class IdentityUnreadable(InvalidRequest):
    """The key file exists and is not a usable private key, or must not be used as it lies."""

    code = "identity_unreadable"


class Identity:
    """A private key with what it can do. The key itself is only handed to the Noise handshake."""

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._private = private_key
        self.peer: PeerId = peer_of(private_key.public_key())

    def __repr__(self) -> str:
        return f"Identity({self.peer})"

    def sign(self, body: bytes) -> bytes:
        """64-byte Ed25519 signature (RFC 8032). Callers prefix a domain tag of their own."""
        return self._private.sign(body)

    @property
    def public(self) -> bytes:
        """The 32 bytes of the public key."""
        return self._private.public_key().public_bytes_raw()

    def seed(self) -> bytes:
        """The 32 secret bytes: for building the libp2p key pair, nothing else."""
        return self._private.private_bytes_raw()

    @classmethod
    def ephemeral(cls) -> Identity:
        """A new key that is never written down."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load_or_create(cls, path: str | Path) -> Identity:
        """The key at `path` (PEM, mode 0600), made on first use.

        Creation is atomic: of several processes that start at once, all use the key of the one that won. Raises
        IdentityUnreadable.
        """
        path = Path(path)
        try:
            if not path.exists():
                _create(path)
            return cls(_load(path))
        except OSError as error:
            raise IdentityUnreadable(
                f"cannot use the key file {path}: {error.strerror or error}",
                cure="check the path and its permissions, or name another file",
            ) from error


def peer_of(public_key: Ed25519PublicKey) -> PeerId:
    """Public key → ``12D3Koo…``."""
    raw = public_key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return PeerId(base58.b58encode(_PEER_PREFIX + raw).decode("ascii"))


@lru_cache(maxsize=1024)
def public_key_of(peer: PeerId) -> Ed25519PublicKey:
    """The Ed25519 key inside a peer id. Raises ProtocolViolation where there is none."""
    try:
        raw = base58.b58decode(peer) if len(peer) <= _MAX_PEER_CHARS else b""
    except ValueError as error:
        raise ProtocolViolation(f"{peer!r} is not a peer id: {error}") from error
    if len(raw) != _PEER_BYTES or not raw.startswith(_PEER_PREFIX):
        raise ProtocolViolation(f"{peer[:_MAX_PEER_CHARS]!r} is not the peer id of an Ed25519 key")
    return Ed25519PublicKey.from_public_bytes(raw[len(_PEER_PREFIX) :])


def verify(peer: PeerId, body: bytes, signature: bytes) -> bool:
    """Whether `peer` signed `body`. False too where `peer` is not the id of an Ed25519 key."""
    try:
        public_key_of(peer).verify(signature, body)
    except (InvalidSignature, ProtocolViolation):
        return False
    return True


def _load(path: Path) -> Ed25519PrivateKey:
    with path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        pem = file.read(_MAX_KEY_FILE_BYTES)
    if mode & 0o077:
        raise IdentityUnreadable(f"others can read the key file {path} (mode {mode:o})", cure=f"chmod 600 {path}")
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise IdentityUnreadable(f"{path} holds no private key: {error}", cure="restore it or move it away") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise IdentityUnreadable(f"{path} holds a {type(key).__name__}, not an Ed25519 key", cure="move it away")
    return key


def _create(path: Path) -> None:
    """Write a new key beside `path` and link it into place; where somebody else was first, theirs stays."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    # mkstemp creates with mode 0600 and O_EXCL.
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
    finally:
        os.unlink(draft)
