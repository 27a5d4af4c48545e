"""The flags of a process: one for each key, and those that are for its start alone."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvferry.config.keys import Key
from kvferry.config.nearest import unknown
from kvferry.config.values import Origin, Source, Value
from kvferry.core.errors import ConfigInvalid

_CONFIG = "--config"
_READY_FD = "--ready-fd"


@dataclass(frozen=True, slots=True)
class Program:
    """A process that is configured."""

    name: str
    """As it is called, for example ``kvferry control``."""
    description: str
    keys: tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class Flags:
    """A command line."""

    values: dict[str, Value]
    config: Path | None
    """The configuration file."""
    ready_fd: int | None
    """The descriptor that hears of it when the process serves."""


def read_flags(program: Program, arguments: Sequence[str] | None) -> Flags:
    """Read a command line; None: that of this process.

    Raises:
        ConfigInvalid: a flag is not known.
        SystemExit: the help was asked for, or a flag lacks its value.
    """
    parsed, rest = _parser(program).parse_known_args(arguments)
    if rest:
        name = rest[0].partition("=")[0]
        if not name.startswith("-"):
            raise ConfigInvalid(f"{name}: unexpected argument", metadata={"field": name})
        raise unknown(name, [*(key.flag for key in program.keys), _CONFIG, _READY_FD], "flag")
    given = vars(parsed)
    values = {
        key.name: Value(key.of_text(given[key.name]), Origin(Source.FLAG, key.flag))
        for key in program.keys
        if key.name in given
    }
    return Flags(values, given.get(_CONFIG), given.get(_READY_FD))


def _descriptor(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError("must be the number of a descriptor")
    return int(text)


def _parser(program: Program) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program.name,
        description=f"{program.description} A flag goes before the variable in brackets, that before the file.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument(_CONFIG, dest=_CONFIG, type=Path, metavar="FILE", help="TOML or YAML, by its suffix")
    for key in program.keys:
        parser.add_argument(key.flag, dest=key.name, metavar=key.metavar, help=f"{key.help} [{key.variable}]")
    parser.add_argument(
        _READY_FD, dest=_READY_FD, type=_descriptor, metavar="N", help="descriptor to write to when serving"
    )
    return parser
