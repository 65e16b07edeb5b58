"""The key file, the peer id and signatures."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.net.identity import Identity, IdentityUnreadable, public_key_of, verify
from paceline.wire.errors import ProtocolViolation
from paceline.wire.ids import PeerId


def test_peer_id_is_libp2ps() -> None:
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.peer.id import ID

    identity = Identity.ephemeral()
    pair = create_new_key_pair(seed=identity.seed())
    assert str(ID.from_pubkey(pair.public_key)) == identity.peer
    assert identity.peer.startswith("12D3Koo")
    assert pair.public_key.verify(b"body", identity.sign(b"body"))


@settings(max_examples=30, deadline=None)
@given(seed=st.binary(min_size=32, max_size=32), body=st.binary(max_size=200), other=st.binary(max_size=200))
def test_signature_holds_for_body_and_peer_only(seed: bytes, body: bytes, other: bytes) -> None:
    identity = Identity(Ed25519PrivateKey.from_private_bytes(seed))
    signature = identity.sign(body)
    assert verify(identity.peer, body, signature)
    assert verify(identity.peer, other, signature) == (other == body)
    assert not verify(Identity.ephemeral().peer, body, signature)
    assert not verify(identity.peer, body, signature[:-1])


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=100))
def test_anything_else_is_not_a_peer_id(text: str) -> None:
    with pytest.raises(ProtocolViolation):
        public_key_of(PeerId(text))
    assert not verify(PeerId(text), b"", bytes(64))


def test_key_file_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "key.pem"
    first = Identity.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Identity.load_or_create(path).peer == first.peer
    assert [entry.name for entry in path.parent.iterdir()] == ["key.pem"]


def test_a_loser_of_the_race_uses_the_winners_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key.pem"
    winner = Identity.load_or_create(path)
    seen = iter([False])
    monkeypatch.setattr(Path, "exists", lambda self: next(seen, True))
    assert Identity.load_or_create(path).peer == winner.peer


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_unusable_key_file_is_a_clear_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(IdentityUnreadable, match=r"key\.pem"):
        Identity.load_or_create(path)
    assert path.read_bytes() == content


def test_readable_by_others_is_refused_with_the_cure(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    Identity.load_or_create(path)
    path.chmod(0o644)
    with pytest.raises(IdentityUnreadable, match="chmod 600"):
        Identity.load_or_create(path)


def test_directory_in_place_of_the_key_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(IdentityUnreadable, match="another file"):
        Identity.load_or_create(tmp_path)


def test_light_modules_do_not_import_libp2p() -> None:
    code = (
        "import sys, paceline.net.identity, paceline.net.memory, paceline.net.links;"
        "sys.exit(any(name.split('.')[0] == 'libp2p' for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
