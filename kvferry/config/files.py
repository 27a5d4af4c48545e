"""Reads configuration files: TOML or YAML, by their suffix."""

import re
import tomllib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from kvferry.config.keys import Key
from kvferry.config.nearest import unknown
from kvferry.config.values import Origin, Source, Value
from kvferry.core.errors import ConfigInvalid

FILE_BYTES_MAX = 1 << 20


class _Loader(yaml.SafeLoader):
    """YAML whose words mean what they say: ``off`` is a word and ``10:30`` is none of the numbers."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as the library declares it
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in ("null", "merge")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        """Refuse a key that stands twice: only one of its values would count."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)\Z", "tTfF"),
    ("int", r"[-+]?[0-9]+\Z", "-+0123456789"),
    ("float", r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?\Z", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def read_values(path: Path, keys: Sequence[Key], field: str = "--config") -> dict[str, Value]:
    """The values of a configuration file by the names of their keys; ``field`` is what named the file.

    Raises:
        ConfigInvalid: the file cannot be read, is neither TOML nor YAML, or has a key that is not known.
    """
    known = {key.name for key in keys}
    return {
        name: Value(raw, Origin(Source.FILE, name, str(path))) for name, raw in flat(read_mapping(path, field), known)
    }


def read_mapping(path: Path, field: str) -> Mapping[str, object]:
    """What a TOML or YAML file holds.

    Raises:
        ConfigInvalid: it cannot be read, is larger than ``FILE_BYTES_MAX``, or is no such file.
    """
    text = read_text(path, field)
    match path.suffix.lower():
        case ".toml":
            return _parsed_toml(path, text, field)
        case ".yaml" | ".yml":
            return parsed_yaml(path, text, field, _Loader)
    raise ConfigInvalid.of_field(field, str(path), "its name must end in .toml, .yaml or .yml")


def read_text(path: Path, field: str) -> str:
    """The text of a file of at most ``FILE_BYTES_MAX`` bytes.

    Raises:
        ConfigInvalid: it cannot be read, or is larger.
    """
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
        text = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigInvalid.of_field(field, str(path), f"cannot be read: {error}") from error
    if len(content) > FILE_BYTES_MAX:
        raise ConfigInvalid.of_field(field, str(path), f"is larger than {FILE_BYTES_MAX} bytes")
    return text


def parsed_yaml(path: Path, text: str, field: str, loader: type[yaml.SafeLoader]) -> Mapping[str, object]:
    """What YAML holds; nothing is no keys.

    Raises:
        ConfigInvalid: it is no YAML, or not a mapping.
    """
    try:
        loaded = yaml.load(text, loader)  # noqa: S506 - a subclass of the safe loader
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigInvalid.of_field(field, str(path), f"is not YAML: {' '.join(str(error).split())}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigInvalid.of_field(field, str(path), "must hold keys and values")
    return loaded


def flat(values: Mapping[str, object], known: set[str], section: str = "") -> Iterator[tuple[str, object]]:
    """Names with their sections, and values; a key without a value counts as not set.

    Raises:
        ConfigInvalid: a name is not known.
    """
    for key, raw in values.items():
        name = f"{section}{key}"
        is_section = any(each.startswith(f"{name}.") for each in known)
        if name in known:
            if raw is not None:
                yield name, raw
        elif is_section and isinstance(raw, Mapping):
            yield from flat(raw, known, f"{name}.")
        elif is_section and raw is not None:
            raise ConfigInvalid.of_field(name, raw, "must be a section")
        elif not is_section:
            raise unknown(name, known | sections_of(known), "key")


def check_names(values: Mapping[str, object], known: set[str]) -> None:
    """Raise ConfigInvalid if a name is not known, or a section is none."""
    list(flat(values, known))


def sections_of(known: set[str]) -> set[str]:
    """The sections that names stand in."""
    return {name.rpartition(".")[0] for name in known} - {""}


def _parsed_toml(path: Path, text: str, field: str) -> Mapping[str, object]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigInvalid.of_field(field, str(path), f"is not TOML: {error}") from error
