"""From what a control was told to its configuration.

A wrong key, a wrong value or a missing file is refused with the key's full name, its value, and for an unknown key the
nearest known one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kvferry.config.files import check_names, read_mapping
from kvferry.config.nearest import unknown
from kvferry.config.settings import Settings, read_settings
from kvferry.config.trtllm import control_layer
from kvferry.config.trtllm_file import engine_of
from kvferry.config.values import Layer, Source, Value
from kvferry.core.checksums.shares import every_of
from kvferry.core.errors import ConfigInvalid, InvalidArgument
from kvferry.rpc.addresses import check_address
from kvferry_control.config import ControlConfig
from kvferry_control.config_keys import PROGRAM, RANK_KEYS, RANKS

_NAMES = {key.name for key in PROGRAM.keys}


def control_settings(arguments: Sequence[str] | None, environment: Mapping[str, str]) -> Settings:
    """Read what a control is told; ``arguments`` None: this process's.

    Raises:
        ConfigInvalid: a file cannot be read, or something is not known.
    """
    return read_settings(PROGRAM, arguments, environment, _engine_layer)


def config_of(settings: Settings) -> ControlConfig:
    """Check the values.

    Raises:
        ConfigInvalid: names the key, its value and where that came from.
    """
    settings.check_required()
    values: dict[str, Any] = {}
    for name, value in settings.values.items():
        if value.origin.source is not Source.DEFAULT:
            section, _, key = name.rpartition(".")
            holder = values.setdefault(section, {}) if section else values
            holder[key] = value.raw
    try:
        return _checked(values)
    except ConfigInvalid as error:
        raise settings.blame(error) from error


def load_config(path: Path) -> ControlConfig:
    """Read and check a configuration file by itself.

    Raises:
        ConfigInvalid: the file cannot be read, is neither TOML nor YAML, or a key in it is wrong.
    """
    return parse_config(read_mapping(path, "--config"))


def parse_config(values: Mapping[str, Any]) -> ControlConfig:
    """Check values that were read from somewhere.

    Raises:
        ConfigInvalid: names the key and its value.
    """
    check_names(values, _NAMES)
    return _checked(values)


def _engine_layer(given: Mapping[str, Value], _: Mapping[str, str]) -> Layer:
    return control_layer(engine_of(given), given)


def _checked(values: Mapping[str, Any]) -> ControlConfig:
    try:
        config = ControlConfig.model_validate({**values, **_ranks(values)})
    except ValidationError as error:
        raise _explain(error) from error
    check_address("worker.listen", config.worker.listen)
    if config.worker.advertise is not None:
        check_address("worker.advertise", config.worker.advertise)
    if config.metrics is not None:
        check_address("metrics.listen", config.metrics.listen)
    try:
        every_of("transfers.verify", config.transfers.verify)
    except InvalidArgument as error:
        raise ConfigInvalid(error.message, metadata=error.metadata) from error
    _ = config.transfers.floor
    _check_timeouts(config)
    sockets = [rank.socket for rank in config.ranks]
    for index, socket in enumerate(sockets):
        if socket in sockets[:index]:
            raise ConfigInvalid.of_field(f"ranks[{index}].socket", socket, "listed twice")
    return config


def _check_timeouts(config: ControlConfig) -> None:
    wanted, bound = config.transfers.timeout_s, config.limits.timeout_s
    if wanted > bound and "timeout_s" in config.transfers.model_fields_set:
        raise ConfigInvalid.of_field("transfers.timeout_s", wanted, f"is more than limits.timeout_s, {bound:g}")


def _ranks(values: Mapping[str, Any]) -> dict[str, Any]:
    """Ranks as tables, where they were given as sockets alone."""
    ranks = values.get(RANKS)
    if not isinstance(ranks, list):
        return {}
    return {RANKS: [{"socket": rank} if isinstance(rank, str) else rank for rank in ranks]}


def _explain(error: ValidationError) -> ConfigInvalid:
    first = error.errors()[0]
    key = _dotted(first["loc"])
    if first["type"] == "extra_forbidden":
        named = unknown(".".join(part for part in first["loc"] if isinstance(part, str)), _NAMES | RANK_KEYS, "key")
        return ConfigInvalid(named.message, metadata={"field": key})
    if first["type"] == "missing":
        return ConfigInvalid.of_field(key, "(missing)", "is required")
    return ConfigInvalid.of_field(key, first["input"], str(first["msg"]))


def _dotted(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")
