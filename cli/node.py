"""`paceline node`: serve a span of a model from this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from paceline.cli.console import console, progress
from paceline.cli.keeping import StoreGb

if TYPE_CHECKING:
    from paceline.engine.loading import LoadConfig
    from paceline.node.daemon import DaemonConfig
    from paceline.node.node import Node

_FULL = "PACELINE_FULL_IMPORTS"
"""Environment variable: set to anything, a node leaves no module out."""

LinkProfile = Annotated[
    str | None,
    typer.Option(
        help="Make links slower or cut them: lan, city, continent, world, home-uplink, or a file "
        "(docs/link-profiles.md).",
        envvar="PACELINE_LINK_PROFILE",
    ),
]
Trust = Annotated[
    list[str] | None,
    typer.Option(help="KEY or KEY=name,team/*: believe this publisher, too (see `paceline trust`; repeat)."),
]
StaleAfter = Annotated[
    float, typer.Option(help="Seconds that a served revision may be behind its releases before log and status say so.")
]
Follow = Annotated[bool, typer.Option(help="Take up newer releases of the model's name, beside the present one.")]

Numbers = Annotated[str, typer.Option(help="Numbers to compute in: f32, bf16, f16; auto: bf16 on a GPU, else f32.")]
WeightsForm = Annotated[
    str,
    typer.Option(help="Linear weights: f32 (as they are), bf16 (CPU), int8, int4, fp8 (GPU). Rings are of one kind."),
]
WeightsGb = Annotated[
    float,
    typer.Option(help="Memory for weights, on a CPU in f32: layers beyond it are read from disk in each step; 0: all."),
]
TensorParallel = Annotated[
    int,
    typer.Option(
        help="Devices of this machine that hold a part of every layer each; GPUs from --device on, or processes.", min=1
    ),
]
KvSpilled = Annotated[
    int, typer.Option(help="Positions of KV beyond that, which lie on disk while other sessions run; 0: none.")
]
PrefixMb = Annotated[
    int, typer.Option(help="Disk, in MB, for what finished sessions computed: equal beginnings are run once; 0: none.")
]
JournalMb = Annotated[
    int, typer.Option(help="Memory, in MB, of each session's journal: what a failed neighbour is rebuilt from.")
]
JournalDiskMb = Annotated[
    int, typer.Option(help="Disk, in MB, for what journals do not hold in memory, all sessions together; 0: none.")
]
SharedPrefixes = Annotated[
    bool, typer.Option(help="Let one client's beginnings serve others; they can tell from the speed.")
]


Span = Annotated[
    str,
    typer.Option(
        help="Layers to serve: `auto` (as many as fit, where the swarm needs them most), `all`, `START:END`, or "
        "`K/N` for the K-th of N equal parts."
    ),
]
Swarm = Annotated[
    list[str] | None,
    typer.Option(help="Multiaddr of any member to join through (repeat for several). None: begin a new swarm."),
]
Announce = Annotated[
    list[str] | None, typer.Option(help="Address to tell others instead of the interfaces' own (port forwarding).")
]
Relay = Annotated[
    list[str] | None,
    typer.Option(
        help="Nobody can dial this machine: be reached through this relay (multiaddr, or @ and its ready file; repeat)."
    ),
]
Shadow = Annotated[
    bool, typer.Option(help="Also stand by for others who hold this span: their failure then costs a blink.")
]
RoomGb = Annotated[float, typer.Option(help="Memory for weights, where the span is `auto`; 0: half of what is free.")]
Source = Annotated[
    str,
    typer.Option(
        help="A Hugging Face folder, GGUF file or hub id (org/name@revision) for blocks that no peer sends; they are "
        "taken only if they have the hashes that the manifest names."
    ),
]
Region = Annotated[str, typer.Option(help="Where this machine stands, for clients who ask for certain regions.")]
Move = Annotated[
    bool, typer.Option(help="With `auto`: change to other layers later, where the swarm gains a tenth by it.")
]
Metrics = Annotated[
    str | None, typer.Option(help="Serve Prometheus metrics at this PORT, or HOST:PORT; none: nowhere.")
]
Preview = Annotated[
    bool, typer.Option("--preview", help="Say which layers `auto` would take now, and why; serve nothing.")
]


def node(
    model: Annotated[str, typer.Option(help="Model name or revision; see `paceline pull`.")] = "smollm2-135m-instruct",
    span: Span = "auto",
    swarm: Swarm = None,
    listen: Annotated[str, typer.Option(help="IP address to listen on; 0.0.0.0 for all interfaces.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(help="TCP port of the control plane; 0: any.")] = 0,
    data_port: Annotated[int, typer.Option(help="TCP port of the direct data channel; 0: any.")] = 0,
    announce: Announce = None,
    relay: Relay = None,
    home: Annotated[Path | None, typer.Option(help="Where models and identity lie.", envvar="PACELINE_HOME")] = None,
    name: Annotated[str, typer.Option(help="Which identity of this machine to use.")] = "node",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1; auto: a GPU where there is one.")] = "auto",
    dtype: Numbers = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads for the model; 0: all cores.")] = 0,
    kv_positions: Annotated[int, typer.Option(help="Room for KV in memory, in positions.")] = 65_536,
    weights: WeightsForm = "f32",
    weights_gb: WeightsGb = 0.0,
    tensor_parallel: TensorParallel = 1,
    kv_spilled: KvSpilled = 131_072,
    prefix_mb: PrefixMb = 1024,
    shared_prefixes: SharedPrefixes = False,
    journal_mb: JournalMb = 64,
    journal_disk_mb: JournalDiskMb = 0,
    shadow: Shadow = False,
    link_profile: LinkProfile = None,
    trust: Trust = None,
    follow: Follow = True,
    stale_after: StaleAfter = 600.0,
    upload_mb_s: Annotated[float, typer.Option(help="Most that weights may take of the uplink, MB/s; 0: all.")] = 0.0,
    download_mb_s: Annotated[float, typer.Option(help="Most that fetching weights may take, MB/s; 0: all.")] = 0.0,
    store_gb: StoreGb = 0.0,
    source: Source = "",
    room_gb: RoomGb = 0.0,
    move: Move = False,
    region: Region = "",
    preview: Preview = False,
    metrics: Metrics = None,
    ready_file: Annotated[Path | None, typer.Option(hidden=True)] = None,
    until_stdin_closes: Annotated[bool, typer.Option(hidden=True)] = False,
    crash_on_usr1: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Serve a span of a model from this machine until Ctrl-C.

    Sessions that ride here when you leave are handed over: their text goes on elsewhere, and no token is lost. A second
    Ctrl-C leaves at once.

    Examples:

      paceline node                                        # a new swarm, all layers that fit

      paceline node --swarm /ip4/…/tcp/…/p2p/…             # join one where it is weakest

      paceline node --span 1/3 --swarm /ip4/…/tcp/…/p2p/…  # join one with a third of the layers
    """
    config = _config(locals())
    if preview:
        _preview(config)
    else:
        _serve(config)


def _preview(config: DaemonConfig) -> None:
    from paceline.cli.preview import show

    show(config)


def _config(given: dict[str, Any]) -> DaemonConfig:
    """The options of `node`, resolved. Imports come here, once it is settled what is left out of this process."""
    from paceline.engine.threads import wait_briefly

    wait_briefly()
    # torch and oneDNN keep a compiled product for each number of rows they have met, 0.6 MB each and 1024 by default:
    # a node that met prompts of all lengths grew by hundreds of MB. A new one takes half a millisecond.
    os.environ.setdefault("LRU_CACHE_CAPACITY", "64")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    from paceline.engine import cuda_choice
    from paceline.wire.errors import InvalidRequest

    if given["dtype"] not in ("auto", "f32", "bf16", "f16"):
        raise InvalidRequest(f"dtype {given['dtype']!r}", cure="choose auto, f32, bf16 or f16")
    if given["weights"] not in ("f32", "bf16", "int8", "int4", "fp8"):
        raise InvalidRequest(f"weights {given['weights']!r}", cure="choose f32, bf16, int8, int4 or fp8")
    given["device"] = cuda_choice.resolved(given["device"])
    given["dtype"] = cuda_choice.dtype_on(given["device"], given["dtype"])
    lean = given["device"] == "cpu" and not given["preview"] and "torch" not in sys.modules and _import_lean()
    from paceline.dht.kademlia import written_out
    from paceline.net.host import NetConfig
    from paceline.node.config import NodeConfig
    from paceline.node.daemon import DaemonConfig
    from paceline.store.store import default_root

    home = given["home"] or default_root().parent
    same = ("ready_file", "until_stdin_closes", "shadow", "link_profile", "crash_on_usr1", "metrics", "source")
    return DaemonConfig(
        home=home,
        identity=home / "identities" / given["name"],
        load=_loading(given, home / "kv", lean),
        bootstrap=tuple(given["swarm"] or ()),
        net=NetConfig(
            listen_host=given["listen"],
            control_port=given["port"],
            data_port=given["data_port"],
            announce=tuple(given["announce"] or ()),
            relays=tuple(written_out(given["relay"] or ())),
        ),
        node=NodeConfig(
            agent=f"paceline/{given['name']}",
            region=given["region"],
            upload_bytes_per_s=given["upload_mb_s"] * 1e6,
            shared_prefixes=given["shared_prefixes"],
            journal_bytes=given["journal_mb"] << 20,
            journal_disk_bytes=given["journal_disk_mb"] << 20,
        ),
        trust=tuple(given["trust"] or ()),
        follow=given["follow"],
        stale_after_s=given["stale_after"],
        download_bytes_per_s=given["download_mb_s"] * 1e6,
        store_bytes=int(given["store_gb"] * 1e9),
        room_bytes=given["room_gb"] * 1e9,
        moves=given["move"],
        **{name: given[name] for name in same},
    )


def _loading(given: dict[str, Any], kv_folder: Path, lean: bool) -> LoadConfig:
    """`lean`: this process left modules out; ranks of its span shall, too."""
    from paceline.engine.loading import RANK_MODULE, LoadConfig

    same = ("model", "span", "device", "dtype", "threads", "kv_positions", "kv_spilled", "weights", "tensor_parallel")
    return LoadConfig(
        **{name: given[name] for name in same},
        weights_bytes=int(given["weights_gb"] * 1e9),
        kv_folder=kv_folder,
        prefix_bytes=given["prefix_mb"] << 20,
        rank_module="paceline.node.lean_rank" if lean else RANK_MODULE,
    )


def _serve(config: DaemonConfig) -> None:
    import trio

    from paceline.node import placeholders
    from paceline.node.daemon import serve

    served: list[Node] = []

    def ready(node: Node) -> None:
        served.append(node)
        _say_ready(node)

    try:
        with progress() as report:
            trio.run(serve, config, report, ready)
    except (ExceptionGroup, *placeholders.SYMPTOMS) as error:
        if served or not placeholders.suspected(error):
            raise
        _start_over(error)
    console.print("left the swarm")


def _import_lean() -> bool:
    """Leave out what a span never runs: 250 MB, and half of the start-up time. False where all was asked for."""
    from paceline.engine import lean_imports as engine_rows
    from paceline.engine import memory
    from paceline.net import lean_imports as net_rows
    from paceline.node import placeholders

    memory.few_arenas()
    if _FULL in os.environ:
        return False
    placeholders.install((*engine_rows.ROWS, *net_rows.ROWS), engine_rows.HIDDEN)
    return True


def _start_over(error: Exception) -> NoReturn:
    """A library that wants what was left out shows it while the span loads: begin again with everything."""
    console.print(f"starting over with full imports: {error!r}", soft_wrap=True)
    os.environ[_FULL] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _say_ready(node: Node) -> None:
    service = node.table.services[0]
    address = node.links.address
    joins = " ".join(f"--swarm {control}/p2p/{address.peer}" for control in address.control)
    console.print(
        f"[bold green]serving[/] layers {service.shard.span} of {service.model} as {address.peer}\n"
        f"  decode {service.measured.decode_s * 1e3:.1f} ms a token, numerics {service.shard.numerics}\n"
        f"  join with: paceline node {joins}",
        soft_wrap=True,
    )
