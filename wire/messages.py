"""Every message two processes of Paceline exchange, as a closed table of tagged records.

A message is a small header (one of the structs below) and, for `Frame` and `BlockPiece` only, raw payload bytes.
On the wire a header is a MessagePack array ``[tag, field, …]``; new fields are appended with defaults, so an older
reader ignores them. Nothing here knows sockets, tensors or time.

Who sends what:

==============  =====================================================================================
owner → stage   OpenStage, Prompt, CloseStage
stage → owner   StageOpened, TokenEvent, StageError, Nack (the head's upstream is the owner)
stage → stage   Frame (downstream), NextToken (tail → head), Nack (upstream)
anyone          FencedBy, Ping, Pong, Hello, StatusRequest/Status, BlockRequest/BlockPiece,
                HoldingsRequest/Holdings
==============  =====================================================================================
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from paceline.wire import limits
from paceline.wire.ids import Span
from paceline.wire.sampling import SamplingParams, TokenId

SessionBytes = Annotated[bytes, Meta(min_length=16, max_length=16)]
RevisionBytes = Annotated[bytes, Meta(min_length=32, max_length=32)]
RevisionTag = Annotated[bytes, Meta(min_length=4, max_length=4)]
HashBytes = Annotated[bytes, Meta(min_length=32, max_length=32)]
U32 = Annotated[int, Meta(ge=0, lt=1 << 32)]
U64 = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
PositionInt = Annotated[int, Meta(ge=0, le=limits.MAX_CONTEXT)]
Layer = Annotated[int, Meta(ge=0, le=limits.MAX_LAYERS)]
StageIndex = Annotated[int, Meta(ge=0, lt=limits.MAX_STAGES)]
PeerText = Annotated[str, Meta(min_length=1, max_length=128)]
AddressText = Annotated[str, Meta(min_length=1, max_length=limits.MAX_ADDRESS_CHARS)]
Addresses = Annotated[tuple[AddressText, ...], Meta(max_length=limits.MAX_ADDRESSES)]
ShortText = Annotated[str, Meta(max_length=256)]
FreeText = Annotated[str, Meta(max_length=limits.MAX_TEXT)]
Lengths = Annotated[tuple[PositionInt, ...], Meta(max_length=limits.MAX_STAGES)]
LengthDeltas = Annotated[
    tuple[Annotated[int, Meta(ge=-limits.MAX_CONTEXT, le=limits.MAX_CONTEXT)], ...], Meta(max_length=limits.MAX_STAGES)
]
StageTime = tuple[Annotated[int, Meta(ge=-(1 << 31), lt=1 << 31)], U32, U32]
"""``(hop_us, queue_us, compute_us)`` of one stage in one trip: on the way there, waiting there, and in the engine step
it rode in. A hop spans two machines' clocks: each carries their difference, and the sum around a ring carries none.
"""

Timings = Annotated[tuple[StageTime, ...], Meta(max_length=limits.MAX_STAGES)]
Priority = Annotated[int, Meta(ge=-1, le=1)]
Finish = Literal["", "stop", "length"]
Dtype = Literal["f32", "f16", "bf16", "i8", "i64"]


class PeerAddress(Struct, frozen=True, array_like=True):
    """Where a process can be reached.

    `control`: multiaddrs of its libp2p host (``/ip4/…/tcp/…``, or a relayed address). `data`: multiaddrs of its
    direct data channel, empty where it has none.
    """

    peer: PeerText
    control: Addresses = ()
    data: Addresses = ()


class Stage(Struct, frozen=True, array_like=True):
    """One node's part in one session's route."""

    at: PeerAddress
    start: Layer
    end: Layer
    standbys: Annotated[tuple[PeerAddress, ...], Meta(max_length=4)] = ()
    """Shadows of this stage: they receive its input frames too."""

    @property
    def span(self) -> Span:
        return Span(self.start, self.end)


Route = Annotated[tuple[Stage, ...], Meta(min_length=1, max_length=limits.MAX_STAGES)]


# --- the owner and its stages ---------------------------------------------------------------------------------


class OpenStage(Struct, frozen=True, array_like=True, tag=1):
    """Install epoch `epoch` at stage `index` of `route`: a first opening, or a change of route.

    `lengths` is the clock the epoch starts from: stage k holds KV for ``lengths[k]`` positions once it has cropped
    (0 for a replacement). A stage sends downstream from position ``lengths[index + 1]`` on. `known` tokens of the
    log are the owner's already, `prompt_length` of them its prompt: the tail samples after position q only where
    q + 1 ≥ known.
    `max_positions`: the session ends ("length") when the log has this many tokens; KV is reserved for it.
    `chunk`: positions per prefill frame. `shadow`: this process is a standby of the stage, and sends nothing on.
    `priority`: among the sessions of one owner, who goes first where not all can.
    """

    session: SessionBytes
    revision: RevisionBytes
    epoch: U64
    branch: U32
    index: StageIndex
    route: Route
    lengths: Lengths
    known: PositionInt
    prompt_length: PositionInt
    max_positions: PositionInt
    sampling: SamplingParams
    chunk: Annotated[int, Meta(ge=1, le=limits.MAX_FRAME_POSITIONS)] = 512
    shadow: bool = False
    trace: bool = False
    priority: Priority = 0


class StageOpened(Struct, frozen=True, array_like=True, tag=2):
    """The stage that begins at `layer` has installed `epoch`; its KV now holds `length` positions."""

    session: SessionBytes
    layer: Layer
    epoch: U64
    length: PositionInt
    shadow: bool = False


class Prompt(Struct, frozen=True, array_like=True, tag=3):
    """Token ids ``log[start : start + len(ids)]``. To the head as input, to the tail as history for penalties.

    Like every message that is addressed to one stage, it names the stage by `layer`, the first layer of its span:
    stable over changes of route, and one process may ride a ring twice.
    """

    session: SessionBytes
    layer: Layer
    epoch: U64
    branch: U32
    start: PositionInt
    ids: Annotated[tuple[TokenId, ...], Meta(min_length=1, max_length=limits.MAX_CONTEXT)]


class CloseStage(Struct, frozen=True, array_like=True, tag=4):
    """Free the session at this stage. Idempotent; honoured only from its owner's epoch or a later one."""

    session: SessionBytes
    epoch: U64


class TokenEvent(Struct, frozen=True, array_like=True, tag=5):
    """Token `index` of the log, sampled by the tail. `lengths`: the clock, as differences to `index`, per stage.

    `top`: ``(token, logprob)`` of the most likely ones, best first. `timings`: of each stage of this trip.
    """

    session: SessionBytes
    epoch: U64
    branch: U32
    index: PositionInt
    token: TokenId
    finish: Finish = ""
    lengths: LengthDeltas = ()
    logprob: float | None = None
    top: Annotated[tuple[tuple[TokenId, float], ...], Meta(max_length=limits.MAX_TOP_LOGPROBS)] = ()
    timings: Timings = ()


class StageError(Struct, frozen=True, array_like=True, tag=6):
    """A stage cannot go on with a session. `code` is one of `paceline.wire.errors.ERRORS`.

    `accused` names the neighbour that the stage lost, where that is the reason: only the owner reroutes.
    """

    session: SessionBytes
    layer: Layer
    epoch: U64
    code: Annotated[str, Meta(max_length=64)]
    message: FreeText
    accused: Annotated[str, Meta(max_length=128)] = ""


# --- stage to stage -------------------------------------------------------------------------------------------


class Frame(Struct, frozen=True, array_like=True, tag=7):
    """Activations of positions ``[start, start + n)``; payload: ``n × hidden`` numbers of `dtype`, row-major,
    little-endian, about to enter layer `layer`. `revision_tag` leads the revision. `lengths`: the clock of the stages
    up to the sender, as differences to ``start + n``. With tracing, `timings` of the stages so far, and when the frame
    left by the sender's clock (unix µs; 0: not told).
    """

    session: SessionBytes
    layer: Layer
    revision_tag: RevisionTag
    epoch: U64
    branch: U32
    start: PositionInt
    n: Annotated[int, Meta(ge=1, le=limits.MAX_FRAME_POSITIONS)]
    dtype: Dtype
    hidden: Annotated[int, Meta(ge=1, le=limits.MAX_HIDDEN)]
    lengths: LengthDeltas = ()
    timings: Timings = ()
    sent_us: U64 = 0


class NextToken(Struct, frozen=True, array_like=True, tag=8):
    """Tail → head: log index `index` is `token`; the next trip starts with it. `sent_us`: as in Frame."""

    session: SessionBytes
    epoch: U64
    branch: U32
    index: PositionInt
    token: TokenId
    sent_us: U64 = 0


class Nack(Struct, frozen=True, array_like=True, tag=9):
    """Consumer → producer: I hold everything below `have`, send from there.

    A stage to its upstream neighbour (`layer`: that neighbour's first layer), a head to the tail, an owner to the tail
    for token events. To the owner, `layer` is the sender's own: 0 from a head that lacks tokens, the tail's from a tail
    that lacks the log for its penalties.
    """

    session: SessionBytes
    layer: Layer
    epoch: U64
    branch: U32
    have: PositionInt


class FencedBy(Struct, frozen=True, array_like=True, tag=10):
    """To whoever sent something of an older epoch: the session is at `epoch` now."""

    session: SessionBytes
    epoch: U64


# --- anyone -----------------------------------------------------------------------------------------------------


class Hello(Struct, frozen=True, array_like=True, tag=11):
    """First message each way on a link. A different `protocol` number is refused. `serves`: the sender is a node."""

    protocol: Annotated[int, Meta(ge=0, lt=1 << 16)]
    agent: ShortText
    serves: bool = False


class Ping(Struct, frozen=True, array_like=True, tag=12):
    """`burst`: not 0 where this is the mark of so many bytes of messages that follow at once (net/uplink.py)."""

    nonce: U64
    burst: U32 = 0


class Pong(Struct, frozen=True, array_like=True, tag=13):
    """`bytes_per_s`: how fast the bytes of whoever asked have arrived lately, where he had many; 0: not known."""

    nonce: U64
    bytes_per_s: Annotated[float, Meta(ge=0.0, le=1e12)] = 0.0


class StatusRequest(Struct, frozen=True, array_like=True, tag=14):
    request: U32


class Status(Struct, frozen=True, array_like=True, tag=15):
    """A node's own account of itself: `json` is one JSON object, documented in node/status.py."""

    request: U32
    json: Annotated[bytes, Meta(max_length=128 * 1024)]


class BlockRequest(Struct, frozen=True, array_like=True, tag=16):
    """Bytes ``[offset, offset + length)`` of the block with this SHA-256 (a manifest is a block, too)."""

    request: U32
    hash: HashBytes
    offset: U64
    length: Annotated[int, Meta(ge=1, le=limits.MAX_BLOCK_PIECE_BYTES)]


class BlockPiece(Struct, frozen=True, array_like=True, tag=17):
    """Answer to a BlockRequest; payload: the bytes. `total`: size of the block, 0 where the node does not have it."""

    request: U32
    total: U64


class HoldingsRequest(Struct, frozen=True, array_like=True, tag=18):
    """Which of these blocks do you hold? `lane`: and may their pieces come on a lane (`net.lane`)?"""

    request: U32
    hashes: Annotated[tuple[HashBytes, ...], Meta(min_length=1, max_length=limits.MAX_HOLDINGS)]
    lane: bool = False


class Holdings(Struct, frozen=True, array_like=True, tag=19):
    """Answer to a HoldingsRequest: a byte for each hash, in its order; 1 where the sender holds the block.

    `lane`: the key of a lane that the asker may dial at the sender's data addresses, once; empty: none.
    """

    request: U32
    held: Annotated[bytes, Meta(max_length=limits.MAX_HOLDINGS)]
    lane: Annotated[bytes, Meta(max_length=32)] = b""


Message = (
    OpenStage
    | StageOpened
    | Prompt
    | CloseStage
    | TokenEvent
    | StageError
    | Frame
    | NextToken
    | Nack
    | FencedBy
    | Hello
    | Ping
    | Pong
    | StatusRequest
    | Status
    | BlockRequest
    | BlockPiece
    | HoldingsRequest
    | Holdings
)

SessionMessage = (
    OpenStage | StageOpened | Prompt | CloseStage | TokenEvent | StageError | Frame | NextToken | Nack | FencedBy
)
"""Messages that belong to one session: all have `session` and `epoch`."""

PROTOCOL_VERSION = 1
