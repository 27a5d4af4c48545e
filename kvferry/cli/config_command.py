"""``kvferry config``: the command group; what it does is imported when it is called."""
# ruff: noqa: PLC0415 - as in kvferry.cli.main

from enum import StrEnum
from typing import Annotated

import typer

from kvferry.cli.options import PASS_ON, Json

config = typer.Typer(help="Look at how a process is configured.", no_args_is_help=True)


class Process(StrEnum):
    """A process that has a configuration."""

    CONTROL = "control"
    DATA_PLANE = "dataplane"


@config.callback()
def _group() -> None:
    """Look at how a process is configured."""


@config.command("show", context_settings=PASS_ON)
def show(
    context: typer.Context,
    process: Annotated[Process, typer.Argument(help="Whose: control or dataplane; its flags follow.")],
    json_output: Json = False,
) -> None:
    """Show every value of a control or a data plane that were started so, here, and where it comes from.

    Flags, environment and files are read as `kvferry control` and `kvferry dataplane` read them.
    Exit status 2 if the process would refuse to start.
    """
    from kvferry.cli import config as command
    from kvferry.cli.running import reported_errors

    with reported_errors():
        command.show(process.value, context.args, json_output=json_output)
