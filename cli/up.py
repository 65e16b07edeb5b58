"""`paceline up`: a swarm of node processes on this machine, for trying out and for development."""

from __future__ import annotations

import json
import signal
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from paceline.cli.console import console, progress
from paceline.cli.interrupts import deferred, raise_instead

if TYPE_CHECKING:
    from paceline.cli.local_swarm import NodeProcess

DEMO_PROMPT = "Explain in three sentences why a group of cyclists riding in a line is faster than one alone."


def up(
    nodes: Annotated[int, typer.Option(help="How many node processes.", min=1, max=16)] = 3,
    model: Annotated[str, typer.Option(help="Model name or revision; see `paceline pull`.")] = "smollm2-135m-instruct",
    replicas: Annotated[int, typer.Option(help="How many nodes hold each span.", min=1, max=4)] = 1,
    home: Annotated[Path | None, typer.Option(help="Where models and identities lie.", envvar="PACELINE_HOME")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads of each node; 0: all cores.")] = 0,
    dtype: Annotated[str, typer.Option(help="Numbers to compute in: f32, bf16, f16 or auto.")] = "auto",
    port: Annotated[int, typer.Option(help="Port of the web page and API; 0: any free one.", min=0)] = 8080,
    demo: Annotated[bool, typer.Option("--demo", help="Stream one answer, say who did what, and stop.")] = False,
    prompt: Annotated[str, typer.Option(help="What the demo asks.")] = DEMO_PROMPT,
) -> None:
    """Run a swarm on this machine: real node processes, each with a part of the model. Ctrl-C ends it.

    Other terminals find it by themselves: try `paceline chat`, `paceline status`.
    """
    from paceline.cli.local_swarm import local_swarm
    from paceline.cli.page import gateway_page, opened
    from paceline.client.connect import LOCAL_SWARM_FILE, home_folder
    from paceline.engine import default_model
    from paceline.store.store import Store

    root = home_folder(home)
    with progress() as report:
        if model in (default_model.NAME, default_model.REVISION):
            default_model.ensure(Store(root / "store"), report)
    raise_instead()
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    spans = [f"{part}/{nodes}" for part in range(1, nodes + 1)] * replicas
    swarm_file = root / LOCAL_SWARM_FILE
    with tempfile.TemporaryDirectory(prefix="paceline-") as folder, progress() as report:
        options = ["--threads", str(threads), "--dtype", dtype]
        tell = partial(report, "nodes ready")
        with local_swarm(
            root, Path(folder), model, spans, options=options, report=lambda ready: tell(ready, len(spans))
        ) as swarm:
            swarm_file.write_text(json.dumps({"bootstrap": swarm.bootstrap}))
            try:
                with ExitStack() as stack:
                    with deferred():
                        url = stack.enter_context(gateway_page(swarm.bootstrap, root, 0 if demo else port))
                    if demo:
                        _demo(swarm.bootstrap, {node.peer: node.name for node in swarm.nodes}, prompt, root)
                        status, size = opened(url)
                        console.print(f"web page {url} opens: HTTP {status}, {size} bytes", soft_wrap=True)
                    else:
                        _show(swarm.nodes, url)
                        threading.Event().wait()
            finally:
                console.print("stopping …")
                swarm_file.unlink(missing_ok=True)


def _show(nodes: Sequence[NodeProcess], url: str) -> None:
    table = Table("node", "part", "peer", "joins at", title="swarm is up", title_style="bold green")
    for node in nodes:
        table.add_row(node.name, node.span, node.peer, ", ".join(node.bootstrap))
    console.print(table)
    console.print(f"web page: [bold]{url}[/]   OpenAI API: [bold]{url}v1[/]", soft_wrap=True)
    console.print("try: [bold]paceline chat[/] or [bold]paceline status[/] in another terminal. Ctrl-C ends the swarm.")


def _demo(bootstrap: tuple[str, ...], names: dict[str, str], prompt: str, home: Path) -> None:
    from paceline.cli.talk import account, stream_to_stdout
    from paceline.client.sync import Client

    with ExitStack() as stack:
        with deferred():
            client = stack.enter_context(Client(bootstrap, home=home))
        console.print(f"[bold]asking[/] {prompt}\n", soft_wrap=True)
        answer = client.chat([{"role": "user", "content": prompt}], max_tokens=128)
        stream_to_stdout(answer)
        console.print()
        account(answer.result, names)
