"""What a member is asked who shall dial back, and what it answers (net/dialback.py). Only their shape is here."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

Port = Annotated[int, Meta(ge=0, lt=1 << 16)]
Host = Annotated[str, Meta(max_length=64)]
Reason = Annotated[str, Meta(max_length=64)]


class DialMe(Struct, frozen=True, array_like=True, tag=1):
    """Dial the sender at these ports, 0 being none: its libp2p host's, and its direct data channel's."""

    control: Port = 0
    data: Port = 0


class Dialed(Struct, frozen=True, array_like=True, tag=2):
    """`host`: the IP address that was dialled. `control`, `data`: whether the sender's key was proved at that port.

    `refused`: why nothing was dialled (no_address, too_often, busy, no_port); empty where it was.
    """

    host: Host = ""
    control: bool = False
    data: bool = False
    refused: Reason = ""
