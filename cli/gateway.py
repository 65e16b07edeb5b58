"""`paceline gateway`: the OpenAI-compatible API and the web page, on this machine, over a swarm."""

from __future__ import annotations

import ipaddress
import signal
from pathlib import Path
from typing import Annotated

import typer

from paceline.cli.console import console
from paceline.cli.talk import Home, Swarm

MirrorShare = Annotated[
    float,
    typer.Option(
        help="Share of answers to ask for again, afterwards, on the other side of a canary that runs: how far the "
        "two agree is in /metrics and in the log, never their text.",
        min=0.0,
        max=1.0,
    ),
]
MirrorTo = Annotated[str, typer.Option(help="With --mirror: ask this revision (64 hexadecimal digits).")]
StaleAfter = Annotated[
    float, typer.Option(help="Seconds that answers may run on a revision behind its releases before the log says so.")
]


def gateway(
    swarm: Swarm = None,
    home: Home = None,
    host: Annotated[str, typer.Option(help="IP address to listen on; 0.0.0.0 for all interfaces.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="TCP port; 0: any free one.", min=0, max=65535)] = 8080,
    keys: Annotated[
        Path | None, typer.Option(help="TOML file with API keys and their limits; none: anybody may ask.")
    ] = None,
    default_tokens: Annotated[int, typer.Option(help="Length of an answer whose request names none.", min=1)] = 512,
    running: Annotated[int, typer.Option(help="Answers at once; others wait, by service tier.", min=1)] = 256,
    mirror: MirrorShare = 0.0,
    mirror_to: MirrorTo = "",
    stale_after: StaleAfter = 600.0,
    audit: Annotated[
        Path | None, typer.Option(help="Append one line of JSON for each answer to this file; never its text.")
    ] = None,
) -> None:
    """Serve the OpenAI API and a web page over a swarm until Ctrl-C.

    Any OpenAI client works: set its base URL to the one printed here, with `/v1`.
    """
    import trio

    from paceline.client.connect import ClientConfig, as_addresses, connect
    from paceline.client.mirror import MirrorConfig
    from paceline.gateway.config import GatewayConfig, load_keys
    from paceline.gateway.serving import serve

    config = GatewayConfig(
        host=host,
        port=port,
        keys=load_keys(keys) if keys else (),
        default_tokens=default_tokens,
        running=running,
        audit=audit,
        mirror=MirrorConfig.parse(mirror, mirror_to) if mirror else None,
    )
    if not config.keys and not _is_loopback(host):
        console.print("[yellow]anybody who can reach this address can use the swarm[/]: limit it with --keys")

    def started(url: str) -> None:
        console.print(f"[bold green]gateway[/] web page: [bold]{url}/[/]   API: [bold]{url}/v1[/]", soft_wrap=True)

    async def run() -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_serve)
                async for _ in signals:
                    nursery.cancel_scope.cancel()
                    break

    async def _serve() -> None:
        async with connect(ClientConfig(as_addresses(swarm), home, stale_after_s=stale_after)) as core:
            await serve(core, config, started=started)

    trio.run(run)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
