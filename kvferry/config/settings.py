"""All values of a process, each with its origin."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvferry.config.files import read_values
from kvferry.config.flags import Program, read_flags
from kvferry.config.keys import Key
from kvferry.config.values import DEFAULT, Layer, Origin, Source, Value
from kvferry.config.variables import values_of_environment
from kvferry.core.errors import ConfigInvalid

Lowest = Callable[[Mapping[str, Value], Mapping[str, str]], Layer]
"""Finds what holds below the file and above the defaults, from what is set above and from the environment."""

_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a process was told."""

    keys: tuple[Key, ...]
    values: Mapping[str, Value]
    """By the names of the keys, defaults included; a key that has no value is left out."""
    notes: tuple[str, ...]
    """What was found and has no effect, or another one than one might think."""
    ready_fd: int | None

    def text(self, name: str) -> str | None:
        """The value of a key as text; None if it has none.

        Raises:
            ConfigInvalid: it is neither text nor a number.
        """
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value.raw, bool) or not isinstance(value.raw, str | int | float):
            raise ConfigInvalid.of_field(name, value.raw, "must be text or a number")
        return str(value.raw)

    def needed(self, name: str) -> str:
        """The value of a key that is required or has a default, as text. Raises ConfigInvalid as :meth:`text`."""
        text = self.text(name)
        assert text is not None
        return text

    def origin(self, name: str) -> Origin:
        """Where the value of a key came from; that of a key without one is the default."""
        value = self.values.get(name)
        return DEFAULT if value is None else value.origin

    def check_required(self) -> None:
        """Raise ConfigInvalid if a key has no value that needs one."""
        for key in self.keys:
            if key.required and key.name not in self.values:
                why = f"is required: {key.flag}, {key.variable}, or {key.name} in the file"
                raise ConfigInvalid.of_field(key.name, "(missing)", why)

    def blame(self, error: ConfigInvalid) -> ConfigInvalid:
        """``error`` about a key, with the place where its value was set."""
        origin = self.origin(error.metadata.get("field", "").partition("[")[0])
        if origin.source is Source.DEFAULT:
            return error
        metadata = {**error.metadata, "origin": str(origin)}
        return ConfigInvalid(f"{error.message} (from {origin})", reason=error.reason, metadata=metadata)

    def shown(self) -> Iterator[tuple[Key, str | None, Origin]]:
        """Every key, its value as text (None where it has none) and its origin. Passwords in addresses are hidden."""
        for key in self.keys:
            value = self.values.get(key.name)
            yield key, None if value is None else _shown(value.raw), self.origin(key.name)

    def logged(self) -> dict[str, str]:
        """What is not as it is by default, for the log."""
        return {
            key.name: f"{text} ({origin})" for key, text, origin in self.shown() if origin.source is not Source.DEFAULT
        }


def read_settings(
    program: Program, arguments: Sequence[str] | None, environment: Mapping[str, str], lowest: Lowest
) -> Settings:
    """Read the command line, the environment and the files. Whether the values are right is not looked at.

    Raises:
        ConfigInvalid: a file cannot be read, or something is not known.
    """
    flags = read_flags(program, arguments)
    file = {} if flags.config is None else read_values(flags.config, program.keys)
    given = file | values_of_environment(environment, program.keys) | flags.values
    below = lowest(given, environment)
    defaults = {key.name: Value(key.default, DEFAULT) for key in program.keys if key.default is not None}
    return Settings(program.keys, {**defaults, **below.values, **given}, below.notes, flags.ready_fd)


def _shown(raw: object) -> str:
    match raw:
        case list() | tuple():
            return ", ".join(_shown(each) for each in raw)
        case dict():
            return ", ".join(_shown(each) for each in raw.values())
        case bool():
            return str(raw).lower()
        case Path() | str() | int() | float():
            return _CREDENTIALS.sub("...", str(raw))
    return str(raw)
