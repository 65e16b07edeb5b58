"""The counter-based draw. Knows seeds and log indices; knows no model, no torch and no state between draws.

Because the draw for log index i depends on ``(seed, i)`` alone, a replacement tail that replays index i draws the same
token, whatever happened before (protocol.md, "Sampling is counter-based"). Which token `key` stands for is
engine.sampling's affair.
"""

from __future__ import annotations

import struct
from hashlib import blake2b

_COUNTER = struct.Struct("<QQ")
_WORD = struct.Struct("<Q")
_DOMAIN = b"paceline.draw.1"
_SCALE = 2.0**-53


def key(seed: int, index: int) -> int:
    """64 random bits, for log index `index` of a session seeded `seed` (both < 2**64)."""
    digest = blake2b(_COUNTER.pack(seed, index), digest_size=8, person=_DOMAIN).digest()
    return int(_WORD.unpack(digest)[0])


def uniform(seed: int, index: int) -> float:
    """One number in ``[0, 1)`` of 53 of these bits."""
    return float((key(seed, index) >> 11) * _SCALE)
