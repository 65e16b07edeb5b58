"""A session outlives its client's process: killed in mid-answer and resumed elsewhere; of two that resume, one wins."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from paceline.cli.local_swarm import LocalSwarm
from paceline.client import Client
from paceline.wire.session import SessionState

PROMPT = "The capital of France is"
TOKENS = 60

STARTS = """
import sys
from pathlib import Path
from paceline.client import Client
home, folder, prompt, tokens, *join = sys.argv[1:]
with Client(join, home=Path(home)) as client:
    answer = client.generate(prompt, max_tokens=int(tokens), ignore_eos=True)
    for piece in answer:
        state = Path(folder) / "state.part"
        state.write_bytes(answer.state().to_bytes())
        state.replace(Path(folder) / "state")
        print(piece.token, flush=True)
"""
"""A client that exports its session after each token, and prints the token."""

RESUMES = """
import json, sys
from pathlib import Path
from paceline.client import Client
from paceline.wire.errors import PacelineError
from paceline.wire.session import SessionState
home, file, *join = sys.argv[1:]
with Client(join, home=Path(home)) as client:
    state = SessionState.from_bytes(Path(file).read_bytes())
    client.offers()
    print("ready", flush=True)
    sys.stdin.readline()
    answer = client.resume(state)
    tokens, error = [], ""
    try:
        tokens += [piece.token for piece in answer]
    except PacelineError as raised:
        error = raised.code
    print(json.dumps({"tokens": tokens, "error": error, "text": answer.result.text}), flush=True)
"""
"""A client that waits for a line, resumes, and prints how it ended."""


def start(program: str, *words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def killed_in_mid_answer(swarm: LocalSwarm, home: Path, folder: Path) -> SessionState:
    """The last state that a client exported before SIGKILL ended it."""
    with start(STARTS, home, folder, PROMPT, TOKENS, *swarm.bootstrap) as client:
        assert client.stdout is not None
        for _ in range(15):
            assert client.stdout.readline().strip()
        client.kill()
    return SessionState.from_bytes((folder / "state").read_bytes())


@pytest.fixture(scope="module")
def undisturbed(swarm: LocalSwarm, home: Path) -> tuple[list[int], str]:
    with Client(swarm.bootstrap, home=home) as client:
        answer = client.generate(PROMPT, max_tokens=TOKENS, ignore_eos=True)
        return [piece.token for piece in answer], answer.result.text


def test_the_client_is_killed_and_another_process_goes_on(
    swarm: LocalSwarm, home: Path, tmp_path: Path, undisturbed: tuple[list[int], str]
) -> None:
    state = killed_in_mid_answer(swarm, home, tmp_path)
    before = list(state.log[state.prompt_length :])
    assert 15 <= len(before) < TOKENS
    with Client(swarm.bootstrap, home=home) as client:
        answer = client.resume(state)
        after = [piece.token for piece in answer]
        assert (before + after, answer.result.text) == undisturbed


def test_of_two_processes_that_resume_exactly_one_wins(
    swarm: LocalSwarm, home: Path, tmp_path: Path, undisturbed: tuple[list[int], str]
) -> None:
    state = killed_in_mid_answer(swarm, home, tmp_path)
    before = list(state.log[state.prompt_length :])
    clients = [start(RESUMES, home, tmp_path / "state", *swarm.bootstrap) for _ in range(2)]
    for client in clients:
        assert client.stdout is not None
        assert client.stdout.readline().strip() == "ready"
    for client in clients:
        assert client.stdin is not None
        client.stdin.write("go\n")
        client.stdin.flush()
    ends = [json.loads(client.communicate(timeout=120)[0]) for client in clients]
    winners = [end for end in ends if not end["error"]]
    assert [end["error"] for end in ends if end["error"]] == ["fenced"]
    assert (before + winners[0]["tokens"], winners[0]["text"]) == undisturbed
