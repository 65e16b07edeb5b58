"""Every bound on what crosses the wire, in one place, so that a test can relate them to each other."""

from __future__ import annotations

MAX_HEADER_BYTES = 256 * 1024
"""Encoded header of one message (a Prompt of MAX_CONTEXT ids must fit)."""

MAX_PAYLOAD_BYTES = 64 * 1024 * 1024
"""Raw bytes behind a header: one frame of activations, or one piece of a block."""

MAX_MESSAGE_BYTES = 4 + MAX_HEADER_BYTES + MAX_PAYLOAD_BYTES
"""One message as a channel carries it, without the channel's own length prefix."""

MAX_CONTEXT = 32_768
"""Positions of one session."""

MAX_FRAME_POSITIONS = 4_096
"""Positions in one frame."""

MAX_VOCAB = 1 << 20
MAX_HIDDEN = 65_536
MAX_LAYERS = 1_024
MAX_STAGES = 64
MAX_TEXT = 4_096
"""Free text (a reason, an agent string), characters."""

MAX_STOP_IDS = 64
MAX_GRAMMAR = 32_768
"""Characters of one session's grammar."""

MAX_TOP_LOGPROBS = 20
MAX_ADDRESSES = 16
MAX_ADDRESS_CHARS = 256
MAX_SPANS_PER_OFFER = 16
MAX_OFFER_BYTES = 8 * 1024
MAX_OFFER_LIFETIME_S = 120.0
"""An offer may not claim to be valid for longer than this."""

MAX_NEAR_PEERS = 32
"""Measured latencies to near peers inside one offer."""

FARTHEST_S = 0.5
"""Round trip beyond which no network coordinate lies: no place on Earth is further from the middle of the others."""

MAX_BLOCK_PIECE_BYTES = 1024 * 1024
MAX_HELD_FRAMES = 64
"""Frames that a stage holds for a session it has not been configured for yet."""

MAX_HELD_BYTES = 16 * 1024 * 1024

MAX_FRONTIER = 8
"""Releases inside one offer."""

MAX_HOLDINGS = 1_100
"""Blocks that one question about holdings names: every layer of the largest model, and its other blocks."""

MAX_DIAL_BACK_BYTES = 512
"""One question of `wire.dialback`, or its answer, encoded."""
