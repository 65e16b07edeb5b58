"""Do the times that the stages of a ring tell add up to the time that a token takes?

    python -m bench.trace

Three node processes with the default model, several answers; the bar is 10 % on the mean token of each answer.
"""

from __future__ import annotations

import sys

from bench.common import PROMPTS, Bars, equal_parts, machine, processes
from paceline.client import Client
from paceline.client.connect import home_folder
from paceline.client.timeline import timeline

ANSWERS, TOKENS, BAR = 5, 48, 0.10


def main() -> int:
    """Exit status 0 where the bar was met."""
    print(machine())
    bars = Bars()
    with (
        processes(equal_parts(3), "--threads", "1") as swarm,
        Client(swarm.bootstrap, home=home_folder()) as client,
    ):
        for number, prompt in enumerate(PROMPTS[:ANSWERS], 1):
            answer = client.generate(prompt, max_tokens=TOKENS, ignore_eos=True, trace=True)
            pieces = list(answer)
            found = timeline(pieces, answer.result)
            near = sum(abs(trip.told_s / trip.took_s - 1) <= BAR for trip in found.trips)
            parts = "; ".join(
                f"{s.rider.start}:{s.rider.end} {1e3 * s.hop_s:.2f} + {1e3 * s.queue_s:.2f} + {1e3 * s.compute_s:.2f}"
                for s in found.stages
            )
            shown = (
                f"{1e3 * found.told_s:.2f} of {1e3 * found.measured_s:.2f} ms ({found.off:+.1%}), {near} of "
                f"{len(found.trips)} tokens one by one; hop + wait + compute in ms: {parts}"
            )
            bars.check(f"answer {number}", abs(found.off) <= BAR and len(found.stages) == 3, shown)
    return bars.exit_status()


if __name__ == "__main__":
    sys.exit(main())
