"""Options that several commands have."""

from pathlib import Path
from typing import Annotated, Any

import typer

PASS_ON: dict[str, Any] = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
"""Settings of commands whose flags are read by another parser, which also answers to --help."""

Json = Annotated[bool, typer.Option("--json", help="Write JSON: one object, or one per line.")]
Device = Annotated[str, typer.Option(help="Where the KV pools lie: cpu, cuda or cuda:N.")]
Backend = Annotated[str | None, typer.Option(help="What moves bytes between hosts: DEFAULT, NIXL or UCX.")]
NixlBackend = Annotated[str | None, typer.Option(help="What NIXL stands on: UCX or LIBFABRIC.")]
SameHost = Annotated[str | None, typer.Option(help="Pools of this host: fused, backend (not mapped), off (nor shown).")]
TrtllmConfig = Annotated[Path | None, typer.Option(help="An engine's YAML file of TensorRT-LLM, to be followed.")]
