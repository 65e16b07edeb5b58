"""Nodes of two processes each answer as any others; one that loses a process says so and ends; nothing outlives one."""

from __future__ import annotations

from pathlib import Path

import psutil

from paceline.cli.local_swarm import local_swarm
from paceline.client import Client
from paceline.engine import default_model

PROMPT = "The capital of France is"
TEXT = " Paris.\n\nThe answer is: 201"
"""What one process says (float32)."""


def test_a_ring_of_nodes_of_two_processes(home: Path, tmp_path: Path) -> None:
    """The default model has three key-value heads: two and one of them."""
    options = ("--tensor-parallel", "2", "--threads", "1", "--kv-positions", "2048")
    with local_swarm(home, tmp_path, default_model.NAME, ["1/2", "2/2"], options=options) as swarm:
        workers = [psutil.Process(node.process.pid).children()[0] for node in swarm.nodes]
        with Client(swarm.bootstrap, home=home) as client:
            numerics = [service.numerics for offer in client.offers() for service in offer.services]
            assert numerics == ["cpu-f32-tp2"] * 2
            with client.generate(PROMPT, max_tokens=12, ignore_eos=True) as answer:
                assert "".join(piece.text for piece in answer) == TEXT
        crippled, killed = swarm.nodes
        workers[0].kill()
        assert crippled.process.wait(20) == 1
        assert "one of the processes that compute this span is lost" in crippled.log.read_text().replace("\n", " ")
        killed.kill()
        _, alive = psutil.wait_procs(workers, timeout=20)
        assert not alive
