"""A value that was read, and where."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Source(StrEnum):
    """The kinds of places that values come from."""

    FLAG = "flag"
    ENVIRONMENT = "environment"
    FILE = "file"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from."""

    source: Source
    name: str = ""
    """The flag, the variable, or the key in the file; nothing for a default."""
    path: str = ""
    """Of the file."""

    def __str__(self) -> str:
        match self.source:
            case Source.FLAG:
                return f"flag {self.name}"
            case Source.ENVIRONMENT:
                return f"environment {self.name}"
            case Source.FILE:
                return f"file {self.path}: {self.name}"
        return "default"


DEFAULT = Origin(Source.DEFAULT)


@dataclass(frozen=True, slots=True)
class Value:
    """What was read for a key, as it was written there."""

    raw: object
    origin: Origin


@dataclass(frozen=True, slots=True)
class Layer:
    """Values by the names of their keys, and what is to be said about where they came from."""

    values: Mapping[str, Value] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
