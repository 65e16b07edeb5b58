"""`paceline bootstrap`: a meeting point for a swarm. It holds no layers and needs no torch."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.cli.console import console

if TYPE_CHECKING:
    from paceline.net.host import Libp2pTransport
    from paceline.net.transport import Channel


def bootstrap(
    swarm: Annotated[
        list[str] | None, typer.Option(help="Multiaddr of another member, or @ and a member's ready file (repeatable).")
    ] = None,
    listen: Annotated[str, typer.Option(help="IP address to listen on; 0.0.0.0 for all interfaces.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(help="TCP port; 0: any.", min=0, max=65535)] = 4001,
    announce: Annotated[
        list[str] | None, typer.Option(help="Host or address to tell others instead of the interfaces' own.")
    ] = None,
    relay: Annotated[
        bool,
        typer.Option("--relay", help="Also carry circuits for nodes that nobody can dial (`paceline node --relay`)."),
    ] = False,
    home: Annotated[Path | None, typer.Option(help="Where the identity lies.", envvar="PACELINE_HOME")] = None,
    name: Annotated[str, typer.Option(help="Which identity of this machine to use.")] = "bootstrap",
    metrics: Annotated[
        str | None, typer.Option(help="Serve Prometheus metrics at this PORT, or HOST:PORT; none: nowhere.")
    ] = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="Written once it can be joined; others name it as --swarm @FILE.")
    ] = None,
) -> None:
    """Run a meeting point until Ctrl-C: others join a swarm through it, and find each other from there.

    It keeps the directory and nothing else. A swarm goes on without it, but nobody new finds in by it.
    """
    import trio

    from paceline.client.connect import home_folder
    from paceline.dht.kademlia import DirectoryConfig, KademliaDirectory
    from paceline.net.host import Libp2pTransport, NetConfig
    from paceline.net.identity import Identity

    identity = Identity.load_or_create(home_folder(home) / "identities" / name)
    net = NetConfig(listen_host=listen, control_port=port, announce=tuple(announce or ()), data=False, relay=relay)

    async def run() -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals, ExitStack() as stack:
            transport = Libp2pTransport(identity, net)
            directory = KademliaDirectory(transport, identity, DirectoryConfig(bootstrap=tuple(swarm or ())))
            async with transport.run(_turn_away), directory.run():
                _say_ready(transport, ready_file)
                stack.enter_context(_exported(metrics, lambda: transport.statistics() | directory.statistics()))
                async for _ in signals:
                    break
        console.print("left the swarm")

    trio.run(run)


def _exported(at: str | None, counts: Callable[[], dict[str, int]]) -> AbstractContextManager[object]:
    from paceline.node.metrics import CountsCollector, exported, listening

    if at is None:
        return nullcontext()
    return exported(CountsCollector("paceline_bootstrap", "Members, streams and refusals", counts), *listening(at))


async def _turn_away(channel: Channel) -> None:
    """Nobody has anything to say here on a link; returning closes it."""
    await channel.aclose()


def _say_ready(transport: Libp2pTransport, file: Path | None) -> None:
    address = transport.address
    members = [f"{control}/p2p/{address.peer}" for control in address.control]
    if file is not None:
        partial = file.with_suffix(".part")
        partial.write_text(json.dumps({"peer": address.peer, "bootstrap": members}))
        partial.replace(file)
    logging.getLogger("paceline.bootstrap").info("meeting point", {"peer": address.peer})
    joins = " ".join(f"--swarm {member}" for member in members)
    console.print(f"[bold green]meeting point[/] {address.peer}\n  join with: paceline node {joins}", soft_wrap=True)
