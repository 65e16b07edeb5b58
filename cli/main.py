"""`paceline …`: the commands, and how they fail: a typed error in one line with its cure, never a traceback.

Commands import what they need when they run, so that `paceline --help` is quick and a client needs no torch.
"""

from __future__ import annotations

from importlib import metadata
from typing import Annotated, cast

import typer

from paceline.cli import (
    bootstrap,
    compare,
    doctor,
    gateway,
    interrupts,
    logs,
    models,
    node,
    owner,
    publish,
    pull,
    service,
    settings,
    status,
    talk,
    top,
    trace,
    up,
)
from paceline.cli.console import fail
from paceline.wire.errors import PacelineError

app = typer.Typer(
    name="paceline",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help=(
        "Run a large language model across machines that nobody owns together.\n\n"
        "Each machine holds a span of the model's layers; a request rides a ring of them. "
        "A machine that leaves costs a pause, not a token.\n\n"
        "**Start here:** `paceline up` runs a swarm of three nodes on this machine; "
        "then `paceline chat` in another terminal."
    ),
)
app.command("up")(up.up)
app.command("node")(node.node)
app.command("bootstrap")(bootstrap.bootstrap)
app.command("generate")(talk.generate)
app.command("chat")(talk.chat)
app.command("compare")(compare.compare)
app.command("status")(status.status)
app.command("route")(status.route)
app.command("top")(top.top)
app.command("trace")(trace.trace)
app.command("doctor")(doctor.doctor)
app.command("pull")(pull.pull)
app.command("publish")(publish.publish)
app.command("trust")(models.trust)
app.command("gateway")(gateway.gateway)
app.command("pause")(owner.pause)
app.command("resume")(owner.resume)
app.command("throttle")(owner.throttle)
app.command("hours")(owner.hours)
app.add_typer(models.app, name="models")
app.add_typer(service.app, name="service")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(metadata.version("paceline"))
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
    log: Annotated[
        str | None, typer.Option(help="Append a line of JSON for each event to this file; - is standard error.")
    ] = None,
) -> None:
    """Options of `paceline` itself. The help text is the app's."""
    if log is not None:
        logs.log_to(log)


def run() -> None:
    """The whole command. Exit status: 0 done, 1 a typed error, 2 wrong usage, 130 interrupted."""
    try:
        command = typer.main.get_command(app)
        given = settings.settings(cast(settings.Group, command))
        command(prog_name="paceline", default_map=given, auto_envvar_prefix=settings.PREFIX)
    except PacelineError as error:
        fail(error)
    except KeyboardInterrupt:
        interrupts.end()
    except BaseExceptionGroup as group:
        leaves = _leaves(group)
        typed = [error for error in leaves if isinstance(error, PacelineError)]
        if typed and len(typed) == len(leaves):
            fail(typed[0])
        if all(isinstance(error, KeyboardInterrupt) for error in leaves):
            interrupts.end()
        raise


def _leaves(group: BaseExceptionGroup) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
