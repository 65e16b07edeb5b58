"""`paceline compare`: a file of prompts over two revisions of a model, side by side: tokens, lengths, speed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from paceline.cli.console import console
from paceline.cli.talk import Home, MaxTokens, Model, Swarm, Temperature
from paceline.wire.errors import InvalidRequest

if TYPE_CHECKING:
    from paceline.client.agreement import Agreement
    from paceline.client.connect import ClientConfig
    from paceline.client.core import ClientCore
    from paceline.client.options import GenerateOptions
    from paceline.client.results import Result

Asked = str | list[dict[str, str]]
"""A text to continue, or messages to answer."""


def compare(
    prompts: Annotated[
        Path,
        typer.Argument(help='One prompt a line; in a .jsonl file, one {"prompt": …} or {"messages": […]} a line.'),
    ],
    swarm: Swarm = None,
    home: Home = None,
    model: Model = None,
    first: Annotated[
        str, typer.Option(help="Revision, or the beginning of one; none: the one that is for everybody.")
    ] = "",
    second: Annotated[str, typer.Option(help="The other; none: the canary that runs.")] = "",
    max_tokens: MaxTokens = 64,
    temperature: Temperature = 0.0,
    seed: Annotated[int, typer.Option(help="Of every answer, on both sides.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON a prompt, on standard output.")] = False,
) -> None:
    """Run prompts on two revisions and say how far the answers agree, and how quick each was. Texts are not shown.

    Each prompt runs on one side after the other, now this one first, now that one. *equal* counts tokens before the
    first difference; it means little where the revisions have different tokenizers, which is then said.
    """
    import trio

    from paceline.client.connect import ClientConfig, as_addresses
    from paceline.client.options import GenerateOptions

    asked = read(prompts)
    options = GenerateOptions(model=model, max_tokens=max_tokens, temperature=temperature, seed=seed)
    found = trio.run(_run, ClientConfig(as_addresses(swarm), home), asked, (first, second), options, as_json)
    if not as_json:
        show(found)


def read(path: Path) -> list[Asked]:
    """The prompts of a file. Raises InvalidRequest."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path}: {error}", cure="name a file of prompts, one a line") from error
    found = [_record(path, line) for line in lines] if path.suffix == ".jsonl" else list[Asked](lines)
    if not found:
        raise InvalidRequest(f"{path} holds no prompts", cure="write one a line")
    return found


def _record(path: Path, line: str) -> Asked:
    try:
        told = json.loads(line)
        return told["messages"] if "messages" in told else str(told["prompt"])
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidRequest(f"{path}: {line[:60]!r}: {error!r}", cure='{"prompt": …} or {"messages": […]}') from error


async def _run(
    config: ClientConfig, asked: Sequence[Asked], sides: tuple[str, str], options: GenerateOptions, as_json: bool
) -> list[Agreement]:
    from paceline.client.connect import connect

    def tell(number: int, found: Agreement) -> None:
        if as_json:
            sys.stdout.write(json.dumps({"prompt": number, **found.facts()}) + "\n")
            sys.stdout.flush()

    async with connect(config) as core:
        return await compared(core, asked, sides, options, tell)


async def compared(
    core: ClientCore,
    asked: Sequence[Asked],
    sides: tuple[str, str],
    options: GenerateOptions,
    tell: Callable[[int, Agreement], None] = lambda number, found: None,
) -> list[Agreement]:
    """Each prompt on both sides. Raises InvalidRequest where a side is nobody's, LevelUnmet where it has no ring."""
    from paceline.client.agreement import Agreement

    name = await core.model_name(options.model, options.timeout_s)
    a, b = await _revisions(core, name, sides)
    found = []
    for number, prompt in enumerate(asked, 1):
        results: dict[bytes, Result] = {}
        for revision in (a, b) if number % 2 else (b, a):
            results[revision] = await _answer(core, prompt, name, revision, options)
        if number == 1 and not await core.same_tokens(results[a].state, b):
            console.print("[yellow]the two have different tokenizers[/]: equal tokens mean little", soft_wrap=True)
        found.append(Agreement.of(results[a], results[b]))
        tell(number, found[-1])
    return found


async def _revisions(core: ClientCore, name: str, sides: tuple[str, str]) -> tuple[bytes, bytes]:
    view = await core.swarm.view(name)
    core.frontiers.absorb(view.offers)
    frontier = core.frontiers.frontier(name)
    found = []
    for wanted, usual, what in zip(sides, (frontier.full, frontier.canary), ("for everybody", "a canary"), strict=True):
        fit = {it for it in (*view.revisions, *frontier.ranks) if wanted and it.hex().startswith(wanted.lower())}
        revision = usual if not wanted else fit.pop() if len(fit) == 1 else None
        if revision is None:
            told = f"{wanted!r} is no revision of {name!r}" if wanted else f"no release of {name!r} is {what}"
            known = ", ".join(sorted(it.hex()[:12] for it in view.revisions))
            raise InvalidRequest(told, cure=f"name it with --first and --second; served are {known}")
        found.append(revision)
    if found[0] == found[1]:
        raise InvalidRequest("both sides are the same revision", cure="name another with --second")
    return found[0], found[1]


async def _answer(core: ClientCore, prompt: Asked, name: str, revision: bytes, options: GenerateOptions) -> Result:
    from dataclasses import replace

    options = replace(options, model=name, consistency=f"pinned({revision.hex()})")
    start: Any = core.generate if isinstance(prompt, str) else core.chat
    stream = await start(prompt, options)
    while await stream.receive() is not None:
        pass
    result: Result = stream.result()
    return result


def show(found: Sequence[Agreement]) -> None:
    """A table, and one line over all."""
    from paceline.client.agreement import Summary

    a, b = found[0].a.revision[:12], found[0].b.revision[:12]
    table = Table("prompt", "equal", "tokens", "first token", "tokens/s", title=f"{a} and {b}")
    for number, it in enumerate(found, 1):
        equal = "[green]all[/]" if it.same else str(it.equal)
        table.add_row(
            str(number),
            equal,
            f"{it.a.tokens}  {it.b.tokens}",
            f"{it.a.ttft_s * 1e3:.0f}  {it.b.ttft_s * 1e3:.0f} ms",
            f"{it.a.tokens_per_s:.1f}  {it.b.tokens_per_s:.1f}",
        )
    console.print(table)
    all_of = Summary.of(found)
    console.print(
        f"{all_of.same} of {all_of.answers} answers equal, "
        f"{all_of.share:.0%} of an answer before the first difference; "
        f"first token {all_of.ttft_s[0] * 1e3:.0f} and {all_of.ttft_s[1] * 1e3:.0f} ms, "
        f"{all_of.tokens_per_s[0]:.1f} and {all_of.tokens_per_s[1]:.1f} tokens/s (medians)",
        soft_wrap=True,
    )
