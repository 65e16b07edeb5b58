"""stub"""

from __future__ import annotations
import numpy as np
from paceline.routing.problem import Problem, Solution, solve


def solve_at_scale(problem: Problem, cutoff: float = np.inf) -> Solution | None:
    return solve(problem, cutoff)
