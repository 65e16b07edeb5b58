"""What does the protocol itself cost per frame? ``python -m bench.protocol``

Two figures, of the real machines and the real codec, without network and without a model:

- work: one decode frame through a middle stage of a three-stage ring: decode the header, decide, queue, take, the
  result, journal, cursors, encode the header of the frame that goes on. Payload as wide as a 4,096-wide bf16 row.
- clock: bytes that the versioned vector clock adds to one frame's header on the wire (revision tag, epoch, branch,
  lengths of the stages so far), for rings of 3, 8 and 64 stages; the worst counts for rings of up to 8.

Exits 1 where the work is over 40 µs or the clock over 48 bytes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

from paceline.consistency.effects import Send
from paceline.consistency.stage import StageMachine
from paceline.wire.codec import decode, encode, encode_header
from paceline.wire.ids import PeerId
from paceline.wire.messages import Frame, OpenStage, PeerAddress, Stage
from paceline.wire.sampling import SamplingParams

MOST_US, MOST_BYTES = 40.0, 48
SESSION, REVISION, EPOCH = b"s" * 16, b"r" * 32, 7 << 32 | 0xDEADBEEF
HIDDEN = 4096
ROW = bytes(2 * HIDDEN)
JOURNAL = 64 * 1024 * 1024


def machine(stages: int, index: int) -> StageMachine:
    """Stage `index` of a ring, opened."""
    route = tuple(Stage(PeerAddress(f"n{k}"), 2 * k, 2 * k + 2) for k in range(stages))
    params = SamplingParams()
    opening = OpenStage(SESSION, REVISION, EPOCH, 0, index, route, (0,) * stages, 1, 1, 30_000, params)
    made = StageMachine(PeerId(f"n{index}"), opening, HIDDEN, JOURNAL)
    made.handle(PeerId("owner"), opening)
    return made


def frame(position: int, stages_before: int, layer: int) -> bytes:
    """One decode frame as it arrives."""
    lengths = (0,) * stages_before
    return encode(Frame(SESSION, layer, REVISION[:4], EPOCH, 0, position, 1, "bf16", HIDDEN, lengths), ROW)


def work_us(frames: int) -> list[float]:
    """Microseconds of each frame, in turn, through the middle of three stages."""
    stage, sender = machine(3, 1), PeerId("n0")
    arriving = [frame(position, 1, 2) for position in range(frames)]
    took = []
    for data in arriving:
        began = time.perf_counter()
        message, payload = decode(data)
        assert isinstance(message, Frame)
        stage.handle(sender, message, payload)
        given = stage.take()
        assert given is not None
        for effect in stage.done(given, ROW, "bf16", None):
            assert isinstance(effect, Send)
            encode_header(effect.message)
        took.append((time.perf_counter() - began) * 1e6)
    return took


def clock_bytes(stages: int, position: int = 20_000) -> int:
    """What the clock adds to the header of a trip's last frame, where the stages are in step, as in decoding."""
    full = Frame(SESSION, 2, REVISION[:4], EPOCH, 0, position, 1, "bf16", HIDDEN, (0,) * (stages - 1))
    bare = Frame(SESSION, 2, b"\0" * 4, 0, 0, position, 1, "bf16", HIDDEN)
    in_bare = 2 + len(bare.revision_tag) + 1 + 1  # the tag with its prefix, epoch 0, branch 0
    return len(encode_header(full)) - len(encode_header(bare)) + in_bare


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=5000)
    options = parser.parse_args()
    work_us(200)
    took = sorted(work_us(options.frames))
    median, p99 = statistics.median(took), took[int(0.99 * len(took))]
    print(
        f"protocol work per frame: median {median:.1f} µs, p99 {p99:.1f} µs over {len(took)} frames (≤ {MOST_US:.0f})"
    )
    sizes = {stages: clock_bytes(stages) for stages in (3, 8, 64)}
    header = len(frame(20_000, 2, 2)) - len(ROW)
    print("clock on the wire: " + ", ".join(f"{size} bytes with {stages} stages" for stages, size in sizes.items()))
    print(f"whole header of a frame of the third hop: {header} bytes")
    good = median <= MOST_US and sizes[8] <= MOST_BYTES
    print("within the bar" if good else "MISSED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
