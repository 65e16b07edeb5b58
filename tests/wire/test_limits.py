"""The limits fit each other: what one of them allows, no other forbids."""

from __future__ import annotations

from typing import get_args

import msgspec

from paceline.wire import limits
from paceline.wire.codec import decode, encode, encode_header, payload_bytes
from paceline.wire.messages import (
    Frame,
    Message,
    OpenStage,
    PeerAddress,
    Prompt,
    SessionMessage,
    Stage,
    StageError,
    Status,
    TokenEvent,
)
from paceline.wire.offers import Measured, Offer, Service
from paceline.wire.sampling import SamplingParams

SESSION = bytes(16)
U64 = (1 << 63) - 1
U32 = (1 << 32) - 1
TOKEN = limits.MAX_VOCAB - 1
PEER = "12D3KooW" + "x" * 44
ADDRESS = f"/ip4/203.0.113.255/tcp/65535/p2p/{PEER}"


def address(count: int) -> PeerAddress:
    return PeerAddress(PEER, (ADDRESS,) * count, (ADDRESS,) * count)


def test_a_prompt_of_the_whole_context_fits_a_header() -> None:
    ids = (TOKEN,) * limits.MAX_CONTEXT
    prompt = Prompt(session=SESSION, layer=limits.MAX_LAYERS, epoch=U64, branch=U32, start=0, ids=ids)
    assert decode(encode(prompt))[0] == prompt


def test_the_fullest_token_event_error_and_status_fit_a_header() -> None:
    event = TokenEvent(
        session=SESSION,
        epoch=U64,
        branch=U32,
        index=limits.MAX_CONTEXT,
        token=TOKEN,
        finish="length",
        lengths=(-limits.MAX_CONTEXT,) * limits.MAX_STAGES,
        logprob=-1.5,
        top=((TOKEN, -1.5),) * limits.MAX_TOP_LOGPROBS,
        timings=((-(1 << 31), U32, U32),) * limits.MAX_STAGES,
    )
    error = StageError(
        session=SESSION,
        layer=0,
        epoch=U64,
        code="x" * 64,
        message="\N{SNOWMAN}" * limits.MAX_TEXT,
        accused="x" * 128,
    )
    for message in (event, error, Status(U32, bytes(128 * 1024))):
        assert decode(encode(message))[0] == message


def test_the_longest_ring_with_standbys_fits_a_header() -> None:
    route = tuple(Stage(address(4), layer, layer + 1, standbys=(address(4),)) for layer in range(limits.MAX_STAGES))
    opening = OpenStage(
        session=SESSION,
        revision=bytes(32),
        epoch=U64,
        branch=U32,
        index=limits.MAX_STAGES - 1,
        route=route,
        lengths=(limits.MAX_CONTEXT,) * limits.MAX_STAGES,
        known=limits.MAX_CONTEXT,
        prompt_length=limits.MAX_CONTEXT,
        max_positions=limits.MAX_CONTEXT,
        sampling=SamplingParams(stop_ids=(TOKEN,) * limits.MAX_STOP_IDS),
    )
    assert decode(encode(opening))[0] == opening


def test_a_well_connected_node_with_several_models_fits_its_offer() -> None:
    service = Service(
        model="a-model-with-a-rather-long-name-instruct-v1.5",
        revision=bytes(32),
        start=100,
        end=120,
        layers=126,
        hidden=16_384,
        numerics="cuda-bf16-sm90",
        measured=Measured(0.0213, 0.00012, 0.001, 0.0007, 0.004, 1.25e8, 0.0003, 1.1e-7, 1.3e-9),
        kv_free=1_000_000,
        max_context=limits.MAX_CONTEXT,
    )
    offer = Offer(
        at=address(4),
        sequence=1 << 40,
        issued_at=1.9e9,
        expires_at=1.9e9 + 12,
        services=(service,) * 8,
        rtts=((PEER, 0.0213),) * limits.MAX_NEAR_PEERS,
        agent="paceline/0.1.0",
        place=(0.0213, -0.0213, 0.1213, 0.0021, 0.0813),
        region="europe-west",
    )
    assert len(encode_header(offer)) <= limits.MAX_OFFER_BYTES


def frame(n: int, hidden: int) -> int:
    """Payload bytes of a frame in float32, the widest a model's activations travel in."""
    header = Frame(
        session=SESSION,
        layer=0,
        revision_tag=bytes(4),
        epoch=1,
        branch=0,
        start=0,
        n=n,
        dtype="f32",
        hidden=hidden,
    )
    return payload_bytes(header)


def test_frames_fit_a_message() -> None:
    assert frame(limits.MAX_FRAME_POSITIONS, 4_096) <= limits.MAX_PAYLOAD_BYTES
    assert frame(256, limits.MAX_HIDDEN) <= limits.MAX_PAYLOAD_BYTES
    assert limits.MAX_MESSAGE_BYTES == 4 + limits.MAX_HEADER_BYTES + limits.MAX_PAYLOAD_BYTES
    assert limits.MAX_BLOCK_PIECE_BYTES <= limits.MAX_PAYLOAD_BYTES


def test_a_stage_can_hold_as_many_decode_steps_as_it_counts() -> None:
    assert limits.MAX_HELD_FRAMES * frame(1, limits.MAX_HIDDEN) <= limits.MAX_HELD_BYTES


def test_counts_nest() -> None:
    assert limits.MAX_FRAME_POSITIONS <= limits.MAX_CONTEXT
    assert limits.MAX_STAGES <= limits.MAX_LAYERS
    assert limits.MAX_OFFER_BYTES + 128 <= limits.MAX_HEADER_BYTES
    assert len(ADDRESS) <= limits.MAX_ADDRESS_CHARS


def test_every_session_message_says_which_session_and_epoch() -> None:
    for kind in get_args(SessionMessage):
        assert {"session", "epoch"} <= set(kind.__struct_fields__)
    assert set(get_args(SessionMessage)) <= set(get_args(Message))


def test_records_are_closed_to_names_from_the_wire() -> None:
    """Arrays with an integer tag: no key and no class name ever comes from a peer."""
    for kind in get_args(Message):
        config = kind.__struct_config__
        assert config.array_like
        assert config.frozen
        assert isinstance(config.tag, int)
        assert issubclass(kind, msgspec.Struct)
