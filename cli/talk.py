"""`paceline generate` and `paceline chat`: text from a swarm, streamed, with an honest account at the end."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from paceline.cli.console import console, fail
from paceline.cli.interrupts import raise_instead
from paceline.wire.errors import InvalidRequest, PacelineError

if TYPE_CHECKING:
    from paceline.client.results import Piece, Result

Swarm = Annotated[
    list[str] | None, typer.Option(help="Multiaddr of any member. None: PACELINE_SWARM, or the swarm of `paceline up`.")
]
Home = Annotated[Path | None, typer.Option(help="Where models lie.", envvar="PACELINE_HOME")]
Model = Annotated[str | None, typer.Option(help="Which model; None: the only one served.")]
MaxTokens = Annotated[int, typer.Option(help="At most this many tokens.", min=1)]
Temperature = Annotated[float, typer.Option(help="0: always the most likely token.", min=0.0)]
TopP = Annotated[float, typer.Option(help="Keep the likeliest tokens of this total probability.")]
Seed = Annotated[int | None, typer.Option(help="Same seed, same answer.")]
Objective = Annotated[
    str,
    typer.Option(
        help="What the ring is chosen for: latency; throughput, where the answer may take its time; fair, where equals "
        "shall work alike."
    ),
]
Hedge = Annotated[
    bool, typer.Option("--hedge", help="Ask two rings for the first token and keep the quicker; costs a prompt more.")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say who ran which layers, and how fast.")]


def stream_to_stdout(pieces: Iterable[Piece]) -> None:
    """Text as it comes, flushed at each token."""
    for piece in pieces:
        sys.stdout.write(piece.text)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()


def account(result: Result, names: Mapping[str, str] | None = None) -> None:
    """Who ran which layers, speed, and what went wrong on the way."""
    table = Table("stage", "node", "layers")
    for index, rider in enumerate(result.route):
        role = "head" if index == 0 else "tail" if index == len(result.route) - 1 else ""
        name = (names or {}).get(rider.peer, "")
        table.add_row(f"{index + 1} {role}", f"{name} {rider.peer[-8:]}".strip(), f"{rider.start}:{rider.end}")
    console.print(table)
    console.print(
        f"{len(result.tokens)} tokens at [bold]{result.tokens_per_s:.1f} tokens/s[/], first after "
        f"{result.ttft_s:.2f} s; {result.prompt_tokens} prompt tokens; finish: {result.finish_reason}; "
        f"revision {result.revision[:12]}, {result.numerics}; seed {result.seed}; epochs {result.epochs}",
        soft_wrap=True,
    )
    if result.hedged is not None:
        told = {0: "none had a token", 1: "the cheapest was first", 2: "the other was first"}[result.hedged.won]
        console.print(
            f"  hedged: {result.hedged.rings} rings, {told}; up to {result.hedged.extra_positions} positions in vain"
        )
    for failover in result.failovers:
        lost = ", ".join((names or {}).get(peer, peer[-8:]) for peer in failover.lost) or "nobody"
        console.print(
            f"  failover at token {failover.index}: lost {lost} ({failover.reason}), repaired by {failover.tier.value} "
            f"in {failover.stall_s * 1e3:.0f} ms",
            soft_wrap=True,
        )


def generate(
    prompt: Annotated[str, typer.Argument(help="Text to continue; `-` reads standard input.")],
    swarm: Swarm = None,
    model: Model = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text (repeatable).")] = None,
    home: Home = None,
    objective: Objective = "latency",
    hedge: Hedge = False,
    verbose: Verbose = False,
) -> None:
    """Continue a text. The answer goes to standard output, everything else to standard error."""
    from paceline.client.sync import Client

    text = sys.stdin.read() if prompt == "-" else prompt
    if not text:
        raise InvalidRequest("the prompt is empty")
    with Client(swarm, home=home) as client:
        raise_instead()
        options = _options(model, max_tokens, temperature, top_p, seed, stop) | {"objective": objective}
        with client.generate(text, hedge=hedge, **options) as answer:
            stream_to_stdout(answer)
        if verbose:
            account(answer.result)


def chat(
    message: Annotated[str | None, typer.Argument(help="One message; none: a conversation.")] = None,
    swarm: Swarm = None,
    model: Model = None,
    system: Annotated[str, typer.Option(help="System message.")] = "",
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = None,
    home: Home = None,
    verbose: Verbose = False,
) -> None:
    """Talk with the model. Ctrl-C stops an answer, and at the prompt ends the conversation; so does Ctrl-D."""
    from paceline.client.sync import Client

    messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    with Client(swarm, home=home) as client:
        raise_instead()
        options = _options(model, max_tokens, temperature, top_p, seed, None)
        if message is not None:
            _turn(client, messages, message, options, verbose)
            return
        console.print("[dim]Ctrl-D ends.[/]")
        while (line := _ask()) is not None:
            if line.strip():
                _turn_or_say_why(client, messages, line, options, verbose)


def _turn_or_say_why(
    client: Any, messages: list[dict[str, str]], text: str, options: dict[str, Any], verbose: bool
) -> None:
    try:
        _turn(client, messages, text, options, verbose)
    except PacelineError as error:
        messages.pop()
        try:
            fail(error)
        except SystemExit:
            return


def _turn(client: Any, messages: list[dict[str, str]], text: str, options: dict[str, Any], verbose: bool) -> None:
    messages.append({"role": "user", "content": text})
    with client.chat(messages, **options) as answer:
        try:
            stream_to_stdout(answer)
        except KeyboardInterrupt:
            sys.stdout.write(" …\n")
    messages.append({"role": "assistant", "content": answer.result.text})
    if verbose:
        account(answer.result)


def _ask() -> str | None:
    try:
        return input("> ")
    except (EOFError, KeyboardInterrupt):
        return None


def _options(
    model: str | None, max_tokens: int, temperature: float, top_p: float, seed: int | None, stop: list[str] | None
) -> dict[str, Any]:
    return {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "stop": tuple(stop or ()),
    }
