"""Lower bounds on all rings through each candidate, without distances.

Knows the ring problem and the heights of its places. Refuses to know where places are (prune.py), and to solve.
"""

from __future__ import annotations

import numpy as np

from paceline.routing.latency import Floats
from paceline.routing.problem import Problem
from paceline.routing.sweep import Rows, through
from paceline.routing.view import Bools

SLACK = 1e-12
"""Seconds, against rounding: bounds must not drop an equal by a bit."""


def within(problem: Problem, limit: float) -> Bools:
    """Candidates that some ring of at most `limit` seconds may use; all others certainly cannot ride in one."""
    alone = problem.entry + problem.layers * problem.per_layer + problem.tail
    possible: Bools = ring_bounds(problem, safe_heights(problem)) <= limit + SLACK
    return possible | (holds_all(problem) & (alone <= limit + SLACK))


def ring_bounds(problem: Problem, height: Floats) -> Floats:
    """``thr``: a lower bound on every ring of two or more stages through each candidate, without distances."""
    leave = height + np.where(several(problem), 0.0, problem.upload)
    one = np.zeros(len(problem), dtype=np.int64)
    return through(
        Rows(
            problem.layers, problem.start, problem.end, one, one, 1, 1, np.zeros(1),
            height + problem.entry, leave, finish_s(problem.tail, height, holds_all(problem)), problem.per_layer,
        )
    )  # fmt: skip


def holds_all(problem: Problem) -> Bools:
    """Candidates that may be a ring's head and, others between, its tail: the way home is then free."""
    both: Bools = (problem.start == 0) & (problem.end == problem.layers)
    return both


def finish_s(tail: Floats, height: Floats, comes_back: Bools) -> Floats:
    """What ending a ring costs at least: `tail` and this side of the way home.

    A tail that `comes_back` finds itself as the head: there is no way home, and the height that it paid on being
    entered as head is given back. (Between two candidates of one peer nothing is charged: :func:`several`.)
    """
    return tail + np.where(comes_back, -np.abs(height), height)


def several(problem: Problem) -> Bools:
    """Candidates whose peer has others: a hop between them is free, so a bound may charge neither."""
    counts = np.bincount(problem.peer, minlength=problem.latency.peers)
    more: Bools = counts[problem.peer] > 1
    return more


def safe_heights(problem: Problem) -> Floats:
    """g with ``latency(i, j) >= g_i + g_j``."""
    return np.where(several(problem), 0.0, problem.latency.safe_height[problem.peer])
