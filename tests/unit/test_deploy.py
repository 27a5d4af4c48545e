"""What lies in deploy/ is understood by the programs that it is for."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from kvferry_control.config import ControlConfig, Role
from kvferry_control.config_reading import load_config, parse_config

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
EXAMPLE = DEPLOY / "control.example.toml"
_OPTIONAL_KEY = re.compile(r"^#(?=[a-z_]+ = )", re.MULTILINE)


def everything_on() -> dict[str, Any]:
    """The example with its optional keys set."""
    return tomllib.loads(_OPTIONAL_KEY.sub("", EXAMPLE.read_text()))


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a parsed file; all entries of a list of tables count as one."""
    for key, value in values.items():
        tables = value if isinstance(value, list) and value and isinstance(value[0], dict) else [value]
        for table in tables:
            if isinstance(table, dict):
                yield from leaves(table, f"{prefix}{key}.")
            else:
                yield prefix + key, table


def fields(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of all settings of the model, with their defaults."""
    for name, field in section.model_fields.items():
        candidates = (field.annotation, *getattr(field.annotation, "__args__", ()))
        inner = [each for each in candidates if isinstance(each, type) and issubclass(each, BaseModel)]
        if inner:
            yield from fields(inner[0], f"{prefix}{name}.")
        else:
            yield prefix + name, field.default


def test_the_example_is_a_valid_configuration() -> None:
    """The example starts a control as it stands."""
    assert load_config(EXAMPLE).worker.name == "decode-0"


def test_the_example_names_every_key() -> None:
    """Every key that control knows is in the example, set or as an optional line, and no other."""
    assert sorted(dict(leaves(everything_on()))) == sorted(dict(fields(ControlConfig)))
    parse_config(everything_on())


def test_the_example_shows_the_defaults() -> None:
    """An optional line whose key has a default shows that default."""
    written, known = dict(leaves(tomllib.loads(EXAMPLE.read_text()))), dict(fields(ControlConfig))
    shown = {key: value for key, value in leaves(everything_on()) if key not in written and known[key] is not None}
    # TOML has lists alone.
    defaults = {key: list(value) if isinstance(value, tuple) else value for key, value in known.items()}
    assert shown == {key: defaults[key] for key in shown}
    assert {"etcd.lease_ttl_s", "limits.active_transfers", "log.level"} <= shown.keys()


@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
def test_the_workers_of_the_compose_file_are_valid(role: Role) -> None:
    """The compose file's worker of each role has a configuration that control takes."""
    assert load_config(DEPLOY / "workers" / f"{role}.toml").worker.role is role
