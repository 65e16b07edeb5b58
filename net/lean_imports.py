"""What a node leaves out of libp2p (see node.placeholders), with the reason for each row. Data only.

The host speaks Noise and yamux over TCP, and keeps its peers in memory; libp2p imports every other way as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def _no(*_: Any, **__: Any) -> bool:
    return False


class _NeverRaised(Exception):
    """An error of a transport that is not there."""


ROWS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("libp2p.transport.quic", "TCP only; brings aioquic and OpenSSL", {}),
    ("libp2p.transport.quic.utils", "same; asked of every address", {"is_quic_multiaddr": _no}),
    (
        "libp2p.transport.quic.exceptions",
        "same; named in NetStream's except clauses, which take classes of exceptions only",
        {"QUICStreamClosedError": _NeverRaised, "QUICStreamResetError": _NeverRaised},
    ),
    ("libp2p.transport.websocket", "TCP only", {}),
    ("libp2p.transport.webrtc", "TCP only", {}),
    ("libp2p.transport.webtransport", "TCP only", {}),
    ("libp2p.security.tls", "Noise only; brings certificates' issuing, httpx and requests", {}),
    ("libp2p.security.secio", "Noise only", {}),
    ("libp2p.discovery.mdns", "nodes meet in the directory; brings zeroconf", {}),
    ("libp2p.discovery.upnp", "ports are forwarded by the owner (`--announce`)", {}),
    ("libp2p.discovery.bootstrap", "nodes meet in the directory", {}),
    ("libp2p.discovery.rendezvous", "nodes meet in the directory", {}),
    ("libp2p.peer.persistent", "addresses live in signed offers; brings sqlite", {}),
    ("aioquic", "TCP only", {}),
    ("coincurve", "keys of another kind than ours; fetched when a peer has one", {}),
    ("prometheus_client", "a node tells its figures in its status", {}),
    ("httpx", "dnspython asks over HTTPS where it is told to; names are asked over UDP", {}),
    ("httpcore", "same", {}),
    ("dns.quic", "same, over QUIC; brings aioquic", {}),
)
