"""`paceline doctor`: what is wrong with this machine, and what to do about it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.cli.console import console
from paceline.cli.talk import Home, Swarm

if TYPE_CHECKING:
    from paceline.cli.checkup import Finding

CLOCK_S = 2.0
"""Offers are dated by the clock and live for seconds: two machines that differ by more lose sight of each other."""


def doctor(
    swarm: Swarm = None,
    home: Home = None,
    host: Annotated[str, typer.Option(help="Address that a node or gateway would listen on.")] = "0.0.0.0",
    port: Annotated[
        list[int] | None, typer.Option(help="Port that shall be free, and reached from outside (repeatable).")
    ] = None,
    device: Annotated[str, typer.Option(help="torch device that shall work: cpu, cuda, cuda:1.")] = "cpu",
    role: Annotated[
        list[str] | None, typer.Option(help="What shall be installed: node, gateway, telemetry (repeatable).")
    ] = None,
    room: Annotated[float, typer.Option(help="GB that shall be free on the disk.", min=0.0)] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="All findings, as JSON on standard output.")] = False,
) -> None:
    """Look for what would keep Paceline from working here, and name the cure of each fault.

    Versions, ports, the swarm's members, clock, disk, models, GPU. Changes nothing. Exit status 1: there is a fault.
    """
    from paceline.cli import checkup
    from paceline.client.connect import home_folder

    folder = home_folder(home)
    findings = [
        *checkup.versions(role or ()),
        *checkup.ports(host, port or [8080]),
        *checkup.addresses(),
        *_swarm(swarm, home, host, port or []),
        *checkup.disk(folder, int(room * 1e9)),
        *checkup.models(folder),
        *checkup.gpu(device),
    ]
    if as_json:
        json.dump([asdict(finding) for finding in findings], sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        _show(findings)
    raise SystemExit(1 if any(finding.fault for finding in findings) else 0)


def _swarm(swarm: list[str] | None, home: Path | None, host: str, wanted: Sequence[int]) -> Iterator[Finding]:
    """The members that a client would join through: reached, their clocks asked, and whether they reach us."""
    from paceline.cli import checkup
    from paceline.client.connect import ClientConfig, as_addresses, bootstrap_addresses
    from paceline.wire.errors import InvalidRequest

    try:
        members = bootstrap_addresses(ClientConfig(as_addresses(swarm), home))
    except InvalidRequest as error:
        yield checkup.Finding("swarm", f"{error.message}: {error.cure}")
        return
    found = list(checkup.reachable(members))
    yield from found
    near = [member for member, finding in zip(members, found, strict=True) if not finding.fault]
    if near:
        yield from _clock(near, home)
        for port in wanted or (0,):
            yield from _from_outside(near, host, port)


def _clock(members: Sequence[str], home: Path | None) -> Iterator[Finding]:
    import trio

    from paceline.cli.checkup import Finding
    from paceline.client.connect import ClientConfig, connect
    from paceline.net.unwrapping import single_errors
    from paceline.wire.errors import PacelineError

    async def ask() -> float:
        """Seconds that a member's clock is ahead of this one, as the directory saw when it joined."""
        async with connect(ClientConfig(tuple(members), home)) as core:
            return core.swarm.directory.statistics()["clock_skew_ms"] / 1e3

    try:
        with single_errors():
            ahead = trio.run(ask)
    except PacelineError as error:
        yield Finding("swarm", f"it answers, but cannot be joined: {error}", "see the log of that node")
        return
    if abs(ahead) > CLOCK_S:
        side = "behind" if ahead > 0 else "ahead of"
        cure = "set this machine's clock, or theirs: timedatectl set-ntp true"
        yield Finding("clock", f"this clock is {abs(ahead):.0f} s {side} the swarm's", cure)
    else:
        yield Finding("clock", f"within {max(0.1, abs(ahead)):.1f} s of the swarm's")


def _from_outside(members: Sequence[str], host: str, port: int) -> Iterator[Finding]:
    """Whether members can dial `port` here. 0: any, as a node without --port has one; then a closed one is no fault."""
    import random

    import trio

    from paceline.cli.checkup import Finding
    from paceline.dht.kademlia import parse_bootstrap
    from paceline.net.dialback import Verdict, choose, examine, unreachable
    from paceline.net.host import Libp2pTransport, NetConfig
    from paceline.net.identity import Identity
    from paceline.net.transport import Channel
    from paceline.net.unwrapping import single_errors
    from paceline.wire.errors import PacelineError

    async def hang_up(channel: Channel) -> None:
        await channel.aclose()

    async def ask() -> tuple[int, Verdict]:
        net = NetConfig(listen_host=host, control_port=port, data=False)
        transport = Libp2pTransport(Identity.ephemeral(), net)
        async with transport.run(hang_up):
            doors = transport.doors
            assert doors is not None
            asked = choose(parse_bootstrap(members), random.Random())
            return doors.ports.control, await examine(doors, asked, doors.ports)

    try:
        with single_errors():
            opened, found = trio.run(ask)
    except PacelineError:
        return  # the port is in use, which is told of ports
    if found.control is None:
        yield Finding("reached", f"no member could tell whether port {opened} is reached from outside")
    elif found.control:
        yield Finding("reached", f"port {opened} is reached from outside, at {found.hosts[0][0]}")
    elif port:
        fault = unreachable(opened)
        yield Finding("reached", fault.message, fault.cure)
    else:
        yield Finding("reached", f"{unreachable(opened).message}: a node here needs an open one (--port), or --relay")


def _show(findings: Sequence[Finding]) -> None:
    for finding in findings:
        mark = "[bold red]fault[/]" if finding.fault else "[green]fine [/]"
        console.print(f"{mark} [bold]{finding.about}[/]: {finding.told}", soft_wrap=True)
        if finding.fault:
            console.print(f"      [bold]cure[/]: {finding.cure}", soft_wrap=True)
    faults = sum(finding.fault for finding in findings)
    console.print("nothing is wrong" if not faults else f"{faults} {'fault' if faults == 1 else 'faults'}")
